//! io_uring: glommio's executors, and a ring of their own for the sockets where the kernel has what that takes.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic;
use std::rc::Rc;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement, Task};
use rustix::io::Errno;

use super::probe::obstacle;
use super::{Acceptor, Engine, Sockets, is_out_of_memory, retry_on_enomem};
use crate::runtime::listener;
use crate::runtime::ring::{self, Ring};

/// Practically never. When the preemption timer fires while the thread is kept off its core, between
/// two steps of glommio's loop, the loop takes what it has not run for nothing to run, and sleeps on it
/// for ever (`run_task_queues` and `run` in its executor; seen under load, with 5 ms in one start of a
/// thousand). For the same reason there is no task queue with a latency of its own: it sets that timer.
/// Nothing here needs the timer: a task runs until it waits, and none of them computes for long.
const PREEMPTION: Duration = Duration::from_secs(60 * 60);

/// The engine.
#[derive(Clone, Copy, Debug)]
pub(in crate::runtime) struct Uring {
    /// Whether sockets have a ring of their own, where that is possible.
    pub(in crate::runtime) uses_ring: bool,
}

impl Engine for Uring {
    type Stream = glommio::net::TcpStream;
    type Sockets = UringSockets;

    fn run(self, main: impl Future<Output = io::Result<()>> + 'static) -> io::Result<()> {
        let make = || {
            // Bound to a core or not, the thread has its place already.
            LocalExecutorBuilder::new(Placement::Unbound)
                // Sockets need no registered buffers, and the default of 10 MiB exceeds a usual memory lock limit.
                .io_memory(0)
                .preempt_timer(PREEMPTION)
                .make()
                .map_err(io::Error::from)
        };
        // The one thing that it panics on after our own probe is that other processes took all memory meanwhile.
        let executor = panic::catch_unwind(|| retry_on_enomem(make))
            .unwrap_or_else(|_| Err(io::Error::from(Errno::NOMEM)))
            .map_err(explained)?;
        executor.run(async {
            // The first timer of an executor is late by tens of milliseconds (glommio#652).
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
        // Small requests must not wait for an acknowledgement; if it fails, they do.
        stream.set_nodelay(true).ok();
        Ok(stream)
    }

    /// By a ring of their own where that is possible, otherwise by glommio.
    fn accept(self, listeners: Vec<(TcpListener, impl Acceptor)>) -> io::Result<UringSockets> {
        if self.uses_ring {
            let ring = retry_on_enomem(|| {
                let own: io::Result<Vec<_>> =
                    listeners.iter().map(|(listener, _)| listener.try_clone()).collect();
                Ring::new(own?)
            });
            match ring {
                Ok(ring) => {
                    let acceptors = listeners.into_iter().map(|(_, acceptor)| acceptor);
                    return Ok(UringSockets::on_ring(ring, acceptors));
                }
                // No other is slower for a reason that is gone at the next start.
                Err(error) if is_out_of_memory(&error) => return Err(explained(error)),
                Err(error) => tracing::info!(
                    %error,
                    "no ring of its own for the sockets, which takes Linux 6.1 or later"
                ),
            }
        }
        Ok(UringSockets::on_streams(listeners))
    }
}

/// With what to do about it, where that is known.
fn explained(error: io::Error) -> io::Error {
    if is_out_of_memory(&error) { io::Error::other(obstacle("an executor's ring", error)) } else { error }
}

/// How connections are accepted and served.
pub(in crate::runtime) struct UringSockets {
    tasks: Vec<Task<()>>,
    ring: Option<Rc<Ring>>,
}

impl UringSockets {
    /// The listeners of the ring have these acceptors, in this order.
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

    fn on_streams<A: Acceptor>(listeners: Vec<(TcpListener, A)>) -> Self {
        let accept = |(listener, acceptor): (TcpListener, A)| {
            let listener = listener::adopt(listener);
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

    async fn close(self) {
        for task in self.tasks {
            task.cancel().await;
        }
    }
}
