//! State machine of one client connection, from requests to responses.

use zeroize::Zeroizing;

use super::{
    head::{self, Head, ResponseFraming},
    request::ClientRequest,
    step::{ClientFailure, ClientStep},
};
use crate::http1::{
    body, chunked::Decoder, method::Method, read_buffer::ReadBuffer, response, scan::HeadScan,
    write_buffer::WriteBuffer,
};
use crate::limits;

/// One client connection: one call in flight, and none after a failure.
pub struct ClientConnection {
    read_buffer: ReadBuffer,
    write_buffer: WriteBuffer,
    body: Zeroizing<Vec<u8>>,
    body_bytes_max: usize,
    phase: Phase,
    /// Deadline of the current call, in monotonic milliseconds.
    deadline_ms: u64,
    head: Option<Head>,
    scan: HeadScan,
    is_head_call: bool,
    interim_count: usize,
    saw_eof: bool,
}

/// Current phase of a client connection.
enum Phase {
    /// No call is in flight.
    Idle,
    /// Waiting for a response, or for the rest of its head.
    Head,
    Body(Progress),
    /// The whole response is delivered.
    Response,
    Failed(ClientFailure),
}

/// Progress of a response body.
enum Progress {
    Length { total: usize, remaining: usize },
    Chunked(Decoder),
    UntilEof,
}

impl ClientConnection {
    /// Creates the state of a new connection. A response with a body of more than `body_bytes_max` bytes fails.
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            read_buffer: ReadBuffer::new(),
            write_buffer: WriteBuffer::new(),
            body: Zeroizing::new(Vec::new()),
            body_bytes_max,
            phase: Phase::Idle,
            deadline_ms: 0,
            head: None,
            scan: HeadScan::default(),
            is_head_call: false,
            interim_count: 0,
            saw_eof: false,
        }
    }

    /// Changes the maximum size of response bodies, in bytes, from the next response on.
    pub fn set_body_bytes_max(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max;
    }

    /// Begins a call, which ends with [`ClientConnection::finish`].
    ///
    /// Writes nothing and fails if the request cannot be encoded as exactly one request, if the deadline has passed, or
    /// if the connection has failed. Bytes that arrived before a call are not a response to it, so read all pending
    /// input first. A call during another one fails both.
    pub fn call(&mut self, request: &ClientRequest<'_>, now_ms: u64, deadline_ms: u64) {
        self.advance();
        match self.phase {
            Phase::Idle => {}
            Phase::Failed(_) => return,
            Phase::Head | Phase::Body(_) | Phase::Response => {
                debug_assert!(false, "another call is in flight");
                return self.fail(ClientFailure::Closed);
            }
        }
        if now_ms >= deadline_ms {
            return self.fail(ClientFailure::TimedOut);
        }
        if let Err(text) = request.check() {
            return self.fail(ClientFailure::Malformed(text));
        }
        request.encode(&mut self.write_buffer, now_ms);
        self.is_head_call = request.method == Method::Head;
        self.deadline_ms = deadline_ms;
        self.phase = Phase::Head;
    }

    /// Returns the bytes that wait to be written.
    pub fn output(&self) -> &[u8] {
        self.write_buffer.unwritten()
    }

    /// Records that the first `count` bytes of the output were written.
    pub fn wrote(&mut self, count: usize) {
        // A write that was in flight when the connection failed completes after the output was discarded.
        let is_gone = matches!(self.phase, Phase::Failed(_));
        // The deadline belongs to the call and does not move with the progress of writing.
        self.write_buffer.wrote(if is_gone { 0 } else { count }, 0);
    }

    /// Returns the space to read into. Never empty after [`ClientStep::Read`].
    pub fn read_space(&mut self) -> &mut [u8] {
        let wanted = match &self.phase {
            Phase::Body(Progress::Length { remaining, .. }) => *remaining,
            Phase::Body(Progress::Chunked(decoder)) => decoder.wanted(),
            Phase::Body(Progress::UntilEof) => limits::HEAD_BYTES_MAX,
            _ => 1,
        };
        self.read_buffer.space(wanted)
    }

    /// Records that `count` bytes were read into the space.
    pub fn received(&mut self, count: usize) {
        self.read_buffer.received(count);
        if matches!(self.phase, Phase::Failed(_)) {
            self.read_buffer.discard();
        }
    }

    /// Records that the server will send nothing more.
    pub fn received_eof(&mut self) {
        self.saw_eof = true;
    }

    /// Advances as far as the bytes allow, and returns the next action. Repeating the call without a change returns the
    /// same step.
    pub fn step(&mut self) -> ClientStep {
        self.advance();
        match self.phase {
            Phase::Idle | Phase::Head | Phase::Body(_) => ClientStep::Read,
            Phase::Response => ClientStep::Response,
            Phase::Failed(failure) => ClientStep::Failed(failure),
        }
    }

    /// Returns the status of the response, 200 to 599.
    ///
    /// # Panics
    ///
    /// Panics if there is no response: before [`ClientStep::Response`] and after [`ClientConnection::finish`].
    pub fn status(&self) -> u16 {
        let head = self.head.filter(|_| matches!(self.phase, Phase::Response));
        head.expect("the driver calls `status` only while there is a response").status
    }

    /// Returns the first field with this name in the response, without surrounding white space.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        if matches!(self.phase, Phase::Response) { head::field(self.read_buffer.held(), name) } else { None }
    }

    /// Takes the body of the response, empty if it has none. The caller must wipe it.
    pub fn take_body(&mut self) -> Vec<u8> {
        if matches!(self.phase, Phase::Response) { std::mem::take(&mut *self.body) } else { Vec::new() }
    }

    /// Ends the call and wipes its data. Returns whether the connection can carry another call; if not, drop it. An
    /// incomplete call is abandoned.
    pub fn finish(&mut self) -> bool {
        self.advance();
        let is_whole = match self.phase {
            Phase::Idle => true,
            Phase::Response => self.head.is_some_and(|head| head.keeps_alive),
            Phase::Head | Phase::Body(_) | Phase::Failed(_) => false,
        };
        let is_quiet = self.read_buffer.unread().is_empty() && self.write_buffer.is_empty();
        if is_whole && is_quiet && !self.saw_eof {
            self.forget_call();
            self.phase = Phase::Idle;
            return true;
        }
        if !matches!(self.phase, Phase::Failed(_)) {
            self.fail(ClientFailure::Closed);
        }
        false
    }

    /// Returns the time to call [`ClientConnection::expire`]; `None` while no response is pending.
    pub fn deadline_ms(&self) -> Option<u64> {
        matches!(self.phase, Phase::Head | Phase::Body(_)).then_some(self.deadline_ms)
    }

    /// Acts on the deadline, which has passed. Does nothing if no response is pending.
    pub fn expire(&mut self) {
        if self.deadline_ms().is_some() {
            self.fail(ClientFailure::TimedOut);
        }
    }

    fn advance(&mut self) {
        if matches!(self.phase, Phase::Idle) && !self.read_buffer.unread().is_empty() {
            self.fail(ClientFailure::Malformed("unsolicited bytes"));
        }
        while matches!(self.phase, Phase::Head) && self.advance_head() {}
        if matches!(self.phase, Phase::Body(_)) {
            self.advance_body();
        }
        if self.saw_eof {
            match self.phase {
                Phase::Body(Progress::UntilEof) => self.phase = Phase::Response,
                Phase::Idle | Phase::Head | Phase::Body(_) => self.fail(ClientFailure::Closed),
                Phase::Response | Phase::Failed(_) => {}
            }
        }
    }

    /// Advances the head of the response. Returns whether one was complete.
    fn advance_head(&mut self) -> bool {
        let unread = self.read_buffer.unread();
        let count = match head::find_end(&mut self.scan, unread) {
            Ok(Some(count)) => count,
            Ok(None) => return false,
            Err(failure) => {
                self.fail(failure);
                return false;
            }
        };
        let delivered = match head::parse(&unread[..count]) {
            Ok(head) if head.is_interim() => self.skip_interim(head, count),
            Ok(head) => self.deliver_head(head, count),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = delivered {
            self.fail(failure);
        }
        true
    }

    /// Skips an interim response, which may arrive unsolicited (RFC 9110 15.2). It has no body, and a protocol
    /// switch is never accepted.
    fn skip_interim(&mut self, head: Head, count: usize) -> Result<(), ClientFailure> {
        if head.status == 101 {
            return Err(ClientFailure::Malformed("protocol switch"));
        }
        if head.announces_body() {
            return Err(ClientFailure::Malformed("interim response with a body"));
        }
        self.interim_count += 1;
        if self.interim_count > limits::INTERIM_RESPONSES_COUNT_MAX {
            return Err(ClientFailure::Malformed("too many interim responses"));
        }
        self.read_buffer.consume(count);
        self.scan = HeadScan::default();
        Ok(())
    }

    fn deliver_head(&mut self, mut head: Head, count: usize) -> Result<(), ClientFailure> {
        self.phase = if self.is_head_call || response::is_bodiless(head.status) {
            // RFC 9110 8.6: a 204 announces no body. A server that announces one may send it as well.
            head.keeps_alive &= head.status != 204 || !head.announces_body();
            Phase::Response
        } else {
            Phase::Body(match head.framing {
                ResponseFraming::UntilEof => Progress::UntilEof,
                ResponseFraming::Chunked => Progress::Chunked(Decoder::new(self.body_bytes_max)),
                ResponseFraming::Length(length) => match usize::try_from(length) {
                    Ok(total) if total <= self.body_bytes_max => Progress::Length { total, remaining: total },
                    _ => return Err(ClientFailure::TooLarge),
                },
            })
        };
        self.head = Some(head);
        self.read_buffer.hold(count);
        Ok(())
    }

    fn advance_body(&mut self) {
        let Phase::Body(progress) = &mut self.phase else { return };
        let unread = self.read_buffer.unread();
        let is_done = match progress {
            Progress::Length { total, remaining } => {
                let count = unread.len().min(*remaining);
                body::append(&mut self.body, &unread[..count], *total);
                self.read_buffer.consume(count);
                *remaining -= count;
                *remaining == 0
            }
            Progress::Chunked(decoder) => {
                let body = &mut self.body;
                match decoder.decode(unread, |data| body::append(body, data, self.body_bytes_max)) {
                    Ok(count) => self.read_buffer.consume(count),
                    Err(rejection) => return self.fail(rejection.into()),
                }
                decoder.is_done()
            }
            Progress::UntilEof => {
                if unread.len() > self.body_bytes_max - self.body.len() {
                    return self.fail(ClientFailure::TooLarge);
                }
                body::append(&mut self.body, unread, self.body_bytes_max);
                self.read_buffer.discard();
                false
            }
        };
        if is_done {
            self.phase = Phase::Response;
        }
    }

    /// Fails the connection, and wipes the unwritten output and all input.
    fn fail(&mut self, failure: ClientFailure) {
        self.forget_call();
        self.read_buffer.discard();
        self.write_buffer.discard();
        self.phase = Phase::Failed(failure);
    }

    fn forget_call(&mut self) {
        self.read_buffer.release();
        self.body = Zeroizing::new(Vec::new());
        self.head = None;
        self.scan = HeadScan::default();
        self.is_head_call = false;
        self.interim_count = 0;
    }

    /// Returns every byte that is kept of requests and responses, to search them for data that should be wiped.
    #[cfg(test)]
    pub(super) fn everything(&self) -> Vec<u8> {
        [self.read_buffer.everything(), self.write_buffer.everything(), &self.body[..]].concat()
    }
}
