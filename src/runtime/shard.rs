//! One executor: accepts connections and serves them, all on one thread.

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt};
use glommio::timer::{Timer, sleep};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Task};

use super::placement::Plan;
use super::ring::{self, Ring};
use super::shutdown::Stop;
use crate::http::{App, Client, Local, serve, too_many_connections};
use crate::limits::{CONNECTIONS_COUNT_MAX, DEADLINE_TICK, DRAIN_DEADLINE};
use crate::telemetry::Executors;

/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Practically never. When the preemption timer fires while the thread is kept off its core, between
/// two steps of glommio's loop, the loop takes what it has not run for nothing to run, and sleeps on it
/// for ever (`run_task_queues` and `run` in its executor; seen under load, with 5 ms in one start of a
/// thousand). For the same reason there is no task queue with a latency of its own: it sets that timer.
/// Nothing here needs the timer: a task runs until it waits, and none of them computes for long.
pub(super) const PREEMPTION: Duration = Duration::from_secs(60 * 60);

/// What all shards share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) app: Arc<App>,
    pub(super) stop: Stop,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) executors: Arc<Executors>,
    /// Whether sockets have a ring of their own, where that is possible.
    pub(super) uses_ring: bool,
}

/// State of one shard; never leaves its thread.
struct Shard {
    shared: Shared,
    local: Local,
    open: Cell<usize>,
}

/// Tells the main thread, once, whether a shard listens: glommio drops the shard's future, and this
/// with it, when the executor cannot be made, and says so only when it is joined.
pub(super) struct Starting {
    index: usize,
    reports: mpsc::Sender<Started>,
    is_listening: bool,
}

/// How the start of one shard ended.
pub(super) struct Started {
    pub(super) index: usize,
    pub(super) is_listening: bool,
}

impl Starting {
    pub(super) fn new(index: usize, reports: mpsc::Sender<Started>) -> Self {
        Self { index, reports, is_listening: false }
    }

    fn succeed(mut self) {
        self.is_listening = true;
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Nobody waits any more if the start was given up meanwhile.
        self.reports.send(Started { index: self.index, is_listening: self.is_listening }).ok();
    }
}

/// Starts the executor thread.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start(
    core: Option<usize>,
    listeners: Vec<TcpListener>,
    shared: Shared,
    starting: Starting,
) -> glommio::Result<ExecutorJoinHandle<()>, ()> {
    LocalExecutorBuilder::new(Plan::placement(core))
        .name(&format!("osc-shard-{}", starting.index))
        // Sockets need no registered buffers, and the default of 10 MiB exceeds a usual memory lock limit.
        .io_memory(0)
        .preempt_timer(PREEMPTION)
        .spawn(move || async move {
            // The first timer of an executor is late by tens of milliseconds (glommio#652).
            sleep(Duration::from_millis(1)).await;
            let local = Local::new(shared.executors.add());
            let shard = Rc::new(Shard { shared, local, open: Cell::new(0) });
            shard.run(listeners, starting).await;
        })
}

impl Shard {
    async fn run(self: &Rc<Self>, listeners: Vec<TcpListener>, starting: Starting) {
        let sockets = Sockets::new(self, listeners);
        starting.succeed();
        while !self.shared.stop.is_requested() {
            Timer::new(DEADLINE_TICK).await;
            self.local.tick(self.open.get());
            sockets.tick();
        }
        // Closing a listener resets what is still in its queue, so those connections are taken first;
        // the clock tells them, and all others, to end after their current answer.
        self.local.clock.close();
        let mut waited = Duration::ZERO;
        loop {
            Timer::new(DEADLINE_TICK / 10).await;
            waited += DEADLINE_TICK / 10;
            self.local.tick(self.open.get());
            sockets.tick();
            if waited >= DEADLINE_TICK && self.open.get() == 0 && sockets.are_quiet() {
                break;
            }
            if waited >= DRAIN_DEADLINE {
                tracing::warn!(
                    connections = self.open.get(),
                    "connections were cut: they did not end in time"
                );
                break;
            }
        }
        sockets.close().await;
    }

    async fn accept_streams(self: Rc<Self>, listener: TcpListener) {
        let listener = super::listener::adopt(listener);
        loop {
            let accepted = listener.accept().await.map_err(io::Error::from);
            self.take(accepted, |stream| {
                stream.set_nodelay(true).ok();
                Client { address: stream.peer_addr().ok().map(|address| address.ip().to_canonical()) }
            })
            .await;
        }
    }

    async fn accept_from_ring(self: Rc<Self>, ring: Rc<Ring>, listener: usize) {
        loop {
            self.take(ring.accept(listener).await, |stream| {
                stream.set_nodelay().ok();
                Client { address: stream.peer_address().map(|address| address.to_canonical()) }
            })
            .await;
        }
    }

    /// Serves a connection, or waits until there may be one again. Small answers must not wait for the client's
    /// acknowledgement; if `prepare` fails, they do.
    async fn take<S>(self: &Rc<Self>, accepted: io::Result<S>, prepare: impl FnOnce(&mut S) -> Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match accepted {
            Ok(mut stream) => {
                let client = prepare(&mut stream);
                self.connect(stream, client);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                // Without a pause a full descriptor table would spin; others are the client's.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    Timer::new(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connect<S>(self: &Rc<Self>, mut stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let slot = Slot::take(self);
        let shard = Rc::clone(self);
        let serving = async move {
            if slot.is_one_too_many {
                stream.write_all(&too_many_connections()).await.ok();
                stream.close().await.ok();
                return;
            }
            let serving = serve(stream, &*shard.shared.app, &shard.local, client);
            // A panic in a task would end the executor, and with it every other connection.
            if AssertUnwindSafe(serving).catch_unwind().await.is_err() {
                tracing::error!("a connection was dropped after a panic");
            }
            drop(slot);
        };
        drop(glommio::spawn_local(serving).detach());
    }
}

/// How connections are accepted and served.
struct Sockets {
    tasks: Vec<Task<()>>,
    ring: Option<Rc<Ring>>,
}

impl Sockets {
    /// By a ring of their own where that is possible, otherwise by glommio.
    fn new(shard: &Rc<Shard>, listeners: Vec<TcpListener>) -> Self {
        let own = listeners.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>();
        let ring = match shard.shared.uses_ring {
            true => own.and_then(Ring::new).inspect_err(|error| {
                tracing::info!(%error, "no ring of its own for the sockets, which takes Linux 6.1 or later");
            }),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        let Ok(ring) = ring else {
            let accept = |listener| glommio::spawn_local(Rc::clone(shard).accept_streams(listener));
            return Self { tasks: listeners.into_iter().map(accept).collect(), ring: None };
        };
        let mut tasks = vec![glommio::spawn_local(ring::drive(Rc::clone(&ring)))];
        for listener in 0..ring.listeners_count() {
            let accept = Rc::clone(shard).accept_from_ring(Rc::clone(&ring), listener);
            tasks.push(glommio::spawn_local(accept));
        }
        Self { tasks, ring: Some(ring) }
    }

    fn tick(&self) {
        if let Some(ring) = &self.ring {
            ring.tick();
        }
    }

    fn are_quiet(&self) -> bool {
        self.ring.as_ref().is_none_or(|ring| ring.is_quiet())
    }

    async fn close(self) {
        for task in self.tasks {
            task.cancel().await;
        }
    }
}

/// One connection's place in the counts, given back when it ends in any way.
struct Slot {
    shard: Rc<Shard>,
    is_one_too_many: bool,
}

impl Slot {
    fn take(shard: &Rc<Shard>) -> Self {
        let others = shard.shared.connections.fetch_add(1, Ordering::Relaxed);
        shard.open.set(shard.open.get() + 1);
        Self { shard: Rc::clone(shard), is_one_too_many: others >= CONNECTIONS_COUNT_MAX }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shard.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shard.open.set(self.shard.open.get() - 1);
    }
}
