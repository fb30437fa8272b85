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
use std::time::{Duration, Instant};

use futures_lite::future::poll_once;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt};

use super::engine::{self, Acceptor, Engine, Sockets};
use super::per_address::PerAddress;
use super::shutdown::Stop;
use super::tls_accept::{Socket, TlsAcceptError, accept};
use crate::config::Proxies;
use crate::crypto::CompletionQueue;
use crate::http::{
    App, Audience, ByteBudget, Client, ExecutorContext, read_proxy_header, serve, too_many_connections,
};
use crate::limits::{ADMIN_CONNECTIONS_RESERVE, DEADLINE_TICK, DRAIN_DEADLINE};
use crate::telemetry::{ExecutorCounts, Executors};
use crate::tls::{Certificates, ServerContext};

/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines of an executor about senders of PROXY headers that are not believed, and about failed handshakes.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Shortest time between two lines about refused connections.
const REFUSALS_LOG_INTERVAL_MS: u64 = 10_000;

/// What all shards share.
#[derive(Clone)]
pub(super) struct ExecutorShared {
    pub(super) app: Arc<App>,
    pub(super) stop: Stop,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) connections_max: usize,
    pub(super) executors: Arc<Executors>,
    pub(super) answers: Arc<ByteBudget>,
    pub(super) per_address: PerAddress,
    /// Those whose headers of the PROXY protocol are believed; `None` if connections begin without one.
    pub(super) proxies_told_by_header: Option<Proxies>,
    pub(super) certificates: Certificates,
}

/// State of one shard; never leaves its thread.
struct Executor<E> {
    engine: E,
    shared: ExecutorShared,
    local: ExecutorContext,
    counts: Arc<ExecutorCounts>,
    refusals: RefusalLog,
    open: Cell<usize>,
    /// When a sender of PROXY headers that is not believed was last logged.
    warned: Cell<Option<Instant>>,
    handshake_logged: Cell<Option<Instant>>,
}

/// Tells the main thread, once, whether a shard listens: it is dropped with the thread's work when the executor
/// cannot be made, and the reason comes when the thread is joined.
pub(super) struct ReadyReporter {
    index: usize,
    reports: mpsc::Sender<Ready>,
    is_listening: bool,
}

/// How the start of one shard ended.
pub(super) struct Ready {
    pub(super) index: usize,
    pub(super) is_listening: bool,
}

impl ReadyReporter {
    pub(super) fn new(index: usize, reports: mpsc::Sender<Ready>) -> Self {
        Self { index, reports, is_listening: false }
    }

    fn succeed(mut self) {
        self.is_listening = true;
    }
}

impl Drop for ReadyReporter {
    fn drop(&mut self) {
        // Nobody waits any more if the start was given up meanwhile.
        self.reports.send(Ready { index: self.index, is_listening: self.is_listening }).ok();
    }
}

/// Starts the executor thread.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start<E: Engine>(
    engine: E,
    core: Option<usize>,
    listeners: Vec<(TcpListener, Audience)>,
    shared: ExecutorShared,
    starting: ReadyReporter,
) -> io::Result<JoinHandle<io::Result<()>>> {
    engine::start(engine, format!("osc-shard-{}", starting.index), core, move || async move {
        let counts = shared.executors.add();
        let local = ExecutorContext::new(Arc::clone(&counts), Arc::clone(&shared.answers));
        let refusals = RefusalLog::default();
        let (open, warned, handshake_logged) = (Cell::new(0), Cell::new(None), Cell::new(None));
        let shard =
            Rc::new(Executor { engine, shared, local, counts, refusals, open, warned, handshake_logged });
        shard.run(listeners, starting).await
    })
}

impl<E: Engine> Executor<E> {
    async fn run(
        self: Rc<Self>,
        listeners: Vec<(TcpListener, Audience)>,
        starting: ReadyReporter,
    ) -> io::Result<()> {
        let inbox = CompletionQueue::open();
        self.engine.spawn(inbox.deliver());
        let with_door =
            |(listener, audience)| (listener, AcceptHandler { shard: Rc::clone(&self), audience });
        let sockets = self.engine.accept(listeners.into_iter().map(with_door).collect())?;
        starting.succeed();
        while !self.shared.stop.is_requested() {
            self.engine.sleep(DEADLINE_TICK).await;
            self.local.tick(self.open.get());
            self.refusals.tick(&self.counts, self.local.clock.now_ms());
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
        let slot = ConnectionPermit::take(self, client.audience);
        let shard = Rc::clone(self);
        self.engine.spawn(async move {
            if slot.is_one_too_many {
                shard.counts.refused.add(1);
                return shard.reject(stream).await;
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
        // Peers connect directly, and a flood of clients must not use up their connections.
        // Probes connect directly, too, and must reach a server that has no room for further clients.
        let is_direct = matches!(client.audience, Audience::Peers | Audience::Admin);
        if let Some(proxies) = self.shared.proxies_told_by_header.as_ref().filter(|_| !is_direct) {
            let sender = client.address;
            match read_proxy_header(&mut stream, &self.local.clock, client, proxies).await {
                Ok(told) => client = told,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return self.note_untrusted_sender(sender);
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection without a header of the PROXY protocol");
                    return;
                }
            }
        }
        let address = client.address.filter(|_| !is_direct);
        let Ok(_place) = address.map(|address| self.shared.per_address.take(address)).transpose() else {
            self.counts.refused_of_address.add(1);
            return self.reject(stream).await;
        };
        let context = match client.audience {
            Audience::Peers => self.shared.certificates.cluster_server(),
            Audience::Clients | Audience::Everyone => self.shared.certificates.server(),
            Audience::Admin => None,
        };
        match context {
            None => serve(stream, &*self.shared.app, &self.local, client).await,
            // Behind a pointer, so that connections without TLS are no larger for it.
            Some(context) => Box::pin(self.serve_over_tls(Box::new(stream), context, client)).await,
        }
    }

    /// Every client of the port can cause it, so not each one is logged.
    fn note_untrusted_sender(&self, sender: Option<IpAddr>) {
        let now = Instant::now();
        let is_due = self.warned.get().is_none_or(|warned| now - warned >= WARNING_INTERVAL);
        if is_due {
            self.warned.set(Some(now));
            tracing::warn!(
                sender = sender.map(tracing::field::display),
                "closed a connection: its PROXY header names a client, but the sender is not in OSC_TRUSTED_PROXIES"
            );
        }
    }

    /// Every client of the port can cause it, so not each one is logged.
    fn note_failed_handshake(&self, client: &Client, error: &TlsAcceptError) {
        self.counts.failed_handshakes.add(1);
        if let (Audience::Peers, TlsAcceptError::Failed(error)) = (client.audience, error) {
            return self.shared.app.note_refused_handshake(client, error);
        }
        let now = Instant::now();
        if self.handshake_logged.get().is_none_or(|logged| now - logged >= WARNING_INTERVAL) {
            self.handshake_logged.set(Some(now));
            let address = client.address.map(tracing::field::display);
            let count = self.counts.failed_handshakes.get();
            tracing::info!(address, %error, count, "TLS handshake failed");
        }
    }

    async fn serve_over_tls(&self, socket: Box<dyn Socket>, context: Arc<ServerContext>, mut client: Client) {
        let greeted = accept(socket, &context, &self.local.clock).await;
        drop(context);
        let mut stream = match greeted {
            Ok(stream) => stream,
            Err(TlsAcceptError::Gone) => return,
            Err(error) => return self.note_failed_handshake(&client, &error),
        };
        client.lacks_node_certificate = !stream.may_be_node();
        serve(&mut stream, &*self.shared.app, &self.local, client).await;
        // However it ended, the client is told that this is the end and nothing was cut off, if it takes that at once.
        poll_once(stream.close()).await;
    }

    /// Says that there is no room for this connection. Not over TLS: that would cost more than what there is no room
    /// for.
    async fn reject<S: AsyncWrite + Unpin>(&self, mut stream: S) {
        if self.shared.certificates.server().is_none() {
            // The client may be gone.
            stream.write_all(&too_many_connections()).await.ok();
        }
        stream.close().await.ok();
    }
}

/// Logs refused connections, however many there are, in one line now and then.
#[derive(Default)]
struct RefusalLog {
    logged: Cell<(u64, u64)>,
    next_ms: Cell<u64>,
}

impl RefusalLog {
    fn tick(&self, counts: &ExecutorCounts, now_ms: u64) {
        let total = (counts.refused.get(), counts.refused_of_address.get());
        if total == self.logged.get() || now_ms < self.next_ms.get() {
            return;
        }
        let logged = self.logged.replace(total);
        self.next_ms.set(now_ms + REFUSALS_LOG_INTERVAL_MS);
        tracing::warn!(
            limit_of_server = total.0 - logged.0,
            limit_of_address = total.1 - logged.1,
            "connections refused"
        );
    }
}

/// Where connections of one listener come in.
struct AcceptHandler<E> {
    shard: Rc<Executor<E>>,
    audience: Audience,
}

impl<E: Engine> Acceptor for AcceptHandler<E> {
    /// Serves a connection, or waits until there may be one again.
    async fn take<S>(&self, accepted: io::Result<(S, Option<IpAddr>)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match accepted {
            Ok((stream, address)) => {
                let address = address.map(|address| address.to_canonical());
                let client = Client { address, audience: self.audience, ..Client::default() };
                self.shard.connect(stream, client);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                // Without a pause a full descriptor table would spin; others are the client's.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    self.shard.engine.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One connection's place in the counts, given back when it ends in any way.
struct ConnectionPermit<E> {
    shard: Rc<Executor<E>>,
    is_one_too_many: bool,
}

impl<E> ConnectionPermit<E> {
    fn take(shard: &Rc<Executor<E>>, audience: Audience) -> Self {
        let others = shard.shared.connections.fetch_add(1, Ordering::Relaxed);
        shard.open.set(shard.open.get() + 1);
        let reserve = if audience == Audience::Admin { ADMIN_CONNECTIONS_RESERVE } else { 0 };
        Self { shard: Rc::clone(shard), is_one_too_many: others >= shard.shared.connections_max + reserve }
    }
}

impl<E> Drop for ConnectionPermit<E> {
    fn drop(&mut self) {
        self.shard.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shard.open.set(self.shard.open.get() - 1);
    }
}
