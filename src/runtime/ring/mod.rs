//! A ring of the executor's own for its sockets, beside those of glommio.
//!
//! Connections are accepted and received from by requests that stay (multishot), so that a piece that
//! arrives costs no request of its own; what the connections send is gathered and submitted together.
//! [`drive`] takes out what was done and wakes the connections; when there is nothing, it waits for the
//! event descriptor through glommio. See docs/decisions/0012-own-ring.md.

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
use std::time::{Duration, Instant};

use glommio::io::BufferedFile;
use rustix::event::{EventfdFlags, eventfd};

use self::buffers::Buffers;
use self::queue::{Done, Operation, Queue, Tag};
use self::socket::Socket;
pub(super) use self::stream::RingStream;
use crate::limits::WRITE_STALL;

/// How long a ring that the kernel cannot serve is left alone.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The ring; never leaves its thread.
pub(super) struct Ring {
    state: RefCell<State>,
    /// Readable when something was done while nobody looked.
    signal: OwnedFd,
}

struct State {
    queue: Queue,
    buffers: Buffers,
    sockets: Vec<Socket>,
    free: Vec<u32>,
    /// Empty buffers for what is sent next.
    spare_outputs: Vec<Vec<u8>>,
    listeners: Vec<Listener>,
    /// Connections for which there was no buffer.
    starved: Vec<u32>,
    /// Connections that are dropped and still send, and until when they may.
    lingering: Vec<(Tag, Instant)>,
    /// Requests that the kernel has, and that may name memory.
    pending_count: usize,
    woken: Vec<Waker>,
    /// Who drives the ring, while it waits.
    driver: Option<Waker>,
}

struct Listener {
    socket: TcpListener,
    is_accepting: bool,
    accepted: VecDeque<io::Result<OwnedFd>>,
    waker: Option<Waker>,
}

impl Ring {
    /// For these listeners.
    ///
    /// # Errors
    /// When this kernel has not what it takes (Linux 6.1), or forbids it.
    pub(super) fn new(listeners: Vec<TcpListener>) -> io::Result<Rc<Self>> {
        let mut queue = Queue::new()?;
        let buffers = Buffers::register(queue.ring())?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC)?;
        queue.ring().submitter().register_eventfd(signal.as_raw_fd())?;
        queue.set_signalling(false);
        let listeners = listeners.into_iter().map(|socket| Listener {
            socket,
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

    /// The next connection of a listener.
    ///
    /// # Errors
    /// When the system could not accept one.
    pub(super) async fn accept(self: &Rc<Self>, listener: usize) -> io::Result<RingStream> {
        let socket = poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let own = &mut state.listeners[listener];
            if let Some(accepted) = own.accepted.pop_front() {
                return Poll::Ready(accepted);
            }
            own.waker = Some(context.waker().clone());
            if !own.is_accepting {
                own.is_accepting = true;
                let index = u32::try_from(listener).expect("few listeners");
                let tag = Tag { operation: Operation::Accept, index, generation: 0 };
                state.queue.accept(tag, own.socket.as_fd());
                state.pending_count += 1;
                state.call_driver();
            }
            Poll::Pending
        });
        Ok(RingStream::new(Rc::clone(self), socket.await?))
    }

    /// Whether everything was sent that connections have sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.state.borrow().sockets.iter().all(|socket| !socket.is_sending)
    }

    /// Gives up connections that nobody has any more and that still send. To be called now and then.
    pub(super) fn tick(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let now = Instant::now();
        let (queue, sockets) = (&mut state.queue, &state.sockets);
        let before = state.lingering.len();
        state.lingering.retain(|(tag, deadline)| {
            let socket = &sockets[tag.index as usize];
            let is_there = socket.generation == tag.generation && socket.is_sending;
            if is_there && *deadline <= now {
                queue.cancel(*tag);
            }
            is_there && *deadline > now
        });
        if state.lingering.len() < before {
            state.call_driver();
        }
    }

    /// Submits what waits and takes out what was done; says whether there was anything.
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
        // Woken when the state is free again.
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
    // At most one read is under way; it goes on when something else wakes the driver.
    let mut reading: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
    loop {
        match ring.turn() {
            // Connections first, and glommio's own rings; they have something to submit then.
            Ok(true) => {
                glommio::executor().yield_task_queue_now().await;
                continue;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the ring of the sockets cannot be served");
                glommio::timer::sleep(RETRY_PAUSE).await;
                continue;
            }
        }
        let read = reading.get_or_insert_with(|| {
            Box::pin(async move {
                // Its count does not matter.
                signal.read_at(0, mem::size_of::<u64>()).await.ok();
            })
        });
        ring.state.borrow_mut().queue.set_signalling(true);
        let was_signalled = poll_fn(|context| {
            let mut state = ring.state.borrow_mut();
            // Looked at after signals were switched on, so that nothing is missed in between.
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
            reading = None;
        }
    }
}

/// The event descriptor as glommio reads it; once for each executor.
#[expect(unsafe_code, reason = "glommio has no other way to take a descriptor")]
fn event_file(signal: &OwnedFd) -> &'static BufferedFile {
    // SAFETY: the file is never dropped, so it does not close the descriptor, which belongs to the ring. A read
    // after the ring has gone would fail, or read another file's bytes and throw them away; there is none,
    // because the driver holds the ring.
    Box::leak(Box::new(unsafe { BufferedFile::from_raw_fd(signal.as_raw_fd()) }))
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
            // What it was about completes by itself.
            Operation::Cancel => {}
        }
    }

    #[expect(unsafe_code, reason = "the kernel gives a number, which has to be owned")]
    fn accepted(&mut self, tag: Tag, result: io::Result<u32>, more: bool) {
        let listener = &mut self.listeners[tag.index as usize];
        listener.is_accepting &= more;
        let accepted = result.map(|descriptor| {
            // SAFETY: the kernel has just made this descriptor for this completion, and nobody else has it.
            unsafe { OwnedFd::from_raw_fd(descriptor.cast_signed()) }
        });
        listener.accepted.push_back(accepted);
        self.woken.extend(listener.waker.take());
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.pending_count > 0 {
            // The kernel gives requests up some time after the ring is closed, and may write until then. This
            // happens once, when the executor ends, so the memory is left to it.
            let sockets = mem::take(&mut self.sockets);
            mem::forget(sockets.into_iter().map(|socket| socket.output).collect::<Vec<_>>());
            self.buffers.leak();
        }
    }
}
