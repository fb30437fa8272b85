//! One kept connection to a peer, over any network. Both ends have proven what they are before it is used.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite, FutureExt};

use super::peer::{IdentityError, NodeInfo, PeerError};
use crate::config::PeerAddress;
use crate::http1::{ClientConnection, ClientRequest, ClientStep, Method};
use crate::limits::{CLOCK_AHEAD_MAX, HANDSHAKE_BODY_BYTES_MAX, PEER_BODY_BYTES_MAX};
use crate::model::Timestamp;
use crate::service::NodeAuth;
use crate::service::exchange::{
    ENTRIES_HEADER, FEDERATED, HORIZON_HEADER, INSTANCE_HEADER, MODE_HEADER, NODE_HEADER, SALT_HEADER,
    decode_horizon,
};
use crate::service::node_auth::{
    AUTH_HEADER, Barrier, CHALLENGE_HEADER, Challenge, IDENTITY_HEADERS, NodeCredentials, PROOF_HEADER,
    SharedKey, TOKEN_HEADER, signed_answer,
};
use crate::tls::PeerTlsError;

/// How long a health check may take, with everything that comes before it.
pub(super) const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the cluster needs of the world: the runtime's sockets and timers, or a test's.
pub trait Network: 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin;

    /// Resolves the name anew and connects. An error may hold a [`Distrust`].
    fn connect(&self, address: &PeerAddress) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Whether a connection that was made now would be one of the same kind: one with a certificate that was
    /// replaced is not to be kept.
    fn is_current(&self, _stream: &Self::Stream) -> bool {
        true
    }

    /// Waits.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64;
}

/// What to ask.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) target: &'a str,
    pub(super) body: &'a [u8],
    pub(super) timeout: Duration,
}

/// The connection to one peer.
pub(super) struct Transport<N: Network> {
    address: PeerAddress,
    host: String,
    auth: Arc<NodeAuth>,
    /// Random number of the process that was found by the last health check. What another node says at the same
    /// address does not count as said by that one.
    expected: Option<u64>,
    kept: Option<PeerConnection<N::Stream>>,
}

/// A connection to a node that has proven to be one of this cluster.
struct PeerConnection<S> {
    wire: Wire<S>,
    credentials: Arc<NodeCredentials>,
    server: Challenge,
    token: String,
    node: NodeInfo,
}

struct Wire<S> {
    stream: S,
    connection: ClientConnection,
    host: String,
}

/// An answer of a peer.
struct Response {
    status: u16,
    /// Those of a health check.
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    keeps_alive: bool,
}

impl<N: Network> Transport<N> {
    /// Without an `expected` process and without a health check, each node of this cluster is a right one.
    pub(super) fn new(address: PeerAddress, auth: Arc<NodeAuth>, expected: Option<u64>) -> Self {
        let host = address.to_string();
        Self { address, host, auth, expected, kept: None }
    }

    /// Sends a request, on the kept connection if there is one, and returns the body of the answer. All that nodes
    /// ask may be asked twice.
    pub(super) async fn call(&mut self, network: &N, request: &Request<'_>) -> Result<Vec<u8>, PeerError> {
        let expected = self.expected;
        let exchange = async {
            let is_other =
                |line: &PeerConnection<_>| expected.is_some_and(|instance| instance != line.node.instance);
            if let Some(line) = self.take_kept(network).filter(|line| !is_other(line)) {
                match self.ask(network, line, request).await {
                    // A new connection tells whether it was this one alone; the peer may have other keys by now.
                    Err(PeerError::Unreachable | PeerError::Distrust(_) | PeerError::Identity(_)) => {}
                    outcome => return outcome,
                }
            }
            let line = self.open(network).await?;
            if is_other(&line) {
                self.kept = Some(line);
                return Err(PeerError::OtherNode);
            }
            self.ask(network, line, request).await
        };
        in_time(network, request.timeout, exchange).await
    }

    /// Asks the peer what it is: a health check.
    pub(super) async fn introduce(&mut self, network: &N) -> Result<NodeInfo, PeerError> {
        let exchange = async {
            let mut found = None;
            if let Some(mut line) = self.take_kept(network)
                && line.introduce(network.now_ms()).await.is_ok()
            {
                found = Some(line);
            }
            let line = match found {
                Some(line) => line,
                None => self.open(network).await?,
            };
            self.expected = Some(line.node.instance);
            Ok(self.kept.insert(line).node.clone())
        };
        in_time(network, HEALTH_TIMEOUT, exchange).await
    }

    /// Resolves when the kept connection is over, and gives it up: the peer waits for that when it stops. A peer that
    /// sends without having been asked is none. Pending while no connection is kept.
    pub(super) fn poll_over(&mut self, context: &mut std::task::Context<'_>) -> Poll<()> {
        let Some(line) = &mut self.kept else { return Poll::Pending };
        let over = Pin::new(&mut line.wire.stream).poll_read(context, &mut [0; 1]).map(|_| ());
        if over.is_ready() {
            self.kept = None;
        }
        over
    }

    /// Whether a connection is kept.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Gives up the connection: the next call resolves the name again.
    pub(super) fn close(&mut self) {
        self.kept = None;
    }

    /// The kept connection, unless a new one would be of another kind. It is gone if it is not put back.
    fn take_kept(&mut self, network: &N) -> Option<PeerConnection<N::Stream>> {
        let line = self.kept.take()?;
        let is_current = network.is_current(&line.wire.stream) && self.auth.is_current(&line.credentials);
        is_current.then_some(line)
    }

    async fn ask(
        &mut self,
        network: &N,
        mut line: PeerConnection<N::Stream>,
        request: &Request<'_>,
    ) -> Result<Vec<u8>, PeerError> {
        let headers = [("content-type", "application/json"), (TOKEN_HEADER, &*line.token)];
        let answer = line.wire.exchange(network.now_ms(), request, &headers).await?;
        match answer.status {
            403 => return Err(PeerError::Identity(IdentityError::refused(line.credentials.shared()))),
            // With any other answer the next call resolves the name again.
            200 | 409 | 503 if answer.keeps_alive => self.kept = Some(line),
            _ => {}
        }
        match answer.status {
            200 => Ok(answer.body),
            409 => Err(PeerError::SaltDiffers),
            _ => Err(PeerError::Refused),
        }
    }

    /// Connects, and finds out whether a node of this cluster answers. Until it has proven that, it gets to see
    /// nothing that is made of a secret.
    async fn open(&self, network: &N) -> Result<PeerConnection<N::Stream>, PeerError> {
        let stream = network.connect(&self.address).await.map_err(|error| failure(&error))?;
        let connection = ClientConnection::new(HANDSHAKE_BODY_BYTES_MAX);
        let mut wire = Wire { stream, connection, host: self.host.clone() };
        let credentials = self.auth.credentials();
        let client = Challenge::random();
        let headers = [(CHALLENGE_HEADER, &*client.to_string())];
        let answer = wire.exchange(network.now_ms(), &HEALTH_CHECK, &headers).await?;
        let server = answer.header(CHALLENGE_HEADER).and_then(|text| Challenge::parse(text.as_bytes()));
        let theirs = answer.header(AUTH_HEADER).and_then(|name| SharedKey::parse(name.as_bytes()));
        match answer.header(AUTH_HEADER).and_then(|name| Barrier::parse(name.as_bytes())) {
            Some(Barrier::Certificate) => return Err(PeerError::Distrust(PeerTlsError::NotANode)),
            Some(Barrier::OtherPort) => return Err(PeerError::Identity(IdentityError::OtherPort)),
            None => {}
        }
        let (Some(server), Some(theirs)) = (server, theirs) else {
            return Err(match answer.status {
                400 | 408 | 429 | 500.. => PeerError::Refused,
                _ => PeerError::Identity(IdentityError::Unproven),
            });
        };
        if let Some(error) = IdentityError::of_kinds(credentials.shared(), theirs) {
            return Err(PeerError::Identity(error));
        }
        if theirs.resists_guessing() && !answer.is_proven(&credentials, client, server) {
            return Err(PeerError::Identity(match theirs {
                SharedKey::Secret => IdentityError::SecretDiffers,
                SharedKey::ApiKey | SharedKey::Nothing => IdentityError::Unproven,
            }));
        }
        if !answer.keeps_alive {
            return Err(PeerError::Unreachable);
        }
        let token = credentials.token(server);
        let mut line = PeerConnection { wire, credentials, server, token, node: NodeInfo::default() };
        line.introduce(network.now_ms()).await?;
        line.wire.connection.set_body_bytes_max(PEER_BODY_BYTES_MAX);
        Ok(line)
    }
}

const HEALTH_CHECK: Request<'static> =
    Request { method: Method::Get, target: "/cluster/health", body: b"", timeout: HEALTH_TIMEOUT };

impl<S: AsyncRead + AsyncWrite + Unpin> PeerConnection<S> {
    /// Asks the node what it is.
    async fn introduce(&mut self, now_ms: u64) -> Result<(), PeerError> {
        let client = Challenge::random();
        let headers = [(CHALLENGE_HEADER, &*client.to_string()), (TOKEN_HEADER, &*self.token)];
        let answer = self.wire.exchange(now_ms, &HEALTH_CHECK, &headers).await?;
        match answer.status {
            200 if answer.is_proven(&self.credentials, client, self.server) => {}
            200 => return Err(PeerError::Identity(IdentityError::Unproven)),
            403 => return Err(PeerError::Identity(IdentityError::refused(self.credentials.shared()))),
            _ => return Err(PeerError::Refused),
        }
        self.node = answer.introduction().ok_or(PeerError::Malformed)?;
        if answer.keeps_alive { Ok(()) } else { Err(PeerError::Unreachable) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// One request and its answer. After an error the connection is of no use any more.
    async fn exchange(
        &mut self,
        now_ms: u64,
        request: &Request<'_>,
        headers: &[(&str, &str)],
    ) -> Result<Response, PeerError> {
        let Self { stream, connection, host } = self;
        let Request { method, target, body, .. } = *request;
        connection.call(&ClientRequest { method, target, host, headers, body }, now_ms, u64::MAX);
        loop {
            match connection.step() {
                ClientStep::Response => break,
                ClientStep::Failed(_) => return Err(PeerError::Unreachable),
                ClientStep::Read => transfer(stream, connection).await?,
            }
        }
        let status = connection.status();
        let wanted = IDENTITY_HEADERS.into_iter().chain([CHALLENGE_HEADER, AUTH_HEADER, PROOF_HEADER]);
        let text = |name| Some((name, String::from_utf8_lossy(connection.header(name)?).into_owned()));
        let headers = wanted.filter_map(text).collect();
        let body = connection.take_body();
        Ok(Response { status, headers, body, keeps_alive: connection.finish() })
    }
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| &**value)
    }

    fn is_proven(&self, credentials: &NodeCredentials, client: Challenge, server: Challenge) -> bool {
        let signed = signed_answer(|name| self.header(name), &self.body);
        let proof = self.header(PROOF_HEADER);
        proof.is_some_and(|proof| credentials.verify(proof.as_bytes(), client, server, &signed))
    }

    /// What the node says of itself; `None` if that is incomplete.
    fn introduction(&self) -> Option<NodeInfo> {
        let hexadecimal = |name| u64::from_str_radix(self.header(name)?, 16).ok();
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let latest = Timestamp::now().later(CLOCK_AHEAD_MAX);
        Some(NodeInfo {
            name: body["node_id"].as_str().unwrap_or_default().to_owned(),
            instance: hexadecimal(INSTANCE_HEADER)?,
            node: self.header(NODE_HEADER).and_then(|text| text.parse().ok()),
            is_federated: self.header(MODE_HEADER) == Some(FEDERATED),
            salt: hexadecimal(SALT_HEADER),
            has_entries: self.header(ENTRIES_HEADER) == Some("true"),
            horizon: self.header(HORIZON_HEADER).and_then(decode_horizon)?.at_most(latest),
        })
    }
}

async fn in_time<N: Network, T>(
    network: &N,
    timeout: Duration,
    exchange: impl Future<Output = Result<T, PeerError>>,
) -> Result<T, PeerError> {
    let timeout = async {
        network.sleep(timeout).await;
        Err(PeerError::Unreachable)
    };
    exchange.or(timeout).await
}

/// A peer that wants another certificate says so only when the connection is there, in TLS 1.3.
fn failure(error: &io::Error) -> PeerError {
    PeerTlsError::of(error).map_or(PeerError::Unreachable, PeerError::Distrust)
}

/// Moves bytes in whichever direction they can move.
async fn transfer<S>(stream: &mut S, connection: &mut ClientConnection) -> Result<(), PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|context| {
        while !connection.output().is_empty() {
            match Pin::new(&mut *stream).poll_write(context, connection.output()) {
                Poll::Ready(Ok(count)) if count > 0 => connection.wrote(count),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(PeerError::Unreachable)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(failure(&error))),
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut *stream).poll_read(context, connection.read_space()) {
            Poll::Ready(Ok(0)) => connection.received_eof(),
            Poll::Ready(Ok(count)) => connection.received(count),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(failure(&error))),
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    })
    .await
}
