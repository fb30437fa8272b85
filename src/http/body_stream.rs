//! Response bodies that are produced while the client reads them, and whose length is not known when they begin.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::model::SecretBytes;
use crate::service::Error;

/// Trailer fields: header fields after a body.
pub type Trailers = Vec<(&'static str, String)>;

/// The next part of a body.
#[derive(Debug)]
pub enum Next {
    /// Bytes, which may be empty. The next part is produced once the client has read them.
    Piece(SecretBytes),
    /// The end.
    End(Trailers),
}

/// The future of the next part.
pub type NextPart<'a> = Pin<Box<dyn Future<Output = Result<Next, Error>> + 'a>>;

/// A response body whose length is not known when it begins. Dropped once the client disconnects.
pub trait BodyStream: fmt::Debug {
    /// Produces the next part; not called again after the end. The future is dropped if the client disconnects, after
    /// [`crate::limits::STREAM_PIECE_DEADLINE`], and at shutdown if the stream is endless.
    ///
    /// # Errors
    /// Fails if there is no next part; the connection is then cut, which shows the client that the body is incomplete.
    fn next(&mut self) -> NextPart<'_>;

    /// Returns the names of the trailer fields that the end may have.
    fn trailer_names(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Returns whether only the client or the server ends the stream. At shutdown the driver ends it immediately and
    /// without trailers; any other stream is completed.
    fn is_endless(&self) -> bool {
        false
    }
}
