//! Threads, cores and signals: ordered startup, the supervision loop, and shutdown in reverse order.
//!
//! The only module that depends on the I/O engines.
//! Threads: one executor per usable core (`osc-shard-N`), the deriving threads (`osc-derive-N`), the pool
//! (`osc-read-N`), the writer (`osc-writer`), the cluster executor (`osc-cluster`), the signal handler
//! (`osc-signals`), and the main thread, which waits for control events.

mod cache_size;
mod cluster;
mod engine;
mod executor;
mod fd_budget;
mod listener;
pub mod maintenance;
mod peer_stream;
mod per_address;
mod placement;
mod process_limits;
mod reload;
pub mod repair;
mod ring;
mod shutdown;
mod start_report;
mod supervisor;
mod terminal;
mod tls_accept;
mod wiping;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError as Timeout, Sender};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use self::cluster::ClusterThread;
use self::engine::{Engine, Epoll, Uring};
pub use self::engine::{EngineKind, UringUnavailable};
use self::executor::{Ready, ReadyReporter};
use self::fd_budget::Descriptors;
use self::per_address::PerAddress;
use self::placement::Plan;
pub use self::process_limits::{LimitError, restrict_umask, survive_file_size_limit};
use self::shutdown::{ControlEvent, Stop};
use self::supervisor::Supervisor;
pub use self::terminal::{PromptError, prompt_user_key};
pub use self::wiping::WipingAllocator;
use crate::blocking::BlockingPool;
use crate::config::{Config, StoreChoice};
use crate::crypto::{KeyCache, KeyDeriver};
use crate::http::{App, Audience, ByteBudget, RateLimits, Settings};
use crate::limits::{
    CERTIFICATES_CHECK_INTERVAL, DERIVATIONS_QUEUED_MAX_PER_THREAD, KEY_SWEEP_INTERVAL, START_DEADLINE,
    STORE_READS_QUEUED_MAX,
};
use crate::model::{ApiKeys, Timestamp};
use crate::service::federation::ClusterTaskQueue;
use crate::service::{ClusterView, Federation, Guard, NodeAuth, Parts, SequenceWatch, Service};
use crate::storage::{OpenError, Storage, Subscriber, VersioningOptions, sqlite};
use crate::telemetry::{Executors, Log};

/// Failure to start, or a fatal error of the running server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// io_uring is unavailable.
    #[error(transparent)]
    Engine(#[from] UringUnavailable),
    /// Process limits that are too low: all of them, with the settings that raise them.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// The data files cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Addresses that cannot be listened on: all of them, with the cause and the settings.
    #[error("{0}")]
    Listen(String),
    /// A component of the server, such as a thread, cannot be started.
    #[error("cannot start {0}: {1}")]
    Part(&'static str, String),
    /// An executor did not start, or ended with an error.
    #[error("executor {index} failed: {reason}")]
    Shard {
        /// Index of the executor.
        index: usize,
        /// Cause of the failure.
        reason: String,
    },
    /// A fatal error of the running server.
    #[error("fatal error, shutting down: {0}")]
    Fatal(String),
}

type ExecutorThreads = Vec<JoinHandle<io::Result<()>>>;

/// Runs the server until SIGTERM or SIGINT. SIGHUP reloads the settings.
///
/// # Errors
/// Fails if the server cannot start, or shuts down for any other reason.
pub fn run(config: &Config, log: &Log) -> Result<(), Error> {
    forbid_core_dumps();
    process_limits::raise();
    let plan = Plan::new(config.workers);
    let peers = config.cluster.as_ref().map(|cluster| cluster.peers.len());
    let descriptors = Descriptors::new(plan.cores.len(), peers.unwrap_or_default());
    process_limits::check(descriptors, plan.threads_count(peers.is_some()))?;
    let (engine, unavailable) = engine::choose(config.engine)?;
    if let Some(reason) = unavailable {
        tracing::warn!(%reason, "io_uring is unavailable, serving on epoll; OSC_ENGINE=epoll disables this warning");
    }
    match engine {
        EngineKind::Uring => {
            run_on(Uring { uses_ring: config.uses_ring }, engine, &plan, descriptors, config, log)
        }
        EngineKind::Epoll => run_on(Epoll, engine, &plan, descriptors, config, log),
    }
}

/// Returns one line with the engine that the server would use on this machine, and the reason for a fallback.
pub fn engine_in_effect(config: &Config) -> String {
    process_limits::raise();
    match engine::choose(config.engine) {
        Ok((engine, None)) => engine.name().to_owned(),
        Ok((engine, Some(reason))) => format!("{}, because {reason}", engine.name()),
        Err(reason) => format!("none, because {reason}"),
    }
}

fn run_on<E: Engine>(
    engine: E,
    kind: EngineKind,
    plan: &Plan,
    descriptors: Descriptors,
    config: &Config,
    log: &Log,
) -> Result<(), Error> {
    let (events, control_events) = shutdown::control_events();
    let stop = Stop::default();
    shutdown::watch_signals(events.clone(), stop.clone(), !config.drain.is_zero())
        .map_err(|error| Error::Part("the signal handler", error.to_string()))?;

    // Before any file is changed: another server may be using the address.
    let listeners = bind(config, plan.cores.len())?;
    let log_position = Arc::new(SequenceWatch::default());
    let pool = start_pool(plan)?;
    let storage = open_storage(config, plan, &pool, events.clone(), &log_position)?;
    let deriver = start_deriver(plan)?;
    let keys = KeyCache::new();
    let (view, federation, requests) = join_cluster(config, log_position);
    let api_keys = ApiKeys::new(config.api_keys.clone());
    let node_auth = Arc::new(NodeAuth::new(&config.cluster_secrets, &api_keys));
    let service = Arc::new(Service::new(Parts {
        storage: Arc::clone(&storage),
        keys: keys.clone(),
        deriver: Arc::clone(&deriver),
        pool: Arc::clone(&pool),
        cluster: view,
        federation,
        guard: Guard::new(config.clients.failed_keys_per_address),
        api_keys: api_keys.clone(),
        node_auth: Arc::clone(&node_auth),
    }));
    let connections_max = descriptors.connections_max();
    let mut expiry = reload::ExpiryWatch::default();
    // Before the first scrape.
    expiry.look(&config.certificates, jiff::Timestamp::now());
    let settings = settings(config, kind, connections_max, &expiry);
    let executors = Arc::clone(&settings.executors);
    let watched_executors = Arc::clone(&executors);
    let answers = Arc::clone(&settings.response_budget);
    let shared = executor::ExecutorShared {
        app: Arc::new(App::new(Arc::clone(&service), settings)),
        stop: stop.clone(),
        connections: Arc::default(),
        connections_max,
        executors,
        answers,
        per_address: PerAddress::new(&config.clients, connections_max),
        proxies_told_by_header: config.clients.has_proxy_protocol.then(|| config.clients.proxies.clone()),
        certificates: config.certificates.clone(),
    };
    let (threads, addresses) = start_executors(engine, listeners, plan, &shared)?;
    let mut cluster = ClusterThread::start(engine, config, &service, &node_auth, requests)?;
    if let Some(expires) = config.certificates.expires() {
        tracing::info!(%expires, "serving over TLS only");
    }
    reload::warn_of_refusal(&config.certificates);
    let port = addresses.first().map_or(config.port, |(address, _)| address.port());
    log_listeners(addresses, kind, plan.cores.len());
    start_report::log(config, kind, plan.cores.len(), port);
    let status = start_report::status(config, kind, port);
    let mut supervisor = Supervisor::new();
    supervisor.ready(&status);
    let mut operation = Operation {
        config,
        log,
        api_keys: &api_keys,
        node_auth: &node_auth,
        app: &shared.app,
        executors: &watched_executors,
        cluster: &mut cluster,
        expiry: &mut expiry,
        status: &status,
    };
    let event = operation.serve(&mut supervisor, &control_events);
    tracing::info!("stopping");
    stop.request();
    let outcome = join(threads);
    // After the executors: requests that they were draining may have needed other nodes.
    if let Some(cluster) = cluster
        && let Err(error) = cluster.end()
    {
        tracing::error!(%error, "cluster executor failed");
    }
    drop((shared, service));
    stop_workers(deriver, pool);
    storage.close();
    keys.clear();
    conclude(event, outcome)
}

/// Creates what only a node of a cluster has: the status and, in federated mode, the federation with the queue of its
/// requests.
fn join_cluster(
    config: &Config,
    log_position: Arc<SequenceWatch>,
) -> (Option<Arc<ClusterView>>, Option<Federation>, Option<ClusterTaskQueue>) {
    let Some(cluster) = &config.cluster else { return (None, None, None) };
    let view = Arc::new(ClusterView::new(random_number(), log_position, cluster));
    let federation = cluster.federation.as_ref();
    let (federation, requests) =
        federation.map(|federation| Federation::new(federation, Arc::clone(&view))).unzip();
    (Some(view), federation, requests)
}

/// Returns the result of the server: a fatal event outranks the outcome of the executors.
fn conclude(event: ControlEvent, outcome: Result<(), Error>) -> Result<(), Error> {
    match (event, outcome) {
        (ControlEvent::Fatal(reason), _) => Err(Error::Fatal(reason)),
        (_, Err(error)) => Err(error),
        (_, Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Opens the storage. A fatal error of its engine ends the server.
fn open_storage(
    config: &Config,
    plan: &Plan,
    pool: &Arc<BlockingPool>,
    events: Sender<ControlEvent>,
    log_position: &Arc<SequenceWatch>,
) -> Result<Arc<Storage>, Error> {
    let cache_bytes_max = cache_size::entry_cache_bytes_max();
    let subscribers = vec![Arc::<SequenceWatch>::clone(log_position) as Arc<dyn Subscriber>];
    if config.store == StoreChoice::Memory {
        tracing::warn!("entries are in memory: they and the salt are lost when this server stops");
        return Ok(Arc::new(Storage::in_memory(cache_bytes_max, subscribers, versions(config))));
    }
    let on_fatal = Box::new(move |error: crate::storage::Error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        events.send(ControlEvent::Fatal(format!("the database failed: {error}{cause}"))).ok();
    });
    let options = sqlite::Options {
        accepted_salt: config.accepted_salt,
        pool: Some(Arc::downgrade(pool)),
        readers_count: plan.read_threads,
        versions: versions(config),
        on_fatal,
    };
    let (database, salt) = (&config.database_path, &config.salt_file_path);
    Ok(Arc::new(Storage::open_sqlite(database, salt, cache_bytes_max, subscribers, options)?))
}

fn settings(
    config: &Config,
    kind: EngineKind,
    connections_max: usize,
    expiry: &reload::ExpiryWatch,
) -> Settings {
    Settings {
        user_key_bytes_min: config.user_key_bytes_min,
        node_id: config.node_id.clone(),
        allowed_hosts: config.allowed_hosts.clone(),
        origins: config.origins.clone(),
        has_public_root: config.has_public_root,
        has_private_metrics: config.has_private_metrics,
        proxies: config.clients.proxies.clone(),
        rates: RateLimits::new(&config.clients),
        engine: kind.name(),
        connections_max,
        response_budget: ByteBudget::new(cache_size::answers_bytes_max()),
        certificate_expiry: expiry.gauge(),
        ..Settings::default()
    }
}

fn log_listeners(addresses: Vec<(SocketAddr, Audience)>, kind: EngineKind, executors: usize) {
    for (address, audience) in addresses {
        let serves = match audience {
            Audience::Everyone => "clients and peers",
            Audience::Clients => "clients",
            Audience::Peers => "peers",
            Audience::Admin => "probes and metrics",
        };
        tracing::info!(%address, serves, executors, engine = %kind.name(), "listening");
    }
}

/// Parts of the running server that reloads and periodic work need.
struct Operation<'a> {
    config: &'a Config,
    log: &'a Log,
    api_keys: &'a ApiKeys,
    node_auth: &'a NodeAuth,
    app: &'a App,
    executors: &'a Executors,
    cluster: &'a mut Option<ClusterThread>,
    expiry: &'a mut reload::ExpiryWatch,
    status: &'a str,
}

impl Operation<'_> {
    /// Serves until the server has to end. After a signal this is the end of the drain, a second signal, or a failure.
    fn serve(&mut self, supervisor: &mut Supervisor, events: &Receiver<ControlEvent>) -> ControlEvent {
        let event = self.wait_for_event(supervisor, events, Duration::MAX);
        self.app.begin_drain();
        supervisor.stopping();
        match event {
            ControlEvent::Signal if !self.config.drain.is_zero() => {
                tracing::info!(seconds = self.config.drain.as_secs(), "draining");
                self.wait_for_event(supervisor, events, self.config.drain)
            }
            event => event,
        }
    }

    /// Reloads on request, and does periodic work, until another event or the timeout, which counts as a signal.
    fn wait_for_event(
        &mut self,
        supervisor: &mut Supervisor,
        events: &Receiver<ControlEvent>,
        timeout: Duration,
    ) -> ControlEvent {
        let tick = CERTIFICATES_CHECK_INTERVAL.min(supervisor.interval() / 2);
        let started = Instant::now();
        let (mut swept, mut looked) = (started, started);
        loop {
            supervisor.sign_of_life(self.executors);
            let left = timeout.saturating_sub(started.elapsed());
            match events.recv_timeout(tick.min(left)) {
                Ok(ControlEvent::Reload) => {
                    supervisor.reloading();
                    self.reload();
                    supervisor.ready(self.status);
                }
                Ok(event) => return event,
                Err(Timeout::Timeout) if started.elapsed() >= timeout => return ControlEvent::Signal,
                Err(Timeout::Timeout) => {
                    if swept.elapsed() >= KEY_SWEEP_INTERVAL {
                        swept = Instant::now();
                        self.app.sweep();
                    }
                    if looked.elapsed() >= CERTIFICATES_CHECK_INTERVAL {
                        looked = Instant::now();
                        reload::reload_certificates(&self.config.certificates);
                        self.expiry.look(&self.config.certificates, jiff::Timestamp::now());
                    }
                }
                Err(Timeout::Disconnected) => {
                    return ControlEvent::Fatal("the signal handler has exited".into());
                }
            }
        }
    }

    /// Applies the new configuration; an invalid one changes nothing.
    fn reload(&mut self) {
        let Some(new) = reload::read() else { return };
        let peers = reload::apply(self.config, &new, self.log, self.api_keys, self.node_auth);
        if let (Some(cluster), Some(peers)) = (self.cluster.as_mut(), peers) {
            cluster.set_peers(peers);
        }
    }
}

/// Returns the versioning options of the store. Federated nodes do not replicate, so they keep no versions.
fn versions(config: &Config) -> VersioningOptions {
    let Some(cluster) = &config.cluster else { return VersioningOptions::new(false) };
    let offset_ms = cluster.clock_offset_ms;
    let wall_clock = Arc::new(move || Timestamp::now().as_milliseconds().saturating_add_signed(offset_ms));
    VersioningOptions { wall_clock, ..VersioningOptions::new(cluster.federation.is_none()) }
}

/// Returns a random number that identifies this process.
fn random_number() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("Linux provides random bytes after boot");
    u64::from_ne_bytes(bytes)
}

/// Disables core dumps, which would contain user keys and values.
fn forbid_core_dumps() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot disable core dumps");
    }
}

fn start_deriver(plan: &Plan) -> Result<Arc<KeyDeriver>, Error> {
    let queue_max = DERIVATIONS_QUEUED_MAX_PER_THREAD * plan.derive_threads;
    KeyDeriver::start(plan.derive_threads, queue_max)
        .map(Arc::new)
        .map_err(|error| Error::Part("the deriving threads", error.to_string()))
}

fn start_pool(plan: &Plan) -> Result<Arc<BlockingPool>, Error> {
    BlockingPool::start(plan.read_threads, STORE_READS_QUEUED_MAX)
        .map(Arc::new)
        .map_err(|error| Error::Part("the pool", error.to_string()))
}

/// Stops the deriving threads and the pool. An executor that left a request behind still refers to them; then the exit
/// of the process cuts off their jobs.
fn stop_workers(deriver: Arc<KeyDeriver>, pool: Arc<BlockingPool>) {
    if let Some(deriver) = Arc::into_inner(deriver) {
        deriver.stop();
    }
    if let Some(pool) = Arc::into_inner(pool) {
        pool.stop();
    }
}

/// Starts all executors and waits until all of them are listening; otherwise a partially started server would look
/// like a complete one.
fn start_executors<E: Engine>(
    engine: E,
    listeners: Vec<Vec<(TcpListener, Audience)>>,
    plan: &Plan,
    shared: &executor::ExecutorShared,
) -> Result<(ExecutorThreads, Vec<(SocketAddr, Audience)>), Error> {
    let addresses = listeners.first().map_or_else(Vec::new, |listeners| {
        let address =
            |(listener, audience): &(TcpListener, _)| Some((listener.local_addr().ok()?, *audience));
        listeners.iter().filter_map(address).collect()
    });
    let (reports, started) = mpsc::channel();
    let mut threads = Vec::with_capacity(plan.cores.len());
    for (index, (core, listeners)) in plan.cores.iter().zip(listeners).enumerate() {
        let reporter = ReadyReporter::new(index, reports.clone());
        match executor::start(engine, *core, listeners, shared.clone(), reporter) {
            Ok(thread) => threads.push(thread),
            Err(error) => return Err(Error::Shard { index, reason: error.to_string() }),
        }
    }
    await_listening(threads, &started).map(|threads| (threads, addresses))
}

/// Opens the listeners of each executor, those for clients first.
fn bind(config: &Config, executors: usize) -> Result<Vec<Vec<(TcpListener, Audience)>>, Error> {
    let listen = config.cluster.as_ref().and_then(|cluster| cluster.listen.as_ref());
    let clients = if listen.is_some() { Audience::Clients } else { Audience::Everyone };
    let wanted = [
        (Some(&config.host), clients, "OSC_HOST and OSC_HOST_PORT"),
        (listen, Audience::Peers, "OSC_CLUSTER_LISTEN"),
        (config.admin.as_ref(), Audience::Admin, "OSC_ADMIN_LISTEN"),
    ];
    let mut bound: Vec<Vec<_>> = (0..executors).map(|_| Vec::new()).collect();
    let mut errors = Vec::new();
    for (host, audience, settings) in wanted {
        let Some(host) = host else { continue };
        match listener::bind(host.addresses(), executors) {
            Ok(listeners) => {
                for (all, more) in bound.iter_mut().zip(listeners) {
                    all.extend(more.into_iter().map(|listener| (listener, audience)));
                }
            }
            Err(error) => errors.push(format!("cannot listen on {error} (see {settings})")),
        }
    }
    if errors.is_empty() { Ok(bound) } else { Err(Error::Listen(errors.join("; "))) }
}

/// Returns the executors once all of them are listening.
///
/// # Errors
/// Fails with the reason of the first executor that is not.
fn await_listening(
    mut threads: ExecutorThreads,
    started: &mpsc::Receiver<Ready>,
) -> Result<ExecutorThreads, Error> {
    let deadline = Instant::now() + START_DEADLINE;
    for _ in 0..threads.len() {
        match started.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ready { is_listening: true, .. }) => {}
            Ok(Ready { index, .. }) => {
                let outcome = outcome(threads.swap_remove(index));
                let reason =
                    outcome.err().map_or_else(|| "exited early".to_owned(), |error| error.to_string());
                return Err(Error::Shard { index, reason });
            }
            Err(_) => {
                return Err(Error::Part(
                    "the executors",
                    format!("not all are listening after {START_DEADLINE:?}"),
                ));
            }
        }
    }
    Ok(threads)
}

/// Waits for all executors, and returns the first error.
fn join(threads: ExecutorThreads) -> Result<(), Error> {
    let mut first = Ok(());
    for (index, thread) in threads.into_iter().enumerate() {
        if let Err(error) = outcome(thread)
            && first.is_ok()
        {
            first = Err(Error::Shard { index, reason: error.to_string() });
        }
    }
    first
}

fn outcome(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
}
