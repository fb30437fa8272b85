//! State machine of one server connection, from bytes to requests. `response_writer.rs` has the opposite direction,
//! `deadlines.rs` the timeouts.

use zeroize::Zeroizing;

use super::{
    body,
    chunked::Decoder,
    fields::Framing,
    head::{self, Head, RequestHead},
    method::Method,
    pace::Pace,
    phase::{Phase, Progress, Step},
    protocol_error::ProtocolError,
    read_buffer::ReadBuffer,
    response,
    scan::{HeadScan, Scanned},
    write_buffer::WriteBuffer,
};

/// One server connection. Requests are delivered singly and in order; the next one stays in the buffer until the
/// response to the previous one.
pub struct Connection {
    pub(super) read_buffer: ReadBuffer,
    pub(super) write_buffer: WriteBuffer,
    pub(super) body: Zeroizing<Vec<u8>>,
    pub(super) body_pace: Pace,
    pub(super) phase: Phase,
    /// Time from which the deadline of the phase counts.
    pub(super) since_ms: u64,
    pub(super) head: Option<Head>,
    pub(super) scan: HeadScan,
    pub(super) has_skipped_empty_line: bool,
    /// The request is HEAD, even if its head was rejected.
    pub(super) is_head_request: bool,
    pub(super) requests_count: u32,
    pub(super) is_draining: bool,
    pub(super) is_closing: bool,
    saw_eof: bool,
    refused_origin: Option<Box<[u8]>>,
}

impl Connection {
    /// Creates the state of a connection that was just accepted.
    pub fn new(now_ms: u64) -> Self {
        Self {
            read_buffer: ReadBuffer::new(),
            write_buffer: WriteBuffer::new(),
            body: Zeroizing::new(Vec::new()),
            body_pace: Pace::new(now_ms),
            phase: Phase::Head,
            since_ms: now_ms,
            head: None,
            scan: HeadScan::default(),
            has_skipped_empty_line: false,
            is_head_request: false,
            requests_count: 0,
            is_draining: false,
            is_closing: false,
            saw_eof: false,
            refused_origin: None,
        }
    }

    /// Adopts buffers of [`Self::return_buffers`] where it has none. Without them it allocates its own.
    pub fn borrow_buffers(
        &mut self,
        input: impl FnOnce() -> Option<Box<[u8]>>,
        output: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        self.read_buffer.borrow_buffer(input);
        self.write_buffer.borrow_buffer(output);
    }

    /// Gives up both buffers if the connection is idle; they are wiped, and each may be unallocated.
    pub fn return_buffers(&mut self) -> Option<(Box<[u8]>, Vec<u8>)> {
        self.is_idle().then(|| (self.read_buffer.return_buffer(), self.write_buffer.return_buffer()))
    }

    /// Returns the space to read into. Never empty after [`Step::Read`] or [`Step::Linger`], except during a stream:
    /// while a response is due, a client can send ahead up to [`crate::limits::HEAD_BYTES_MAX`], above which the space
    /// is empty.
    pub fn read_space(&mut self) -> &mut [u8] {
        let wanted = match &self.phase {
            Phase::Body(Progress::Length { remaining, .. }) => *remaining,
            Phase::Body(Progress::Chunked(decoder)) => decoder.wanted(),
            _ => 1,
        };
        self.read_buffer.space(wanted)
    }

    /// Records that `count` bytes were read into the space.
    pub fn received(&mut self, count: usize, now_ms: u64) {
        if matches!(self.phase, Phase::Head) && count > 0 && self.read_buffer.unread().is_empty() {
            self.since_ms = now_ms;
        }
        self.read_buffer.received(count);
        if matches!(self.phase, Phase::Rejected(_) | Phase::Lingering | Phase::Closed) {
            self.read_buffer.discard();
        }
    }

    /// Records that the client will send nothing more. Complete requests that have arrived still get their responses.
    pub fn received_eof(&mut self) {
        self.saw_eof = true;
    }

    /// Returns whether the client will send nothing more.
    pub fn saw_eof(&self) -> bool {
        self.saw_eof
    }

    /// Advances as far as the bytes allow, and returns the next action. Repeating the call without a change returns the
    /// same step.
    pub fn step(&mut self, now_ms: u64) -> Step {
        if matches!(self.phase, Phase::Head) {
            self.advance_head(now_ms);
        }
        if matches!(self.phase, Phase::Body(_)) {
            self.advance_body(now_ms);
        }
        if self.saw_eof && matches!(self.phase, Phase::Head | Phase::Body(_) | Phase::Lingering) {
            self.close();
        }
        match self.phase {
            Phase::Head | Phase::Body(_) | Phase::Streaming(_) => Step::Read,
            Phase::Deciding => Step::Head,
            Phase::Responding => Step::Body,
            Phase::Rejected(rejection) => Step::Reject(rejection),
            Phase::Lingering => Step::Linger,
            Phase::Closed => Step::Close,
        }
    }

    /// Returns whether there is a current request.
    #[cfg(test)]
    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Returns the head of the current request.
    ///
    /// # Panics
    ///
    /// Panics if there is none: it exists from [`Step::Head`] until the response, and after a [`Step::Reject`] that
    /// concerns a body.
    pub fn head(&self) -> RequestHead<'_> {
        let head = self.head.as_ref().expect("the driver calls `head` only while there is one");
        RequestHead { head, bytes: self.read_buffer.held() }
    }

    /// Returns the first `Origin` of a head that was rejected, as far as it has arrived.
    pub fn rejected_origin(&self) -> Option<&[u8]> {
        self.refused_origin.as_deref()
    }

    /// Accepts the body, if it has at most `bytes_max` bytes; [`Step::Body`] follows when it is complete, immediately
    /// if there is none. Sends `100 Continue` if the client waits for it.
    pub fn accept_body(&mut self, bytes_max: usize, now_ms: u64) {
        let (Phase::Deciding, Some(head)) = (&self.phase, &self.head) else {
            debug_assert!(matches!(self.phase, Phase::Closed), "a body is accepted only after its head");
            return;
        };
        let expects_continue = head.expects_continue;
        self.body_pace = Pace::new(now_ms);
        self.phase = match head.framing {
            Framing::Empty => Phase::Responding,
            Framing::Chunked => Phase::Body(Progress::Chunked(Decoder::new(bytes_max))),
            Framing::Length(length) => match usize::try_from(length) {
                Ok(total) if total <= bytes_max => Phase::Body(Progress::Length { total, remaining: total }),
                _ => return self.reject(ProtocolError::BodyTooLarge { bytes_max }),
            },
        };
        self.advance_body(now_ms);
        if expects_continue && matches!(self.phase, Phase::Body(_)) {
            response::encode_continue(&mut self.write_buffer, now_ms);
        }
    }

    /// Returns the accepted body, as far as it has arrived.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes the accepted body.
    pub fn take_body(&mut self) -> Zeroizing<Vec<u8>> {
        std::mem::take(&mut self.body)
    }

    /// Returns the memory that the body occupies in this connection, in bytes.
    pub fn buffered_body_bytes(&self) -> usize {
        self.body.capacity()
    }

    /// Returns the start of the current rate window of the body: since then the client has sent less than one window
    /// requires.
    pub fn body_since_ms(&self) -> u64 {
        self.body_pace.window_since_ms()
    }

    /// Returns whether no byte of a request has arrived and no byte of a response waits to be written.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Head)
            && self.read_buffer.unread().is_empty()
            && self.write_buffer.is_empty()
    }

    fn advance_head(&mut self, now_ms: u64) {
        loop {
            let unread = self.read_buffer.unread();
            if unread.is_empty() {
                // The first request of a connection is answered, even if it arrives after the connection.
                if self.is_closing && self.requests_count > 0 {
                    self.close_idle(now_ms);
                }
                return;
            }
            match self.scan.advance(unread) {
                Ok(Scanned::Incomplete) => return,
                Ok(Scanned::Complete(count)) => return self.deliver_head(count),
                // RFC 9112 2.2: one empty line is ignored, because old clients send it after a body. It does not
                // begin a request, so the connection stays idle.
                Ok(Scanned::EmptyLine) if !self.has_skipped_empty_line => {
                    self.has_skipped_empty_line = true;
                    self.read_buffer.consume(2);
                    self.scan = HeadScan::default();
                    self.since_ms = now_ms;
                }
                Ok(Scanned::EmptyLine) => {
                    return self.reject(ProtocolError::BadRequest("request line is malformed"));
                }
                Err(rejection) => return self.reject(rejection),
            }
        }
    }

    fn deliver_head(&mut self, count: usize) {
        match head::parse(&self.read_buffer.unread()[..count]) {
            Ok(head) => {
                self.is_head_request = head.method == Method::Head;
                self.head = Some(head);
                self.read_buffer.hold(count);
                self.requests_count += 1;
                self.phase = Phase::Deciding;
            }
            Err(rejection) => self.reject(rejection),
        }
    }

    fn advance_body(&mut self, now_ms: u64) {
        let Phase::Body(progress) = &mut self.phase else { return };
        let bytes_before = self.body.len();
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
                let (body, bytes_max) = (&mut self.body, decoder.bytes_max());
                match decoder.decode(unread, |data| body::append(body, data, bytes_max)) {
                    Ok(count) => self.read_buffer.consume(count),
                    Err(rejection) => return self.reject(rejection),
                }
                decoder.is_done()
            }
        };
        self.body_pace.advance(self.body.len() - bytes_before, now_ms);
        if is_done {
            self.phase = Phase::Responding;
        }
    }

    /// Rejects the current request. Everything that has arrived of it and after it is wiped unread, except a head that
    /// was delivered.
    pub(super) fn reject(&mut self, rejection: ProtocolError) {
        if self.head.is_none() {
            self.is_head_request = self.read_buffer.unread().starts_with(b"HEAD ");
            let origin = head::field_values(self.read_buffer.unread(), "origin").next();
            self.refused_origin = origin.map(Into::into);
        }
        self.read_buffer.discard();
        self.body = Zeroizing::new(Vec::new());
        self.phase = Phase::Rejected(rejection);
    }

    pub(super) fn linger(&mut self, now_ms: u64) {
        self.clear_request();
        self.read_buffer.discard();
        self.since_ms = now_ms;
        self.phase = Phase::Lingering;
    }

    /// Closes an idle connection. The linger timeout is for the client to read the last response, so it counts from
    /// that response: many clients notice the close only when they send again.
    fn close_idle(&mut self, now_ms: u64) {
        let since_ms = if self.write_buffer.is_empty() { self.since_ms } else { now_ms };
        self.linger(now_ms);
        self.since_ms = since_ms;
    }

    pub(super) fn close(&mut self) {
        self.clear_request();
        self.read_buffer.discard();
        self.phase = Phase::Closed;
    }

    /// Wipes the current request and resets the state for the next one.
    pub(super) fn clear_request(&mut self) {
        self.read_buffer.release();
        self.body = Zeroizing::new(Vec::new());
        self.head = None;
        self.scan = HeadScan::default();
        self.has_skipped_empty_line = false;
        self.is_head_request = false;
    }
}
