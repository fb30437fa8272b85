//! Connection driver: moves bytes between a stream and the sans-IO core, and requests between the core and the
//! application. Runs on any futures stream: glommio's, or a pipe in a test.

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_lite::future::yield_now;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt};
use zeroize::Zeroizing;

use super::access_log::{Client, RequestLog};
use super::budget::{Held, Share};
use super::error;
use super::executor_context::ExecutorContext;
use super::response::Response;
use super::response_fields::ResponseFields;
use super::timers::Deadline;
use crate::http1::{self, Connection, RequestHead, Step};
use crate::limits::{CONNECTION_STEPS_PER_TURN, LARGE_VALUE_BYTES, PIECE_COPIES, WRITE_STALL};

mod responses;

/// The application behind a connection: decides on request heads and handles requests.
pub trait Application {
    /// The state kept from a head while its body arrives.
    type Request;

    /// Decides on a request from its head alone, or appends the complete response body to `body`, which the caller
    /// wipes. Records the endpoint and other properties of the request in `request_log`.
    ///
    /// # Errors
    /// Returns the error response if the request is rejected.
    fn on_head(
        &self,
        head: &RequestHead<'_>,
        request_log: &mut RequestLog,
        body: &mut Vec<u8>,
    ) -> Result<HeadDecision<Self::Request>, Response>;

    /// Returns the origin if its pages may read responses, else `None`.
    fn allowed_origin(&self, _origin: &[u8]) -> Option<String> {
        None
    }

    /// Returns whether the server is draining: clients are to move to another server.
    fn is_draining(&self) -> bool {
        false
    }

    /// Handles a request. The future is dropped if the connection fails before it completes.
    fn handle(&self, request: Self::Request, body: Zeroizing<Vec<u8>>) -> impl Future<Output = Response>;
}

/// The decision on an accepted request head.
#[derive(Debug)]
pub enum HeadDecision<R> {
    /// The response is complete: status 200 with a JSON body.
    Responded,
    /// The request needs its handler, after its body if it has one.
    ReadBody {
        /// The application's state from the head.
        request: R,
        /// Largest body accepted, in bytes; if `None`, the body is skipped.
        body_bytes_max: Option<usize>,
    },
}

/// Status recorded for a client that did not receive the complete response.
const CLIENT_GONE: u16 = 499;

/// Outcome of a wait for the client.
enum Event {
    Arrived(usize),
    Eof,
    Expired,
    Closing,
}

/// The connection failed: the client disconnected, stalled or was evicted.
struct Disconnected;

struct Driver<'a, S, A> {
    stream: S,
    application: &'a A,
    executor: &'a ExecutorContext,
    deadline: Rc<Deadline>,
    connection: Connection,
    client: Client,
    /// Log record of the request in flight.
    request_log: Option<RequestLog>,
    body_share: Share<'a>,
    response_share: Share<'a>,
    /// Memory of the response being sent; a shared row counts only while the client stalls.
    response_held: Held,
    is_stalled: bool,
    is_closing: bool,
    /// Steps before this connection yields.
    steps_left: u32,
}

/// Serves one connection until it closes.
pub async fn serve<S, A>(stream: S, application: &A, executor: &ExecutorContext, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Application,
{
    let deadline = executor.timers.deadline();
    let mut driver = Driver {
        stream,
        application,
        executor,
        body_share: Share::new(&executor.bodies, Rc::clone(&deadline)),
        response_share: Share::new(&executor.responses, Rc::clone(&deadline)),
        response_held: Held::default(),
        is_stalled: false,
        deadline,
        connection: Connection::new(executor.timers.now_ms()),
        client,
        request_log: None,
        is_closing: false,
        steps_left: CONNECTION_STEPS_PER_TURN,
    };
    // The client disconnected or stalled, so the failure cannot be reported to it.
    let _: Result<(), Disconnected> = driver.run().await;
    if let Some(request_log) = &driver.request_log {
        executor.access_log.record(request_log, CLIENT_GONE);
    }
}

impl<S, A> Driver<'_, S, A>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Application,
{
    async fn run(&mut self) -> Result<(), Disconnected> {
        let mut admitted = None;
        loop {
            self.check_closing();
            match self.connection.step(self.now_ms()) {
                Step::Head => match self.handle_head() {
                    Ok(HeadDecision::Responded) => {}
                    Ok(HeadDecision::ReadBody { request, body_bytes_max: Some(bytes_max) }) => {
                        admitted = Some(request);
                        self.connection.accept_body(bytes_max, self.now_ms());
                    }
                    Ok(HeadDecision::ReadBody { request, body_bytes_max: None }) => {
                        self.process(request, Zeroizing::default()).await?;
                    }
                    Err(response) => self.send(response, false).await?,
                },
                Step::Body => {
                    let request = admitted.take().expect("a body is read only after its head was accepted");
                    let body = self.connection.take_body();
                    self.body_share.hold_anyway(body.capacity().into(), self.client_address());
                    self.body_share.stall(None);
                    self.process(request, body).await?;
                    self.release_body();
                }
                Step::Reject(error) => self.reject(error),
                Step::Read => self.read().await?,
                Step::Linger => {
                    // A request rejected while its body arrives must not keep its user key in memory.
                    drop(admitted);
                    return self.linger().await;
                }
                Step::Close => return self.flush().await,
            }
            if self.connection.output_is_full() {
                self.flush().await?;
            }
            self.yield_turn().await;
        }
    }

    /// Yields from time to time, so that a client that keeps sending does not starve the other connections.
    async fn yield_turn(&mut self) {
        self.steps_left -= 1;
        if self.steps_left == 0 {
            self.steps_left = CONNECTION_STEPS_PER_TURN;
            yield_now().await;
        }
    }

    /// Makes the next response the last one if the server is draining or the executor closes. Also called before each
    /// response, so that one whose request was in flight at that moment says `Connection: close`.
    fn check_closing(&mut self) {
        if self.executor.timers.is_closing() && !self.is_closing {
            self.is_closing = true;
            self.connection.close_when_idle();
        }
        let is_of_client = self.request_log.as_ref().is_some_and(|request_log| !request_log.is_of_node);
        if is_of_client && self.application.is_draining() {
            self.connection.close_after_response();
        }
    }

    /// Passes the head to the application, and sends the response if it is already complete.
    fn handle_head(&mut self) -> Result<HeadDecision<A::Request>, Response> {
        let (application, connection) = (self.application, &mut self.connection);
        let ExecutorContext { timers: clock, buffers: memory, access_log: traffic, .. } = self.executor;
        memory.with_response_buffer(|body| {
            let head = connection.head();
            let mut request_log = traffic.begin(&head, &self.client);
            let decision =
                panic::catch_unwind(AssertUnwindSafe(|| application.on_head(&head, &mut request_log, body)))
                    .unwrap_or_else(|_| Err(error::internal()));
            match &decision {
                Ok(HeadDecision::Responded) => {
                    traffic.record_cached(&request_log, &head);
                    let fields = ResponseFields::of(&[], &request_log);
                    if application.is_draining() {
                        connection.close_after_response();
                    }
                    clock.with_date(|date| {
                        let (content_type, headers) = (Some(super::response::JSON), &*fields.all);
                        let response = http1::Response { status: 200, content_type, headers, body, date };
                        connection.respond(&response, clock.now_ms());
                    });
                    return decision;
                }
                Ok(HeadDecision::ReadBody { .. }) => request_log.wait(&head),
                Err(_) => request_log.keep_path(&head),
            }
            self.request_log = Some(request_log);
            decision
        })
    }

    /// Runs the handler and sends its response. A panic in the handler fails only this request. Futures that run for
    /// long are boxed, so that an idle connection is small.
    async fn process(&mut self, request: A::Request, body: Zeroizing<Vec<u8>>) -> Result<(), Disconnected> {
        let application = self.application;
        // The response to a large body is large as well, and a committed write must be acknowledged.
        let is_reserved = body.len() > LARGE_VALUE_BYTES;
        if is_reserved && !self.reserve(body.len()) {
            self.respond(&error::overloaded());
            return Ok(());
        }
        let handling = Box::pin(AssertUnwindSafe(application.handle(request, body)).catch_unwind());
        let outcome = self.while_connected(handling).await?;
        let mut response = outcome.unwrap_or_else(|_| error::internal());
        let receipt = response.receipt.take();
        self.send(response, is_reserved).await?;
        if let Some(receipt) = receipt {
            self.flush().await?;
            // A client that has shut down its sending side has probably gone before the response was ready.
            if !self.connection.saw_eof() {
                receipt.confirm();
            }
        }
        self.hold_response(Held::default());
        Ok(())
    }

    /// Runs `work`, and drops it if the connection fails meanwhile. End of input is not a failure: many clients
    /// half-close after their last request and wait for the response.
    async fn while_connected<F: Future>(&mut self, work: F) -> Result<F::Output, Disconnected> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(output) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            loop {
                if self.connection.saw_eof() {
                    return Poll::Pending;
                }
                let space = self.connection.read_space();
                if space.is_empty() {
                    return Poll::Pending;
                }
                match Pin::new(&mut self.stream).poll_read(context, space) {
                    Poll::Ready(Ok(count)) if count > 0 => {
                        self.connection.received(count, self.now_ms());
                    }
                    Poll::Ready(Ok(_)) => self.connection.received_eof(),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Disconnected)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    fn now_ms(&self) -> u64 {
        self.executor.timers.now_ms()
    }

    async fn read(&mut self) -> Result<(), Disconnected> {
        if !self.hold_body() {
            self.respond_and_close(&error::overloaded());
            return Ok(());
        }
        self.flush().await?;
        match self.wait().await {
            Event::Arrived(count) => {
                self.connection.received(count, self.now_ms());
            }
            Event::Eof => self.connection.received_eof(),
            Event::Expired => self.connection.expire(self.now_ms()),
            Event::Closing => {}
        }
        if self.body_share.is_evicted() {
            self.respond_and_close(&error::overloaded());
        }
        Ok(())
    }

    /// Counts the body bytes that have arrived; false if the budget is exhausted.
    fn hold_body(&mut self) -> bool {
        let bytes = self.connection.buffered_body_bytes();
        if bytes != self.body_share.bytes()
            && !self.body_share.hold(bytes, self.client_address(), self.now_ms())
        {
            return false;
        }
        self.body_share.stall(Some(self.connection.body_since_ms()));
        true
    }

    fn release_body(&mut self) {
        self.body_share.hold_anyway(Held::default(), None);
    }

    /// The client's address: the one that a trusted proxy reported, else that of the connection.
    fn client_address(&self) -> Option<IpAddr> {
        self.request_log.as_ref().and_then(|request_log| request_log.client).or(self.client.address)
    }

    async fn wait(&mut self) -> Event {
        self.deadline.set(self.connection.deadline_ms());
        poll_fn(|context| {
            self.executor.buffers.lend(&mut self.connection);
            match Pin::new(&mut self.stream).poll_read(context, self.connection.read_space()) {
                Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(Event::Arrived(count)),
                Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(Event::Eof),
                Poll::Pending => self.executor.buffers.take_back(&mut self.connection),
            }
            if self.executor.timers.is_closing() && !self.is_closing {
                return Poll::Ready(Event::Closing);
            }
            self.expired(context).map(|()| Event::Expired)
        })
        .await
    }

    fn expired(&self, context: &Context<'_>) -> Poll<()> {
        if self.deadline.is_due(self.now_ms()) {
            return Poll::Ready(());
        }
        self.deadline.register(context.waker());
        Poll::Pending
    }

    async fn flush(&mut self) -> Result<(), Disconnected> {
        while !self.connection.output().is_empty() {
            self.deadline.set(self.connection.deadline_ms());
            let written: io::Result<usize> = poll_fn(|context| {
                match Pin::new(&mut self.stream).poll_write(context, self.connection.output()) {
                    Poll::Pending => {
                        self.record_stall();
                        self.expired(context).map(|()| Err(io::Error::from(io::ErrorKind::TimedOut)))
                    }
                    ready => ready,
                }
            })
            .await;
            match written {
                Ok(count) if count > 0 => self.connection.wrote(count, self.now_ms()),
                _ => return Err(Disconnected),
            }
            if self.response_share.is_evicted() {
                return Err(Disconnected);
            }
        }
        if mem::take(&mut self.is_stalled) {
            self.response_share.stall(None);
            self.hold_response(self.response_held);
        }
        Ok(())
    }

    /// Counts output that the client does not read. Output that is written immediately is never counted.
    fn record_stall(&mut self) {
        if !mem::replace(&mut self.is_stalled, true) {
            let buffers = PIECE_COPIES * self.connection.output_capacity();
            let held = Held { bytes: self.response_held.bytes.max(buffers), ..self.response_held };
            self.response_share.hold_anyway(held, self.client_address());
        }
        self.response_share.stall(Some(self.connection.output_since_ms()));
    }

    /// Performs a lingering close: shuts down the sending direction and drains the input. Closing with unread bytes
    /// would reset the connection, and the client might never see the response (RFC 9112, 9.6).
    async fn linger(&mut self) -> Result<(), Disconnected> {
        // The body is already dropped, so its share is free for other connections.
        self.release_body();
        self.flush().await?;
        // The stream may still hold output for a client that does not read.
        self.executor
            .timers
            .with_timeout(WRITE_STALL, self.stream.close())
            .await
            .map_err(|_| Disconnected)?;
        loop {
            match self.wait().await {
                Event::Arrived(count) => self.connection.received(count, self.now_ms()),
                Event::Eof | Event::Expired => return Ok(()),
                Event::Closing => self.is_closing = true,
            }
        }
    }
}
