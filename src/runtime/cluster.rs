//! The cluster's executor: one more thread, for everything that nodes say to each other.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use glommio::timer::sleep;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use super::Error;
use super::shard::PREEMPTION;
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
pub(super) fn start(
    config: &Config,
    service: &Arc<Service>,
    api_keys: &ApiKeys,
    stop: &Stop,
    errands: Option<Errands>,
) -> Result<Option<ExecutorJoinHandle<()>>, Error> {
    let Some(cluster) = config.cluster.clone() else { return Ok(None) };
    let (service, stop) = (Arc::clone(service), stop.clone());
    let node_id = config.node_id.clone();
    let api_keys = api_keys.clone();
    // Not pinned: it has little to do, and shares its core with whichever shard has the least.
    LocalExecutorBuilder::new(Placement::Unbound)
        .name("osc-cluster")
        .io_memory(0)
        .preempt_timer(PREEMPTION)
        .spawn(move || async move {
            // The first timer of an executor is late by tens of milliseconds (glommio#652).
            sleep(Duration::from_millis(1)).await;
            let network = GlommioNetwork { service: Arc::clone(&service), started: Instant::now() };
            let stopped = async {
                while !stop.is_requested() {
                    sleep(DEADLINE_TICK).await;
                }
            };
            run(network, service, cluster, node_id, api_keys, errands).or(stopped).await;
        })
        .map(Some)
        .map_err(|error| Error::Part("the cluster's executor", error.to_string()))
}

struct GlommioNetwork {
    service: Arc<Service>,
    started: Instant,
}

impl Network for GlommioNetwork {
    type Stream = glommio::net::TcpStream;

    async fn connect(&self, address: &PeerAddress) -> io::Result<Self::Stream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.resolve(address).await? {
            match glommio::net::TcpStream::connect(address).await {
                Ok(stream) => {
                    // Small requests must not wait for an acknowledgement; if it fails, they do.
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl GlommioNetwork {
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
