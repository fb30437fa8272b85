//! The beginning of a connection with TLS: both sides agree, or the client is told why not.

use std::io;

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http::{Timers, plain_text_to_tls};
use crate::limits::{HEAD_DEADLINE, LINGER};
use crate::tls::{Refused, ServerContext, Stream};

/// Any connection. By the time that TLS takes, one more call is nothing; and what serves requests is compiled once
/// for all of them.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket for S {}

/// Why there is no connection, and what is left of it.
struct Failure(Option<Refused<Box<dyn Socket>>>);

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self(None)
    }
}

/// Why there is no TLS on a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsAcceptError {
    /// The two sides found no agreement, or one does not trust the other.
    #[error(transparent)]
    Failed(io::Error),
    /// The client speaks another protocol.
    #[error("not TLS: plain HTTP or another protocol")]
    Plaintext,
    /// It began, and did not go on.
    #[error("no handshake within {} s", HEAD_DEADLINE.as_secs())]
    Timeout,
    /// The client closed the connection, as health checks of load balancers do.
    #[error("the client has gone")]
    Gone,
}

/// A connection with TLS, if the client agrees in time.
///
/// # Errors
/// With the reason, when there is none.
pub(super) async fn accept(
    socket: Box<dyn Socket>,
    context: &ServerContext,
    clock: &Timers,
) -> Result<Stream<Box<dyn Socket>>, TlsAcceptError> {
    let accepting = async { Stream::accept(socket, context).await.map_err(|refused| Failure(Some(refused))) };
    match clock.in_time(HEAD_DEADLINE, accepting).await {
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
            // Methods of HTTP begin so. What else may speak there would not understand the answer.
            if first.is_ascii_uppercase() {
                lingering_close(socket, &plain_text_to_tls(), clock).await;
            }
            Err(TlsAcceptError::Plaintext)
        }
    }
}

/// Says something, and reads over what still comes: closing with unread bytes would reset the connection, and the
/// client might never see what it was told.
async fn lingering_close(mut socket: Box<dyn Socket>, last_words: &[u8], clock: &Timers) {
    let parting = async {
        socket.write_all(last_words).await?;
        socket.close().await?;
        let mut rest = [0; 512];
        while socket.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // The client may be gone.
    clock.in_time(LINGER, parting).await.ok();
}
