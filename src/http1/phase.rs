//! Phases of a connection, and the next action of its driver.

use super::{chunked::Decoder, protocol_error::ProtocolError};

/// Next action of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Flush the output, if any, then read. Also returned during a stream, when there is nothing to parse.
    Read,
    /// A head is complete: inspect it, then accept the body, respond or begin a stream.
    Head,
    /// The accepted body is complete: take it, then respond or begin a stream.
    Body,
    /// Respond with [`super::Connection::respond_and_close`]; nothing more is ever parsed.
    Reject(ProtocolError),
    /// The last response is complete: flush, shut down writing, then read and discard until the client closes or the
    /// deadline passes. An immediate close could reset the connection and destroy the response for a client that is
    /// still sending (RFC 9112 9.6).
    Linger,
    /// Flush the output, if any, then drop the connection.
    Close,
}

/// Current phase of a connection.
pub(super) enum Phase {
    /// Waiting for a request, or for the rest of its head.
    Head,
    /// A head is delivered, and the application has not decided yet whether it wants the body.
    Deciding,
    Body(Progress),
    /// The whole request is delivered, and its response is due.
    Responding,
    Streaming(Stream),
    Rejected(ProtocolError),
    Lingering,
    Closed,
}

/// Progress of an accepted body.
pub(super) enum Progress {
    Length { total: usize, remaining: usize },
    Chunked(Decoder),
}

/// A streamed response in progress.
pub(super) struct Stream {
    pub(super) delivery: Delivery,
    pub(super) persists: bool,
}

/// Delivery of the pieces of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Chunks,
    /// Without framing, until the connection closes.
    Raw,
    /// Number of bytes left.
    Length(usize),
    /// The response has no body: its request was HEAD, or its status excludes one.
    Nothing,
}
