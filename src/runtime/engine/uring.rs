//! io_uring engine: glommio's executors, and a dedicated ring for the sockets where the kernel supports it.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::panic;
use std::rc::Rc;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement, Task};
use rustix::io::Errno;

use super::probe::unavailable_reason;
use super::{Acceptor, Engine, Sockets, is_out_of_memory, retry_on_enomem};
use crate::runtime::ring::{self, Ring};

/// Interval of glommio's preemption timer, long enough to practically disable it.
///
/// If the timer fires while the thread is descheduled between two steps of glommio's loop, the loop mistakes tasks that
/// it has not run for an empty queue, and sleeps indefinitely (`run_task_queues` and `run` in its executor; seen under
/// load with 5 ms, once in a thousand starts). For the same reason no task queue has a latency requirement, which sets
/// the same timer. No code needs the timer: a task runs until it waits, and none computes for long.
const PREEMPTION: Duration = Duration::from_secs(60 * 60);

/// Engine on io_uring.
#[derive(Clone, Copy, Debug)]
pub(in crate::runtime) struct Uring {
    /// Whether sockets use a dedicated ring, where the kernel supports it.
    pub(in crate::runtime) uses_ring: bool,
}

impl Engine for Uring {
    type Stream = glommio::net::TcpStream;
    type Sockets = UringSockets;

    fn run(self, main: impl Future<Output = io::Result<()>> + 'static) -> io::Result<()> {
        let make = || {
            // The affinity of the thread is already set.
            LocalExecutorBuilder::new(Placement::Unbound)
                // Sockets need no registered buffers, and the default of 10 MiB exceeds common limits of locked memory.
                .io_memory(0)
                .preempt_timer(PREEMPTION)
                .make()
                .map_err(io::Error::from)
        };
        // After our own probe, glommio panics only if other processes have locked the remaining memory since.
        let executor = panic::catch_unwind(|| retry_on_enomem(make))
            .unwrap_or_else(|_| Err(io::Error::from(Errno::NOMEM)))
            .map_err(with_remedy)?;
        executor.run(async {
            // Absorbs the delay of an executor's first timer, tens of milliseconds (glommio#652).
            self.sleep(Duration::from_millis(1)).await;
            main.await
        })
    }

    fn spawn(self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    async fn sleep(self, duration: Duration) {
        glommio::timer::sleep(duration).await;
    }

    async fn connect(self, address: SocketAddr) -> io::Result<Self::Stream> {
        let stream = glommio::net::TcpStream::connect(address).await?;
        // Small requests must not wait for an acknowledgement. On failure they do, which is only slower.
        stream.set_nodelay(true).ok();
        Ok(stream)
    }

    /// Accepts on a dedicated ring where the kernel supports it, otherwise through glommio.
    fn accept(self, listeners: Vec<(TcpListener, impl Acceptor)>) -> io::Result<UringSockets> {
        if self.uses_ring {
            let ring = retry_on_enomem(|| {
                let listeners: io::Result<Vec<_>> =
                    listeners.iter().map(|(listener, _)| listener.try_clone()).collect();
                Ring::new(listeners?)
            });
            match ring {
                Ok(ring) => {
                    let acceptors = listeners.into_iter().map(|(_, acceptor)| acceptor);
                    return Ok(UringSockets::on_ring(ring, acceptors));
                }
                // No fallback to glommio for a transient reason: the server would be slower until a restart.
                Err(error) if is_out_of_memory(&error) => return Err(with_remedy(error)),
                Err(error) => tracing::info!(
                    %error,
                    "no dedicated ring for sockets, which requires Linux 6.1 or later"
                ),
            }
        }
        Ok(UringSockets::on_streams(listeners))
    }
}

/// Adds the cause and the remedy to an error where they are known.
fn with_remedy(error: io::Error) -> io::Error {
    if is_out_of_memory(&error) {
        io::Error::other(unavailable_reason("an executor's ring", error))
    } else {
        error
    }
}

/// Tasks that accept connections, and the ring that serves them, if there is one, with the task that drives it.
pub(in crate::runtime) struct UringSockets {
    tasks: Vec<Task<()>>,
    ring: Option<Rc<Ring>>,
}

impl UringSockets {
    /// Accepts from the listeners of the ring, for these acceptors in the same order.
    fn on_ring(ring: Rc<Ring>, acceptors: impl Iterator<Item = impl Acceptor>) -> Self {
        let mut tasks = vec![glommio::spawn_local(ring::drive(Rc::clone(&ring)))];
        for (listener, acceptor) in acceptors.enumerate() {
            let ring = Rc::clone(&ring);
            tasks.push(glommio::spawn_local(async move {
                loop {
                    let accepted = ring.accept(listener).await;
                    acceptor
                        .take(accepted.map(|stream| {
                            let address = stream.peer_address();
                            (stream, address)
                        }))
                        .await;
                }
            }));
        }
        Self { tasks, ring: Some(ring) }
    }

    async fn cancel_tasks(&mut self) {
        for task in self.tasks.drain(..) {
            task.cancel().await;
        }
    }

    /// Accepts through glommio.
    fn on_streams<A: Acceptor>(listeners: Vec<(TcpListener, A)>) -> Self {
        let accept = |(listener, acceptor): (TcpListener, A)| {
            let listener = adopt(listener);
            glommio::spawn_local(async move {
                loop {
                    let accepted = listener.accept().await.map_err(io::Error::from);
                    acceptor
                        .take(accepted.map(|stream| {
                            let address = stream.peer_addr().ok().map(|address| address.ip());
                            (stream, address)
                        }))
                        .await;
                }
            })
        };
        Self { tasks: listeners.into_iter().map(accept).collect(), ring: None }
    }
}

impl Sockets for UringSockets {
    fn tick(&self) {
        if let Some(ring) = &self.ring {
            ring.tick();
        }
    }

    fn are_quiet(&self) -> bool {
        self.ring.as_ref().is_none_or(|ring| ring.is_quiet())
    }

    async fn stop_accepting(&mut self) {
        match &self.ring {
            // The tasks hand over what the kernel accepts until then.
            Some(ring) => ring.stop_accepting(),
            None => self.cancel_tasks().await,
        }
    }

    async fn close(mut self) {
        self.cancel_tasks().await;
    }
}

/// Converts a listening socket to one of glommio's, for the executor of this thread.
#[expect(unsafe_code, reason = "glommio has no safe conversion from a socket with custom options")]
fn adopt(listener: TcpListener) -> glommio::net::TcpListener {
    // SAFETY: `into_raw_fd` gives up the only owner of the descriptor, which is open and a listening
    // TCP socket, and glommio's listener becomes its only owner.
    unsafe { glommio::net::TcpListener::from_raw_fd(listener.into_raw_fd()) }
}
