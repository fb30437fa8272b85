//! Errors for which a request is rejected at the protocol level, before the application handles it.

/// Reason for rejecting a request. Each variant implies a status; the text of the response is up to the caller. The
/// connection is closed after the response, because its framing can no longer be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// 400: the message is malformed; the constant text names the malformed part.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    /// 505: the version of the request line is neither HTTP/1.0 nor HTTP/1.1.
    #[error("version not supported")]
    VersionNotSupported,
    /// 501: the method is unknown; methods are case-sensitive.
    #[error("method not implemented")]
    MethodNotImplemented,
    /// 501: the transfer coding is not `chunked`.
    #[error("transfer coding not implemented")]
    TransferCodingNotImplemented,
    /// 417: the expectation is not `100-continue`.
    #[error("expectation failed")]
    ExpectationFailed,
    /// 414: the request line is longer than [`crate::limits::REQUEST_LINE_BYTES_MAX`].
    #[error("request line too long")]
    RequestLineTooLong,
    /// 431: the head or the trailer section is longer than allowed, or has too many fields.
    #[error("head too large")]
    HeadTooLarge,
    /// 413: the body is larger than the accepted maximum.
    #[error("body too large")]
    BodyTooLarge {
        /// Accepted maximum, in bytes.
        bytes_max: usize,
    },
    /// 408: the head did not arrive in time.
    #[error("head timeout")]
    HeadTimeout,
    /// 408: the body did not arrive in time.
    #[error("body timeout")]
    BodyTimeout,
}
