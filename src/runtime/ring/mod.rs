//! Dedicated io_uring instance of an executor for its sockets, next to those of glommio.
//!
//! Multishot requests accept connections and receive data, so that an arriving segment needs no request of its own;
//! sends are batched into one submission. [`drive`] consumes the completions and wakes the connections; if there are
//! none, it waits for the eventfd through glommio. See docs/decisions/0012-own-ring.md.

mod buffers;
mod queue;
mod socket;
mod stream;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use glommio::io::BufferedFile;
use rustix::event::{EventfdFlags, eventfd};

use self::buffers::Buffers;
use self::queue::{Done, Operation, Queue, Tag};
use self::socket::Socket;
pub(super) use self::stream::RingStream;
use crate::limits::{RING_RETRY_PAUSE, WRITE_STALL};

/// Ring of an executor; never leaves its thread.
pub(super) struct Ring {
    state: RefCell<State>,
    /// Eventfd that is readable after a completion while the driver waits.
    signal: OwnedFd,
}

struct State {
    queue: Queue,
    buffers: Buffers,
    sockets: Vec<Socket>,
    free: Vec<u32>,
    /// Empty buffers for the next sends.
    spare_outputs: Vec<Vec<u8>>,
    listeners: Vec<Listener>,
    /// Connections that could not receive for lack of a buffer.
    starved: Vec<u32>,
    /// Dropped connections that are still sending, and their deadlines.
    lingering: Vec<(Tag, Instant)>,
    /// Number of requests in the kernel, which may point to memory.
    pending_count: usize,
    woken: Vec<Waker>,
    /// Waker of the driver while it waits.
    driver: Option<Waker>,
}

struct Listener {
    /// `None` once it is closed.
    socket: Option<TcpListener>,
    is_closing: bool,
    is_accepting: bool,
    accepted: VecDeque<io::Result<OwnedFd>>,
    waker: Option<Waker>,
}

impl Ring {
    /// Creates a ring that accepts from the listeners.
    ///
    /// # Errors
    /// Fails if the kernel lacks a required feature (before Linux 6.1), or forbids io_uring.
    pub(super) fn new(listeners: Vec<TcpListener>) -> io::Result<Rc<Self>> {
        let mut queue = Queue::new()?;
        let buffers = Buffers::register(queue.ring())?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC)?;
        queue.ring().submitter().register_eventfd(signal.as_raw_fd())?;
        queue.set_signalling(false);
        let listeners = listeners.into_iter().map(|socket| Listener {
            socket: Some(socket),
            is_closing: false,
            is_accepting: false,
            accepted: VecDeque::new(),
            waker: None,
        });
        let state = State {
            queue,
            buffers,
            sockets: Vec::new(),
            free: Vec::new(),
            spare_outputs: Vec::new(),
            listeners: listeners.collect(),
            starved: Vec::new(),
            lingering: Vec::new(),
            pending_count: 0,
            woken: Vec::new(),
            driver: None,
        };
        Ok(Rc::new(Self { state: RefCell::new(state), signal }))
    }

    /// Accepts the next connection of a listener.
    ///
    /// # Errors
    /// Fails if the accept fails.
    pub(super) async fn accept(self: &Rc<Self>, listener: usize) -> io::Result<RingStream> {
        let socket = poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let entry = &mut state.listeners[listener];
            if let Some(accepted) = entry.accepted.pop_front() {
                return Poll::Ready(accepted);
            }
            entry.waker = Some(context.waker().clone());
            if let Some(socket) = entry.socket.as_ref().filter(|_| !entry.is_accepting && !entry.is_closing) {
                entry.is_accepting = true;
                state.queue.accept(accept_tag(listener), socket.as_fd());
                state.pending_count += 1;
                state.call_driver();
            }
            Poll::Pending
        });
        Ok(RingStream::new(Rc::clone(self), socket.await?))
    }

    /// Closes the listeners, each once its request in the kernel has ended. Further accepts wait indefinitely, but
    /// return what was accepted until then.
    pub(super) fn stop_accepting(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        for (index, listener) in state.listeners.iter_mut().enumerate() {
            listener.is_closing = true;
            match listener.is_accepting {
                true => state.queue.cancel(accept_tag(index)),
                false => listener.socket = None,
            }
        }
        state.call_driver();
    }

    /// Returns whether accepted connections were taken, closing listeners are closed, and all data that connections have
    /// written was sent.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state.borrow();
        let is_settled = |listener: &Listener| {
            listener.accepted.is_empty() && !(listener.is_closing && listener.socket.is_some())
        };
        state.listeners.iter().all(is_settled) && state.sockets.iter().all(|socket| !socket.is_sending)
    }

    /// Cancels the sends of dropped connections whose deadline has passed. Called periodically.
    pub(super) fn tick(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let now = Instant::now();
        let (queue, sockets) = (&mut state.queue, &state.sockets);
        let before = state.lingering.len();
        state.lingering.retain(|(tag, deadline)| {
            let socket = &sockets[tag.index as usize];
            let is_still_sending = socket.generation == tag.generation && socket.is_sending;
            if is_still_sending && *deadline <= now {
                queue.cancel(*tag);
            }
            is_still_sending && *deadline > now
        });
        if state.lingering.len() < before {
            state.call_driver();
        }
    }

    /// Submits waiting requests and processes completions. Returns whether there was any work.
    fn turn(&self) -> io::Result<bool> {
        let mut state = self.state.borrow_mut();
        state.feed_starved();
        if !state.queue.has_work() {
            return Ok(false);
        }
        state.queue.turn()?;
        while let Some(done) = state.queue.next() {
            state.complete(done);
        }
        // Wakes only after the borrow of the state has ended.
        let mut woken = mem::take(&mut state.woken);
        drop(state);
        woken.drain(..).for_each(Waker::wake);
        self.state.borrow_mut().woken = woken;
        Ok(true)
    }
}

/// Drives the ring until it is dropped.
pub(super) async fn drive(ring: Rc<Ring>) {
    let signal = event_file(&ring.signal);
    // At most one read is in flight; it stays pending if something else wakes the driver.
    let mut pending_read: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
    loop {
        match ring.turn() {
            // Lets the connections and glommio's own rings run first; they then have requests to submit.
            Ok(true) => {
                glommio::executor().yield_task_queue_now().await;
                continue;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "socket ring failed, retrying");
                glommio::timer::sleep(RING_RETRY_PAUSE).await;
                continue;
            }
        }
        let read = pending_read.get_or_insert_with(|| {
            Box::pin(async move {
                // The value of the counter does not matter.
                signal.read_at(0, mem::size_of::<u64>()).await.ok();
            })
        });
        ring.state.borrow_mut().queue.set_signalling(true);
        let was_signalled = poll_fn(|context| {
            let mut state = ring.state.borrow_mut();
            // Checked after signalling was enabled, so that no completion in between is missed.
            if state.queue.has_work() {
                return Poll::Ready(false);
            }
            state.driver = Some(context.waker().clone());
            drop(state);
            read.as_mut().poll(context).map(|()| true)
        })
        .await;
        let mut state = ring.state.borrow_mut();
        state.queue.set_signalling(false);
        state.driver = None;
        drop(state);
        if was_signalled {
            pending_read = None;
        }
    }
}

/// Returns the eventfd as a file that glommio can read; called once per executor.
#[expect(unsafe_code, reason = "glommio takes ownership of raw file descriptors only")]
fn event_file(signal: &OwnedFd) -> &'static BufferedFile {
    // SAFETY: the file is never dropped, so it does not close the descriptor, which the ring owns. A read after the
    // ring is dropped would fail, or read bytes of another file and discard them; there is none, because the driver
    // keeps the ring alive.
    Box::leak(Box::new(unsafe { BufferedFile::from_raw_fd(signal.as_raw_fd()) }))
}

fn accept_tag(listener: usize) -> Tag {
    let index = u32::try_from(listener).expect("few listeners");
    Tag { operation: Operation::Accept, index, generation: 0 }
}

impl State {
    fn call_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn complete(&mut self, done: Done) {
        let Done { tag, result, buffer, more } = done;
        if !more && tag.operation != Operation::Cancel {
            self.pending_count -= 1;
        }
        match tag.operation {
            Operation::Accept => self.accepted(tag, result, more),
            Operation::Receive => self.received(tag, result, buffer, more),
            Operation::Send => self.sent(tag, result),
            // The cancelled request has its own completion.
            Operation::Cancel => {}
        }
    }

    #[expect(unsafe_code, reason = "the kernel returns a raw descriptor")]
    fn accepted(&mut self, tag: Tag, result: io::Result<u32>, more: bool) {
        let listener = &mut self.listeners[tag.index as usize];
        listener.is_accepting &= more;
        if listener.is_closing && !more {
            listener.socket = None;
            if result.is_err() {
                return;
            }
        }
        let accepted = result.map(|descriptor| {
            // SAFETY: the kernel has just created this descriptor for this completion, and it has no other owner.
            unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) }
        });
        listener.accepted.push_back(accepted);
        self.woken.extend(listener.waker.take());
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.pending_count > 0 {
            // The kernel cancels requests some time after the ring is closed, and may access the memory until then.
            // Leaking it is acceptable, because it happens only once, when the executor ends.
            let sockets = mem::take(&mut self.sockets);
            mem::forget(sockets.into_iter().map(|socket| socket.output).collect::<Vec<_>>());
            self.buffers.leak();
        }
    }
}
