//! Streamed responses: their end, shutdown, deadlines and budget.

use std::collections::VecDeque;
use std::io::Write;
use std::rc::Rc;
use std::sync::Mutex;

use opensecureconf::http::{Body, BodyStream, Next, NextPart};
use opensecureconf::limits::STREAM_PIECE_DEADLINE;
use opensecureconf::model::SecretBytes;
use opensecureconf::service::Error;

use super::*;

/// What a stream does after its pieces.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Ends with a trailer.
    End,
    /// Produces the same piece again and again.
    Repeat(&'static str),
    /// Waits until it is released, then ends.
    Wait,
    Fail,
    Panic,
}

/// A stream that follows a script.
#[derive(Debug)]
struct ScriptedStream {
    pieces: VecDeque<&'static str>,
    then: Then,
    is_endless: bool,
    state: Rc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Streams that exist.
    alive: Cell<usize>,
    /// Pieces requested.
    requested: Cell<usize>,
    is_released: Cell<bool>,
}

impl ScriptedStream {
    fn new(pieces: &[&'static str], then: Then, is_endless: bool, state: &Rc<State>) -> Self {
        state.alive.set(state.alive.get() + 1);
        Self { pieces: pieces.iter().copied().collect(), then, is_endless, state: Rc::clone(state) }
    }
}

impl Drop for ScriptedStream {
    fn drop(&mut self) {
        self.state.alive.set(self.state.alive.get() - 1);
    }
}

fn piece(text: &str) -> Next {
    Next::Piece(text.as_bytes().to_vec().into())
}

impl BodyStream for ScriptedStream {
    fn next(&mut self) -> NextPart<'_> {
        Box::pin(async {
            self.state.requested.set(self.state.requested.get() + 1);
            if let Some(text) = self.pieces.pop_front() {
                return Ok(piece(text));
            }
            match self.then {
                Then::End => {}
                Then::Repeat(text) => return Ok(piece(text)),
                Then::Wait => {
                    let is_released =
                        || if self.state.is_released.get() { Poll::Ready(()) } else { Poll::Pending };
                    poll_fn(|_| is_released()).await;
                }
                Then::Fail => return Err(Error::Unavailable),
                Then::Panic => panic!("{PANIC}"),
            }
            Ok(Next::End(vec![("x-count", "2".to_owned())]))
        })
    }

    fn trailer_names(&self) -> Vec<&'static str> {
        if self.is_endless { Vec::new() } else { vec!["x-count"] }
    }

    fn is_endless(&self) -> bool {
        self.is_endless
    }
}

/// Application whose responses are streams.
struct Streaming {
    first: &'static str,
    pieces: &'static [&'static str],
    then: Then,
    is_endless: bool,
    state: Rc<State>,
}

impl Streaming {
    fn new(then: Then, is_endless: bool) -> Self {
        Self { first: "", pieces: &["one", "", "two"], then, is_endless, state: Rc::default() }
    }
}

impl Application for Streaming {
    type Request = ();

    fn on_head(
        &self,
        _: &RequestHead<'_>,
        _: &mut RequestLog,
        _: &mut Vec<u8>,
    ) -> Result<HeadDecision<()>, Response> {
        Ok(HeadDecision::ReadBody { request: (), body_bytes_max: None })
    }

    async fn handle(&self, (): (), _: Zeroizing<Vec<u8>>) -> Response {
        let rest = Box::new(ScriptedStream::new(self.pieces, self.then, self.is_endless, &self.state));
        let first = SecretBytes::from(self.first.as_bytes().to_vec());
        Response::json(200, Body::Stream { first, rest })
    }
}

/// Sends `sent` and runs `meanwhile` once the server can make no progress. Returns what the client has received when
/// the server closes the connection.
fn stream(
    application: &Streaming,
    executor: &ExecutorContext,
    sent: &str,
    meanwhile: impl FnOnce(),
) -> String {
    let (server, client) = pipe(1024);
    let End { mut reader, mut writer } = client;
    let ((), received) = run(zip(serve(server, application, executor, Client::default()), async {
        writer.write_all(sent.as_bytes()).await.expect("the pipe has room");
        settle().await;
        meanwhile();
        let mut received = String::new();
        reader.read_to_string(&mut received).await.expect("the pipe does not fail");
        drop((reader, writer));
        received
    }));
    assert_eq!(application.state.alive.get(), 0, "no stream outlives its connection");
    received
}

fn body_of(response: &str) -> &str {
    response.split_once("\r\n\r\n").expect("a head").1
}

#[test]
fn a_stream_ends_with_its_trailers() {
    let application = Streaming { first: "zero", ..Streaming::new(Then::End, false) };
    let received = stream(&application, &executor(), &(get("/a") + &last("/b")), || {});
    let body = "4\r\nzero\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nx-count: 2\r\n\r\n";
    assert_eq!(received.matches(body).count(), 2, "{received}");
    assert_eq!(received.matches("\r\ntrailer: x-count\r\n").count(), 2, "{received}");
}

/// HEAD has no body, so nothing is produced, and an endless stream ends immediately.
#[test]
fn head_requests_produce_nothing() {
    for is_endless in [false, true] {
        let application = Streaming::new(Then::Wait, is_endless);
        let head = "HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let received = stream(&application, &executor(), head, || {});
        assert!(received.starts_with("HTTP/1.1 200 ") && body_of(&received).is_empty(), "{received}");
        assert_eq!(application.state.requested.get(), 0);
    }
}

#[test]
fn an_endless_stream_ends_at_shutdown() {
    for version in ["1.0", "1.1"] {
        let (application, executor) = (Streaming::new(Then::Wait, true), executor());
        let sent = format!("GET /a HTTP/{version}\r\nHost: x\r\n\r\n");
        // The clock stands still: the stream ends because of the shutdown, not at a deadline.
        let received = stream(&application, &executor, &sent, || {
            assert_eq!((application.state.alive.get(), application.state.requested.get()), (1, 4));
            executor.timers.close();
        });
        let body = if version == "1.0" { "onetwo" } else { "3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n" };
        assert_eq!(body_of(&received), body, "{version}");
    }
}

/// Not even an endless stream that never waits keeps the server from shutting down, or starves other connections.
#[test]
fn a_busy_endless_stream_ends_at_shutdown() {
    let (application, executor) = (Streaming::new(Then::Repeat("x"), true), executor());
    let (server, client) = pipe(1 << 20);
    let serving = serve(server, &application, &executor, Client::default());
    let received = run(serving.await_with(async {
        let End { mut reader, mut writer } = client;
        writer.write_all(get("/a").as_bytes()).await.expect("the pipe has room");
        settle().await;
        executor.timers.close();
        let mut received = String::new();
        reader.read_to_string(&mut received).await.expect("the pipe does not fail");
        received
    }));
    assert!(received.ends_with("1\r\nx\r\n1\r\nx\r\n0\r\n\r\n"), "{received}");
}

#[test]
fn a_stream_with_an_end_is_completed_during_shutdown() {
    let (application, executor) = (Streaming::new(Then::Wait, false), executor());
    let (server, client) = pipe(1024);
    let End { mut reader, mut writer } = client;
    let ((), received) = run(zip(serve(server, &application, &executor, Client::default()), async {
        writer.write_all(get("/a").as_bytes()).await.expect("the pipe has room");
        settle().await;
        executor.timers.close();
        settle().await;
        assert!(!reader.has_ended());
        application.state.is_released.set(true);
        // Any event makes the driver look; here it is the client, which sends ahead.
        writer.write_all(b"\r\n").await.expect("the server still reads");
        let mut received = String::new();
        reader.read_to_string(&mut received).await.expect("the pipe does not fail");
        drop((reader, writer));
        received
    }));
    assert_eq!(body_of(&received), "3\r\none\r\n3\r\ntwo\r\n0\r\nx-count: 2\r\n\r\n");
}

/// The lines logged while `work` runs.
fn logged(work: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Write::write(&mut *self.0.lock().expect("no panic"), bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_stream_that_produces_nothing_is_cut_at_its_deadline() {
    let deadline_ms = u64::try_from(STREAM_PIECE_DEADLINE.as_millis()).expect("small");
    for is_endless in [false, true] {
        let (application, executor) = (Streaming::new(Then::Wait, is_endless), executor());
        executor.timers.tick_at(0);
        let lines = logged(|| {
            let (server, client) = pipe(1024);
            let End { mut reader, mut writer } = client;
            let ((), received) = run(zip(serve(server, &application, &executor, Client::default()), async {
                writer.write_all(get("/a").as_bytes()).await.expect("the pipe has room");
                settle().await;
                executor.timers.tick_at(deadline_ms - 1);
                settle().await;
                assert_eq!((application.state.alive.get(), reader.has_ended()), (1, false));
                executor.timers.tick_at(deadline_ms);
                let mut received = String::new();
                reader.read_to_string(&mut received).await.expect("the pipe does not fail");
                received
            }));
            assert_eq!(body_of(&received), "3\r\none\r\n3\r\ntwo\r\n", "the last chunk is missing");
        });
        assert_eq!(application.state.alive.get(), 0);
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.contains("response aborted") && line.contains("no data within 300s"), "{line}");
    }
}

#[test]
fn a_stream_that_fails_is_cut() {
    expect_panics();
    for (then, cause) in [(Then::Fail, Some("cannot do this")), (Then::Panic, None)] {
        let application = Streaming::new(then, false);
        let lines = logged(|| {
            let received = stream(&application, &executor(), &get("/a").repeat(2), || {});
            // The connection closes, so the second request gets no response.
            assert!(received.ends_with("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n"), "{received}");
        });
        assert_eq!(lines.len(), usize::from(cause.is_some()), "{lines:?}");
        assert!(lines.iter().all(|line| line.contains("response aborted")), "{lines:?}");
        assert!(cause.is_none_or(|_| lines[0].contains("error=")), "{lines:?}");
    }
}

#[test]
fn a_client_that_disconnects_drops_the_stream() {
    let (application, executor) = (Streaming::new(Then::Wait, true), executor());
    let (server, client) = pipe(1024);
    run(zip(serve(server, &application, &executor, Client::default()), async {
        let End { reader: _reader, mut writer } = client;
        writer.write_all(get("/a").as_bytes()).await.expect("the pipe has room");
        settle().await;
        assert_eq!(application.state.alive.get(), 1);
        writer.reset();
    }));
    assert_eq!(application.state.alive.get(), 0);
}

/// A stream without room is refused; one that waits for events needs none.
#[test]
fn streams_count_for_the_budget() {
    let serving = |bytes_max: usize, then: Then, is_endless: bool| {
        let budget = ByteBudget::new(bytes_max);
        let executor = ExecutorContext::new(Executors::new(&ENDPOINT_LABELS).add(), Arc::clone(&budget));
        let application = Streaming { first: "zero", ..Streaming::new(then, is_endless) };
        let held_bytes = Cell::new(0);
        let received = stream(&application, &executor, &last("/a"), || {
            held_bytes.set(budget.held_bytes());
            application.state.is_released.set(true);
            executor.timers.close();
        });
        assert_eq!(budget.held_bytes(), 0);
        (received, held_bytes.get())
    };
    let (received, _) = serving(PIECE_BYTES, Then::End, false);
    assert!(
        received.starts_with("HTTP/1.1 503 ") && received.contains("\r\nretry-after: 1\r\n"),
        "{received}"
    );
    let (received, held_bytes) = serving(RESPONSES_BYTES_MAX, Then::Wait, false);
    assert!(received.starts_with("HTTP/1.1 200 ") && held_bytes >= PIECE_COPIES * PIECE_BYTES, "{received}");
    let (received, held_bytes) = serving(RESPONSES_BYTES_MAX, Then::Wait, true);
    assert_eq!((&received[..13], held_bytes), ("HTTP/1.1 200 ", 0));
}
