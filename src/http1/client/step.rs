//! Next action of the driver of a client connection, and the failures of a call.

use crate::http1::protocol_error::ProtocolError;

/// Next action of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Flush the output, if any, then read. Also returned between calls, where reading shows whether the server has
    /// closed.
    Read,
    /// The response is complete: inspect it, then call [`super::ClientConnection::finish`]. A server may respond before
    /// it has read the whole request; the rest of the output need not be written.
    Response,
    /// Drop the connection; nothing more is ever parsed.
    Failed(ClientFailure),
}

/// Reason why a connection carries no more calls. The current call, if any, has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientFailure {
    /// The response is malformed, or the bytes are not a response to any call, or the request cannot be encoded; the
    /// constant text names the malformed part.
    #[error("HTTP protocol error: {0}")]
    Malformed(&'static str),
    /// The head or the body of the response exceeds its limit.
    #[error("response too large")]
    TooLarge,
    /// The response was not complete at the deadline.
    #[error("timed out waiting for the response")]
    TimedOut,
    /// The server closed before the response was complete, or the caller abandoned the call.
    #[error("connection closed before the response was complete")]
    Closed,
}

/// Errors of the parsers that both sides share, which are named for requests.
impl From<ProtocolError> for ClientFailure {
    fn from(rejection: ProtocolError) -> Self {
        match rejection {
            ProtocolError::BadRequest(text) => Self::Malformed(text),
            ProtocolError::TransferCodingNotImplemented => Self::Malformed("transfer coding is not chunked"),
            ProtocolError::RequestLineTooLong
            | ProtocolError::HeadTooLarge
            | ProtocolError::BodyTooLarge { .. } => Self::TooLarge,
            ProtocolError::HeadTimeout | ProtocolError::BodyTimeout => Self::TimedOut,
            ProtocolError::VersionNotSupported
            | ProtocolError::MethodNotImplemented
            | ProtocolError::ExpectationFailed => Self::Malformed("head is malformed"),
        }
    }
}
