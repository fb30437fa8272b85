//! Memory use of connections, counted at the allocator: a cached read allocates nothing in the steady state (a
//! keep-alive connection, a cached key, a cached row), and an idle connection holds little.
//!
//! To see where allocations come from: `OSC_TEST_BACKTRACES=1 cargo test --test allocations -- --nocapture`.
#![allow(unsafe_code, reason = "a global allocator is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};

#[path = "../benches/whole/mod.rs"]
mod whole;

const READS_COUNT: usize = 1000;

struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    static IS_TRACING: Cell<bool> = const { Cell::new(false) };
    static TRACES: RefCell<Vec<(usize, Backtrace)>> = const { RefCell::new(Vec::new()) };
}

fn count(bytes: usize) {
    // Threads that exit may allocate after their thread-local variables are destroyed.
    COUNT.try_with(|count| count.set(count.get() + 1)).ok();
    live(bytes.cast_signed());
    if IS_TRACING.try_with(|tracing| tracing.replace(false)).unwrap_or(false) {
        let trace = Backtrace::force_capture();
        TRACES.with(|traces| traces.borrow_mut().push((bytes, trace)));
        IS_TRACING.set(true);
    }
}

fn live(change: isize) {
    LIVE_BYTES.try_with(|bytes| bytes.set(bytes.get() + change)).ok();
}

// SAFETY: every call is forwarded to the system allocator; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: upheld by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: upheld by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        live(-layout.size().cast_signed());
        count(size);
        // SAFETY: upheld by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        live(-layout.size().cast_signed());
        // SAFETY: upheld by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_cached_read_allocates_nothing() {
    let mut connection = whole::Connection::new();
    connection.create("database_prod", r#"{"host":"db.example.org","port":5432,"password":"correct"}"#);
    let read = whole::read("database_prod");
    for _ in 0..10 {
        assert!(connection.exchange(&read).starts_with(b"HTTP/1.1 200"));
    }
    let before = COUNT.get();
    for _ in 0..READS_COUNT {
        assert!(connection.exchange(&read).starts_with(b"HTTP/1.1 200"));
    }
    let all = COUNT.get() - before;
    if std::env::var_os("OSC_TEST_BACKTRACES").is_some() {
        IS_TRACING.set(true);
        connection.exchange(&read);
        IS_TRACING.set(false);
        for (bytes, trace) in TRACES.take() {
            println!("{bytes} bytes\n{trace}");
        }
    }
    assert_eq!(all, 0, "allocations in {READS_COUNT} cached reads");
}

#[test]
fn an_idle_connection_holds_little() {
    const CONNECTIONS_COUNT: usize = 1000;
    /// Includes the client's end of the stream, but not the socket.
    const BYTES_MAX: isize = 3 * 1024;
    let mut first = whole::Connection::new();
    first.create("database_prod", r#"{"host":"db.example.org","port":5432,"password":"correct"}"#);
    let read = whole::read("database_prod");
    let mut connections = Vec::with_capacity(CONNECTIONS_COUNT);
    let before = LIVE_BYTES.get();
    for _ in 0..CONNECTIONS_COUNT {
        let mut connection = first.another();
        assert!(connection.exchange(&read).starts_with(b"HTTP/1.1 200"));
        // The response is complete; what the connection still holds is what it keeps while idle.
        connections.push(connection);
    }
    let each = (LIVE_BYTES.get() - before) / CONNECTIONS_COUNT.cast_signed();
    println!("{each} bytes per connection");
    assert!((1..=BYTES_MAX).contains(&each), "{each} bytes per connection");
}
