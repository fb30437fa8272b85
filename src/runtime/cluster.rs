//! The cluster's executor: one more thread, for everything that nodes say to each other.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::{AsyncWriteExt, FutureExt};

use super::Error;
use super::engine::{self, Engine};
use super::peer_stream::PeerStream;
use super::shutdown::Stop;
use crate::cluster::{Network, run};
use crate::config::{ClusterConfig, Config, PeerAddress};
use crate::http1::PROXY_LOCAL;
use crate::limits::DEADLINE_TICK;
use crate::model::ApiKeys;
use crate::service::Service;
use crate::service::federation::{Errands, Federation};
use crate::tls::{self, Certificates};

/// The executor of a node that is one of several, and what the next one is made of when it is replaced.
pub(super) struct ClusterThread<E> {
    parts: Parts<E>,
    stop: Stop,
    thread: JoinHandle<io::Result<()>>,
}

#[derive(Clone)]
struct Parts<E> {
    engine: E,
    service: Arc<Service>,
    api_keys: ApiKeys,
    certificates: Certificates,
    node_id: String,
    has_proxy_protocol: bool,
    config: ClusterConfig,
}

impl<E: Engine> ClusterThread<E> {
    /// Starts it, if this node is one of several.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(
        engine: E,
        config: &Config,
        service: &Arc<Service>,
        api_keys: &ApiKeys,
        errands: Option<Errands>,
    ) -> Result<Option<Self>, Error> {
        let Some(cluster) = config.cluster.clone() else { return Ok(None) };
        let parts = Parts {
            engine,
            service: Arc::clone(service),
            api_keys: api_keys.clone(),
            certificates: config.certificates.clone(),
            node_id: config.node_id.clone(),
            has_proxy_protocol: config.clients.has_proxy_protocol,
            config: cluster,
        };
        let stop = Stop::default();
        let thread = parts.clone().spawn(stop.clone(), errands)?;
        Ok(Some(Self { parts, stop, thread }))
    }

    /// Goes on with other peers, if they are others. Questions that are under way have no answer.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn set_peers(&mut self, peers: Vec<PeerAddress>) -> Result<(), Error> {
        if self.parts.config.peers == peers {
            return Ok(());
        }
        self.parts.config.peers = peers;
        std::mem::take(&mut self.stop).request();
        // The next one must not meet the peers of the one before.
        while !self.thread.is_finished() {
            thread::sleep(DEADLINE_TICK / 10);
        }
        let Parts { service, config, .. } = &self.parts;
        if let Some(view) = service.cluster() {
            view.set_peers(config);
        }
        let errands = service.federation().map(Federation::renew);
        self.thread = self.parts.clone().spawn(self.stop.clone(), errands)?;
        tracing::info!(peers = self.parts.config.peers.len(), "this node has other peers now");
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it ended by, if not by this.
    pub(super) fn end(self) -> io::Result<()> {
        self.stop.request();
        super::outcome(self.thread)
    }
}

impl<E: Engine> Parts<E> {
    fn spawn(self, stop: Stop, errands: Option<Errands>) -> Result<JoinHandle<io::Result<()>>, Error> {
        // Not pinned: it has little to do, and shares its core with whichever shard has the least.
        engine::start(self.engine, "osc-cluster".to_owned(), None, move || async move {
            let Self { engine, service, api_keys, certificates, node_id, has_proxy_protocol, config } = self;
            let network = EngineNetwork {
                engine,
                service: Arc::clone(&service),
                certificates,
                has_proxy_protocol,
                started: Instant::now(),
            };
            let stopped = async {
                while !stop.is_requested() {
                    engine.sleep(DEADLINE_TICK).await;
                }
            };
            run(network, service, config, node_id, api_keys, errands).or(stopped).await;
            Ok(())
        })
        .map_err(|error| Error::Part("the cluster's executor", error.to_string()))
    }
}

struct EngineNetwork<E> {
    engine: E,
    service: Arc<Service>,
    certificates: Certificates,
    /// The other nodes expect it, as this one does.
    has_proxy_protocol: bool,
    started: Instant,
}

impl<E: Engine> Network for EngineNetwork<E> {
    type Stream = PeerStream<E::Stream>;

    async fn connect(&self, address: &PeerAddress) -> io::Result<Self::Stream> {
        let mut stream = self.connect_in_plain(address).await?;
        if self.has_proxy_protocol {
            stream.write_all(&PROXY_LOCAL).await?;
        }
        if !address.has_tls() {
            return Ok(PeerStream::Plain(stream));
        }
        let config = self.certificates.client();
        let config = config.ok_or(io::ErrorKind::Unsupported)?;
        let stream = tls::Stream::connect(stream, Arc::clone(&config), address.host()).await?;
        Ok(PeerStream::Tls(Box::new(stream), config))
    }

    fn is_current(&self, stream: &Self::Stream) -> bool {
        match stream {
            PeerStream::Plain(_) => true,
            PeerStream::Tls(_, config) => {
                let current = self.certificates.client();
                current.is_some_and(|current| Arc::ptr_eq(&current, config))
            }
        }
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

impl<E: Engine> EngineNetwork<E> {
    async fn connect_in_plain(&self, address: &PeerAddress) -> io::Result<E::Stream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.resolve(address).await? {
            match self.engine.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

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
