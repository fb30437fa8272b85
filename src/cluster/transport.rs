//! Persistent connection to a peer, over any network. Both ends authenticate each other before it is used.

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
use crate::limits::{HANDSHAKE_BODY_BYTES_MAX, PEER_BODY_BYTES_MAX, PEER_HEALTH_TIMEOUT};
use crate::model::Timestamp;
use crate::service::NodeAuth;
use crate::service::node_auth::{Barrier, Challenge, NodeCredentials, SharedKey, signed_response};
use crate::tls::PeerTlsError;
use crate::wire::replication::decode_horizon;
use crate::wire::{FEDERATED, Message, Protocol, header, path};

/// Sockets and timers of the cluster: those of the runtime, or those of a test.
pub trait Network: 'static {
    /// Connection to a peer.
    type Stream: AsyncRead + AsyncWrite + Unpin;

    /// Resolves the name again and connects. [`PeerTlsError::of`] recognises errors that are due to TLS.
    fn connect(&self, address: &PeerAddress) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Returns whether a new connection would use the same TLS configuration: a connection is not kept once its
    /// certificates have been replaced.
    fn is_current(&self, _stream: &Self::Stream) -> bool {
        true
    }

    /// Resolves after this time.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Returns the time of a monotonic clock, in milliseconds.
    fn now_ms(&self) -> u64;
}

/// Transport to one peer, with at most one kept connection.
pub(super) struct Transport<N: Network> {
    address: PeerAddress,
    host: String,
    auth: Arc<NodeAuth>,
    /// Random number of the process that replied to the last health check. A reply of another process at the same
    /// address is not credited to it.
    expected: Option<u64>,
    kept: Option<PeerConnection<N::Stream>>,
    /// Wall clock of the peer as of its last response.
    peer_time: Option<Timestamp>,
}

/// Connection to a node that has been authenticated as a member of this cluster.
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

/// HTTP response of a peer.
struct Response {
    status: u16,
    /// Headers of a health check.
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    keeps_alive: bool,
}

impl<N: Network> Transport<N> {
    /// Creates a transport without a connection. If `expected` is `None`, any node of this cluster is accepted until
    /// the first health check.
    pub(super) fn new(address: PeerAddress, auth: Arc<NodeAuth>, expected: Option<u64>) -> Self {
        let host = address.to_string();
        Self { address, host, auth, expected, kept: None, peer_time: None }
    }

    /// Sends a request, on the kept connection if there is one, and returns the body of the response. Every inter-node
    /// request may be repeated, so one that failed on the kept connection is sent again on a new one.
    pub(super) async fn call(
        &mut self,
        network: &N,
        message: &Message<'_>,
        timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let expected = self.expected;
        let exchange = async {
            let is_other = |connection: &PeerConnection<_>| {
                expected.is_some_and(|instance| instance != connection.node.instance)
            };
            if let Some(connection) = self.take_kept(network).filter(|kept| !is_other(kept)) {
                match self.send(network, connection, message).await {
                    // A new connection shows whether only this one failed; the peer may have other keys by now.
                    Err(PeerError::Unreachable | PeerError::Distrust(_) | PeerError::Identity(_)) => {}
                    outcome => return outcome,
                }
            }
            let connection = self.open(network).await?;
            if is_other(&connection) {
                self.kept = Some(connection);
                return Err(PeerError::OtherNode);
            }
            self.send(network, connection, message).await
        };
        with_timeout(network, timeout, exchange).await
    }

    /// Performs a health check: requests the peer's description of itself.
    pub(super) async fn check_health(&mut self, network: &N) -> Result<NodeInfo, PeerError> {
        let exchange = async {
            let mut usable = None;
            if let Some(mut connection) = self.take_kept(network)
                && connection.check_health(network.now_ms()).await.is_ok()
            {
                usable = Some(connection);
            }
            let connection = match usable {
                Some(connection) => connection,
                None => self.open(network).await?,
            };
            self.expected = Some(connection.node.instance);
            Ok(self.kept.insert(connection).node.clone())
        };
        with_timeout(network, PEER_HEALTH_TIMEOUT, exchange).await
    }

    /// Resolves when the peer has closed the kept connection, and drops it: a peer that stops waits for that. A peer
    /// that sends data without a request violates the protocol, and its connection is dropped, too. Pending while no
    /// connection is kept.
    pub(super) fn poll_closed(&mut self, context: &mut std::task::Context<'_>) -> Poll<()> {
        let Some(connection) = &mut self.kept else { return Poll::Pending };
        let over = Pin::new(&mut connection.wire.stream).poll_read(context, &mut [0; 1]).map(|_| ());
        if over.is_ready() {
            self.kept = None;
        }
        over
    }

    /// Returns the wall clock of the peer as of its last response, in whole seconds; `None` if it sent none.
    pub(super) fn peer_time(&self) -> Option<Timestamp> {
        self.peer_time
    }

    /// Returns whether a connection is kept.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Closes the connection: the next call resolves the name again.
    pub(super) fn close(&mut self) {
        self.kept = None;
    }

    /// Takes the kept connection, unless its certificates or credentials have been replaced. The connection is closed
    /// if it is not put back.
    fn take_kept(&mut self, network: &N) -> Option<PeerConnection<N::Stream>> {
        let connection = self.kept.take()?;
        let is_current =
            network.is_current(&connection.wire.stream) && self.auth.is_current(&connection.credentials);
        is_current.then_some(connection)
    }

    async fn send(
        &mut self,
        network: &N,
        mut connection: PeerConnection<N::Stream>,
        message: &Message<'_>,
    ) -> Result<Vec<u8>, PeerError> {
        // The node behind this connection announced the version when the connection was opened or last checked.
        let protocol = connection.node.protocol;
        let body = message.encode(protocol);
        let method = if body.is_some() { Method::Post } else { Method::Get };
        let version = protocol.to_string();
        let headers = [
            ("content-type", "application/json"),
            (header::TOKEN, &connection.token),
            (header::PROTOCOL, &version),
        ];
        let body = body.unwrap_or_default();
        let exchange = connection.wire.exchange(network.now_ms(), method, message.path(), &headers, &body);
        let response = exchange.await?;
        self.peer_time = response.header("date").and_then(Timestamp::from_http_date);
        match response.status {
            403 => return Err(PeerError::Identity(IdentityError::refused(connection.credentials.shared()))),
            // With any other status, the next call connects and resolves the name again.
            200 | 409 | 503 if response.keeps_alive => self.kept = Some(connection),
            _ => {}
        }
        match response.status {
            200 => Ok(response.body),
            409 => Err(PeerError::SaltDiffers),
            _ => Err(PeerError::Refused),
        }
    }

    /// Connects and authenticates the peer as a node of this cluster. Until the peer has proven its identity, it is
    /// sent nothing that is derived from a cluster secret.
    async fn open(&self, network: &N) -> Result<PeerConnection<N::Stream>, PeerError> {
        let stream = network.connect(&self.address).await.map_err(|error| connection_error(&error))?;
        let connection = ClientConnection::new(HANDSHAKE_BODY_BYTES_MAX);
        let mut wire = Wire { stream, connection, host: self.host.clone() };
        let credentials = self.auth.credentials();
        let client = Challenge::random();
        let headers = [(header::CHALLENGE, &*client.to_string())];
        let response = wire.check_health(network.now_ms(), &headers).await?;
        let server = response.header(header::CHALLENGE).and_then(|text| Challenge::parse(text.as_bytes()));
        let theirs = response.header(header::AUTH).and_then(|name| SharedKey::parse(name.as_bytes()));
        match response.header(header::AUTH).and_then(|name| Barrier::parse(name.as_bytes())) {
            Some(Barrier::Certificate) => return Err(PeerError::Distrust(PeerTlsError::NotANode)),
            Some(Barrier::OtherPort) => return Err(PeerError::Identity(IdentityError::OtherPort)),
            None => {}
        }
        let (Some(server), Some(theirs)) = (server, theirs) else {
            return Err(match response.status {
                400 | 408 | 429 | 500.. => PeerError::Refused,
                _ => PeerError::Identity(IdentityError::Unproven),
            });
        };
        if let Some(error) = IdentityError::of_kinds(credentials.shared(), theirs) {
            return Err(PeerError::Identity(error));
        }
        if theirs.resists_guessing() && !response.is_proven(&credentials, client, server) {
            return Err(PeerError::Identity(match theirs {
                SharedKey::Secret => IdentityError::SecretDiffers,
                SharedKey::ApiKey | SharedKey::Nothing => IdentityError::Unproven,
            }));
        }
        if !response.keeps_alive {
            return Err(PeerError::Unreachable);
        }
        let token = credentials.token(server);
        let mut connection = PeerConnection { wire, credentials, server, token, node: NodeInfo::default() };
        connection.check_health(network.now_ms()).await?;
        connection.wire.connection.set_body_bytes_max(PEER_BODY_BYTES_MAX);
        Ok(connection)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> PeerConnection<S> {
    /// Requests the node's description of itself, and verifies that it is authentic.
    async fn check_health(&mut self, now_ms: u64) -> Result<(), PeerError> {
        let client = Challenge::random();
        let newest = Protocol::NEWEST.to_string();
        let headers = [
            (header::CHALLENGE, &*client.to_string()),
            (header::TOKEN, &self.token),
            (header::PROTOCOL, &newest),
        ];
        let response = self.wire.check_health(now_ms, &headers).await?;
        match response.status {
            200 if response.is_proven(&self.credentials, client, self.server) => {}
            200 => return Err(PeerError::Identity(IdentityError::Unproven)),
            403 => return Err(PeerError::Identity(IdentityError::refused(self.credentials.shared()))),
            _ => return Err(PeerError::Refused),
        }
        self.node = response.node_info().ok_or(PeerError::Malformed)?;
        if response.keeps_alive { Ok(()) } else { Err(PeerError::Unreachable) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn check_health(&mut self, now_ms: u64, headers: &[(&str, &str)]) -> Result<Response, PeerError> {
        self.exchange(now_ms, Method::Get, path::HEALTH, headers, b"").await
    }

    /// Sends a request and reads its response. After an error the connection is unusable.
    async fn exchange(
        &mut self,
        now_ms: u64,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, PeerError> {
        let Self { stream, connection, host } = self;
        connection.call(&ClientRequest { method, target, host, headers, body }, now_ms, u64::MAX);
        loop {
            match connection.step() {
                ClientStep::Response => break,
                ClientStep::Failed(_) => return Err(PeerError::Unreachable),
                ClientStep::Read => transfer(stream, connection).await?,
            }
        }
        let status = connection.status();
        let others = [header::CHALLENGE, header::AUTH, header::PROOF, header::PROTOCOL, "date"];
        let wanted = header::IDENTITY.into_iter().chain(others);
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

    /// Returns whether the response has a valid proof, a MAC under a shared key.
    fn is_proven(&self, credentials: &NodeCredentials, client: Challenge, server: Challenge) -> bool {
        let signed = signed_response(|name| self.header(name), &self.body);
        let proof = self.header(header::PROOF);
        proof.is_some_and(|proof| credentials.verify(proof.as_bytes(), client, server, &signed))
    }

    /// Returns the node's description of itself; `None` if it is incomplete.
    fn node_info(&self) -> Option<NodeInfo> {
        let hexadecimal = |name| u64::from_str_radix(self.header(name)?, 16).ok();
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let now_ms = Timestamp::now().as_milliseconds();
        Some(NodeInfo {
            name: body["node_id"].as_str().unwrap_or_default().to_owned(),
            instance: hexadecimal(header::INSTANCE)?,
            node: self.header(header::NODE).and_then(|text| text.parse().ok()),
            is_federated: self.header(header::MODE) == Some(FEDERATED),
            salt: hexadecimal(header::SALT),
            has_entries: self.header(header::ENTRIES) == Some("true"),
            horizon: self.header(header::HORIZON).and_then(decode_horizon)?.clamped_at(now_ms),
            protocol: Protocol::common(self.header(header::PROTOCOL)),
        })
    }
}

async fn with_timeout<N: Network, T>(
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

/// Converts an error of connecting, reading or writing: in TLS 1.3, a peer that rejects this node's certificate
/// reports it only after the handshake.
fn connection_error(error: &io::Error) -> PeerError {
    PeerTlsError::of(error).map_or(PeerError::Unreachable, PeerError::Distrust)
}

/// Transfers bytes in either direction, as far as the stream is ready.
async fn transfer<S>(stream: &mut S, connection: &mut ClientConnection) -> Result<(), PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|context| {
        while !connection.output().is_empty() {
            match Pin::new(&mut *stream).poll_write(context, connection.output()) {
                Poll::Ready(Ok(count)) if count > 0 => connection.wrote(count),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(PeerError::Unreachable)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(connection_error(&error))),
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut *stream).poll_read(context, connection.read_space()) {
            Poll::Ready(Ok(0)) => connection.received_eof(),
            Poll::Ready(Ok(count)) => connection.received(count),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(connection_error(&error))),
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    })
    .await
}
