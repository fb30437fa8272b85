//! Epoll engine, used where io_uring is unavailable: one current-thread Tokio runtime per executor.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::{JoinHandle, spawn_local};

use super::{Acceptor, Engine, Sockets};

/// Engine on epoll.
#[derive(Clone, Copy, Debug)]
pub(in crate::runtime) struct Epoll;

impl Engine for Epoll {
    type Stream = Stream;
    type Sockets = EpollSockets;

    fn run(self, main: impl Future<Output = io::Result<()>> + 'static) -> io::Result<()> {
        let executor =
            Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
        executor.block_on(main)
    }

    fn spawn(self, task: impl Future<Output = ()> + 'static) {
        spawn_local(task);
    }

    async fn sleep(self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn connect(self, address: SocketAddr) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        // Small requests must not wait for an acknowledgement. On failure they do, which is only slower.
        stream.set_nodelay(true).ok();
        Ok(Stream(stream))
    }

    fn accept(self, listeners: Vec<(TcpListener, impl Acceptor)>) -> io::Result<EpollSockets> {
        let mut tasks = Vec::with_capacity(listeners.len());
        for (listener, acceptor) in listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tasks.push(spawn_local(async move {
                loop {
                    let accepted = listener.accept().await;
                    acceptor
                        .take(accepted.map(|(stream, address)| (Stream(stream), Some(address.ip()))))
                        .await;
                }
            }));
        }
        Ok(EpollSockets { tasks })
    }
}

/// Tasks that accept connections, one per listener.
pub(in crate::runtime) struct EpollSockets {
    tasks: Vec<JoinHandle<()>>,
}

impl Sockets for EpollSockets {
    async fn stop_accepting(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            // The result is a cancellation or a panic; the listener is closed either way.
            task.await.ok();
        }
    }

    async fn close(mut self) {
        self.stop_accepting().await;
    }
}

/// Adapter from Tokio's stream traits to those of futures.
pub(in crate::runtime) struct Stream(TcpStream);

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut out = ReadBuf::new(out);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut out))?;
        Poll::Ready(Ok(out.filled().len()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
