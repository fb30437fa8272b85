//! Writing of responses and streams, and whether the connection persists after them.

use super::{
    chunked::Decoder,
    connection::Connection,
    fields::Framing,
    phase::{Delivery, Phase, Stream},
    response::{self, BodyFraming, ConnectionField, Response},
};
use crate::limits;

/// Each of these methods does nothing once the connection is closing: a client may be dropped while the application
/// is still handling its request.
impl Connection {
    /// Writes the complete response to the current request.
    ///
    /// A body that was not accepted is skipped if all of it has arrived. Otherwise the connection closes instead of
    /// waiting for unwanted bytes.
    pub fn respond(&mut self, response: &Response<'_>, now_ms: u64) {
        let persists = self.can_persist();
        self.write_response(response, persists, now_ms);
    }

    /// Writes the complete response and closes. Also for a client that is rejected before it has sent a request.
    pub fn respond_and_close(&mut self, response: &Response<'_>, now_ms: u64) {
        self.write_response(response, false, now_ms);
    }

    fn write_response(&mut self, response: &Response<'_>, persists: bool, now_ms: u64) {
        if self.is_over() {
            return;
        }
        let framing = match self.is_head_request {
            true => BodyFraming::LengthOnly(response.body.len()),
            false => BodyFraming::Length,
        };
        let field = self.connection_field(persists);
        response::encode(&mut self.write_buffer, response, framing, field, now_ms);
        self.conclude(persists, now_ms);
    }

    /// Begins a response of unknown length: in chunks, or for an HTTP/1.0 client until the connection closes.
    /// `trailer_names` announces the trailers that [`Connection::end_stream`] will write.
    pub fn begin_stream(&mut self, response: &Response<'_>, trailer_names: &[&str], now_ms: u64) {
        if self.is_over() {
            return;
        }
        let is_http_11 = self.head.as_ref().is_none_or(|head| head.is_http_11);
        let persists = is_http_11 && self.can_persist();
        let framing = if is_http_11 { BodyFraming::Chunked(trailer_names) } else { BodyFraming::UntilClose };
        let field = self.connection_field(persists);
        response::encode(&mut self.write_buffer, response, framing, field, now_ms);
        let delivery = match is_http_11 {
            _ if self.is_head_request || response::is_bodiless(response.status) => Delivery::Nothing,
            true => Delivery::Chunks,
            false => Delivery::Raw,
        };
        self.phase = Phase::Streaming(Stream { delivery, persists });
    }

    /// Begins a response with a body of `length` bytes, which [`Connection::stream_with`] writes; the body of
    /// `response` is ignored.
    pub fn begin_body(&mut self, response: &Response<'_>, length: usize, now_ms: u64) {
        if self.is_over() {
            return;
        }
        let persists = self.can_persist();
        let field = self.connection_field(persists);
        response::encode(&mut self.write_buffer, response, BodyFraming::LengthOnly(length), field, now_ms);
        let delivery = match self.is_head_request || response::is_bodiless(response.status) {
            true => Delivery::Nothing,
            false => Delivery::Length(length),
        };
        self.phase = Phase::Streaming(Stream { delivery, persists });
    }

    /// Returns whether a response has begun whose body the client expects: none does for HEAD.
    pub fn expects_body(&self) -> bool {
        matches!(&self.phase, Phase::Streaming(stream) if stream.delivery != Delivery::Nothing)
    }

    /// Lets `write` append the next `count` bytes of a body to the output, which wipes them once they are written.
    /// Returns false, and writes nothing, if no body is expected.
    pub fn stream_with(&mut self, count: usize, now_ms: u64, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Phase::Streaming(Stream { delivery: Delivery::Length(left), .. }) = &mut self.phase else {
            return false;
        };
        *left = left.checked_sub(count).expect("the body is not longer than announced");
        self.write_buffer.reserve(count, now_ms);
        self.write_buffer.put_with(count, write);
        true
    }

    /// Writes the next piece of a stream.
    pub fn stream_chunk(&mut self, bytes: &[u8], now_ms: u64) {
        let Phase::Streaming(stream) = &self.phase else { return };
        match stream.delivery {
            Delivery::Chunks => response::encode_chunk(&mut self.write_buffer, bytes, now_ms),
            Delivery::Raw => {
                self.write_buffer.reserve(bytes.len(), now_ms);
                self.write_buffer.put(bytes);
            }
            Delivery::Nothing | Delivery::Length(_) => {}
        }
    }

    /// Completes a stream. Trailers are sent only in a chunked response.
    pub fn end_stream(&mut self, trailers: &[(&str, &str)], now_ms: u64) {
        let Phase::Streaming(Stream { delivery, persists }) = self.phase else { return };
        match delivery {
            Delivery::Chunks => response::encode_end(&mut self.write_buffer, trailers, now_ms),
            // The announced length shows the client that bytes are missing.
            Delivery::Length(left) if left > 0 => return self.close(),
            Delivery::Length(_) | Delivery::Raw | Delivery::Nothing => {}
        }
        self.conclude(persists, now_ms);
    }

    /// Aborts a stream: the connection closes without the last chunk, so the client detects the truncation. An HTTP/1.0
    /// client can detect it only if the driver resets the connection.
    pub fn abort(&mut self) {
        self.close();
    }

    /// Returns the bytes that wait to be written.
    pub fn output(&self) -> &[u8] {
        self.write_buffer.unwritten()
    }

    /// Returns the memory that the output occupies, in bytes.
    pub fn output_capacity(&self) -> usize {
        self.write_buffer.capacity()
    }

    /// Returns the start of the current rate window: since then the client has read less than one window requires.
    pub fn output_since_ms(&self) -> u64 {
        self.write_buffer.pace().window_since_ms()
    }

    /// Records that the first `count` bytes of the output were written.
    pub fn wrote(&mut self, count: usize, now_ms: u64) {
        // A write that was in flight when the connection expired completes after the output was discarded.
        let is_gone = matches!(self.phase, Phase::Closed) && self.write_buffer.is_empty();
        self.write_buffer.wrote(if is_gone { 0 } else { count }, now_ms);
        // The linger timeout is for the client to read the response, so it starts with the write.
        if matches!(self.phase, Phase::Lingering) {
            self.since_ms = now_ms;
        }
    }

    /// Returns whether the output must be flushed before the next step, so that a client that pipelines requests and
    /// does not read responses cannot exhaust the memory.
    pub fn output_is_full(&self) -> bool {
        self.output().len() >= limits::PIPELINED_OUTPUT_BYTES_MAX
    }

    /// Makes the next response the last one. Until then the connection stays open.
    pub fn close_after_response(&mut self) {
        self.is_draining = true;
    }

    /// Makes the next response the last one; an idle connection lingers at the next step. One without any request so
    /// far has [`limits::CLOSING_TIMEOUT`] from its accept to send it.
    pub fn close_when_idle(&mut self) {
        self.is_draining = true;
        self.is_closing = true;
    }

    /// Returns whether no response can begin any more. One that begins within a stream would be read as a part of it,
    /// so it closes the connection instead.
    fn is_over(&mut self) -> bool {
        if matches!(self.phase, Phase::Streaming(_)) {
            debug_assert!(false, "a response was already begun as a stream");
            self.close();
        }
        matches!(self.phase, Phase::Lingering | Phase::Closed)
    }

    /// Returns whether another request may follow, which requires that the end of this one is known.
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
            Phase::Responding => true,
            _ => false,
        }
    }

    /// Wipes a body that was not accepted, if all of it has arrived and is well formed. Returns whether it did.
    fn skip_body(&mut self) -> bool {
        let framing = self.head.as_ref().map_or(Framing::Empty, |head| head.framing);
        let unread = self.read_buffer.unread();
        let count = match framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => usize::try_from(length).ok().filter(|&count| count <= unread.len()),
            Framing::Chunked => {
                let mut decoder = Decoder::new(limits::BODY_BYTES_MAX);
                decoder.decode(unread, |_| {}).ok().filter(|_| decoder.is_done())
            }
        };
        if let Some(count) = count {
            self.read_buffer.consume(count);
        }
        count.is_some()
    }

    /// Returns the `connection` field. Keep-alive is confirmed to an HTTP/1.0 client that requested it; an HTTP/1.1
    /// client assumes it (RFC 9112 9.3).
    fn connection_field(&self, persists: bool) -> ConnectionField {
        let is_http_11 = self.head.as_ref().is_none_or(|head| head.is_http_11);
        match (persists, is_http_11) {
            (false, _) => ConnectionField::Close,
            (true, false) => ConnectionField::KeepAlive,
            (true, true) => ConnectionField::Absent,
        }
    }

    /// Ends the response: the connection waits for the next request, or lingers.
    fn conclude(&mut self, persists: bool, now_ms: u64) {
        if persists {
            self.clear_request();
            // Start of the idle timeout, or of the head timeout of a request that has already arrived.
            self.since_ms = now_ms;
            self.phase = Phase::Head;
        } else {
            self.linger(now_ms);
        }
    }
}
