//! I/O engines of the executors: io_uring through glommio, or epoll. Chosen once per process.
//!
//! All other code depends on [`Engine`] alone, and is compiled once per engine.

mod epoll;
mod probe;
mod unavailable;
mod uring;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

pub(super) use self::epoll::Epoll;
pub use self::unavailable::UringUnavailable;
pub(super) use self::uring::Uring;
use crate::config::EngineChoice;
use crate::limits::{LOCKED_MEMORY_INTERVAL, LOCKED_MEMORY_TIMEOUT};
use crate::timer;

/// I/O engine: runs an executor on a dedicated thread, with the sockets that it serves. All functions except
/// [`Self::run`] are called on the thread of a running executor.
pub(super) trait Engine: Copy + Send + 'static {
    /// Outgoing connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;
    /// Listeners and the tasks that accept from them.
    type Sockets: Sockets;

    /// Runs `main` to completion on this thread. Tasks that it has spawned end with it.
    ///
    /// # Errors
    /// Fails if the executor cannot be created, or `main` fails.
    fn run(self, main: impl Future<Output = io::Result<()>> + 'static) -> io::Result<()>;

    /// Runs a task concurrently with the others on this executor.
    fn spawn(self, task: impl Future<Output = ()> + 'static);

    /// Waits for a duration.
    fn sleep(self, duration: Duration) -> impl Future<Output = ()>;

    /// Opens a connection.
    fn connect(self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Starts to accept connections, and passes those of each listener to its acceptor.
    ///
    /// # Errors
    /// Fails if the operating system refuses.
    fn accept(self, listeners: Vec<(TcpListener, impl Acceptor)>) -> io::Result<Self::Sockets>;
}

/// Handler of accepted connections.
pub(super) trait Acceptor: 'static {
    /// Takes a connection with the client's address, or the error of an accept. Returns when the next one may be
    /// accepted.
    fn take<S>(&self, accepted: io::Result<(S, Option<IpAddr>)>) -> impl Future<Output = ()>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static;
}

/// Listeners and connections that are being served.
pub(super) trait Sockets {
    /// Runs periodic work.
    fn tick(&self) {}

    /// Returns whether the engine has handed over everything that it accepted, and sent everything that connections have
    /// written.
    fn are_quiet(&self) -> bool {
        true
    }

    /// Stops accepting and closes the listeners. Connections that are in their backlogs by then are reset.
    fn stop_accepting(&mut self) -> impl Future<Output = ()>;

    /// Ends the tasks of the engine.
    fn close(self) -> impl Future<Output = ()>;
}

/// Kind of engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl EngineKind {
    /// Returns the name of the engine in `OSC_ENGINE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Chooses the engine of this process, and returns the reason for a fallback to epoll. Probes io_uring unless the
/// setting is epoll; must therefore be called before any other thread is started.
///
/// # Errors
/// Fails if io_uring is required but unavailable, or unavailable for a transient reason: a fallback must not depend
/// on the timing of a restart.
pub(super) fn choose(
    choice: EngineChoice,
) -> Result<(EngineKind, Option<UringUnavailable>), UringUnavailable> {
    if choice == EngineChoice::Epoll {
        return Ok((EngineKind::Epoll, None));
    }
    match probe::probe() {
        Ok(()) => Ok((EngineKind::Uring, None)),
        Err(reason) if choice == EngineChoice::Auto && reason.is_permanent() => {
            Ok((EngineKind::Epoll, Some(reason)))
        }
        Err(reason) => Err(reason),
    }
}

/// Starts a thread with an executor and its [`timer`], pinned to a core if one is given.
///
/// # Errors
/// Fails if the thread cannot be started. Errors on the thread are returned when it is joined.
pub(super) fn start<E: Engine, F>(
    engine: E,
    name: String,
    core: Option<usize>,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<io::Result<()>>>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    thread::Builder::new().name(name).spawn(move || {
        // Not through glommio, which looks up every core of the machine in /sys, and panics if it is not mounted.
        if let Some(core) = core {
            let mut affinity = CpuSet::new();
            affinity.set(core);
            sched_setaffinity(None, &affinity)?;
        }
        timer::install(move |delay| Box::pin(engine.sleep(delay)));
        engine.run(main())
    })
}

/// Retries for a while if locked memory is exhausted.
fn retry_on_enomem<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_out_of_memory(&error) && started.elapsed() < LOCKED_MEMORY_TIMEOUT => {
                thread::sleep(LOCKED_MEMORY_INTERVAL);
            }
            result => return result,
        }
    }
}

fn is_out_of_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOMEM.raw_os_error())
}
