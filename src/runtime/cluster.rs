//! The cluster's executor: one more thread, for everything that nodes say to each other.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_channel::mpsc;
use futures_lite::{AsyncWriteExt, FutureExt};

use super::Error;
use super::engine::{self, Engine};
use super::peer_stream::PeerStream;
use super::shutdown::Stop;
use crate::cluster::{Network, run};
use crate::config::{Config, PeerAddress};
use crate::http1::PROXY_LOCAL;
use crate::limits::DEADLINE_TICK;
use crate::service::federation::ClusterTaskQueue;
use crate::service::{NodeAuth, Service};
use crate::tls::{self, Certificates};

/// The executor of a node that is one of several.
pub(super) struct ClusterThread {
    peers: Vec<PeerAddress>,
    lists: mpsc::UnboundedSender<Vec<PeerAddress>>,
    stop: Stop,
    thread: JoinHandle<io::Result<()>>,
}

impl ClusterThread {
    /// Starts it, if this node is one of several.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start<E: Engine>(
        engine: E,
        config: &Config,
        service: &Arc<Service>,
        auth: &Arc<NodeAuth>,
        errands: Option<ClusterTaskQueue>,
    ) -> Result<Option<Self>, Error> {
        let Some(cluster) = config.cluster.clone() else { return Ok(None) };
        let peers = cluster.peers.clone();
        let (service, auth, node_id) = (Arc::clone(service), Arc::clone(auth), config.node_id.clone());
        let certificates = config.certificates.clone();
        // A dedicated listener has no proxy before it.
        let has_proxy_protocol = config.clients.has_proxy_protocol && cluster.listen.is_none();
        let (lists, new_lists) = mpsc::unbounded();
        let stop = Stop::default();
        let stop_of_thread = stop.clone();
        // Not pinned: it has little to do, and shares its core with whichever shard has the least.
        let thread = engine::start(engine, "osc-cluster".to_owned(), None, move || async move {
            let service_of_network = Arc::clone(&service);
            let started = Instant::now();
            let network = EngineNetwork {
                engine,
                service: service_of_network,
                certificates,
                has_proxy_protocol,
                started,
            };
            let stopped = async {
                while !stop_of_thread.is_requested() {
                    engine.sleep(DEADLINE_TICK).await;
                }
            };
            run(network, service, cluster, node_id, auth, errands, new_lists).or(stopped).await;
            Ok(())
        })
        .map_err(|error| Error::Part("the cluster's executor", error.to_string()))?;
        Ok(Some(Self { peers, lists, stop, thread }))
    }

    /// Goes on with another list of peers, if it is another one. Peers that stay are not disturbed.
    pub(super) fn set_peers(&mut self, peers: Vec<PeerAddress>) {
        if self.peers != peers {
            self.peers.clone_from(&peers);
            // The thread ends only with the server, or by a panic, which the end reports.
            self.lists.unbounded_send(peers).ok();
        }
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
