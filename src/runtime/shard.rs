//! One executor: accepts connections and serves them, all on one thread.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_lite::future::poll_once;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt};

use super::engine::{self, Acceptor, Engine, Sockets};
use super::greeting::{Socket, greet};
use super::per_address::PerAddress;
use super::shutdown::Stop;
use crate::crypto::Inbox;
use crate::http::{App, Client, Local, read_proxy_header, serve, too_many_connections};
use crate::limits::{DEADLINE_TICK, DRAIN_DEADLINE};
use crate::telemetry::Executors;
use crate::tls::{Certificates, ServerConfig};

/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all shards share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) app: Arc<App>,
    pub(super) stop: Stop,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) connections_max: usize,
    pub(super) executors: Arc<Executors>,
    pub(super) per_address: Option<PerAddress>,
    pub(super) has_proxy_protocol: bool,
    pub(super) certificates: Certificates,
}

/// State of one shard; never leaves its thread.
struct Shard<E> {
    engine: E,
    shared: Shared,
    local: Local,
    open: Cell<usize>,
}

/// Tells the main thread, once, whether a shard listens: it is dropped with the thread's work when the executor
/// cannot be made, and the reason comes when the thread is joined.
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
pub(super) fn start<E: Engine>(
    engine: E,
    core: Option<usize>,
    listeners: Vec<TcpListener>,
    shared: Shared,
    starting: Starting,
) -> io::Result<JoinHandle<io::Result<()>>> {
    engine::start(engine, format!("osc-shard-{}", starting.index), core, move || async move {
        let local = Local::new(shared.executors.add());
        let shard = Rc::new(Shard { engine, shared, local, open: Cell::new(0) });
        shard.run(listeners, starting).await
    })
}

impl<E: Engine> Shard<E> {
    async fn run(self: Rc<Self>, listeners: Vec<TcpListener>, starting: Starting) -> io::Result<()> {
        let inbox = Inbox::open();
        self.engine.spawn(inbox.deliver());
        let sockets = self.engine.accept(listeners, Door(Rc::clone(&self)))?;
        starting.succeed();
        while !self.shared.stop.is_requested() {
            self.engine.sleep(DEADLINE_TICK).await;
            self.local.tick(self.open.get());
            sockets.tick();
        }
        // Closing a listener resets what is still in its queue, so those connections are taken first;
        // the clock tells them, and all others, to end after their current answer.
        self.local.clock.close();
        let mut waited = Duration::ZERO;
        loop {
            self.engine.sleep(DEADLINE_TICK / 10).await;
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
        Ok(())
    }

    fn connect<S>(self: &Rc<Self>, stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let slot = Slot::take(self);
        let shard = Rc::clone(self);
        self.engine.spawn(async move {
            if slot.is_one_too_many {
                return shard.turn_away(stream).await;
            }
            // A panic in a task would end the executor, and with it every other connection.
            if AssertUnwindSafe(shard.serve(stream, client)).catch_unwind().await.is_err() {
                tracing::error!("a connection was dropped after a panic");
            }
            drop(slot);
        });
    }

    async fn serve<S>(&self, mut stream: S, mut client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if self.shared.has_proxy_protocol {
            match read_proxy_header(&mut stream, &self.local.clock, client).await {
                Ok(told) => client = told,
                Err(error) => {
                    tracing::debug!(%error, "a connection without a header of the PROXY protocol");
                    return;
                }
            }
        }
        let _place = match (&self.shared.per_address, client.address) {
            (Some(per_address), Some(address)) => match per_address.take(address) {
                Some(place) => Some(place),
                None => return self.turn_away(stream).await,
            },
            _ => None,
        };
        match self.shared.certificates.server() {
            None => serve(stream, &*self.shared.app, &self.local, client).await,
            // Behind a pointer, so that connections without TLS are no larger for it.
            Some(config) => Box::pin(self.serve_over_tls(Box::new(stream), config, client)).await,
        }
    }

    async fn serve_over_tls(&self, socket: Box<dyn Socket>, config: Arc<ServerConfig>, client: Client) {
        let Some(mut stream) = greet(socket, config, &self.local.clock).await else { return };
        serve(&mut stream, &*self.shared.app, &self.local, client).await;
        // However it ended, the client is told that this is the end and nothing was cut off, if it takes that at once.
        poll_once(stream.close()).await;
    }

    /// Says that there is no room for this connection. Not over TLS: that would cost more than what there is no room
    /// for.
    async fn turn_away<S: AsyncWrite + Unpin>(&self, mut stream: S) {
        if self.shared.certificates.server().is_none() {
            // The client may be gone.
            stream.write_all(&too_many_connections()).await.ok();
        }
        stream.close().await.ok();
    }
}

/// Where connections come in.
struct Door<E>(Rc<Shard<E>>);

impl<E> Clone for Door<E> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<E: Engine> Acceptor for Door<E> {
    /// Serves a connection, or waits until there may be one again.
    async fn take<S>(&self, accepted: io::Result<(S, Option<IpAddr>)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match accepted {
            Ok((stream, address)) => {
                self.0.connect(stream, Client { address: address.map(|address| address.to_canonical()) });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                // Without a pause a full descriptor table would spin; others are the client's.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    self.0.engine.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One connection's place in the counts, given back when it ends in any way.
struct Slot<E> {
    shard: Rc<Shard<E>>,
    is_one_too_many: bool,
}

impl<E> Slot<E> {
    fn take(shard: &Rc<Shard<E>>) -> Self {
        let others = shard.shared.connections.fetch_add(1, Ordering::Relaxed);
        shard.open.set(shard.open.get() + 1);
        Self { shard: Rc::clone(shard), is_one_too_many: others >= shard.shared.connections_max }
    }
}

impl<E> Drop for Slot<E> {
    fn drop(&mut self) {
        self.shard.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shard.open.set(self.shard.open.get() - 1);
    }
}
