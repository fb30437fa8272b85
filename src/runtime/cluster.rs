//! Cluster executor: a dedicated thread for all communication with peers.

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

/// Handle of the cluster executor.
pub(super) struct ClusterThread {
    peers: Vec<PeerAddress>,
    peer_lists: mpsc::UnboundedSender<Vec<PeerAddress>>,
    stop: Stop,
    thread: JoinHandle<io::Result<()>>,
}

impl ClusterThread {
    /// Starts the executor if this node is part of a cluster; otherwise returns `None`.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub(super) fn start<E: Engine>(
        engine: E,
        config: &Config,
        service: &Arc<Service>,
        auth: &Arc<NodeAuth>,
        requests: Option<ClusterTaskQueue>,
    ) -> Result<Option<Self>, Error> {
        let Some(cluster) = config.cluster.clone() else { return Ok(None) };
        let peers = cluster.peers.clone();
        let (service, auth, node_id) = (Arc::clone(service), Arc::clone(auth), config.node_id.clone());
        let certificates = config.certificates.clone();
        // Peers connect to a dedicated listener directly, not through a proxy.
        let has_proxy_protocol = config.clients.has_proxy_protocol && cluster.listen.is_none();
        let (peer_lists, new_peer_lists) = mpsc::unbounded();
        let stop = Stop::default();
        let thread_stop = stop.clone();
        // Not pinned: it has little work, so the scheduler moves it to the least busy core.
        let thread = engine::start(engine, "osc-cluster".to_owned(), None, move || async move {
            let network_service = Arc::clone(&service);
            let started = Instant::now();
            let network =
                EngineNetwork { engine, service: network_service, certificates, has_proxy_protocol, started };
            let stopped = async {
                while !thread_stop.is_requested() {
                    engine.sleep(DEADLINE_TICK).await;
                }
            };
            run(network, service, cluster, node_id, auth, requests, new_peer_lists).or(stopped).await;
            Ok(())
        })
        .map_err(|error| Error::Part("the cluster executor", error.to_string()))?;
        Ok(Some(Self { peers, peer_lists, stop, thread }))
    }

    /// Applies a new list of peers if it has changed. Connections to peers that remain are not disturbed.
    pub(super) fn set_peers(&mut self, peers: Vec<PeerAddress>) {
        if self.peers != peers {
            self.peers.clone_from(&peers);
            // Fails only after a panic of the thread, which `end` reports.
            self.peer_lists.unbounded_send(peers).ok();
        }
    }

    /// Stops the executor and waits for its thread.
    ///
    /// # Errors
    /// Fails if the executor had already ended with an error.
    pub(super) fn end(self) -> io::Result<()> {
        self.stop.request();
        super::outcome(self.thread)
    }
}

struct EngineNetwork<E> {
    engine: E,
    service: Arc<Service>,
    certificates: Certificates,
    /// Whether peers expect a PROXY protocol header, as this node does.
    has_proxy_protocol: bool,
    started: Instant,
}

impl<E: Engine> Network for EngineNetwork<E> {
    type Stream = PeerStream<E::Stream>;

    async fn connect(&self, address: &PeerAddress) -> io::Result<Self::Stream> {
        let mut stream = self.connect_tcp(address).await?;
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
    async fn connect_tcp(&self, address: &PeerAddress) -> io::Result<E::Stream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in self.resolve(address).await? {
            match self.engine.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Resolves the name of a peer for each connection, because a node that is replaced keeps its name but not its
    /// address. The system's resolver blocks, so it runs on the pool.
    async fn resolve(&self, address: &PeerAddress) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = address.host().parse() {
            return Ok(vec![SocketAddr::new(ip, address.port())]);
        }
        let (host, port) = (address.host().to_owned(), address.port());
        let job = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        self.service.on_pool(job).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
