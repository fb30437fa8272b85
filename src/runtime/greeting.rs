//! The beginning of a connection with TLS: both sides agree, or the client is told why not.

use std::io;
use std::sync::Arc;

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http::{Clock, plain_text_to_tls};
use crate::limits::{HEAD_DEADLINE, LINGER};
use crate::tls::{Refused, ServerConfig, Stream};

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

/// A connection with TLS, if the client agrees in time.
pub(super) async fn greet(
    socket: Box<dyn Socket>,
    config: Arc<ServerConfig>,
    clock: &Clock,
) -> Option<Stream<Box<dyn Socket>>> {
    let accepting = async { Stream::accept(socket, config).await.map_err(|refused| Failure(Some(refused))) };
    match clock.in_time(HEAD_DEADLINE, accepting).await {
        Ok(stream) => return Some(stream),
        Err(Failure(None)) => tracing::debug!("a client did not begin TLS in time"),
        Err(Failure(Some(Refused::Gone(error)))) => tracing::debug!(%error, "a client has gone before TLS"),
        Err(Failure(Some(Refused::Failed(socket, error)))) => {
            tracing::debug!(%error, "a client and TLS do not agree");
            part(socket, &[], clock).await;
        }
        Err(Failure(Some(Refused::NoTls(socket, first)))) => {
            tracing::debug!("a client without TLS");
            // Methods of HTTP begin so. What else may speak there would not understand the answer.
            if first.is_ascii_uppercase() {
                part(socket, &plain_text_to_tls(), clock).await;
            }
        }
    }
    None
}

/// Says something, and reads over what still comes: closing with unread bytes would reset the connection, and the
/// client might never see what it was told.
async fn part(mut socket: Box<dyn Socket>, last_words: &[u8], clock: &Clock) {
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
