//! The state machine of one connection, from calls to responses.

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

/// One client connection: one call at a time, and none after anything was wrong.
pub struct ClientConnection {
    inbox: ReadBuffer,
    outbox: WriteBuffer,
    body: Zeroizing<Vec<u8>>,
    body_bytes_max: usize,
    phase: Phase,
    /// When the current call ends without a response.
    deadline_ms: u64,
    head: Option<Head>,
    scan: HeadScan,
    is_head_call: bool,
    interim_count: usize,
    saw_eof: bool,
}

/// What the connection is in the middle of.
enum Phase {
    /// No call is under way.
    Idle,
    /// Waiting for a response, or for the rest of its head.
    Head,
    Body(Progress),
    /// The whole response is delivered.
    Response,
    Failed(ClientFailure),
}

/// How far a body has come.
enum Progress {
    Length { total: usize, remaining: usize },
    Chunked(Decoder),
    UntilEof,
}

impl ClientConnection {
    /// A connection that was just made. A response with a larger body than this fails.
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            inbox: ReadBuffer::new(),
            outbox: WriteBuffer::new(),
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

    /// Takes bodies of responses up to another size, from the next response on.
    pub fn set_body_bytes_max(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max;
    }

    /// Begins an exchange, which ends with [`ClientConnection::finish`].
    ///
    /// Writes nothing and fails where the call cannot be written as one request, where the deadline
    /// has passed, and where the connection has failed: what has arrived before a call is no
    /// response to it, so read what is there before. A call during another fails both.
    pub fn call(&mut self, call: &ClientRequest<'_>, now_ms: u64, deadline_ms: u64) {
        self.advance();
        match self.phase {
            Phase::Idle => {}
            Phase::Failed(_) => return,
            Phase::Head | Phase::Body(_) | Phase::Response => {
                debug_assert!(false, "one call at a time");
                return self.fail(ClientFailure::Closed);
            }
        }
        if now_ms >= deadline_ms {
            return self.fail(ClientFailure::TimedOut);
        }
        if let Err(text) = call.check() {
            return self.fail(ClientFailure::Malformed(text));
        }
        call.encode(&mut self.outbox, now_ms);
        self.is_head_call = call.method == Method::Head;
        self.deadline_ms = deadline_ms;
        self.phase = Phase::Head;
    }

    /// What waits to be written.
    pub fn output(&self) -> &[u8] {
        self.outbox.unwritten()
    }

    /// Tells that the first `count` bytes of the output were written.
    pub fn wrote(&mut self, count: usize) {
        // A write that was under way when the connection failed comes back after the output is gone.
        let is_gone = matches!(self.phase, Phase::Failed(_));
        // The deadline is the call's and does not move with what is written.
        self.outbox.wrote(if is_gone { 0 } else { count }, 0);
    }

    /// Where to read into. Never empty after [`ClientStep::Read`].
    pub fn read_space(&mut self) -> &mut [u8] {
        let wanted = match &self.phase {
            Phase::Body(Progress::Length { remaining, .. }) => *remaining,
            Phase::Body(Progress::Chunked(decoder)) => decoder.wanted(),
            Phase::Body(Progress::UntilEof) => limits::HEAD_BYTES_MAX,
            _ => 1,
        };
        self.inbox.space(wanted)
    }

    /// Tells that `count` bytes were read into the space.
    pub fn received(&mut self, count: usize) {
        self.inbox.received(count);
        if matches!(self.phase, Phase::Failed(_)) {
            self.inbox.discard();
        }
    }

    /// Tells that the server will send nothing more.
    pub fn received_eof(&mut self) {
        self.saw_eof = true;
    }

    /// Goes as far as the bytes allow. Asking again without a change gives the same answer.
    pub fn step(&mut self) -> ClientStep {
        self.advance();
        match self.phase {
            Phase::Idle | Phase::Head | Phase::Body(_) => ClientStep::Read,
            Phase::Response => ClientStep::Response,
            Phase::Failed(failure) => ClientStep::Failed(failure),
        }
    }

    /// The status of the response, 200 to 599.
    ///
    /// # Panics
    ///
    /// When there is no response: before [`ClientStep::Response`] and after
    /// [`ClientConnection::finish`].
    pub fn status(&self) -> u16 {
        let head = self.head.filter(|_| matches!(self.phase, Phase::Response));
        head.expect("the driver asks for a status only when there is a response").status
    }

    /// The first field of this name in the response, without the white space around its value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        if matches!(self.phase, Phase::Response) { head::field(self.inbox.held(), name) } else { None }
    }

    /// Takes the body of the response, empty where it has none. Wiping it is the caller's part.
    pub fn take_body(&mut self) -> Vec<u8> {
        if matches!(self.phase, Phase::Response) { std::mem::take(&mut *self.body) } else { Vec::new() }
    }

    /// Ends the exchange and wipes it. Whether the connection can carry another call; if not, drop
    /// it. An exchange that is not complete is given up.
    pub fn finish(&mut self) -> bool {
        self.advance();
        let is_whole = match self.phase {
            Phase::Idle => true,
            Phase::Response => self.head.is_some_and(|head| head.keeps_alive),
            Phase::Head | Phase::Body(_) | Phase::Failed(_) => false,
        };
        let is_quiet = self.inbox.unread().is_empty() && self.outbox.is_empty();
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

    /// When to call [`ClientConnection::expire`]; `None` while no response is waited for.
    pub fn deadline_ms(&self) -> Option<u64> {
        matches!(self.phase, Phase::Head | Phase::Body(_)).then_some(self.deadline_ms)
    }

    /// Acts on the deadline, which has passed. Does nothing where no response is waited for.
    pub fn expire(&mut self) {
        if self.deadline_ms().is_some() {
            self.fail(ClientFailure::TimedOut);
        }
    }

    fn advance(&mut self) {
        if matches!(self.phase, Phase::Idle) && !self.inbox.unread().is_empty() {
            self.fail(ClientFailure::Malformed("bytes that answer no call"));
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

    /// Whether a head was complete.
    fn advance_head(&mut self) -> bool {
        let unread = self.inbox.unread();
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

    /// RFC 9110 15.2: interim responses may come unasked. They have no body, and no protocol is
    /// ever switched to.
    fn skip_interim(&mut self, head: Head, count: usize) -> Result<(), ClientFailure> {
        if head.status == 101 {
            return Err(ClientFailure::Malformed("switch of protocols"));
        }
        if head.announces_body() {
            return Err(ClientFailure::Malformed("interim response with a body"));
        }
        self.interim_count += 1;
        if self.interim_count > limits::INTERIM_RESPONSES_COUNT_MAX {
            return Err(ClientFailure::Malformed("too many interim responses"));
        }
        self.inbox.consume(count);
        self.scan = HeadScan::default();
        Ok(())
    }

    fn deliver_head(&mut self, mut head: Head, count: usize) -> Result<(), ClientFailure> {
        self.phase = if self.is_head_call || response::is_bodiless(head.status) {
            // RFC 9110 8.6: nothing of the kind is sent with a 204; who does may send a body as well.
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
        self.inbox.hold(count);
        Ok(())
    }

    fn advance_body(&mut self) {
        let Phase::Body(progress) = &mut self.phase else { return };
        let unread = self.inbox.unread();
        let is_done = match progress {
            Progress::Length { total, remaining } => {
                let count = unread.len().min(*remaining);
                body::append(&mut self.body, &unread[..count], *total);
                self.inbox.consume(count);
                *remaining -= count;
                *remaining == 0
            }
            Progress::Chunked(decoder) => {
                let body = &mut self.body;
                match decoder.decode(unread, |data| body::append(body, data, self.body_bytes_max)) {
                    Ok(count) => self.inbox.consume(count),
                    Err(rejection) => return self.fail(rejection.into()),
                }
                decoder.is_done()
            }
            Progress::UntilEof => {
                if unread.len() > self.body_bytes_max - self.body.len() {
                    return self.fail(ClientFailure::TooLarge);
                }
                body::append(&mut self.body, unread, self.body_bytes_max);
                self.inbox.discard();
                false
            }
        };
        if is_done {
            self.phase = Phase::Response;
        }
    }

    /// Ends the connection. Everything that was to be written and has arrived is wiped.
    fn fail(&mut self, failure: ClientFailure) {
        self.forget_call();
        self.inbox.discard();
        self.outbox.discard();
        self.phase = Phase::Failed(failure);
    }

    fn forget_call(&mut self) {
        self.inbox.release();
        self.body = Zeroizing::new(Vec::new());
        self.head = None;
        self.scan = HeadScan::default();
        self.is_head_call = false;
        self.interim_count = 0;
    }

    /// Every byte that is kept of requests and responses, to search it for what should be gone.
    #[cfg(test)]
    pub(super) fn everything(&self) -> Vec<u8> {
        [self.inbox.everything(), self.outbox.everything(), &self.body[..]].concat()
    }
}
