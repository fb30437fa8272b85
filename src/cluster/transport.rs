//! One kept connection to a peer, over any network.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite, FutureExt};

use super::peer::Failure;
use crate::config::PeerAddress;
use crate::http1::{Call, ClientConnection, ClientStep, Method};
use crate::limits::PEER_BODY_BYTES_MAX;
use crate::model::ApiKeys;
use crate::tls::Distrust;

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

    /// Runs a task beside the others, on the same thread; it ends with them at the latest.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64;
}

/// An answer of a peer.
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) headers: Vec<(&'static str, String)>,
}

/// What to ask.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) target: &'a str,
    pub(super) body: &'a [u8],
    pub(super) timeout: Duration,
    /// Headers of the answer that matter.
    pub(super) wanted: &'a [&'static str],
}

/// The connection to one peer.
pub(super) struct Transport<N: Network> {
    address: PeerAddress,
    host: String,
    api_keys: ApiKeys,
    kept: Option<(N::Stream, ClientConnection)>,
}

impl<N: Network> Transport<N> {
    pub(super) fn new(address: PeerAddress, api_keys: ApiKeys) -> Self {
        let host = address.to_string();
        Self { address, host, api_keys, kept: None }
    }

    /// Asks, on the kept connection if there is one. All that nodes ask may be asked twice.
    pub(super) async fn call(&mut self, network: &N, request: &Request<'_>) -> Result<Reply, Failure> {
        let exchange = async {
            self.kept.take_if(|(stream, _)| !network.is_current(stream));
            if self.kept.is_some()
                && let Ok(reply) = self.exchange(network, request).await
            {
                return reply;
            }
            let stream = network.connect(&self.address).await.map_err(|error| failure(&error))?;
            self.kept = Some((stream, ClientConnection::new(PEER_BODY_BYTES_MAX)));
            self.exchange(network, request).await.unwrap_or_else(Err)
        };
        let timeout = async {
            network.sleep(request.timeout).await;
            Err(Failure::Unreachable)
        };
        let result = exchange.or(timeout).await;
        if matches!(result, Err(Failure::Unreachable)) {
            self.kept = None;
        }
        result
    }

    /// The outer error: the connection broke, and another one may do.
    async fn exchange(
        &mut self,
        network: &N,
        request: &Request<'_>,
    ) -> Result<Result<Reply, Failure>, Failure> {
        let Some((mut stream, mut connection)) = self.kept.take() else { return Err(Failure::Unreachable) };
        let mut headers = vec![("content-type", "application/json")];
        let api_key = self.api_keys.own();
        if let Some(api_key) = &api_key {
            headers.push(("x-api-key", api_key.expose()));
        }
        let call = Call {
            method: request.method,
            target: request.target,
            host: &self.host,
            headers: &headers,
            body: request.body,
        };
        connection.call(&call, network.now_ms(), u64::MAX);
        loop {
            match connection.step() {
                ClientStep::Response => break,
                ClientStep::Failed(_) => return Err(Failure::Unreachable),
                ClientStep::Read => transfer(&mut stream, &mut connection).await?,
            }
        }
        let status = connection.status();
        let headers = request
            .wanted
            .iter()
            .filter_map(|name| Some((*name, String::from_utf8_lossy(connection.header(name)?).into_owned())))
            .collect();
        let body = connection.take_body();
        if connection.finish() {
            self.kept = Some((stream, connection));
        }
        Ok(match status {
            200 => Ok(Reply { body, headers }),
            403 => Err(Failure::ApiKey),
            409 => Err(Failure::SaltDiffers),
            _ => Err(Failure::Refused),
        })
    }
}

/// A peer that wants another certificate says so only when the connection is there, in TLS 1.3.
fn failure(error: &io::Error) -> Failure {
    Distrust::of(error).map_or(Failure::Unreachable, Failure::Distrust)
}

/// Moves bytes in whichever direction they can move.
async fn transfer<S>(stream: &mut S, connection: &mut ClientConnection) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|context| {
        while !connection.output().is_empty() {
            match Pin::new(&mut *stream).poll_write(context, connection.output()) {
                Poll::Ready(Ok(count)) if count > 0 => connection.wrote(count),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(Failure::Unreachable)),
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
