//! Threads, cores and signals: starts everything in order, waits, and ends it in reverse.
//!
//! The only module that knows glommio and the other engine.
//! Threads: one executor for each usable core (`osc-shard-N`), the pool (`osc-derive-N`,
//! `osc-read-N`), the writer (`osc-writer`), the cluster (`osc-cluster`), one for signals, and
//! the main thread, which waits.

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

use crossbeam_channel::RecvTimeoutError as Timeout;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use self::cluster::ClusterThread;
use self::engine::{Engine, Epoll, Uring};
pub use self::engine::{EngineKind, UringUnavailable};
use self::executor::{Ready, ReadyReporter};
use self::fd_budget::Descriptors;
use self::per_address::PerAddress;
use self::placement::Plan;
pub use self::process_limits::{LimitError, deny_others, survive_file_size_limit};
use self::shutdown::{ControlEvent, Stop};
use self::supervisor::Supervisor;
pub use self::terminal::{PromptError, prompt_user_key};
pub use self::wiping::WipingAllocator;
use crate::config::Config;
use crate::crypto::{KeyCache, Pool, PoolConfig};
use crate::http::{App, Audience, ByteBudget, RateLimits, Settings};
use crate::limits::{DERIVATIONS_QUEUED_MAX_PER_THREAD, START_DEADLINE, STORE_READS_QUEUED_MAX};
use crate::model::{ApiKeys, Timestamp};
use crate::service::{ClusterView, Federation, Guard, NodeAuth, SequenceWatch, Service};
use crate::store::{OpenError, Options, Store, VersioningOptions};
use crate::telemetry::Log;

/// How often the files of certificates are looked at.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(3);
/// How often derived keys that nobody uses any more are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Why the server did not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// io_uring is not to be had.
    #[error(transparent)]
    Engine(#[from] UringUnavailable),
    /// Limits of the process that are too low: all of them, with the settings that raise them.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// The data files.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The addresses that cannot be listened on: all of them, with the cause and the settings.
    #[error("{0}")]
    Listen(String),
    /// A thread, a signal handler, the pool.
    #[error("cannot start {0}: {1}")]
    Part(&'static str, String),
    /// An executor.
    #[error("executor {index} did not start: {reason}")]
    Shard {
        /// Which one.
        index: usize,
        /// Why.
        reason: String,
    },
    /// Something failed while the server ran.
    #[error("the server had to end: {0}")]
    Fatal(String),
}

type ExecutorThreads = Vec<JoinHandle<io::Result<()>>>;

/// Runs the server until SIGTERM or SIGINT. SIGHUP reads the settings again.
///
/// # Errors
/// When it cannot start, or has to end for another reason.
pub fn run(config: &Config, log: &Log) -> Result<(), Error> {
    forbid_core_dumps();
    process_limits::raise();
    let plan = Plan::new(config.workers);
    let peers = config.cluster.as_ref().map(|cluster| cluster.peers.len());
    let descriptors = Descriptors::new(plan.cores.len(), peers.unwrap_or_default());
    process_limits::check(descriptors, plan.threads_count(peers.is_some()))?;
    let (engine, obstacle) = engine::choose(config.engine)?;
    if let Some(obstacle) = obstacle {
        tracing::warn!(
            "serving on epoll instead of io_uring: {obstacle}; or set OSC_ENGINE=epoll if that is what you want"
        );
    }
    match engine {
        EngineKind::Uring => {
            run_on(Uring { uses_ring: config.uses_ring }, engine, &plan, descriptors, config, log)
        }
        EngineKind::Epoll => run_on(Epoll, engine, &plan, descriptors, config, log),
    }
}

/// The engine that the server would have here, and why, on one line.
pub fn engine_in_effect(config: &Config) -> String {
    process_limits::raise();
    match engine::choose(config.engine) {
        Ok((engine, None)) => engine.name().to_owned(),
        Ok((engine, Some(obstacle))) => format!("{}, because {obstacle}", engine.name()),
        Err(obstacle) => format!("none, because {obstacle}"),
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
    let (reasons, why_end) = shutdown::control_events();
    shutdown::watch_signals(reasons.clone())
        .map_err(|error| Error::Part("the signal handler", error.to_string()))?;

    let from_store = reasons.clone();
    let on_fatal = Box::new(move |error: crate::store::Error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        from_store.send(ControlEvent::Fatal(format!("the database failed: {error}{cause}"))).ok();
    });
    // Before any file is changed: another server may have the address.
    let listeners = bind(config, plan.cores.len())?;
    let instance = random_number();
    let outbox = Arc::new(SequenceWatch::default());
    let grown = Arc::clone(&outbox);
    let options = Options {
        cache_bytes_max: cache_size::entry_cache_bytes_max(),
        accepted_salt: config.accepted_salt,
        readers_count: plan.read_threads,
        versions: versions(config),
        on_fatal,
        on_outbox: Box::new(move |last| grown.advance(last)),
    };
    let store = Arc::new(Store::open(&config.database_path, &config.salt_file_path, options)?);
    if let Some(copy) = store.migration_backup() {
        tracing::info!(copy = %copy.display(), "the database was migrated, after it was copied");
    }

    let pool = start_pool(plan)?;
    let keys = KeyCache::new();
    let view = config.cluster.as_ref().map(|cluster| Arc::new(ClusterView::new(instance, outbox, cluster)));
    let federation = config.cluster.as_ref().and_then(|cluster| cluster.federation.as_ref());
    let (federation, errands) = federation
        .zip(view.as_ref())
        .map(|(federation, view)| Federation::new(federation, Arc::clone(view)))
        .unzip();
    let service = Service::new(Arc::clone(&store), keys.clone(), Arc::clone(&pool), view);
    let guard = Guard::new(config.clients.failed_keys_per_address);
    let service = Arc::new(service.federated(federation).guarded_by(guard));
    let api_keys = ApiKeys::new(config.api_keys.clone());
    let node_auth = Arc::new(NodeAuth::new(&config.cluster_secrets, &api_keys));
    let connections_max = descriptors.connections_max();
    let mut expiry = reload::ExpiryWatch::default();
    let settings = Settings {
        api_keys: api_keys.clone(),
        node_auth: Arc::clone(&node_auth),
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
        answers: ByteBudget::new(cache_size::answers_bytes_max()),
        certificate_expiry: expiry.gauge(),
        ..Settings::default()
    };
    let executors = Arc::clone(&settings.executors);
    let seen_executors = Arc::clone(&executors);
    let answers = Arc::clone(&settings.answers);
    let stop = Stop::default();
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
    let (shards, addresses) = start_shards(engine, listeners, plan, &shared)?;
    let mut cluster = ClusterThread::start(engine, config, &service, &node_auth, errands)?;
    if let Some(expires) = config.certificates.expires() {
        tracing::info!(%expires, "serving over TLS only");
    }
    reload::warn_of_refusal(&config.certificates);
    expiry.look(&config.certificates, jiff::Timestamp::now());
    let port = addresses.first().map_or(config.port, |(address, _)| address.port());
    for (address, audience) in addresses {
        let serves = match audience {
            Audience::Everyone => "clients and peers",
            Audience::Clients => "clients",
            Audience::Peers => "peers",
            Audience::Admin => "probes and metrics",
        };
        tracing::info!(%address, serves, executors = plan.cores.len(), engine = %kind.name(), "listening");
    }

    start_report::log(config, kind, plan.cores.len(), port);
    let status = start_report::status(config, kind, port);
    let mut supervisor = Supervisor::new();
    supervisor.ready(&status);
    let tick = CERTIFICATES_INTERVAL.min(supervisor.interval() / 2);
    let (mut swept, mut looked) = (Instant::now(), Instant::now());
    let reason = loop {
        supervisor.sign_of_life(&seen_executors);
        match why_end.recv_timeout(tick) {
            Ok(ControlEvent::Reload) => {
                supervisor.reloading();
                let new = reload::read();
                // A configuration that is refused leaves the server as ready as before.
                let Some(new) = new else {
                    supervisor.ready(&status);
                    continue;
                };
                let peers = reload::apply(config, &new, log, &api_keys, &node_auth);
                if let (Some(cluster), Some(peers)) = (&mut cluster, peers) {
                    cluster.set_peers(peers);
                }
                supervisor.ready(&status);
            }
            Ok(reason) => break reason,
            Err(Timeout::Timeout) => {
                if swept.elapsed() >= SWEEP_INTERVAL {
                    swept = Instant::now();
                    shared.app.sweep();
                }
                if looked.elapsed() >= CERTIFICATES_INTERVAL {
                    looked = Instant::now();
                    reload::look_at(&config.certificates);
                    expiry.look(&config.certificates, jiff::Timestamp::now());
                }
            }
            Err(Timeout::Disconnected) => break ControlEvent::Fatal("the signal handler has gone".into()),
        }
    };
    supervisor.stopping();
    tracing::info!("stopping");
    stop.request();
    let failed = join(shards);
    // Requests that were open when the shards ended may have needed other nodes.
    if let Some(cluster) = cluster
        && let Err(error) = cluster.end()
    {
        tracing::error!(%error, "the cluster's executor ended by an error");
    }
    drop((shared, service));
    // Nobody else holds it now, unless a shard left a request behind; its jobs are cut by the exit then.
    if let Some(pool) = Arc::into_inner(pool) {
        pool.stop();
    }
    store.close();
    keys.clear();
    match (reason, failed) {
        (ControlEvent::Fatal(reason), _) => Err(Error::Fatal(reason)),
        (_, Err(error)) => Err(error),
        (_, Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Nodes of a federation exchange nothing, so there are no versions to keep.
fn versions(config: &Config) -> VersioningOptions {
    let Some(cluster) = &config.cluster else { return VersioningOptions::new(false) };
    let offset_ms = cluster.clock_offset_ms;
    let wall_clock = Arc::new(move || Timestamp::now().as_milliseconds().saturating_add_signed(offset_ms));
    VersioningOptions { wall_clock, ..VersioningOptions::new(cluster.federation.is_none()) }
}

/// Tells this process from every other one.
fn random_number() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("Linux has random bytes once it has booted");
    u64::from_ne_bytes(bytes)
}

/// A core dump would hold user keys and values.
fn forbid_core_dumps() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps cannot be forbidden");
    }
}

fn start_pool(plan: &Plan) -> Result<Arc<Pool>, Error> {
    let config = PoolConfig { derive_threads: plan.derive_threads, read_threads: plan.read_threads };
    let derivations_max = DERIVATIONS_QUEUED_MAX_PER_THREAD * plan.derive_threads;
    Pool::start(config, derivations_max, STORE_READS_QUEUED_MAX)
        .map(Arc::new)
        .map_err(|error| Error::Part("the pool", error.to_string()))
}

/// Starts all executors and waits until each of them listens: otherwise a half-started server would look like a
/// whole one.
fn start_shards<E: Engine>(
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
    let mut shards = Vec::with_capacity(plan.cores.len());
    for (index, (core, listeners)) in plan.cores.iter().zip(listeners).enumerate() {
        let starting = ReadyReporter::new(index, reports.clone());
        match executor::start(engine, *core, listeners, shared.clone(), starting) {
            Ok(shard) => shards.push(shard),
            Err(error) => return Err(Error::Shard { index, reason: error.to_string() }),
        }
    }
    await_listening(shards, &started).map(|shards| (shards, addresses))
}

/// The listeners of each shard, those for clients first.
fn bind(config: &Config, shards: usize) -> Result<Vec<Vec<(TcpListener, Audience)>>, Error> {
    let listen = config.cluster.as_ref().and_then(|cluster| cluster.listen.as_ref());
    let clients = if listen.is_some() { Audience::Clients } else { Audience::Everyone };
    let wanted = [
        (Some(&config.host), clients, "OSC_HOST and OSC_HOST_PORT"),
        (listen, Audience::Peers, "OSC_CLUSTER_LISTEN"),
        (config.admin.as_ref(), Audience::Admin, "OSC_ADMIN_LISTEN"),
    ];
    let (mut bound, mut faults): (Vec<Vec<_>>, _) = ((0..shards).map(|_| Vec::new()).collect(), Vec::new());
    for (host, audience, settings) in wanted {
        let Some(host) = host else { continue };
        match listener::bind(host.addresses(), shards) {
            Ok(listeners) => {
                for (all, more) in bound.iter_mut().zip(listeners) {
                    all.extend(more.into_iter().map(|listener| (listener, audience)));
                }
            }
            Err(error) => faults.push(format!("cannot listen on {error} (see {settings})")),
        }
    }
    if faults.is_empty() { Ok(bound) } else { Err(Error::Listen(faults.join("; "))) }
}

/// All shards, once all of them listen; otherwise the reason of the first one that does not.
fn await_listening(
    mut shards: ExecutorThreads,
    started: &mpsc::Receiver<Ready>,
) -> Result<ExecutorThreads, Error> {
    let deadline = Instant::now() + START_DEADLINE;
    for _ in 0..shards.len() {
        match started.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ready { is_listening: true, .. }) => {}
            Ok(Ready { index, .. }) => {
                let outcome = outcome(shards.swap_remove(index));
                let reason = outcome.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
                return Err(Error::Shard { index, reason });
            }
            Err(_) => {
                return Err(Error::Part("the executors", format!("not all listen after {START_DEADLINE:?}")));
            }
        }
    }
    Ok(shards)
}

fn join(shards: ExecutorThreads) -> Result<(), Error> {
    let mut first = Ok(());
    for (index, shard) in shards.into_iter().enumerate() {
        if let Err(error) = outcome(shard)
            && first.is_ok()
        {
            first = Err(Error::Shard { index, reason: error.to_string() });
        }
    }
    first
}

fn outcome(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}
