//! The sending side of the driver: responses with their bodies, within the budget.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite, FutureExt};

use super::{Application, CLIENT_GONE, Disconnected, Driver};
use crate::http::body_stream::{BodyStream, Next, Trailers};
use crate::http::budget::Held;
use crate::http::content::Content;
use crate::http::error;
use crate::http::executor_context::ExecutorContext;
use crate::http::response::{Body, Response};
use crate::http::response_fields::ResponseFields;
use crate::http1::{self, Connection, ProtocolError};
use crate::limits::{LARGE_VALUE_BYTES, PIECE_BYTES, PIECES_BYTES, STREAM_PIECE_DEADLINE};
use crate::model::SecretBytes;

impl<S, A> Driver<'_, S, A>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Application,
{
    /// Sends a response after its delay. If the budget has no room for a large one and `is_reserved` is false, sends 503
    /// instead. The future of a response that takes long is boxed, so that an idle connection is small.
    pub(super) fn send(
        &mut self,
        response: Response,
        is_reserved: bool,
    ) -> impl Future<Output = Result<(), Disconnected>> {
        let is_short = matches!(&response.body, Body::Bytes(_) | Body::Static(_))
            && response.body.in_memory().len() <= LARGE_VALUE_BYTES;
        let sending = match is_short && response.delay.is_zero() {
            true => {
                self.respond(&response);
                None
            }
            false => Some(Box::pin(self.send_long(response, is_reserved))),
        };
        async move {
            match sending {
                Some(sending) => sending.await,
                None => Ok(()),
            }
        }
    }

    async fn send_long(&mut self, mut response: Response, is_reserved: bool) -> Result<(), Disconnected> {
        if !response.delay.is_zero() {
            self.hold_back(response.delay).await?;
        }
        let is_short = response.body.in_memory().len() <= LARGE_VALUE_BYTES;
        let content = match mem::take(&mut response.body) {
            Body::Stream { first, rest } => return self.send_stream(&response, first, rest).await,
            Body::Large(content) => *content,
            Body::Bytes(bytes) if !is_short => Content::default().with_bytes(bytes),
            Body::Static(bytes) if !is_short => Content::default().with_static(bytes),
            body => {
                response.body = body;
                self.respond(&response);
                return Ok(());
            }
        };
        self.send_large(&response, content, is_reserved).await
    }

    /// Waits for the delay of a response, or until the server drains if that is earlier.
    async fn hold_back(&mut self, delay: Duration) -> Result<(), Disconnected> {
        let executor = self.executor;
        let held_back = executor.timers.with_timeout(delay, pending::<io::Result<()>>());
        self.while_connected(held_back).await?.ok();
        Ok(())
    }

    /// Sends a body piece by piece.
    async fn send_large(
        &mut self,
        head: &Response,
        mut content: Content,
        is_reserved: bool,
    ) -> Result<(), Disconnected> {
        let held = content.held();
        if !is_reserved && !self.reserve(held.bytes) {
            self.respond(&error::overloaded());
            return Ok(());
        }
        self.hold_response(Held { bytes: held.bytes + PIECES_BYTES, ..held });
        let length = content.remaining();
        self.encode(head, |connection, head, now_ms| connection.begin_body(head, length, now_ms));
        loop {
            let count = content.next_len(PIECE_BYTES);
            let now_ms = self.now_ms();
            if count == 0 || !self.connection.stream_with(count, now_ms, |out| content.write_next(count, out))
            {
                break;
            }
            if self.connection.output().len() >= PIECE_BYTES {
                self.flush().await?;
            }
        }
        self.connection.end_stream(&[], self.now_ms());
        self.log_response(head.status);
        Ok(())
    }

    /// Sends a body of unknown length while it is produced, never ahead of the client.
    async fn send_stream(
        &mut self,
        head: &Response,
        first: SecretBytes,
        mut rest: Box<dyn BodyStream>,
    ) -> Result<(), Disconnected> {
        if !self.reserve(first.capacity()) {
            self.respond(&error::overloaded());
            return Ok(());
        }
        let names = rest.trailer_names();
        self.encode(head, |connection, head, now_ms| connection.begin_stream(head, &names, now_ms));
        let mut trailers = Trailers::new();
        if self.connection.expects_body() {
            self.send_chunks(&first).await?;
            drop(first);
            loop {
                self.flush().await?;
                match self.next_part(&mut *rest).await? {
                    Some(Next::Piece(piece)) => {
                        self.hold_response((piece.capacity() + PIECES_BYTES).into());
                        self.send_chunks(&piece).await?;
                    }
                    Some(Next::End(fields)) => {
                        trailers = fields;
                        break;
                    }
                    None => {
                        // The missing last chunk tells the client that the body is incomplete.
                        self.connection.abort();
                        self.log_response(CLIENT_GONE);
                        return Ok(());
                    }
                }
                self.yield_turn().await;
            }
        }
        let trailers: Vec<(&str, &str)> =
            trailers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.connection.end_stream(&trailers, self.now_ms());
        self.log_response(head.status);
        Ok(())
    }

    /// Waits for the next part of a stream. `None` if there is none, the reason for which is then in the log.
    async fn next_part(&mut self, stream: &mut dyn BodyStream) -> Result<Option<Next>, Disconnected> {
        let is_endless = stream.is_endless();
        if is_endless {
            // It waits for long, and meanwhile holds nothing.
            self.hold_response(Held::default());
        }
        let endpoint = self.request_log.as_ref().map(|request_log| request_log.endpoint.text);
        let (timers, deadline) = (Rc::clone(&self.executor.timers), Rc::clone(&self.deadline));
        deadline.set(Some(timers.now_ms() + 1000 * STREAM_PIECE_DEADLINE.as_secs()));
        let interrupted = poll_fn(|context| {
            if is_endless && timers.is_closing() {
                return Poll::Ready(Some(Next::End(Trailers::new())));
            }
            if deadline.is_due(timers.now_ms()) {
                let error = format_args!("no data within {STREAM_PIECE_DEADLINE:?}");
                tracing::error!(endpoint, %error, "response aborted");
                return Poll::Ready(None);
            }
            deadline.register(context.waker());
            Poll::Pending
        });
        let produced = async {
            match AssertUnwindSafe(async { stream.next().await }).catch_unwind().await {
                Ok(Ok(next)) => Some(next),
                Ok(Err(error)) => {
                    tracing::error!(endpoint, %error, "response aborted");
                    None
                }
                // The panic hook has logged it.
                Err(_) => None,
            }
        };
        self.while_connected(interrupted.or(produced)).await
    }

    async fn send_chunks(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.connection.stream_chunk(piece, self.now_ms());
            if self.connection.output().len() >= PIECE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Reserves budget for a response of `bytes` bytes and the pieces in which it is sent. False if none is left.
    pub(super) fn reserve(&mut self, bytes: usize) -> bool {
        let bytes = bytes + PIECES_BYTES;
        let has_room = self.response_share.hold(bytes, self.client_address(), self.now_ms());
        self.response_held = if has_room { bytes.into() } else { Held::default() };
        has_room
    }

    /// Counts response memory that is already allocated.
    pub(super) fn hold_response(&mut self, held: Held) {
        self.response_held = held;
        let own = Held { shared: None, ..held };
        self.response_share.hold_anyway(own, self.client_address());
    }

    /// Sends a response whose body is in memory, without waiting for the client.
    pub(super) fn respond(&mut self, response: &Response) {
        self.encode(response, Connection::respond);
        self.log_response(response.status);
    }

    pub(super) fn respond_and_close(&mut self, response: &Response) {
        self.encode(response, Connection::respond_and_close);
        self.log_response(response.status);
    }

    /// Rejects a malformed request. Pages of allowed origins may read this response, too.
    pub(super) fn reject(&mut self, error: ProtocolError) {
        if self.request_log.is_none() {
            let mut request_log = self.executor.access_log.begin_rejected(&self.client);
            let origin = self.connection.rejected_origin();
            request_log.allowed_origin = origin.and_then(|origin| self.application.allowed_origin(origin));
            self.request_log = Some(request_log);
        }
        self.respond_and_close(&Response::from(error));
    }

    /// Encodes a response together with the common header fields.
    fn encode(
        &mut self,
        response: &Response,
        write: impl FnOnce(&mut Connection, &http1::Response<'_>, u64),
    ) {
        self.check_closing();
        let (connection, ExecutorContext { timers: clock, access_log: traffic, .. }) =
            (&mut self.connection, self.executor);
        let request_log = self.request_log.get_or_insert_with(|| traffic.begin_rejected(&self.client));
        let fields = ResponseFields::of(&response.headers, request_log);
        clock.with_date(|date| {
            let (status, content_type) = (response.status, response.content_type);
            let (headers, body) = (&*fields.all, response.body.in_memory());
            let response = http1::Response { status, content_type, headers, body, date };
            write(connection, &response, clock.now_ms());
        });
    }

    fn log_response(&mut self, status: u16) {
        if let Some(request_log) = self.request_log.take() {
            self.executor.access_log.record(&request_log, status);
        }
    }
}
