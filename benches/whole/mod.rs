//! Harness for complete requests without sockets and executors: a store in memory, a cached derived key, and a connection
//! whose stream is a pair of buffers.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};
use opensecureconf::blocking::BlockingPool;
use opensecureconf::crypto::{KeyCache, KeyDeriver};
use opensecureconf::http::{App, Client, ExecutorContext, Settings, serve};
use opensecureconf::limits::{ENTRY_CACHE_BYTES_MIN, REQUESTS_COUNT_MAX_PER_CONNECTION};
use opensecureconf::service::{Parts, Service};
use opensecureconf::storage::{Storage, VersioningOptions};

/// The client's end of the stream. Once the buffers have reached their final size, it allocates nothing.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Buffers>>);

#[derive(Default)]
struct Buffers {
    sent: Vec<u8>,
    read_count: usize,
    received: Vec<u8>,
}

impl AsyncRead for Wire {
    /// Registers no waker: the sender polls the connection after each request.
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffers = self.0.borrow_mut();
        let rest = &buffers.sent[buffers.read_count..];
        if rest.is_empty() {
            return Poll::Pending;
        }
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        buffers.read_count += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().received.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection to an in-process server.
pub(crate) struct Connection {
    app: Rc<App>,
    wire: Wire,
    serving: Pin<Box<dyn Future<Output = ()>>>,
    /// Remaining requests that the server accepts on this connection.
    left: u32,
    local: Rc<ExecutorContext>,
}

impl Connection {
    /// Connects to a new server.
    pub(crate) fn new() -> Self {
        let versions = VersioningOptions::new(false);
        let storage = Arc::new(Storage::in_memory(ENTRY_CACHE_BYTES_MIN, Vec::new(), versions));
        let deriver = Arc::new(KeyDeriver::start(1, 8).expect("threads can be started"));
        let pool = Arc::new(BlockingPool::start(1, 8).expect("threads can be started"));
        let service = Arc::new(Service::new(Parts::standalone(storage, KeyCache::new(), deriver, pool)));
        let settings = Settings::default();
        let (executors, responses) = (Arc::clone(&settings.executors), Arc::clone(&settings.response_budget));
        let app = Rc::new(App::new(service, settings));
        let local = Rc::new(ExecutorContext::new(executors.add(), responses));
        let (wire, serving) = connect(&app, &local);
        let left = REQUESTS_COUNT_MAX_PER_CONNECTION;
        Self { app, wire, serving, left, local }
    }

    /// Opens another connection to the same server.
    #[allow(dead_code, reason = "only the allocation tests need a second connection")]
    pub(crate) fn another(&self) -> Self {
        let (wire, serving) = connect(&self.app, &self.local);
        let (app, local) = (Rc::clone(&self.app), Rc::clone(&self.local));
        Self { app, wire, serving, left: REQUESTS_COUNT_MAX_PER_CONNECTION, local }
    }

    /// Sends a request and waits until its response begins; returns the bytes of the response.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> std::cell::Ref<'_, [u8]> {
        if self.left == 0 {
            (self.wire, self.serving) = connect(&self.app, &self.local);
            self.left = REQUESTS_COUNT_MAX_PER_CONNECTION;
        }
        self.left -= 1;
        {
            let mut buffers = self.wire.0.borrow_mut();
            buffers.received.clear();
            buffers.sent.clear();
            buffers.sent.extend_from_slice(request);
            buffers.read_count = 0;
        }
        loop {
            let polled = self.serving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending(), "the connection has closed");
            if !self.wire.0.borrow().received.is_empty() {
                return std::cell::Ref::map(self.wire.0.borrow(), |buffers| buffers.received.as_slice());
            }
            // Yields to a derivation or to the writer.
            std::thread::yield_now();
        }
    }

    /// Creates an entry.
    pub(crate) fn create(&mut self, key: &str, value: &str) {
        let body = format!(r#"{{"key":"{key}","value":{value},"category":"database"}}"#);
        let request =
            format!("POST /configs HTTP/1.1\r\n{FIELDS}Content-Length: {}\r\n\r\n{body}", body.len());
        assert!(self.exchange(request.as_bytes()).starts_with(b"HTTP/1.1 201"));
    }
}

fn connect(app: &Rc<App>, local: &Rc<ExecutorContext>) -> (Wire, Pin<Box<dyn Future<Output = ()>>>) {
    let (app, local, wire) = (Rc::clone(app), Rc::clone(local), Wire::default());
    let stream = wire.clone();
    let serving = Box::pin(async move { serve(stream, &*app, &local, Client::default()).await });
    (wire, serving)
}

/// Header fields of a typical client.
const FIELDS: &str = "Host: config.example.org:9000\r\nUser-Agent: python-requests/2.32\r\nAccept: */*\r\n\
     Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nX-User-Key: correct-horse-battery\r\n\
     Content-Type: application/json\r\n";

/// Returns a request that reads one entry.
pub(crate) fn read(key: &str) -> Vec<u8> {
    format!("GET /configs/{key} HTTP/1.1\r\n{FIELDS}\r\n").into_bytes()
}
