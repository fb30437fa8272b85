//! The cluster's executor: one more thread, for everything that nodes say to each other.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;

use super::Error;
use super::engine::{self, Engine};
use super::shutdown::Stop;
use crate::cluster::{Network, run};
use crate::config::{Config, PeerAddress};
use crate::limits::DEADLINE_TICK;
use crate::model::ApiKeys;
use crate::service::Service;
use crate::service::federation::Errands;

/// Starts it, if this node is one of several.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start<E: Engine>(
    engine: E,
    config: &Config,
    service: &Arc<Service>,
    api_keys: &ApiKeys,
    stop: &Stop,
    errands: Option<Errands>,
) -> Result<Option<JoinHandle<io::Result<()>>>, Error> {
    let Some(cluster) = config.cluster.clone() else { return Ok(None) };
    let (service, stop) = (Arc::clone(service), stop.clone());
    let node_id = config.node_id.clone();
    let api_keys = api_keys.clone();
    // Not pinned: it has little to do, and shares its core with whichever shard has the least.
    engine::start(engine, "osc-cluster".to_owned(), None, move || async move {
        let network = EngineNetwork { engine, service: Arc::clone(&service), started: Instant::now() };
        let stopped = async {
            while !stop.is_requested() {
                engine.sleep(DEADLINE_TICK).await;
            }
        };
        run(network, service, cluster, node_id, api_keys, errands).or(stopped).await;
        Ok(())
    })
    .map(Some)
    .map_err(|error| Error::Part("the cluster's executor", error.to_string()))
}

struct EngineNetwork<E> {
    engine: E,
    service: Arc<Service>,
    started: Instant,
}

impl<E: Engine> Network for EngineNetwork<E> {
    type Stream = E::Stream;

    async fn connect(&self, address: &PeerAddress) -> io::Result<Self::Stream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.resolve(address).await? {
            match self.engine.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn sleep(&self, duration: Duration) {
        self.engine.sleep(duration).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.engine.spawn(task);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl<E> EngineNetwork<E> {
    /// Names are resolved for each connection, because a node that is replaced keeps its name and not
    /// its address; the system's resolver blocks, so it runs on the pool.
    async fn resolve(&self, address: &PeerAddress) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = address.host().parse() {
            return Ok(vec![SocketAddr::new(ip, address.port())]);
        }
        let (host, port) = (address.host().to_owned(), address.port());
        let job = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        self.service.on_pool(job).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
