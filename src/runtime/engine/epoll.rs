//! epoll, for where io_uring is not to be had.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use async_executor::{LocalExecutor, Task};
use async_io::{Async, Timer, block_on};

use super::{Acceptor, Engine, Sockets};

thread_local! {
    static EXECUTOR: &'static LocalExecutor<'static> = Box::leak(Box::default());
}

fn spawn_local(task: impl Future<Output = ()> + 'static) -> Task<()> {
    EXECUTOR.with(|executor| executor.spawn(task))
}

/// The engine.
#[derive(Clone, Copy, Debug)]
pub(in crate::runtime) struct Epoll;

impl Engine for Epoll {
    type Stream = Async<TcpStream>;
    type Sockets = EpollSockets;

    fn run(self, main: impl Future<Output = io::Result<()>> + 'static) -> io::Result<()> {
        let executor = EXECUTOR.with(|executor| *executor);
        block_on(executor.run(main))
    }

    fn spawn(self, task: impl Future<Output = ()> + 'static) {
        spawn_local(task).detach();
    }

    async fn sleep(self, duration: Duration) {
        Timer::after(duration).await;
    }

    async fn connect(self, address: SocketAddr) -> io::Result<Self::Stream> {
        let stream = Async::<TcpStream>::connect(address).await?;
        // Small requests must not wait for an acknowledgement; if it fails, they do.
        stream.get_ref().set_nodelay(true).ok();
        Ok(stream)
    }

    fn accept(self, listeners: Vec<TcpListener>, acceptor: impl Acceptor) -> io::Result<EpollSockets> {
        let mut tasks = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let (listener, acceptor) = (Async::new(listener)?, acceptor.clone());
            tasks.push(spawn_local(async move {
                loop {
                    acceptor
                        .take(listener.accept().await.map(|(stream, address)| (stream, Some(address.ip()))))
                        .await;
                }
            }));
        }
        Ok(EpollSockets { tasks })
    }
}

/// Those who accept.
pub(in crate::runtime) struct EpollSockets {
    tasks: Vec<Task<()>>,
}

impl Sockets for EpollSockets {
    async fn close(self) {
        for task in self.tasks {
            task.cancel().await;
        }
    }
}
