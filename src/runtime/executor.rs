//! Executor: accepts connections and serves them, all on one thread.

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
use super::listener::Backlog;
use super::per_address::PerAddress;
use super::shutdown::Stop;
use super::tls_accept::{Socket, TlsAcceptError, accept};
use crate::blocking::CompletionQueue;
use crate::config::Proxies;
use crate::http::{
    App, Audience, ByteBudget, Client, ExecutorContext, read_proxy_header, serve, too_many_connections,
};
use crate::limits::{
    ACCEPT_PAUSE, ADMIN_CONNECTIONS_RESERVE, CONNECTION_WARNING_INTERVAL, DEADLINE_TICK, DRAIN_DEADLINE,
    REFUSED_CONNECTIONS_LOG_INTERVAL_MS,
};
use crate::telemetry::{ExecutorCounts, Executors};
use crate::tls::{Certificates, ServerContext};

/// State shared by all executors.
#[derive(Clone)]
pub(super) struct ExecutorShared {
    pub(super) app: Arc<App>,
    pub(super) stop: Stop,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) connections_max: usize,
    pub(super) executors: Arc<Executors>,
    pub(super) answers: Arc<ByteBudget>,
    pub(super) per_address: PerAddress,
    /// Trusted senders of PROXY protocol headers; `None` if connections begin without a header.
    pub(super) proxies_told_by_header: Option<Proxies>,
    pub(super) certificates: Certificates,
}

/// State of one executor; never leaves its thread.
struct Executor<E> {
    engine: E,
    shared: ExecutorShared,
    local: ExecutorContext,
    counts: Arc<ExecutorCounts>,
    refusals: RefusalLog,
    open: Cell<usize>,
    /// When an untrusted sender of a PROXY header was last logged.
    sender_logged: Cell<Option<Instant>>,
    /// When a failed handshake was last logged.
    handshake_logged: Cell<Option<Instant>>,
}

/// Reports to the main thread, once, whether an executor is listening. It is dropped with the thread's closure if the
/// executor cannot be created; joining the thread then returns the reason.
pub(super) struct ReadyReporter {
    index: usize,
    reports: mpsc::Sender<Ready>,
    is_listening: bool,
}

/// Outcome of the start of one executor.
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
        // Fails if the main thread has given up the start.
        self.reports.send(Ready { index: self.index, is_listening: self.is_listening }).ok();
    }
}

/// Starts an executor on a new thread.
///
/// # Errors
/// Fails if the thread cannot be started.
pub(super) fn start<E: Engine>(
    engine: E,
    core: Option<usize>,
    listeners: Vec<(TcpListener, Audience)>,
    shared: ExecutorShared,
    reporter: ReadyReporter,
) -> io::Result<JoinHandle<io::Result<()>>> {
    engine::start(engine, format!("osc-shard-{}", reporter.index), core, move || async move {
        let counts = shared.executors.add();
        let local = ExecutorContext::new(Arc::clone(&counts), Arc::clone(&shared.answers));
        let refusals = RefusalLog::default();
        let (open, sender_logged, handshake_logged) = (Cell::new(0), Cell::new(None), Cell::new(None));
        let executor =
            Executor { engine, shared, local, counts, refusals, open, sender_logged, handshake_logged };
        Rc::new(executor).run(listeners, reporter).await
    })
}

impl<E: Engine> Executor<E> {
    async fn run(
        self: Rc<Self>,
        listeners: Vec<(TcpListener, Audience)>,
        reporter: ReadyReporter,
    ) -> io::Result<()> {
        let completions = CompletionQueue::open();
        self.engine.spawn(completions.run());
        let backlog = Backlog::of(listeners.iter().map(|(listener, _)| listener))?;
        let with_handler =
            |(listener, audience)| (listener, AcceptHandler { executor: Rc::clone(&self), audience });
        let sockets = self.engine.accept(listeners.into_iter().map(with_handler).collect())?;
        reporter.succeed();
        while !self.shared.stop.is_requested() {
            self.engine.sleep(DEADLINE_TICK).await;
            self.local.tick(self.open.get());
            self.refusals.tick(&self.counts, self.local.timers.now_ms());
            sockets.tick();
        }
        self.end(sockets, backlog).await;
        Ok(())
    }

    /// Accepts what is in the backlog, and closes the listeners. Waits until every connection has closed after its
    /// current response.
    async fn end(&self, mut sockets: E::Sockets, backlog: Backlog) {
        self.local.timers.close();
        backlog.stop_growing();
        let (mut backlog, mut waited) = (Some(backlog), Duration::ZERO);
        loop {
            self.engine.sleep(DEADLINE_TICK / 10).await;
            waited += DEADLINE_TICK / 10;
            self.local.tick(self.open.get());
            sockets.tick();
            // By then, handshakes that were in flight have completed.
            if waited >= DEADLINE_TICK && backlog.take_if(|backlog| backlog.is_empty()).is_some() {
                sockets.stop_accepting().await;
            }
            if backlog.is_none() && self.open.get() == 0 && sockets.are_quiet() {
                break;
            }
            if waited >= DRAIN_DEADLINE {
                tracing::warn!(
                    connections = self.open.get(),
                    "drain deadline exceeded, closing remaining connections"
                );
                break;
            }
        }
        sockets.close().await;
    }

    fn connect<S>(self: &Rc<Self>, stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let permit = ConnectionPermit::take(self, client.audience);
        let executor = Rc::clone(self);
        self.engine.spawn(async move {
            if permit.is_over_limit {
                executor.counts.refused.add(1);
                return executor.reject(stream).await;
            }
            // An uncaught panic in a task would end the executor, and with it all of its connections.
            if AssertUnwindSafe(executor.serve(stream, client)).catch_unwind().await.is_err() {
                tracing::error!("connection closed after a panic");
            }
            drop(permit);
        });
    }

    async fn serve<S>(&self, mut stream: S, mut client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        // Peers and probes connect directly. A flood of clients must not use up the connections of peers, and probes
        // must reach a server that is at its limit.
        let is_direct = matches!(client.audience, Audience::Peers | Audience::Admin);
        if let Some(proxies) = self.shared.proxies_told_by_header.as_ref().filter(|_| !is_direct) {
            let sender = client.address;
            match read_proxy_header(&mut stream, &self.local.timers, client, proxies).await {
                Ok(named) => client = named,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return self.log_untrusted_sender(sender);
                }
                Err(error) => {
                    tracing::debug!(%error, "connection without a valid PROXY protocol header");
                    return;
                }
            }
        }
        let address = client.address.filter(|_| !is_direct);
        let Ok(_permit) = address.map(|address| self.shared.per_address.take(address)).transpose() else {
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
            // Boxed, so that the future of a connection without TLS does not grow.
            Some(context) => Box::pin(self.serve_over_tls(Box::new(stream), context, client)).await,
        }
    }

    /// Logs an untrusted sender of a PROXY header. Rate-limited, because any client of the port can cause it.
    fn log_untrusted_sender(&self, sender: Option<IpAddr>) {
        let now = Instant::now();
        if self.sender_logged.get().is_none_or(|logged| now - logged >= CONNECTION_WARNING_INTERVAL) {
            self.sender_logged.set(Some(now));
            tracing::warn!(
                sender = sender.map(tracing::field::display),
                "connection closed: PROXY header with a client address from a sender not in OSC_TRUSTED_PROXIES"
            );
        }
    }

    /// Counts a failed handshake and logs it. Rate-limited, because any client of the port can cause it.
    fn log_failed_handshake(&self, client: &Client, error: &TlsAcceptError) {
        self.counts.failed_handshakes.add(1);
        if let (Audience::Peers, TlsAcceptError::Failed(error)) = (client.audience, error) {
            return self.shared.app.record_failed_handshake(client, error);
        }
        let now = Instant::now();
        if self.handshake_logged.get().is_none_or(|logged| now - logged >= CONNECTION_WARNING_INTERVAL) {
            self.handshake_logged.set(Some(now));
            let address = client.address.map(tracing::field::display);
            let count = self.counts.failed_handshakes.get();
            tracing::info!(address, %error, count, "TLS handshake failed");
        }
    }

    async fn serve_over_tls(&self, socket: Box<dyn Socket>, context: Arc<ServerContext>, mut client: Client) {
        let accepted = accept(socket, &context, &self.local.timers).await;
        drop(context);
        let mut stream = match accepted {
            Ok(stream) => stream,
            Err(TlsAcceptError::Gone) => return,
            Err(error) => return self.log_failed_handshake(&client, &error),
        };
        client.lacks_node_certificate = !stream.may_be_node();
        serve(&mut stream, &*self.shared.app, &self.local, client).await;
        // In every case sends close_notify, which tells the end from a truncation, unless the socket would block.
        poll_once(stream.close()).await;
    }

    /// Rejects a connection above the limit. Sends a response only without TLS: a handshake would cost more than the
    /// resources that are exhausted.
    async fn reject<S: AsyncWrite + Unpin>(&self, mut stream: S) {
        if self.shared.certificates.server().is_none() {
            // Fails if the client has disconnected.
            stream.write_all(&too_many_connections()).await.ok();
        }
        stream.close().await.ok();
    }
}

/// Rate-limited log of refused connections: one line with their number.
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
        self.next_ms.set(now_ms + REFUSED_CONNECTIONS_LOG_INTERVAL_MS);
        tracing::warn!(
            limit_of_server = total.0 - logged.0,
            limit_of_address = total.1 - logged.1,
            "connections refused"
        );
    }
}

/// Handler of the connections of one listener.
struct AcceptHandler<E> {
    executor: Rc<Executor<E>>,
    audience: Audience,
}

impl<E: Engine> Acceptor for AcceptHandler<E> {
    /// Serves a connection; after an error, pauses until the next accept may succeed.
    async fn take<S>(&self, accepted: io::Result<(S, Option<IpAddr>)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match accepted {
            Ok((stream, address)) => {
                let address = address.map(|address| address.to_canonical());
                let client = Client { address, audience: self.audience, ..Client::default() };
                self.executor.connect(stream, client);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                // Without the pause, a full descriptor table would cause a busy loop. The excluded errors concern
                // single connections.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    self.executor.engine.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Permit of one connection, counted in the limit of the process; released when it is dropped.
struct ConnectionPermit<E> {
    executor: Rc<Executor<E>>,
    is_over_limit: bool,
}

impl<E> ConnectionPermit<E> {
    fn take(executor: &Rc<Executor<E>>, audience: Audience) -> Self {
        let open_before = executor.shared.connections.fetch_add(1, Ordering::Relaxed);
        executor.open.set(executor.open.get() + 1);
        let reserve = if audience == Audience::Admin { ADMIN_CONNECTIONS_RESERVE } else { 0 };
        let is_over_limit = open_before >= executor.shared.connections_max + reserve;
        Self { executor: Rc::clone(executor), is_over_limit }
    }
}

impl<E> Drop for ConnectionPermit<E> {
    fn drop(&mut self) {
        self.executor.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.executor.open.set(self.executor.open.get() - 1);
    }
}
