//! What a connection is in the middle of, and what that means for its driver.

use super::{chunked::Decoder, protocol_error::ProtocolError};

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Flush the output if there is any, then read. Also while a stream is under way, when there is
    /// nothing to parse.
    Read,
    /// A head is complete: look at it, then accept the body, respond or begin a stream.
    Head,
    /// The accepted body is complete: take it, then respond or begin a stream.
    Body,
    /// Answer with [`super::Connection::respond_and_close`]; nothing more is ever parsed.
    Reject(ProtocolError),
    /// The last answer is given: flush, shut down writing, then read and discard until the client
    /// closes or the deadline passes. Closing at once could reset the connection and take the
    /// answer away from a client that is still sending (RFC 9112 9.6).
    Linger,
    /// Flush the output if there is any, then drop the connection.
    Close,
}

/// What the connection is in the middle of.
pub(super) enum Phase {
    /// Waiting for a request, or for the rest of its head.
    Head,
    /// A head is delivered and the application has not said yet whether it wants the body.
    Deciding,
    Body(Progress),
    /// The whole request is delivered.
    Answering,
    Streaming(Stream),
    Refused(ProtocolError),
    Lingering,
    Closed,
}

/// How far an accepted body has come.
pub(super) enum Progress {
    Length { total: usize, remaining: usize },
    Chunked(Decoder),
}

/// How the pieces of a streamed answer are delivered.
pub(super) struct Stream {
    pub(super) delivery: Delivery,
    pub(super) persists: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Chunks,
    /// Until the connection closes.
    Raw,
    /// So many bytes more.
    Length(usize),
    /// The answer has no body: its request was HEAD, or its status says so.
    Nothing,
}
