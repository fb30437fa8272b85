//! TLS accept: completes the handshake, or tells the client why it failed and closes.

use std::io;

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http::{Timers, plain_text_to_tls};
use crate::limits::{HEAD_DEADLINE, LINGER};
use crate::tls::{Refused, ServerContext, Stream};

/// Connection of any engine, used as a trait object. The cost of dynamic dispatch is negligible next to TLS, and the
/// TLS and request code is compiled only once.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket for S {}

/// Failed handshake, with what remains of the connection; `None` after a timeout.
struct Failure(Option<Refused<Box<dyn Socket>>>);

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self(None)
    }
}

/// Failure of a TLS handshake.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsAcceptError {
    /// The two sides have no version or cipher suite in common, or one does not trust the other.
    #[error(transparent)]
    Failed(io::Error),
    /// The client does not use TLS.
    #[error("not TLS: plain HTTP or another protocol")]
    Plaintext,
    /// The client did not complete the handshake in time.
    #[error("no handshake within {} s", HEAD_DEADLINE.as_secs())]
    Timeout,
    /// The client closed the connection, as health checks of load balancers do.
    #[error("client disconnected")]
    Gone,
}

/// Completes the handshake of a connection.
///
/// # Errors
/// Fails if the handshake fails or does not complete within [`HEAD_DEADLINE`].
pub(super) async fn accept(
    socket: Box<dyn Socket>,
    context: &ServerContext,
    clock: &Timers,
) -> Result<Stream<Box<dyn Socket>>, TlsAcceptError> {
    let accepting = async { Stream::accept(socket, context).await.map_err(|refused| Failure(Some(refused))) };
    match clock.with_timeout(HEAD_DEADLINE, accepting).await {
        Ok(stream) => Ok(stream),
        Err(Failure(None)) => Err(TlsAcceptError::Timeout),
        Err(Failure(Some(Refused::Gone(error)))) => {
            tracing::debug!(%error, "client closed the connection before the TLS handshake");
            Err(TlsAcceptError::Gone)
        }
        Err(Failure(Some(Refused::Failed(socket, error)))) => {
            lingering_close(socket, &[], clock).await;
            Err(TlsAcceptError::Failed(error))
        }
        Err(Failure(Some(Refused::NoTls(socket, first)))) => {
            // HTTP methods start with an upper-case letter. A client of another protocol would not understand the
            // response.
            if first.is_ascii_uppercase() {
                lingering_close(socket, &plain_text_to_tls(), clock).await;
            }
            Err(TlsAcceptError::Plaintext)
        }
    }
}

/// Sends a last response, closes, and drains the input: closing with unread bytes would reset the connection, and the
/// client might never receive the response.
async fn lingering_close(mut socket: Box<dyn Socket>, last_response: &[u8], clock: &Timers) {
    let closing = async {
        socket.write_all(last_response).await?;
        socket.close().await?;
        let mut discarded = [0; 512];
        while socket.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    // Fails if the client has disconnected.
    clock.with_timeout(LINGER, closing).await.ok();
}
