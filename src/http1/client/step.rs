//! What follows for the driver, and why a call fails.

use crate::http1::protocol_error::ProtocolError;

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Flush the output if there is any, then read. Also between calls, where reading shows whether
    /// the server has closed.
    Read,
    /// The response is complete: look at it, then [`super::ClientConnection::finish`]. A server may
    /// answer before it has read the request; what is left of the output need not be written.
    Response,
    /// Drop the connection; nothing more is ever parsed.
    Failed(ClientFailure),
}

/// Why a connection carries no more calls and the current one, if there is one, has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientFailure {
    /// The response is none of HTTP/1.1, or is one to nothing that was asked, or the call cannot be
    /// written; the text is constant and says where.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The response has a larger head or body than is allowed.
    #[error("response too large")]
    TooLarge,
    /// The response was not complete at the deadline.
    #[error("no response in time")]
    TimedOut,
    /// The server closed before the response was complete, or the exchange was ended here.
    #[error("closed before the response")]
    Closed,
}

/// The parts that both sides share speak of requests.
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
