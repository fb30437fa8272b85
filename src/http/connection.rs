//! Drives one connection: moves bytes between a stream and the sans-IO core, and requests between
//! the core and the application. Runs on any futures stream: glommio's, a pipe in a test.

use std::future::{Future, pending, poll_fn};
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
use super::content::Content;
use super::error;
use super::executor_context::ExecutorContext;
use super::handlers::configs::{list_field_names, list_fields};
use super::response::{HandlerOutput, ListStream, Response};
use super::timers::Deadline;
use crate::http1::{self, Connection, ProtocolError, RequestHead, Step};
use crate::limits::{LARGE_VALUE_BYTES, PIECE_BYTES, PIECE_COPIES, WRITE_STALL};
use crate::model::SecretBytes;

/// What answers requests.
pub trait Application {
    /// What is kept of a head while its body arrives.
    type Request;

    /// Decides on a request by its head alone, or appends its whole answer to `body`, whose owner wipes it.
    /// Says in `exchange` what it is.
    ///
    /// # Errors
    /// With the answer, when the request goes no further.
    fn on_head(
        &self,
        head: &RequestHead<'_>,
        exchange: &mut RequestLog,
        body: &mut Vec<u8>,
    ) -> Result<HeadDecision<Self::Request>, Response>;

    /// The origin that an answer allows, for a page of this one; `None` where no page may see it.
    fn allowed_origin(&self, _origin: &[u8]) -> Option<String> {
        None
    }

    /// Answers a request. Dropped when the connection fails before it is done.
    fn handle(&self, request: Self::Request, body: Zeroizing<Vec<u8>>)
    -> impl Future<Output = HandlerOutput>;
}

/// What becomes of a request that is not refused.
#[derive(Debug)]
pub enum HeadDecision<R> {
    /// The answer was at hand: status 200 and JSON.
    Responded,
    /// It goes on.
    ReadBody {
        /// What the application needs of the head.
        request: R,
        /// How large a body may be, if one is wanted; if not, it is read over.
        body_bytes_max: Option<usize>,
    },
}

/// Steps of a connection after which the others have theirs; a request takes two or three.
const STEPS_PER_TURN: u32 = 128;

/// Counted for a client that left before its answer, or did not get all of it.
const CLIENT_GONE: u16 = 499;

/// How a wait for the client ended.
enum Event {
    Arrived(usize),
    Ended,
    Expired,
    Closing,
}

/// Why the connection cannot go on.
struct Disconnected;

struct Driver<'a, S, A> {
    stream: S,
    application: &'a A,
    local: &'a ExecutorContext,
    alarm: Rc<Deadline>,
    connection: Connection,
    client: Client,
    /// Of the request that is not answered yet.
    exchange: Option<RequestLog>,
    bodies: Share<'a>,
    answers: Share<'a>,
    /// What the answer that is being sent takes of the budget; its row counts only while its client is waited for.
    answer_held: Held,
    is_stalled: bool,
    told_to_close: bool,
    /// Until others have their turn.
    steps_left: u32,
}

/// Serves one connection until it ends.
pub async fn serve<S, A>(stream: S, application: &A, local: &ExecutorContext, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Application,
{
    let alarm = local.clock.alarm();
    let mut driver = Driver {
        stream,
        application,
        local,
        bodies: Share::new(&local.bodies, Rc::clone(&alarm)),
        answers: Share::new(&local.answers, Rc::clone(&alarm)),
        answer_held: Held::default(),
        is_stalled: false,
        alarm,
        connection: Connection::new(local.clock.now_ms()),
        client,
        exchange: None,
        told_to_close: false,
        steps_left: STEPS_PER_TURN,
    };
    // The client has gone, or stalls: there is nobody to tell.
    let _: Result<(), Disconnected> = driver.run().await;
    if let Some(exchange) = &driver.exchange {
        local.traffic.note(exchange, CLIENT_GONE);
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
            self.heed_closing();
            match self.connection.step(self.now_ms()) {
                Step::Head => match self.admit() {
                    Ok(HeadDecision::Responded) => {}
                    Ok(HeadDecision::ReadBody { request, body_bytes_max: Some(bytes_max) }) => {
                        admitted = Some(request);
                        self.connection.accept_body(bytes_max, self.now_ms());
                    }
                    Ok(HeadDecision::ReadBody { request, body_bytes_max: None }) => {
                        self.answer(request, Zeroizing::default()).await?;
                    }
                    Err(answer) if answer.delay.is_zero() => self.respond(&answer),
                    Err(answer) => Box::pin(self.respond_delayed(answer)).await?,
                },
                Step::Body => {
                    let request = admitted.take().expect("a body is only read after its head was admitted");
                    let body = self.connection.take_body();
                    self.bodies.hold_anyway(body.capacity().into(), self.client_address());
                    self.bodies.stall(None);
                    self.answer(request, body).await?;
                    self.release_body();
                }
                Step::Reject(rejection) => self.reject(rejection),
                Step::Read => self.read().await?,
                Step::Linger => {
                    // What is refused while its body arrives keeps no user key.
                    drop(admitted);
                    return self.linger().await;
                }
                Step::Close => return self.flush().await,
            }
            if self.connection.output_is_full() {
                self.flush().await?;
            }
            self.give_way().await;
        }
    }

    /// A client that always has sent more must not keep the executor from all others.
    async fn give_way(&mut self) {
        self.steps_left -= 1;
        if self.steps_left == 0 {
            self.steps_left = STEPS_PER_TURN;
            yield_now().await;
        }
    }

    /// Asked before each answer as well: one that began to be made before the end says that it is the last.
    fn heed_closing(&mut self) {
        if self.local.clock.is_closing() && !self.told_to_close {
            self.told_to_close = true;
            self.connection.close_after_answer();
        }
    }

    /// Sends the answer along, if it is at hand.
    fn admit(&mut self) -> Result<HeadDecision<A::Request>, Response> {
        let (application, connection) = (self.application, &mut self.connection);
        let ExecutorContext { clock, memory, traffic, .. } = self.local;
        memory.with_answer(|body| {
            let head = connection.head();
            let mut exchange = traffic.begin(&head, &self.client);
            let admission =
                panic::catch_unwind(AssertUnwindSafe(|| application.on_head(&head, &mut exchange, body)))
                    .unwrap_or_else(|_| Err(error::internal()));
            match &admission {
                Ok(HeadDecision::Responded) => {
                    traffic.note_at_hand(&exchange, &head);
                    let fields = Fields::of(&[], &exchange);
                    clock.with_date(|date| {
                        let (content_type, headers) = (Some(super::response::JSON), &*fields.all);
                        let answer = http1::Response { status: 200, content_type, headers, body, date };
                        connection.respond(&answer, clock.now_ms());
                    });
                    return admission;
                }
                Ok(HeadDecision::ReadBody { .. }) => exchange.wait(&head),
                Err(_) => exchange.keep_path(&head),
            }
            self.exchange = Some(exchange);
            admission
        })
    }

    /// A panic in the handler is this request's alone. What takes a while has a place of its own meanwhile, so
    /// that a connection that waits for a request is small.
    async fn answer(&mut self, request: A::Request, body: Zeroizing<Vec<u8>>) -> Result<(), Disconnected> {
        let application = self.application;
        // The answer to a large body is large as well, and once a write is made it must be given.
        let is_promised = body.len() > LARGE_VALUE_BYTES;
        if is_promised && !self.reserve(body.len()) {
            self.respond(&error::overloaded());
            return Ok(());
        }
        let handling = Box::pin(AssertUnwindSafe(application.handle(request, body)).catch_unwind());
        let outcome = self.while_connected(handling).await?;
        self.heed_closing();
        match outcome {
            Ok(HandlerOutput::Complete(answer)) if !answer.delay.is_zero() => {
                Box::pin(self.respond_delayed(answer)).await?;
            }
            Ok(HandlerOutput::Complete(mut answer)) if answer.body.len() > LARGE_VALUE_BYTES => {
                let content = Content::default().with_bytes(mem::take(&mut answer.body));
                Box::pin(self.send_large(&answer, content, is_promised)).await?;
            }
            Ok(HandlerOutput::Complete(answer)) => self.respond(&answer),
            Ok(HandlerOutput::Large(head, content)) => {
                Box::pin(self.send_large(&head, content, is_promised)).await?;
            }
            Ok(HandlerOutput::List(list)) => Box::pin(self.stream_list(*list)).await?,
            Err(_) => self.respond(&error::internal()),
        }
        self.hold_answer(Held::default());
        Ok(())
    }

    /// Takes room for an answer of so many bytes, and for the pieces in which it is sent. False if there is none.
    fn reserve(&mut self, bytes: usize) -> bool {
        let bytes = bytes + PIECE_COPIES * PIECE_BYTES;
        let has_room = self.answers.hold(bytes, self.client_address(), self.now_ms());
        self.answer_held = if has_room { bytes.into() } else { Held::default() };
        has_room
    }

    /// Takes room for memory that is there already.
    fn hold_answer(&mut self, held: Held) {
        self.answer_held = held;
        let own = Held { shared: None, ..held };
        self.answers.hold_anyway(own, self.client_address());
    }

    /// Runs `work`, and drops it if the connection fails meanwhile. The end of input is no failure: many clients end
    /// their side after their last request, and wait for the answer.
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

    /// Sends a body piece by piece. Where there is no room for it, another answer is given, unless this one is
    /// promised.
    async fn send_large(
        &mut self,
        head: &Response,
        mut content: Content,
        is_promised: bool,
    ) -> Result<(), Disconnected> {
        let held = content.held();
        if !is_promised && !self.reserve(held.bytes) {
            self.respond(&error::overloaded());
            return Ok(());
        }
        self.hold_answer(Held { bytes: held.bytes + PIECE_COPIES * PIECE_BYTES, ..held });
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
        self.note(head.status);
        Ok(())
    }

    async fn stream_list(&mut self, mut list: ListStream) -> Result<(), Disconnected> {
        if !self.reserve(list.first.capacity()) {
            self.respond(&error::overloaded());
            return Ok(());
        }
        let head = Response::json(200, Vec::new());
        let trailer_names = list_field_names(&list.rest);
        self.encode(&head, |connection, head, now_ms| connection.begin_stream(head, &trailer_names, now_ms));
        self.send_chunks(&list.first).await?;
        let mut is_first = list.first.len() == 1;
        list.first = SecretBytes::default();
        loop {
            self.flush().await?;
            let next = AssertUnwindSafe(list.rest.next_page()).catch_unwind();
            match self.while_connected(next).await? {
                Ok(Ok(Some(page))) => {
                    list.hidden_count += page.hidden_count;
                    let comma = usize::from(is_first && !page.bytes.is_empty());
                    self.hold_answer((page.bytes.capacity() + PIECE_COPIES * PIECE_BYTES).into());
                    self.send_chunks(&page.bytes[comma..]).await?;
                    is_first &= page.bytes.is_empty();
                }
                Ok(Ok(None)) => break,
                failed => {
                    if let Ok(Err(error)) = failed {
                        tracing::error!(%error, "a list ends half way");
                    }
                    // Without the last chunk the client knows that something is missing.
                    self.connection.abort();
                    self.note(CLIENT_GONE);
                    return Ok(());
                }
            }
        }
        self.send_chunk(b"]");
        let fields: smallvec::SmallVec<[(&str, String); 3]> =
            list_fields(&list.rest, list.hidden_count).collect();
        let trailers: smallvec::SmallVec<[(&str, &str); 3]> =
            fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.connection.end_stream(&trailers, self.now_ms());
        self.note(head.status);
        Ok(())
    }

    fn send_chunk(&mut self, bytes: &[u8]) {
        self.connection.stream_chunk(bytes, self.now_ms());
    }

    async fn send_chunks(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.send_chunk(piece);
            if self.connection.output().len() >= PIECE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn respond(&mut self, answer: &Response) {
        self.encode(answer, Connection::respond);
        self.note(answer.status);
    }

    /// Holds an answer back, in a place of its own like everything that takes a while.
    async fn respond_delayed(&mut self, answer: Response) -> Result<(), Disconnected> {
        let local = self.local;
        // It ends with the timeout, or earlier when the server stops.
        let held_back = local.clock.in_time(answer.delay, pending::<io::Result<()>>());
        self.while_connected(held_back).await?.ok();
        self.heed_closing();
        self.respond(&answer);
        Ok(())
    }

    /// Pages may see why a head was refused, too.
    fn reject(&mut self, rejection: ProtocolError) {
        if self.exchange.is_none() {
            let mut exchange = self.local.traffic.begin_refusal(&self.client);
            let origin = self.connection.refused_origin();
            exchange.allowed_origin = origin.and_then(|origin| self.application.allowed_origin(origin));
            self.exchange = Some(exchange);
        }
        self.respond_and_close(&Response::from(rejection));
    }

    fn respond_and_close(&mut self, answer: &Response) {
        self.encode(answer, Connection::respond_and_close);
        self.note(answer.status);
    }

    /// With what every answer says.
    fn encode(&mut self, answer: &Response, write: impl FnOnce(&mut Connection, &http1::Response<'_>, u64)) {
        let (connection, ExecutorContext { clock, traffic, .. }) = (&mut self.connection, self.local);
        let exchange = self.exchange.get_or_insert_with(|| traffic.begin_refusal(&self.client));
        let fields = Fields::of(&answer.headers, exchange);
        clock.with_date(|date| {
            let (status, content_type) = (answer.status, answer.content_type);
            let (headers, body) = (&*fields.all, &*answer.body);
            let answer = http1::Response { status, content_type, headers, body, date };
            write(connection, &answer, clock.now_ms());
        });
    }

    fn note(&mut self, status: u16) {
        if let Some(exchange) = self.exchange.take() {
            self.local.traffic.note(&exchange, status);
        }
    }

    fn now_ms(&self) -> u64 {
        self.local.clock.now_ms()
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
            Event::Ended => self.connection.received_eof(),
            Event::Expired => self.connection.expire(self.now_ms()),
            Event::Closing => {}
        }
        if self.bodies.is_evicted() {
            self.respond_and_close(&error::overloaded());
        }
        Ok(())
    }

    /// Counts what has arrived of a body; false when there is no room for it.
    fn hold_body(&mut self) -> bool {
        let bytes = self.connection.buffered_body_bytes();
        if bytes != self.bodies.bytes() && !self.bodies.hold(bytes, self.client_address(), self.now_ms()) {
            return false;
        }
        self.bodies.stall(Some(self.connection.body_since_ms()));
        true
    }

    fn release_body(&mut self) {
        self.bodies.hold_anyway(Held::default(), None);
    }

    /// The client, as far as a proxy has named it.
    fn client_address(&self) -> Option<IpAddr> {
        self.exchange.as_ref().and_then(|exchange| exchange.client).or(self.client.address)
    }

    async fn wait(&mut self) -> Event {
        self.alarm.set(self.connection.deadline_ms());
        poll_fn(|context| {
            self.local.memory.lend(&mut self.connection);
            match Pin::new(&mut self.stream).poll_read(context, self.connection.read_space()) {
                Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(Event::Arrived(count)),
                Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(Event::Ended),
                Poll::Pending => self.local.memory.take_back(&mut self.connection),
            }
            if self.local.clock.is_closing() && !self.told_to_close {
                return Poll::Ready(Event::Closing);
            }
            self.expired(context).map(|()| Event::Expired)
        })
        .await
    }

    fn expired(&self, context: &Context<'_>) -> Poll<()> {
        if self.alarm.is_due(self.now_ms()) {
            return Poll::Ready(());
        }
        self.alarm.register(context.waker());
        Poll::Pending
    }

    async fn flush(&mut self) -> Result<(), Disconnected> {
        while !self.connection.output().is_empty() {
            self.alarm.set(self.connection.deadline_ms());
            let written: io::Result<usize> = poll_fn(|context| {
                match Pin::new(&mut self.stream).poll_write(context, self.connection.output()) {
                    Poll::Pending => {
                        self.note_stall();
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
            if self.answers.is_evicted() {
                return Err(Disconnected);
            }
        }
        if mem::take(&mut self.is_stalled) {
            self.answers.stall(None);
            self.hold_answer(self.answer_held);
        }
        Ok(())
    }

    /// Counts what waits for a client that does not take it. What is taken at once is never counted.
    fn note_stall(&mut self) {
        if !mem::replace(&mut self.is_stalled, true) {
            let buffers = PIECE_COPIES * self.connection.output_capacity();
            let held = Held { bytes: self.answer_held.bytes.max(buffers), ..self.answer_held };
            self.answers.hold_anyway(held, self.client_address());
        }
        self.answers.stall(Some(self.connection.output_since_ms()));
    }

    /// Ends the sending direction and reads over what still comes: closing with unread bytes would
    /// reset the connection, and the client might never see the answer (RFC 9112, 9.6).
    async fn linger(&mut self) -> Result<(), Disconnected> {
        // The body is gone already: others may have its share meanwhile.
        self.release_body();
        self.flush().await?;
        // What the stream still holds may wait for a client that takes nothing.
        self.local.clock.in_time(WRITE_STALL, self.stream.close()).await.map_err(|_| Disconnected)?;
        loop {
            match self.wait().await {
                Event::Arrived(count) => self.connection.received(count, self.now_ms()),
                Event::Ended | Event::Expired => return Ok(()),
                Event::Closing => self.told_to_close = true,
            }
        }
    }
}

/// The header fields of an answer.
struct Fields<'a> {
    all: smallvec::SmallVec<[(&'a str, &'a str); 8]>,
}

impl<'a> Fields<'a> {
    /// Its own, and those of every answer: nobody may keep what holds secrets, or take it for something else.
    fn of(own: &'a [(&'static str, std::borrow::Cow<'static, str>)], exchange: &'a RequestLog) -> Self {
        let mut all: smallvec::SmallVec<[(&str, &str); 8]> =
            own.iter().map(|(name, value)| (*name, &**value)).collect();
        all.push(("x-request-id", exchange.id()));
        all.push(("x-content-type-options", "nosniff"));
        if !own.iter().any(|(name, _)| *name == "cache-control") {
            all.push(("cache-control", "no-store"));
        }
        if let Some(origin) = &exchange.allowed_origin {
            all.push(("access-control-allow-origin", origin));
            all.push(("access-control-expose-headers", super::cors::EXPOSED));
            all.push(("vary", "origin"));
        }
        Self { all }
    }
}
