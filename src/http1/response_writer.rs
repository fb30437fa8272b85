//! The way back: answers, streams, and whether the connection outlives them.

use super::{
    chunked::Decoder,
    connection::Connection,
    fields::Framing,
    phase::{Delivery, Phase, Stream},
    response::{self, BodyFraming, ConnectionField, Response},
};
use crate::limits;

/// Every method here does nothing once the connection is closing: a client may have been dropped
/// while the application was still at work for it.
impl Connection {
    /// Gives the whole answer to the current request.
    ///
    /// A body that was not accepted is skipped where it has already arrived. Otherwise the
    /// connection closes, rather than wait for bytes that nobody wants.
    pub fn respond(&mut self, answer: &Response<'_>, now_ms: u64) {
        let persists = self.can_persist();
        self.answer(answer, persists, now_ms);
    }

    /// Gives the whole answer and closes. Also for a client that is turned away before it has sent
    /// a request.
    pub fn respond_and_close(&mut self, answer: &Response<'_>, now_ms: u64) {
        self.answer(answer, false, now_ms);
    }

    fn answer(&mut self, answer: &Response<'_>, persists: bool, now_ms: u64) {
        if self.is_over() {
            return;
        }
        let framing = match self.is_head_request {
            true => BodyFraming::LengthOnly(answer.body.len()),
            false => BodyFraming::Length,
        };
        let field = self.connection_field(persists);
        response::encode(&mut self.outbox, answer, framing, field, now_ms);
        self.conclude(persists, now_ms);
    }

    /// Begins an answer whose length is not known: in chunks, or for a 1.0 client until the
    /// connection closes. `trailer_names` announces the trailers that
    /// [`Connection::end_stream`] will write.
    pub fn begin_stream(&mut self, answer: &Response<'_>, trailer_names: &[&str], now_ms: u64) {
        if self.is_over() {
            return;
        }
        let is_http_11 = self.head.as_ref().is_none_or(|head| head.is_http_11);
        let persists = is_http_11 && self.can_persist();
        let framing = if is_http_11 { BodyFraming::Chunked(trailer_names) } else { BodyFraming::UntilClose };
        let field = self.connection_field(persists);
        response::encode(&mut self.outbox, answer, framing, field, now_ms);
        let delivery = match is_http_11 {
            _ if self.is_head_request || response::is_bodiless(answer.status) => Delivery::Nothing,
            true => Delivery::Chunks,
            false => Delivery::Raw,
        };
        self.phase = Phase::Streaming(Stream { delivery, persists });
    }

    /// Begins an answer with a body of `length` bytes, which [`Connection::stream_with`] writes; that of `answer` is
    /// ignored.
    pub fn begin_body(&mut self, answer: &Response<'_>, length: usize, now_ms: u64) {
        if self.is_over() {
            return;
        }
        let persists = self.can_persist();
        let field = self.connection_field(persists);
        response::encode(&mut self.outbox, answer, BodyFraming::LengthOnly(length), field, now_ms);
        let delivery = match self.is_head_request || response::is_bodiless(answer.status) {
            true => Delivery::Nothing,
            false => Delivery::Length(length),
        };
        self.phase = Phase::Streaming(Stream { delivery, persists });
    }

    /// Lets `write` append the next `count` bytes of a body to the output, which wipes them. False, and nothing is
    /// written, when nobody takes a body.
    pub fn stream_with(&mut self, count: usize, now_ms: u64, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Phase::Streaming(Stream { delivery: Delivery::Length(left), .. }) = &mut self.phase else {
            return false;
        };
        *left = left.checked_sub(count).expect("no more bytes than were announced");
        self.outbox.reserve(count, now_ms);
        self.outbox.put_with(count, write);
        true
    }

    /// Writes the next piece of a stream.
    pub fn stream_chunk(&mut self, bytes: &[u8], now_ms: u64) {
        let Phase::Streaming(stream) = &self.phase else { return };
        match stream.delivery {
            Delivery::Chunks => response::encode_chunk(&mut self.outbox, bytes, now_ms),
            Delivery::Raw => {
                self.outbox.reserve(bytes.len(), now_ms);
                self.outbox.put(bytes);
            }
            Delivery::Nothing | Delivery::Length(_) => {}
        }
    }

    /// Completes a stream. Trailers reach only clients that get chunks.
    pub fn end_stream(&mut self, trailers: &[(&str, &str)], now_ms: u64) {
        let Phase::Streaming(Stream { delivery, persists }) = self.phase else { return };
        match delivery {
            Delivery::Chunks => response::encode_end(&mut self.outbox, trailers, now_ms),
            // The client knows by the length that something is missing.
            Delivery::Length(left) if left > 0 => return self.close(),
            Delivery::Length(_) | Delivery::Raw | Delivery::Nothing => {}
        }
        self.conclude(persists, now_ms);
    }

    /// Gives a stream up half way: the connection closes without the last chunk, by which the
    /// client knows. A 1.0 client can know only when the driver resets the connection.
    pub fn abort(&mut self) {
        self.close();
    }

    /// What waits to be written.
    pub fn output(&self) -> &[u8] {
        self.outbox.unwritten()
    }

    /// Memory that the output takes.
    pub fn output_capacity(&self) -> usize {
        self.outbox.capacity()
    }

    /// Since when the client has taken less than the minimum rate asks for in a window.
    pub fn output_since_ms(&self) -> u64 {
        self.outbox.pace().window_since_ms()
    }

    /// Tells that the first `count` bytes of the output were written.
    pub fn wrote(&mut self, count: usize, now_ms: u64) {
        // A write that was under way when the connection expired comes back after the output is gone.
        let is_gone = matches!(self.phase, Phase::Closed) && self.outbox.is_empty();
        self.outbox.wrote(if is_gone { 0 } else { count }, now_ms);
        // The patience of lingering is for the client to read the answer, so it begins here.
        if matches!(self.phase, Phase::Lingering) {
            self.since_ms = now_ms;
        }
    }

    /// Whether the output must be flushed before the next step, so that a client that pipelines and
    /// does not read cannot fill the memory.
    pub fn output_is_full(&self) -> bool {
        self.output().len() >= limits::OUTBOX_BYTES_MAX
    }

    /// Makes the next answer the last one; an idle connection lingers at the next step.
    pub fn close_after_answer(&mut self) {
        self.is_draining = true;
    }

    /// Whether no answer can begin any more. One that begins within a stream would be read as a
    /// part of it, so it ends the connection instead.
    fn is_over(&mut self) -> bool {
        if matches!(self.phase, Phase::Streaming(_)) {
            debug_assert!(false, "a stream has begun, which is the answer");
            self.close();
        }
        matches!(self.phase, Phase::Lingering | Phase::Closed)
    }

    /// Whether another request may follow, which needs the end of this one to be known.
    fn can_persist(&mut self) -> bool {
        let Some(head) = &self.head else { return false };
        if self.is_draining
            || !head.keeps_alive
            || self.requests_count >= limits::REQUESTS_COUNT_MAX_PER_CONNECTION
        {
            return false;
        }
        match self.phase {
            Phase::Deciding => self.skip_body(),
            Phase::Answering => true,
            _ => false,
        }
    }

    /// Wipes a body that was not accepted, if all of it is here and well formed.
    fn skip_body(&mut self) -> bool {
        let framing = self.head.as_ref().map_or(Framing::Empty, |head| head.framing);
        let unread = self.inbox.unread();
        let count = match framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => usize::try_from(length).ok().filter(|&count| count <= unread.len()),
            Framing::Chunked => {
                let mut decoder = Decoder::new(limits::BODY_BYTES_MAX);
                decoder.decode(unread, |_| {}).ok().filter(|_| decoder.is_done())
            }
        };
        if let Some(count) = count {
            self.inbox.consume(count);
        }
        count.is_some()
    }

    /// A 1.0 client that asked to stay is told that it may; others assume it (RFC 9112 9.3).
    fn connection_field(&self, persists: bool) -> ConnectionField {
        let is_http_11 = self.head.as_ref().is_none_or(|head| head.is_http_11);
        match (persists, is_http_11) {
            (false, _) => ConnectionField::Close,
            (true, false) => ConnectionField::KeepAlive,
            (true, true) => ConnectionField::Absent,
        }
    }

    fn conclude(&mut self, persists: bool, now_ms: u64) {
        if persists {
            self.forget_request();
            // Both for an idle connection and for a next request that is already here.
            self.since_ms = now_ms;
            self.phase = Phase::Head;
        } else {
            self.linger(now_ms);
        }
    }
}
