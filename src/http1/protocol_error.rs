//! Why a request is refused by the protocol, before any application sees it.

/// Why a request is refused. The status is part of each meaning, its text is the caller's; after
/// the answer the connection is closed, because its framing can no longer be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// 400: the message is malformed; the text is constant and says where.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    /// 505: a request line of a version other than HTTP/1.0 and HTTP/1.1.
    #[error("version not supported")]
    VersionNotSupported,
    /// 501: a method that this server does not know; methods are case-sensitive.
    #[error("method not implemented")]
    MethodNotImplemented,
    /// 501: a transfer coding other than `chunked`.
    #[error("transfer coding not implemented")]
    TransferCodingNotImplemented,
    /// 417: an expectation other than `100-continue`.
    #[error("expectation failed")]
    ExpectationFailed,
    /// 414: the request line is longer than [`crate::limits::REQUEST_LINE_BYTES_MAX`].
    #[error("request line too long")]
    RequestLineTooLong,
    /// 431: the head or the trailer section is longer than allowed, or has too many fields.
    #[error("head too large")]
    HeadTooLarge,
    /// 413: the body is larger than what was accepted.
    #[error("body too large")]
    BodyTooLarge {
        /// Most bytes that would have been accepted.
        bytes_max: usize,
    },
    /// 408: the head did not arrive in time.
    #[error("head timeout")]
    HeadTimeout,
    /// 408: the body did not arrive in time.
    #[error("body timeout")]
    BodyTimeout,
}
