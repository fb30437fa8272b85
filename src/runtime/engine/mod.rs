//! What executors run on: io_uring through glommio, or epoll. Chosen once, for the whole process.
//!
//! Everything above knows only [`Engine`], and is compiled once for each.

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

/// How long locked memory may be short, and how often it is tried: what the rings of a process hold is freed
/// some time after it has gone.
const MEMORY_PATIENCE: Duration = Duration::from_secs(5);
const MEMORY_INTERVAL: Duration = Duration::from_millis(50);

/// An executor on a thread of its own, and the sockets that it serves. Apart from [`Self::run`], everything is
/// called on the thread of a running executor.
pub(super) trait Engine: Copy + Send + 'static {
    /// A connection that was made here.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;
    /// Listeners, and those who accept from them.
    type Sockets: Sockets;

    /// Runs `main` on this thread until it is done. What it has spawned ends with it.
    ///
    /// # Errors
    /// When there can be no executor, or from `main`.
    fn run(self, main: impl Future<Output = io::Result<()>> + 'static) -> io::Result<()>;

    /// Runs a task beside the others.
    fn spawn(self, task: impl Future<Output = ()> + 'static);

    /// Waits.
    fn sleep(self, duration: Duration) -> impl Future<Output = ()>;

    /// Opens a connection.
    fn connect(self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Gives every connection of each listener to its acceptor from now on.
    ///
    /// # Errors
    /// When the system refuses.
    fn accept(self, listeners: Vec<(TcpListener, impl Acceptor)>) -> io::Result<Self::Sockets>;
}

/// What becomes of connections.
pub(super) trait Acceptor: 'static {
    /// Takes one with the client's address, or the error that was there instead, and returns when it would take
    /// the next.
    fn take<S>(&self, accepted: io::Result<(S, Option<IpAddr>)>) -> impl Future<Output = ()>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static;
}

/// Sockets that are being served.
pub(super) trait Sockets {
    /// To be called now and then.
    fn tick(&self) {}

    /// Whether everything was sent that connections have sent.
    fn are_quiet(&self) -> bool {
        true
    }

    /// Accepts nothing more, and closes the listeners.
    fn close(self) -> impl Future<Output = ()>;
}

/// Which engine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

impl EngineKind {
    /// The name that `OSC_ENGINE` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// The engine for this process, and why it is not io_uring if that was tried. Tries io_uring unless it is not
/// wanted, so it is to be called before there is any other thread.
///
/// # Errors
/// When io_uring is wanted and not to be had, or when only something that may pass is in its way: a server that
/// is started again must not be another one than before.
pub(super) fn choose(
    choice: EngineChoice,
) -> Result<(EngineKind, Option<UringUnavailable>), UringUnavailable> {
    if choice == EngineChoice::Epoll {
        return Ok((EngineKind::Epoll, None));
    }
    match probe::probe() {
        Ok(()) => Ok((EngineKind::Uring, None)),
        Err(obstacle) if choice == EngineChoice::Auto && obstacle.is_lasting() => {
            Ok((EngineKind::Epoll, Some(obstacle)))
        }
        Err(obstacle) => Err(obstacle),
    }
}

/// A thread with an executor, on a core if one is given.
///
/// # Errors
/// When the thread cannot be started. What goes wrong on the thread is told when it is joined.
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
        // Not by glommio, which looks up every core of the machine in /sys, and panics where that is not.
        if let Some(core) = core {
            let mut only = CpuSet::new();
            only.set(core);
            sched_setaffinity(None, &only)?;
        }
        engine.run(main())
    })
}

/// Tries again for a while when there is no locked memory.
fn retry_on_enomem<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_out_of_memory(&error) && begun.elapsed() < MEMORY_PATIENCE => {
                thread::sleep(MEMORY_INTERVAL);
            }
            result => return result,
        }
    }
}

fn is_out_of_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOMEM.raw_os_error())
}
