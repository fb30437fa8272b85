//! Threads, cores and signals: starts everything in order, waits, and ends it in reverse.
//!
//! The only module that knows glommio and the other engine.
//! Threads: one executor for each usable core (`osc-shard-N`), the pool (`osc-derive-N`,
//! `osc-read-N`), the writer (`osc-writer`), the cluster (`osc-cluster`), one for signals, and
//! the main thread, which waits.

mod cluster;
mod descriptors;
mod engine;
mod greeting;
mod listener;
mod memory;
mod peer_stream;
mod per_address;
mod placement;
mod reload;
mod ring;
mod shard;
mod shutdown;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError as Timeout;
use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};

use self::cluster::ClusterThread;
use self::engine::{Engine, Epoll, Uring};
pub use self::engine::{Kind as EngineKind, Obstacle};
use self::per_address::PerAddress;
use self::placement::Plan;
use self::shard::{Started, Starting};
use self::shutdown::{Reason, Stop};
use crate::config::Config;
use crate::crypto::{KeyCache, Pool, PoolConfig};
use crate::http::{App, RateLimits, Settings};
use crate::limits::{DERIVATIONS_QUEUED_MAX_PER_THREAD, START_DEADLINE, STORE_READS_QUEUED_MAX};
use crate::model::{ApiKeys, Timestamp};
use crate::service::{ClusterView, Federation, Service, Signal};
use crate::store::{Keeping, OpenError, Options, Store};
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
    Engine(#[from] Obstacle),
    /// The data files.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The address.
    #[error("cannot listen on {0}: {1} (see OSC_HOST and OSC_HOST_PORT)")]
    Listen(String, #[source] std::io::Error),
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

type Shards = Vec<JoinHandle<io::Result<()>>>;

/// Runs the server until SIGTERM or SIGINT. SIGHUP reads the settings again.
///
/// # Errors
/// When it cannot start, or has to end for another reason.
pub fn run(config: &Config, log: &Log) -> Result<(), Error> {
    forbid_core_dumps();
    raise_limits();
    let (engine, obstacle) = engine::choose(config.engine)?;
    if let Some(obstacle) = obstacle {
        tracing::warn!(
            "serving on epoll instead of io_uring: {obstacle}; or set OSC_ENGINE=epoll if that is what you want"
        );
    }
    match engine {
        EngineKind::Uring => run_on(Uring { uses_ring: config.uses_ring }, engine, config, log),
        EngineKind::Epoll => run_on(Epoll, engine, config, log),
    }
}

/// The engine that the server would have here, and why, on one line.
pub fn engine_in_effect(config: &Config) -> String {
    raise_limits();
    match engine::choose(config.engine) {
        Ok((engine, None)) => engine.name().to_owned(),
        Ok((engine, Some(obstacle))) => format!("{}, because {obstacle}", engine.name()),
        Err(obstacle) => format!("none, because {obstacle}"),
    }
}

fn run_on<E: Engine>(engine: E, kind: EngineKind, config: &Config, log: &Log) -> Result<(), Error> {
    let (reasons, why_end) = shutdown::reasons();
    shutdown::watch_signals(reasons.clone())
        .map_err(|error| Error::Part("the signal handler", error.to_string()))?;

    let from_store = reasons.clone();
    let on_fatal = Box::new(move |error: crate::store::Error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        from_store.send(Reason::Fatal(format!("the database failed: {error}{cause}"))).ok();
    });
    let instance = random_number();
    let outbox = Arc::new(Signal::default());
    let grown = Arc::clone(&outbox);
    let options = Options {
        cache_bytes_max: memory::entry_cache_bytes_max(),
        versions: versions(config),
        on_fatal,
        on_outbox: Box::new(move |last| grown.raise(last)),
    };
    let store = Arc::new(Store::open(&config.database_path, &config.salt_file_path, options)?);
    if let Some(copy) = store.copy() {
        tracing::info!(copy = %copy.display(), "the database was migrated, after it was copied");
    }

    let plan = Plan::new(config.workers);
    let pool = start_pool(&plan)?;
    let keys = KeyCache::new();
    let view = config.cluster.as_ref().map(|cluster| Arc::new(ClusterView::new(instance, outbox, cluster)));
    let federation = config.cluster.as_ref().and_then(|cluster| cluster.federation.as_ref());
    let (federation, errands) = federation
        .zip(view.as_ref())
        .map(|(federation, view)| Federation::new(federation, Arc::clone(view)))
        .unzip();
    let service = Service::new(Arc::clone(&store), keys.clone(), Arc::clone(&pool), view);
    let service = Arc::new(service.federated(federation));
    let api_keys = ApiKeys::new(config.api_keys.clone());
    let peers = config.cluster.as_ref().map_or(0, |cluster| cluster.peers.len());
    let connections_max = descriptors::connections_max(plan.cores.len(), peers);
    let settings = Settings {
        api_keys: api_keys.clone(),
        user_key_bytes_min: config.user_key_bytes_min,
        node_id: config.node_id.clone(),
        origins: config.origins.clone(),
        has_public_root: config.has_public_root,
        has_private_metrics: config.has_private_metrics,
        proxies: config.clients.proxies.clone(),
        rates: RateLimits::new(&config.clients),
        engine: kind.name(),
        connections_max,
        ..Settings::default()
    };
    let executors = Arc::clone(&settings.executors);
    let stop = Stop::default();
    let shared = shard::Shared {
        app: Arc::new(App::new(Arc::clone(&service), settings)),
        stop: stop.clone(),
        connections: Arc::default(),
        connections_max,
        executors,
        per_address: config.clients.connections_per_address.map(PerAddress::new),
        has_proxy_protocol: config.clients.has_proxy_protocol,
        certificates: config.certificates.clone(),
    };
    let (shards, addresses) = start_shards(engine, config, &plan, &shared)?;
    let mut cluster = ClusterThread::start(engine, config, &service, &api_keys, errands)?;
    if let Some(expires) = config.certificates.expires() {
        tracing::info!(%expires, "serving over TLS only");
    }
    for address in addresses {
        tracing::info!(%address, executors = plan.cores.len(), engine = %kind.name(), "listening");
    }

    let mut swept = Instant::now();
    let reason = loop {
        match why_end.recv_timeout(CERTIFICATES_INTERVAL) {
            Ok(Reason::Reload) => {
                let Some(new) = reload::read() else { continue };
                let peers = reload::apply(config, &new, log, &api_keys);
                if let (Some(cluster), Some(peers)) = (&mut cluster, peers)
                    && let Err(error) = cluster.set_peers(peers)
                {
                    break Reason::Fatal(error.to_string());
                }
            }
            Ok(reason) => break reason,
            Err(Timeout::Timeout) => {
                if swept.elapsed() >= SWEEP_INTERVAL {
                    swept = Instant::now();
                    shared.app.sweep();
                }
                reload::look_at(&config.certificates);
            }
            Err(Timeout::Disconnected) => break Reason::Fatal("the signal handler has gone".into()),
        }
    };
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
        (Reason::Fatal(reason), _) => Err(Error::Fatal(reason)),
        (_, Err(error)) => Err(error),
        (_, Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Nodes of a federation exchange nothing, so there are no versions to keep.
fn versions(config: &Config) -> Keeping {
    let Some(cluster) = &config.cluster else { return Keeping::new(false) };
    let offset_ms = cluster.clock_offset_ms;
    let wall_clock = Box::new(move || Timestamp::now().as_milliseconds().saturating_add_signed(offset_ms));
    Keeping { wall_clock, ..Keeping::new(cluster.federation.is_none()) }
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

/// Many connections need many descriptors, and rings need locked memory: the soft limits go up to the hard ones.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(resource, limit) {
            tracing::debug!(%error, ?resource, "a limit stays as it is");
        }
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
    config: &Config,
    plan: &Plan,
    shared: &shard::Shared,
) -> Result<(Shards, Vec<SocketAddr>), Error> {
    let listeners = listener::bind(config.host.addresses(), plan.cores.len())
        .map_err(|error| Error::Listen(config.host.to_string(), error))?;
    let addresses = listeners.first().map_or_else(Vec::new, |listeners| {
        listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    });
    let (reports, started) = mpsc::channel();
    let mut shards = Vec::with_capacity(plan.cores.len());
    for (index, (core, listeners)) in plan.cores.iter().zip(listeners).enumerate() {
        let starting = Starting::new(index, reports.clone());
        match shard::start(engine, *core, listeners, shared.clone(), starting) {
            Ok(shard) => shards.push(shard),
            Err(error) => return Err(Error::Shard { index, reason: error.to_string() }),
        }
    }
    await_listening(shards, &started).map(|shards| (shards, addresses))
}

/// All shards, once all of them listen; otherwise the reason of the first one that does not.
fn await_listening(mut shards: Shards, started: &mpsc::Receiver<Started>) -> Result<Shards, Error> {
    let deadline = Instant::now() + START_DEADLINE;
    for _ in 0..shards.len() {
        match started.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Started { is_listening: true, .. }) => {}
            Ok(Started { index, .. }) => {
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

fn join(shards: Shards) -> Result<(), Error> {
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
