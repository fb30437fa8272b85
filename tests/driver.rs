//! Connection driver over an in-memory pipe: panics, disconnects, deadlines and shutdown, with a clock that the tests
//! advance.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::panic;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::task::{Context, Poll, Wake, Waker};

use futures_lite::future::{block_on, yield_now, zip};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use opensecureconf::blocking::BlockingPool;
use opensecureconf::crypto::{KeyCache, KeyDeriver};
use opensecureconf::http::{
    App, Application, ByteBudget, Client, ENDPOINT_LABELS, ExecutorContext, HeadDecision, RequestLog,
    Response, Settings, serve,
};
use opensecureconf::http1::RequestHead;
use opensecureconf::limits::{
    BODIES_BYTES_MAX_PER_EXECUTOR, ENTRY_CACHE_BYTES_MIN, LIST_PAGE_BYTES, PIECE_BYTES, PIECE_COPIES,
    RESPONSES_BYTES_MAX, TRANSFER_BYTES_MIN,
};
use opensecureconf::service::{Parts, Service};
use opensecureconf::storage::{Storage, VersioningOptions};
use opensecureconf::telemetry::Executors;
use zeroize::Zeroizing;

use self::pipe::{End, Reader, pipe};

mod pipe;
#[path = "driver/streams.rs"]
mod streams;

// --- running ---------------------------------------------------------------------------------

/// Runs a future that needs no other thread. A future that is never woken fails immediately, instead of a test that
/// hangs.
fn run<T>(future: impl Future<Output = T>) -> T {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    while woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
    }
    panic!("deadlock: the future is pending and will not be woken");
}

/// Context of an executor.
fn executor() -> ExecutorContext {
    ExecutorContext::new(Executors::new(&ENDPOINT_LABELS).add(), ByteBudget::new(RESPONSES_BYTES_MAX))
}

/// Sends everything and returns all that is received until the server closes its side.
async fn talk(client: End, sent: impl AsRef<[u8]>) -> String {
    let End { mut reader, mut writer } = client;
    let mut received = Vec::new();
    let (_, read) = zip(writer.write_all(sent.as_ref()), reader.read_to_end(&mut received)).await;
    read.expect("the pipe does not fail");
    String::from_utf8(received).expect("responses are UTF-8")
}

/// Reads one response of the application below.
async fn receive(reader: &mut Reader) -> String {
    let mut received = Vec::new();
    while !received.ends_with(b"\n") || received.ends_with(b"\r\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).await.expect("a complete response");
        received.push(byte[0]);
    }
    String::from_utf8(received).expect("responses are UTF-8")
}

/// Statuses and bodies of a sequence of responses: `200 /a, 500 ...`.
fn summary(received: &str) -> Vec<String> {
    received
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|response| {
            let (head, body) = response.split_once("\r\n\r\n").expect("a head");
            let close = if head.contains("\r\nconnection: close") { " close" } else { "" };
            format!("{} {}{close}", &head[..3], body.trim_end())
        })
        .collect()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn last(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

// --- an application --------------------------------------------------------------------------

const PANIC: &str = "an expected panic of a test";
const ERROR: &str = r#"{"detail":"Internal server error"}"#;

/// Application whose path selects what it does; it responds with the path, the body, and a line feed.
#[derive(Default)]
struct Scripted {
    handlers_running: Cell<usize>,
    handled: Cell<usize>,
    released: Cell<bool>,
}

/// Counts a handler as running until its future is dropped.
struct Running<'a>(&'a Cell<usize>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Application for Scripted {
    type Request = String;

    fn on_head(
        &self,
        head: &RequestHead<'_>,
        _: &mut RequestLog,
        _: &mut Vec<u8>,
    ) -> Result<HeadDecision<String>, Response> {
        let path = String::from_utf8_lossy(head.path()).into_owned();
        assert!(path != "/panic-at-the-head", "{PANIC}");
        if path == "/refused" {
            return Err(Response::json(403, b"/refused\n".to_vec()));
        }
        Ok(HeadDecision::ReadBody {
            request: path,
            body_bytes_max: (head.content_length() != Some(0))
                .then_some(opensecureconf::limits::BODY_BYTES_MAX),
        })
    }

    async fn handle(&self, path: String, body: Zeroizing<Vec<u8>>) -> Response {
        self.handlers_running.set(self.handlers_running.get() + 1);
        let _running = Running(&self.handlers_running);
        match path.as_str() {
            "/panic" => panic!("{PANIC}"),
            "/panic-later" => {
                yield_now().await;
                panic!("{PANIC}");
            }
            "/never" => pending().await,
            "/released" => {
                while !self.released.get() {
                    yield_now().await;
                }
            }
            _ => {
                let polls = path.rsplit('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
                for _ in 0..polls {
                    yield_now().await;
                }
            }
        }
        self.handled.set(self.handled.get() + 1);
        let mut response = path.into_bytes();
        response.extend_from_slice(&body);
        response.push(b'\n');
        Response::json(200, response)
    }
}

/// Suppresses the output of expected panics; all others are printed.
fn expect_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            if text.is_none_or(|text| !text.contains(PANIC)) {
                usual(info);
            }
        }));
    });
}

/// Serves one connection that receives `sent`, until the server closes it.
fn exchange(application: &Scripted, capacity: usize, sent: &str) -> Vec<String> {
    let (server, client) = pipe(capacity);
    let executor = executor();
    let ((), received) =
        run(zip(serve(server, application, &executor, Client::default()), talk(client, sent)));
    assert_eq!(application.handlers_running.get(), 0, "no handler outlives its connection");
    summary(&received)
}

// --- requests --------------------------------------------------------------------------------

#[test]
fn a_panic_affects_one_request_only() {
    expect_panics();
    for path in ["/panic", "/panic-later", "/panic-at-the-head"] {
        let application = Scripted::default();
        let sent = [get("/a"), get(path), get("/b"), last("/c")].concat();
        let expected = ["200 /a", &format!("500 {ERROR}"), "200 /b", "200 /c close"];
        assert_eq!(exchange(&application, 1024, &sent), expected, "{path}");
        assert_eq!(application.handled.get(), 3);
    }
}

#[test]
fn responses_are_in_request_order() {
    let paths: Vec<String> = (0..50).map(|number| format!("/{number}/{}", (50 - number) * 7 % 13)).collect();
    let sent: String = paths.iter().map(|path| get(path)).collect::<String>() + &last("/end");
    let mut expected: Vec<String> = paths.iter().map(|path| format!("200 {path}")).collect();
    expected.push("200 /end close".to_owned());
    assert_eq!(exchange(&Scripted::default(), 64 * 1024, &sent), expected);
}

/// A client that always has more requests and reads everything.
struct Greedy;

impl AsyncRead for Greedy {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let requests = get("/a");
        let count = out.len() / requests.len();
        assert!(count > 0, "there is room for a request");
        out[..count * requests.len()].copy_from_slice(requests.repeat(count).as_bytes());
        Poll::Ready(Ok(count * requests.len()))
    }
}

impl AsyncWrite for Greedy {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_greedy_client_yields() {
    let (application, executor) = (Scripted::default(), executor());
    let mut serving = pin!(serve(Greedy, &application, &executor, Client::default()));
    let mut context = Context::from_waker(Waker::noop());
    let mut before = 0;
    for _ in 0..100 {
        // Without yielding, this would never return.
        assert!(serving.as_mut().poll(&mut context).is_pending());
        let served = application.handled.get() - before;
        assert!((1..=1000).contains(&served), "{served} requests in one turn");
        before = application.handled.get();
    }
}

/// It must not matter into how many pieces input and output are split.
#[test]
fn segmentation_does_not_matter() {
    expect_panics();
    let length = "POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n=hello";
    let chunks = "POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                  3\r\n=he\r\n3;a\r\nllo\r\n0\r\nA: b\r\n\r\n";
    let sent = [&get("/a"), length, &get("/slow/3"), chunks, &get("/panic"), &last("/z")].concat();
    let expected = [
        "200 /a",
        "200 /length=hello",
        "200 /slow/3",
        "200 /chunks=hello",
        &format!("500 {ERROR}"),
        "200 /z close",
    ];
    for capacity in [1, 2, 3, 7, 100, 64 * 1024] {
        assert_eq!(exchange(&Scripted::default(), capacity, &sent), expected, "{capacity}");
    }
    let refused = format!(
        "{}{}{}",
        get("/refused"),
        "POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1",
        get("/a")
    );
    for capacity in [1, 64 * 1024] {
        let responses = exchange(&Scripted::default(), capacity, &refused);
        // A body that has arrived completely is skipped; otherwise the server does not wait for the rest.
        assert_eq!(responses[0], "403 /refused", "{capacity}");
        assert!(responses[1].starts_with("403 /refused"), "{capacity}: {responses:?}");
    }
}

#[test]
fn a_failed_connection_cancels_its_handler() {
    let application = Scripted::default();
    let (server, client) = pipe(1024);
    let executor = executor();
    run(zip(serve(server, &application, &executor, Client::default()), async {
        let End { reader: _reader, mut writer } = client;
        writer.write_all(get("/never").as_bytes()).await.expect("the pipe has room");
        while application.handlers_running.get() == 0 {
            yield_now().await;
        }
        writer.reset();
    }));
    assert_eq!((application.handlers_running.get(), application.handled.get()), (0, 0));
}

/// A client that half-closes the connection after its requests gets all responses.
#[test]
fn a_half_closed_client_gets_all_responses() {
    let (server, client) = pipe(4096);
    let executor = executor();
    let End { mut reader, mut writer } = client;
    let ((), received) = run(zip(serve(server, &Scripted::default(), &executor, Client::default()), async {
        // The second request takes several polls.
        let requests = ["/a", "/a/5", "/a"].map(get).concat();
        writer.write_all(requests.as_bytes()).await.expect("the pipe has room");
        writer.close().await.expect("the pipe does not fail");
        let mut received = String::new();
        reader.read_to_string(&mut received).await.expect("the pipe does not fail");
        received
    }));
    assert_eq!(summary(&received), ["200 /a", "200 /a/5", "200 /a"]);
}

// --- time ------------------------------------------------------------------------------------

/// Lets the server run until it can make no progress.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// Sends `sent` and advances the clock to `deadline_ms`: nothing happens before, and then the connection ends with
/// `expected`.
fn check_deadline(sent: &str, deadline_ms: u64, expected: &[&str]) {
    let application = Scripted::default();
    let (server, client) = pipe(64 * 1024);
    let executor = executor();
    executor.timers.tick_at(0);
    let End { mut reader, mut writer } = client;
    let serving = async {
        serve(server, &application, &executor, Client::default()).await;
        executor.timers.now_ms()
    };
    let (_, received) = run(zip(serving, async {
        writer.write_all(sent.as_bytes()).await.expect("the pipe has room");
        settle().await;
        executor.timers.tick_at(deadline_ms - 1);
        settle().await;
        assert!(!reader.has_ended(), "not before {deadline_ms}: {sent}");
        executor.timers.tick_at(deadline_ms);
        let mut received = String::new();
        reader.read_to_string(&mut received).await.expect("the pipe does not fail");
        drop((reader, writer));
        received
    }));
    assert_eq!(summary(&received), expected, "{sent}");
}

#[test]
fn deadlines_close_connections() {
    // An idle connection has no request to respond to.
    check_deadline("", 60_000, &[]);
    check_deadline("\r\n", 60_000, &[]);
    check_deadline(&get("/a"), 60_000, &["200 /a"]);
    let late = r#"408 {"detail":"The request head took too long"} close"#;
    check_deadline("GET / HT", 10_000, &[late]);
    check_deadline(&(get("/a") + "GET"), 10_000, &["200 /a", late]);
    let late = r#"408 {"detail":"The request body took too long"} close"#;
    let post = "POST / HTTP/1.1\r\nHost: x\r\n";
    check_deadline(&format!("{post}Content-Length: 9\r\n\r\n"), 10_000, &[late]);
    // However much data arrives at once, it earns one window only.
    let body = "x".repeat(0x8000);
    check_deadline(&format!("{post}Content-Length: 65536\r\n\r\n{body}"), 10_000, &[late]);
    check_deadline(&format!("{post}Transfer-Encoding: chunked\r\n\r\n8000\r\n{body}"), 10_000, &[late]);
}

/// Handlers have no deadline: only the client has.
#[test]
fn handlers_have_no_deadline() {
    let application = Scripted::default();
    let (server, client) = pipe(1024);
    let executor = executor();
    let ((), received) = run(zip(serve(server, &application, &executor, Client::default()), async {
        let talking = talk(client, last("/released"));
        let (received, ()) = zip(talking, async {
            settle().await;
            executor.timers.tick_at(100_000_000);
            settle().await;
            application.released.set(true);
        })
        .await;
        received
    }));
    assert_eq!(summary(&received), ["200 /released close"]);
}

/// Reads `taken_count` bytes of a large response after five seconds; the connection ends at the deadline and not
/// before.
fn check_stall(taken_count: usize, deadline_ms: u64) {
    let application = Scripted::default();
    let (server, client) = pipe(100);
    let executor = executor();
    executor.timers.tick_at(0);
    let is_over = Cell::new(false);
    let serving = async {
        serve(server, &application, &executor, Client::default()).await;
        is_over.set(true);
    };
    let End { mut reader, mut writer } = client;
    run(zip(serving, async {
        let head = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n";
        writer.write_all((head.to_owned() + &"x".repeat(50_000)).as_bytes()).await.expect("the server reads");
        settle().await;
        executor.timers.tick_at(5_000);
        reader.read_exact(&mut vec![0; taken_count]).await.expect("the response has begun");
        settle().await;
        executor.timers.tick_at(deadline_ms - 1);
        settle().await;
        assert!(!is_over.get());
        executor.timers.tick_at(deadline_ms);
        settle().await;
        assert!(is_over.get(), "the connection has ended, although the client still holds the pipe");
    }));
}

#[test]
fn a_client_that_reads_too_slowly_is_dropped() {
    check_stall(0, 10_000);
    // Occasional small reads do not count as progress.
    check_stall(1000, 10_000);
    check_stall(TRANSFER_BYTES_MIN, 15_000);
}

/// After its last response the server keeps reading, but only for a limited time.
#[test]
fn lingering_close_has_a_timeout() {
    let application = Scripted::default();
    let (server, client) = pipe(1024);
    let executor = executor();
    executor.timers.tick_at(0);
    let is_over = Cell::new(false);
    let serving = async {
        serve(server, &application, &executor, Client::default()).await;
        is_over.set(true);
    };
    let End { mut reader, mut writer } = client;
    run(zip(serving, async {
        writer.write_all(last("/a").as_bytes()).await.expect("the pipe has room");
        let mut received = String::new();
        reader.read_to_string(&mut received).await.expect("the pipe does not fail");
        assert_eq!(summary(&received), ["200 /a close"]);
        // More than the pipe holds can be written: it is read and discarded.
        writer.write_all(get("/b").repeat(1000).as_bytes()).await.expect("the server still reads");
        executor.timers.tick_at(1_999);
        settle().await;
        assert!(!is_over.get());
        executor.timers.tick_at(2_000);
        settle().await;
        assert!(is_over.get());
    }));
    assert_eq!(application.handled.get(), 1);
}

// --- shutdown --------------------------------------------------------------------------------

#[test]
fn shutdown_closes_idle_connections_and_waits_for_busy_ones() {
    let half = "POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n=1";
    for (sent, rest, expected) in [
        (String::new(), "", &[][..]),
        (get("/a"), "", &["200 /a"]),
        (get("/released"), "", &["200 /released close"]),
        (half.to_owned(), "23", &["200 /half=123 close"]),
        // Of several requests that have arrived, the first is the last one served.
        (get("/released") + &get("/a"), "", &["200 /released close"]),
    ] {
        let application = Scripted::default();
        let (server, client) = pipe(1024);
        let executor = executor();
        let End { mut reader, mut writer } = client;
        let ((), received) = run(zip(serve(server, &application, &executor, Client::default()), async {
            writer.write_all(sent.as_bytes()).await.expect("the pipe has room");
            settle().await;
            executor.timers.close();
            settle().await;
            // A connection without a request yet waits for it for a second.
            executor.timers.tick_at(1_000);
            settle().await;
            application.released.set(true);
            writer.write_all(rest.as_bytes()).await.expect("the server still reads");
            let mut received = String::new();
            reader.read_to_string(&mut received).await.expect("the pipe does not fail");
            drop((reader, writer));
            received
        }));
        assert_eq!(summary(&received), expected, "{sent}");
    }
}

#[test]
fn a_connection_that_is_accepted_after_the_shutdown_gets_one_response() {
    let (application, executor) = (Scripted::default(), executor());
    executor.timers.close();
    let (server, client) = pipe(1024);
    let talking = talk(client, get("/a").repeat(2));
    let received = run(serve(server, &application, &executor, Client::default()).await_with(talking));
    assert_eq!(summary(&received), ["200 /a close"]);
    assert_eq!(application.handled.get(), 1);
}

/// Runs two futures and returns the result of the second.
trait AwaitWith: Future<Output = ()> + Sized {
    async fn await_with<T>(self, other: impl Future<Output = T>) -> T {
        zip(self, other).await.1
    }
}

impl<F: Future<Output = ()>> AwaitWith for F {}

// --- bodies ----------------------------------------------------------------------------------

/// A body that is refused because others hold too much releases its own bytes immediately; otherwise one refusal would
/// cause the next.
#[test]
fn a_refused_body_releases_its_bytes_immediately() {
    const MIB: usize = 1024 * 1024;
    let post = |path: &str, announced: usize, sent: usize| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n");
        head + &"x".repeat(sent)
    };
    // Unfinished bodies hold all but the last 3 MiB.
    let mut sent_by_each =
        vec![post("/holds", 4 * MIB, 4 * MIB - 1); BODIES_BYTES_MAX_PER_EXECUTOR / (4 * MIB) - 1];
    sent_by_each.push(post("/holds", MIB, MIB - 1));
    let application = Scripted::default();
    let executor = executor();
    let (mut servings, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..sent_by_each.len() + 2 {
        let (server, client) = pipe(64 * 1024);
        servings.push(Box::pin(serve(server, &application, &executor, Client::default())));
        clients.push(client);
    }
    run(zip(join(servings), async {
        let (holders, others) = clients.split_at_mut(sent_by_each.len());
        for (client, sent) in holders.iter_mut().zip(&sent_by_each) {
            client.write_all(sent.as_bytes()).await.expect("the server reads");
        }
        settle().await;
        let refused = &mut others[0];
        refused.write_all(post("/too-much", 4 * MIB, 3 * MIB).as_bytes()).await.expect("the server reads");
        let mut received = String::new();
        refused.read_to_string(&mut received).await.expect("the pipe does not fail");
        assert!(
            received.starts_with("HTTP/1.1 503 ") && received.contains("\r\nretry-after: 1\r\n"),
            "{received}"
        );
        // The client has not closed its side, so the server still reads from it.
        assert!(!refused.writer.has_no_reader());
        let taken = &mut others[1];
        taken.write_all(post("/taken", MIB, MIB).as_bytes()).await.expect("the server reads");
        let response = receive(&mut taken.reader).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        drop(clients);
    }));
}

/// Stalled bodies hold their bytes only while no other body needs the room.
#[test]
fn stalled_bodies_give_way_to_others() {
    const MIB: usize = 1024 * 1024;
    let post = |sent: usize| {
        let head = format!("POST /holds HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 4 * MIB);
        head + &"x".repeat(sent)
    };
    let enough = BODIES_BYTES_MAX_PER_EXECUTOR / (4 * MIB);
    let application = Scripted::default();
    let executor = executor();
    executor.timers.tick_at(0);
    let (mut servings, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..enough + 1 {
        let (server, client) = pipe(64 * 1024);
        servings.push(Box::pin(serve(server, &application, &executor, Client::default())));
        clients.push(client);
    }
    run(zip(join(servings), async {
        let (stalled, honest) = clients.split_at_mut(enough);
        for (number, client) in stalled.iter_mut().enumerate() {
            client.write_all(post(4 * MIB - 1).as_bytes()).await.expect("the server reads");
            settle().await;
            // The first one has been stalled for longest.
            executor.timers.tick_at(u64::try_from(number).expect("small") + 1);
        }
        executor.timers.tick_at(5000);
        honest[0].write_all(post(4 * MIB).as_bytes()).await.expect("the server reads");
        let response = receive(&mut honest[0].reader).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        let mut received = String::new();
        stalled[0].read_to_string(&mut received).await.expect("the pipe does not fail");
        assert!(received.starts_with("HTTP/1.1 503 ") && received.contains("\r\nretry-after: 1\r\n"));
        // Only one had to give way.
        for client in &mut stalled[1..] {
            client.write_all(b"x").await.expect("the server reads");
            let response = receive(&mut client.reader).await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        }
        drop(clients);
    }));
}

/// Runs all futures to completion.
async fn join<F: Future<Output = ()> + Unpin>(mut futures: Vec<F>) {
    poll_fn(|context| {
        futures.retain_mut(|future| Pin::new(future).poll(context).is_pending());
        if futures.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

// --- the whole stack -------------------------------------------------------------------------

/// Everything but the runtime, in memory.
struct Stack {
    keys: KeyCache,
    app: App,
    executor: ExecutorContext,
}

impl Stack {
    fn new() -> Self {
        let versions = VersioningOptions::new(false);
        let storage = Arc::new(Storage::in_memory(ENTRY_CACHE_BYTES_MIN, Vec::new(), versions));
        let deriver = Arc::new(KeyDeriver::start(2, 64).expect("threads can be started"));
        let pool = Arc::new(BlockingPool::start(2, 4096).expect("threads can be started"));
        let keys = KeyCache::new();
        let service = Arc::new(Service::new(Parts::standalone(storage, keys.clone(), deriver, pool)));
        let settings = Settings::default();
        let app = App::new(service, settings);
        Self { keys, app, executor: executor() }
    }

    /// Sends each request over its own connection, all concurrently.
    fn send_all(&self, requests: &[String]) -> Vec<String> {
        let responses = RefCell::new(vec![Vec::new(); requests.len()]);
        let mut servings: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            let (server, client) = pipe(4096);
            let responses = &responses;
            servings.push(Box::pin(async move {
                let serving = serve(server, &self.app, &self.executor, Client::default());
                let received = serving.await_with(talk(client, request)).await;
                responses.borrow_mut()[number] = summary(&received);
            }));
        }
        block_on(join(servings));
        responses.into_inner().concat()
    }

    fn send(&self, request: String) -> String {
        self.send_all(&[request]).concat()
    }

    fn derivations(&self) -> u64 {
        self.keys.counts().derivations_started
    }
}

fn read(key: &str, user_key: &str) -> String {
    format!("GET /configs/{key} HTTP/1.1\r\nHost: x\r\nX-User-Key: {user_key}\r\nConnection: close\r\n\r\n")
}

fn create(key: &str, user_key: &str) -> String {
    let body = format!(r#"{{"key":"{key}","value":1}}"#);
    format!(
        "POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: {user_key}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_thousand_first_requests_with_one_key_derive_it_once() {
    let stack = Stack::new();
    let requests: Vec<String> =
        (0..1000).map(|number| create(&format!("k{number}"), "a-new-user-key")).collect();
    let responses = stack.send_all(&requests);
    assert_eq!(responses.len(), 1000);
    assert!(
        responses.iter().all(|response| response.starts_with("201 ") && response.ends_with(" close")),
        "{responses:?}"
    );
    assert_eq!(stack.derivations(), 1);

    let requests: Vec<String> =
        (0..1000).map(|number| read(&format!("k{number}"), "another-user-key")).collect();
    let responses = stack.send_all(&requests);
    assert!(responses.iter().all(|response| response.starts_with("401 ")), "{responses:?}");
    assert_eq!((responses.len(), stack.derivations()), (1000, 2));
}

#[test]
fn requests_that_need_a_derivation() {
    let stack = Stack::new();
    for (request, status, derivations) in [
        // Refused requests and missing entries cost no derivation.
        (read("k", "the-first-user-key"), "404", 0),
        (read("k", "short"), "401", 0),
        (create("", "the-first-user-key"), "422", 0),
        (create("k", "the-first-user-key"), "201", 1),
        (read("k", "the-first-user-key"), "200", 1),
        (create("k", "the-first-user-key"), "400", 1),
        // A name that is taken is reported after the derivation, and the key is cached from then on.
        (create("k", "the-second-user-key"), "400", 2),
        (read("k", "the-second-user-key"), "401", 2),
        (read("k", "the-second-user-key"), "401", 2),
        (read("nowhere", "the-third-user-key"), "404", 2),
        (read("k", "the-first-user-key"), "200", 2),
    ] {
        let response = stack.send(request.clone());
        assert!(response.starts_with(status), "{request}: {response}");
        assert_eq!(stack.derivations(), derivations, "{request}");
    }
}

impl Stack {
    /// Creates a stack with this budget for responses.
    fn with_response_budget(bytes_max: usize) -> Self {
        let executor =
            ExecutorContext::new(Executors::new(&ENDPOINT_LABELS).add(), ByteBudget::new(bytes_max));
        Self { executor, ..Self::new() }
    }
}

fn create_large(key: &str, length: usize) -> String {
    let body = format!(r#"{{"key":"{key}","value":"{}"}}"#, "x".repeat(length));
    format!(
        "POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: one-user-key\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The write is refused before it is executed: the response to a large write is large.
#[test]
fn a_write_whose_response_has_no_room_is_not_executed() {
    let stack = Stack::with_response_budget(PIECE_BYTES);
    let response = stack.send(create_large("large", 100_000));
    assert_eq!(response, r#"503 {"detail":"Too many requests at a time, try again in a moment"} close"#);
    assert!(stack.send(read("large", "one-user-key")).starts_with("404 "));
    // Small responses need no room.
    assert!(stack.send(create_large("small", 1000)).starts_with("201 "));
    assert!(stack.send(read("small", "one-user-key")).starts_with("200 "));
}

/// Each of two clients that do not read holds a piece of the value that both read, and there is no room for a third.
#[test]
fn a_stalled_response_gives_way_to_another() {
    const LENGTH: usize = 500_000;
    let stack = Stack::with_response_budget(2 * PIECE_COPIES * PIECE_BYTES + LENGTH + 10_000);
    assert!(stack.send(create_large("large", LENGTH)).starts_with("201 "));
    // From now on the entry is cached, so nothing below waits for another thread.
    assert!(stack.send(read("large", "one-user-key")).starts_with("200 "));
    stack.executor.timers.tick_at(0);
    let (mut servings, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (server, client) = pipe(64 * 1024);
        servings.push(Box::pin(serve(server, &stack.app, &stack.executor, Client::default())));
        clients.push(client);
    }
    run(zip(join(servings), async {
        let (stalled, others) = clients.split_at_mut(2);
        for (client, now_ms) in stalled.iter_mut().zip([1, 2]) {
            client.write_all(read("large", "one-user-key").as_bytes()).await.expect("the server reads");
            settle().await;
            stack.executor.timers.tick_at(now_ms);
        }
        let response_of = async |client: &mut End| {
            client.write_all(read("large", "one-user-key").as_bytes()).await.expect("the server reads");
            let mut received = String::new();
            client.reader.read_to_string(&mut received).await.expect("the pipe does not fail");
            received
        };
        stack.executor.timers.tick_at(1000);
        let refused = response_of(&mut others[0]).await;
        assert!(
            refused.starts_with("HTTP/1.1 503 ") && refused.contains("\r\nretry-after: 1\r\n"),
            "{refused}"
        );
        stack.executor.timers.tick_at(2001);
        let response = response_of(&mut others[1]).await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.len() > LENGTH);
        // The first one has been stalled for longest; its response is cut off, as its length shows.
        let mut cut = String::new();
        stalled[0].reader.read_to_string(&mut cut).await.expect("the pipe does not fail");
        assert!(cut.starts_with("HTTP/1.1 200 ") && cut.len() < LENGTH);
        let mut whole = String::new();
        stalled[1].reader.read_to_string(&mut whole).await.expect("the pipe does not fail");
        assert!(whole.len() > LENGTH);
        drop(clients);
    }));
}

/// Splits a chunked response into its head, its chunks and its trailers.
fn dechunked(response: &str) -> (&str, Vec<&str>, &str) {
    let (head, mut rest) = response.split_once("\r\n\r\n").expect("a head");
    let mut chunks = Vec::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("the size of a chunk");
        match usize::from_str_radix(size, 16).expect("a hexadecimal number") {
            0 => return (head, chunks, after),
            size => {
                chunks.push(&after[..size]);
                rest = after[size..].strip_prefix("\r\n").expect("the end of a chunk");
            }
        }
    }
}

/// Byte for byte: the first page, which the handler has read, is followed by the second and by the bracket.
#[test]
fn a_long_list_is_streamed() {
    const VALUE_BYTES: usize = 100_000;
    let entries_per_page = LIST_PAGE_BYTES / VALUE_BYTES + 1;
    let stack = Stack::new();
    let mut entries = Vec::new();
    for number in 1..=2 * entries_per_page - 2 {
        assert!(stack.send(create_large(&format!("k{number}"), VALUE_BYTES)).starts_with("201 "));
        let value = "x".repeat(VALUE_BYTES);
        entries.push(format!(r#"{{"id":{number},"key":"k{number}","category":null,"value":"{value}"}}"#));
    }
    assert!(stack.send(create("hidden", "another-user-key")).starts_with("201 "));
    let list = |method: &str| {
        let (server, client) = pipe(4096);
        let serving = serve(server, &stack.app, &stack.executor, Client::default());
        let request = format!(
            "{method} /configs HTTP/1.1\r\nHost: x\r\nX-Request-ID: 1\r\nX-User-Key: one-user-key\r\nConnection: close\r\n\r\n"
        );
        block_on(serving.await_with(talk(client, request)))
    };
    let response = list("GET");
    let (head, chunks, trailers) = dechunked(&response);
    let (first, second) = entries.split_at(entries_per_page);
    let pages = [format!("[{}", first.join(",")), format!(",{}", second.join(",")), "]".to_owned()];
    let expected: Vec<&[u8]> = pages.iter().flat_map(|page| page.as_bytes().chunks(PIECE_BYTES)).collect();
    let chunks: Vec<&[u8]> = chunks.into_iter().map(str::as_bytes).collect();
    assert!(chunks == expected, "{:?}", chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>());
    assert_eq!(trailers, "x-entries-hidden: 1\r\n\r\n");
    let head_without_date = |head: &str| {
        let lines = head.trim_end().lines().filter(|line| !line.starts_with("date: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = [
        "HTTP/1.1 200 OK",
        "content-type: application/json",
        "transfer-encoding: chunked",
        "trailer: x-entries-hidden",
        "x-request-id: 1",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "connection: close",
    ];
    assert_eq!(head_without_date(head), expected);
    assert_eq!(head_without_date(&list("HEAD")), expected);
}

/// Closing a stream may never complete, because the stream still holds data.
#[test]
fn a_close_that_never_completes_times_out() {
    let application = Scripted::default();
    let (server, client) = pipe(10_000);
    server.writer.never_close();
    let executor = executor();
    executor.timers.tick_at(0);
    let is_over = Cell::new(false);
    let serving = async {
        serve(server, &application, &executor, Client::default()).await;
        is_over.set(true);
    };
    let End { mut writer, reader: _reader } = client;
    run(zip(serving, async {
        let last = "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        writer.write_all(last.as_bytes()).await.expect("the pipe has room");
        settle().await;
        executor.timers.tick_at(9_999);
        settle().await;
        assert!(!is_over.get());
        executor.timers.tick_at(10_000);
        settle().await;
        assert!(is_over.get());
    }));
}
