//! Cluster driver: keeps this node in sync with its peers through health checks, pushes of local changes,
//! anti-entropy rounds and salt agreement.
//!
//! Knows the service and the HTTP/1.1 client; never sees a user key or a plaintext. Runs on a dedicated
//! executor, so that bursts of replication do not delay requests. Decisions are pure (`peer`, `difference`,
//! `readiness`, `salt_agreement`); `transport` does the I/O, for this file, `anti_entropy` and `peer_pool`.

mod anti_entropy;
mod difference;
mod peer;
mod peer_pool;
mod readiness;
mod remarks;
mod salt_agreement;
mod transport;

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};
use futures_lite::Stream;

pub use difference::{difference, settled_count};
pub use peer::{
    Action, Comparison, Difference, Effect, Event, IdentityError, IncompatibleReason, NodeInfo, Peer,
    PeerError, Pushed, State,
};
pub use readiness::readiness_blocker;
pub use salt_agreement::{Candidate, Decision, decide};
pub use transport::Network;

use self::anti_entropy::store_error;
use self::remarks::{Remark, Remarks};
use self::transport::Transport;
use crate::config::{ClusterConfig, PeerAddress};
use crate::limits::{
    PEER_CONTACT_TIMEOUT_MS, PEER_HEALTH_TIMEOUT, PEER_REQUEST_TIMEOUT, SALT_AGREEMENT_INTERVAL,
    SALT_AGREEMENT_TIMEOUT_MS, TOMBSTONE_COLLECTION_INTERVAL, TOMBSTONE_GRACE,
};
use crate::model::{Digest, HlcTimestamp, ReplicaId, Timestamp};
use crate::service::federation::ClusterTaskQueue;
use crate::service::{ClusterView, Member, NodeAuth, PeerId, Service};
use crate::storage::{PeerProgress, ReplaceResult};
use crate::wire::{Message, Protocol};

/// State that all tasks of the cluster share; they run on one thread.
struct Context<N> {
    network: Rc<N>,
    service: Arc<Service>,
    view: Arc<ClusterView>,
    node_id: String,
    auth: Arc<NodeAuth>,
    /// Whether the node had never been in sync with a peer when it started.
    is_new: bool,
    /// Peers in the order of the configuration.
    peers: RefCell<Vec<SharedPeerTask>>,
    /// Number of the current list of peers, incremented with each new list.
    list_generation: Cell<u64>,
    /// Number of the next [`PeerId`].
    next_id: Cell<u32>,
    sync_interval_ms: u64,
    /// How long a remark stays visible after it was last made: long enough for an anti-entropy round to repeat it.
    remark_lifetime: Duration,
}

/// Peer, shared by its task and by the list.
type SharedPeerTask = Rc<RefCell<PeerTask>>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Stream of peer lists, each of which replaces the previous one.
pub type PeerLists = mpsc::UnboundedReceiver<Vec<PeerAddress>>;

/// State machine of a peer, and what the driver keeps beside it.
struct PeerTask {
    /// Identifier, constant as long as the peer is in the list.
    id: PeerId,
    address: PeerAddress,
    machine: Peer,
    node_info: Option<NodeInfo>,
    synced_at_ms: Option<u64>,
    /// Root digest that the peer last reported.
    digest: Option<Digest>,
    /// Problems that do not prevent replication.
    remarks: Remarks,
    /// Requests that wait for the next health check, since when the first one does.
    waiting: Vec<oneshot::Sender<()>>,
    waiting_since_ms: u64,
    /// Waker of the peer's own task, for when another task has sent an event to the state machine.
    waker: Option<Waker>,
}

/// Drives the cluster until the returned future is dropped. A new list of peers does not disturb the peers that stay
/// in it.
pub async fn run<N: Network>(
    network: N,
    service: Arc<Service>,
    config: ClusterConfig,
    node_id: String,
    auth: Arc<NodeAuth>,
    cluster_tasks: Option<ClusterTaskQueue>,
    mut lists: PeerLists,
) {
    let Some(view) = service.cluster().cloned() else { return };
    let is_new = !service.is_federated() && service.replication.horizon().synced == HlcTimestamp::default();
    let context = Rc::new(Context {
        network: Rc::new(network),
        service,
        view,
        node_id,
        auth,
        is_new,
        peers: RefCell::default(),
        list_generation: Cell::default(),
        next_id: Cell::default(),
        sync_interval_ms: u64::try_from(config.sync_interval.as_millis()).unwrap_or(u64::MAX),
        remark_lifetime: config.sync_interval.saturating_mul(2).saturating_add(PEER_REQUEST_TIMEOUT),
    });
    let mut peer_tasks = BTreeMap::new();
    context.set_peers(&config.peers, &mut peer_tasks);
    let mut tasks: Vec<Task> = vec![Box::pin(Rc::clone(&context).agree_on_salt())];
    match cluster_tasks {
        Some(queue) => tasks.push(Box::pin(peer_pool::run(Rc::clone(&context), queue))),
        None => tasks.push(Box::pin(Rc::clone(&context).collect_tombstones())),
    }
    poll_fn(|cx| {
        while let Poll::Ready(Some(peers)) = Pin::new(&mut lists).poll_next(cx) {
            context.set_peers(&peers, &mut peer_tasks);
            tracing::info!(peers = peers.len(), "peer list changed");
        }
        for task in peer_tasks.values_mut().chain(&mut tasks) {
            // These tasks never complete.
            let _ = task.as_mut().poll(cx);
        }
        Poll::<()>::Pending
    })
    .await;
}

impl<N: Network> Context<N> {
    /// Applies a list of peers. A peer that stays keeps its connection and its state; the task of a removed peer is
    /// dropped.
    fn set_peers(self: &Rc<Self>, addresses: &[PeerAddress], tasks: &mut BTreeMap<PeerId, Task>) {
        let previous = self.peers.take();
        let list = addresses.iter().map(|address| {
            let existing = previous.iter().find(|peer| peer.borrow().address == *address);
            existing.cloned().unwrap_or_else(|| self.add_peer(address, tasks))
        });
        let list: Vec<SharedPeerTask> = list.collect();
        let ids: Vec<PeerId> = list.iter().map(|peer| peer.borrow().id).collect();
        tasks.retain(|id, _| ids.contains(id));
        self.view.acknowledgements().keep(&ids);
        self.peers.replace(list);
        self.list_generation.set(self.list_generation.get() + 1);
        self.publish();
        if let Some(federation) = self.service.federation() {
            federation.peers_changed();
        }
    }

    fn add_peer(
        self: &Rc<Self>,
        address: &PeerAddress,
        tasks: &mut BTreeMap<PeerId, Task>,
    ) -> SharedPeerTask {
        let number = self.next_id.get();
        self.next_id.set(number.wrapping_add(1));
        let id = PeerId::new(number);
        let (now_ms, interval_ms) = (self.network.now_ms(), self.sync_interval_ms);
        let seed = self.view.instance.rotate_left(7 * (number % 9 + 1)).wrapping_add(u64::from(number) + 1);
        let peer = Rc::new(RefCell::new(PeerTask {
            id,
            address: address.clone(),
            machine: match self.service.is_federated() {
                true => Peer::federated(now_ms, interval_ms, seed),
                false => Peer::new(now_ms, interval_ms, seed),
            },
            node_info: None,
            synced_at_ms: None,
            digest: None,
            remarks: Remarks::default(),
            waiting: Vec::new(),
            waiting_since_ms: 0,
            waker: None,
        }));
        tasks.insert(id, Box::pin(Rc::clone(self).drive_peer(Rc::clone(&peer))));
        peer
    }

    /// Returns the peer, if it is still in the list.
    fn peer(&self, id: PeerId) -> Option<SharedPeerTask> {
        self.peers.borrow().iter().find(|peer| peer.borrow().id == id).cloned()
    }

    /// Performs the actions of one peer's state machine, one after the other.
    async fn drive_peer(self: Rc<Self>, peer: SharedPeerTask) {
        let address = peer.borrow().address.clone();
        let mut transport = Transport::new(address, Arc::clone(&self.auth), None);
        loop {
            self.load_cursor(&peer, &mut transport).await;
            let seen = self.view.outbox().value();
            self.handle_event(&peer, Event::LogGrew(seen)).await;
            let action = peer.borrow().machine.next(self.network.now_ms());
            let event = match action {
                Action::Wait { until_ms } => {
                    self.wait(&peer, &mut transport, until_ms, seen).await;
                    continue;
                }
                Action::CheckHealth => Event::Health(transport.check_health(&*self.network).await),
                Action::Push { after } => Event::Pushed(self.push(&mut transport, &peer, after).await),
                Action::CompareDigests => {
                    let began = Instant::now();
                    let digests = self.compare_digests(&mut transport, &peer).await;
                    self.view.record_anti_entropy_round(began.elapsed());
                    Event::Digests(digests)
                }
                Action::CompareVersions(buckets) => {
                    Event::Versions(self.compare_versions(&mut transport, &peer, buckets).await)
                }
                Action::Fetch(ids) => Event::Fetched(self.fetch(&mut transport, &peer, &ids).await),
                Action::Send(ids) => Event::Sent(self.send(&mut transport, &peer, ids).await),
            };
            if event.error() == Some(PeerError::Malformed) {
                // The name may resolve to another host by now.
                transport.close();
                self.remark(&peer, Remark::Malformed);
            }
            self.handle_event(&peer, event).await;
        }
    }

    /// Waits until `until_ms`, until the state machine has something else to do, or until the replication log has
    /// grown past `seen`, the position that the state machine knows: a change that was logged in between would
    /// otherwise wait for the next health check.
    async fn wait(&self, peer: &RefCell<PeerTask>, transport: &mut Transport<N>, until_ms: u64, seen: i64) {
        let now_ms = self.network.now_ms();
        let mut sleep = pin!(self.network.sleep(Duration::from_millis(until_ms.saturating_sub(now_ms))));
        poll_fn(|cx| {
            let mut peer = peer.borrow_mut();
            let has_action = !matches!(peer.machine.next(self.network.now_ms()), Action::Wait { .. });
            if has_action || self.view.outbox().poll_past(seen, cx).is_ready() {
                return Poll::Ready(());
            }
            peer.waker = Some(cx.waker().clone());
            // Closes the connection when the peer does. May be polled again after that: no connection is kept then.
            let _ = transport.poll_closed(cx);
            sleep.as_mut().poll(cx)
        })
        .await;
    }

    /// Passes an event to the state machine of a peer, and carries out the effects.
    async fn handle_event(&self, task: &RefCell<PeerTask>, event: Event) {
        let own = self.own_info();
        let is_checked = matches!(event, Event::Health(_));
        if let Event::Health(Ok(node_info)) = &event {
            task.borrow_mut().node_info = Some(node_info.clone());
        }
        let (id, effects, peer) = {
            let mut task = task.borrow_mut();
            let effects = task.machine.step(self.network.now_ms(), event, &own);
            (task.id, effects, task.machine.node())
        };
        for effect in effects {
            match (effect, peer) {
                (Effect::StateChanged, _) => log_state(&task.borrow()),
                (Effect::Acknowledged(sequence), Some(peer)) => {
                    self.view.acknowledgements().note(id, sequence);
                    self.persist(PeerProgress::Acknowledged { peer, sequence }).await;
                }
                (Effect::Refused { after, last }, Some(peer)) => {
                    self.view.acknowledgements().note_refused(id, after, last);
                    self.persist(PeerProgress::Acknowledged { peer, sequence: last }).await;
                }
                (Effect::Synced { begun, forgotten }, Some(peer)) => {
                    self.view.acknowledgements().note_equal(id);
                    self.view.clocks().forget(peer);
                    task.borrow_mut().remarks = Remarks::default();
                    task.borrow_mut().synced_at_ms = Some(self.network.now_ms());
                    self.persist(PeerProgress::Synced { peer, stamp: begun, forgotten }).await;
                }
                (Effect::Acknowledged(_) | Effect::Refused { .. } | Effect::Synced { .. }, None) => {}
            }
        }
        self.update_joining();
        self.publish();
        if is_checked {
            task.borrow_mut().waiting.clear();
        }
    }

    async fn persist(&self, progress: PeerProgress) {
        if let Err(error) = self.service.replication.persist_progress(progress).await {
            tracing::debug!(%error, "cannot persist peer progress; will retry");
        }
    }

    /// Describes this node, as its peers see it.
    fn own_info(&self) -> NodeInfo {
        let (salt, has_entries) = self.service.salt.in_use();
        NodeInfo {
            name: self.node_id.clone(),
            instance: self.view.instance,
            node: self.service.replication.node(),
            is_federated: self.service.is_federated(),
            salt,
            has_entries,
            horizon: self.service.replication.horizon(),
            protocol: Protocol::NEWEST,
        }
    }

    /// Publishes the current state of the peers to request handlers.
    fn publish(&self) {
        let now_ms = self.network.now_ms();
        let ago = |at_ms: Option<u64>| at_ms.map(|at_ms| now_ms.saturating_sub(at_ms));
        let lifetime = self.remark_lifetime;
        let list = self.peers.borrow();
        let peers: Vec<Ref<'_, PeerTask>> = list.iter().map(|peer| peer.borrow()).collect();
        let votes: Vec<_> =
            peers.iter().map(|peer| (peer.machine.state(), peer.node_info.as_ref())).collect();
        let blocking = readiness_blocker(&self.own_info(), &votes);
        let members = peers.iter().enumerate().map(|(index, peer)| {
            let (state, incompatibility) = match peer.machine.state() {
                State::Unknown => ("unknown", None),
                State::Healthy => ("healthy", None),
                State::Down => ("down", None),
                State::Myself => ("self", None),
                State::Incompatible(reason) => ("refused", Some(reason)),
            };
            let remark = || {
                let ahead_ms =
                    peer.machine.node().and_then(|node| self.view.clocks().ahead_ms(node, lifetime));
                peer.remarks.text(now_ms, lifetime, ahead_ms)
            };
            let reason = incompatibility.map(ToString::to_string).or_else(remark);
            Member {
                id: peer.id,
                address: peer.address.to_string(),
                node: peer.machine.node(),
                state,
                may_reply: peer.machine.may_reply(now_ms),
                reason,
                blocks_readiness: blocking == Some(index),
                last_contact_ms: ago(peer.machine.last_contact_ms()),
                lag_ms: peer.machine.lag_ms(now_ms),
                outbox_length: peer.machine.outbox_length(),
                digest: peer.digest,
                synced_ms: ago(peer.synced_at_ms),
                protocol: peer.node_info.as_ref().map(|node_info| node_info.protocol),
            }
        });
        self.view.publish(members.collect());
    }

    /// Loads the position of a peer in the replication log, once its replica ID is known.
    async fn load_cursor(&self, peer: &RefCell<PeerTask>, transport: &mut Transport<N>) {
        let node = {
            let machine = &peer.borrow().machine;
            match machine.needs_cursor() {
                true => machine.node(),
                false => None,
            }
        };
        let Some(node) = node else { return };
        let cursor = async {
            let (first, last) = self.service.replication.log_range().await.map_err(store_error)?;
            let acknowledged = self.service.replication.acknowledged(node).await.map_err(store_error)?;
            if let Some(acknowledged) = acknowledged.filter(|sequence| sequence + 1 >= first) {
                return Ok(acknowledged);
            }
            // A new peer, and one whose changes were dropped from the log, gets entries by anti-entropy.
            self.send_tombstones(transport, peer).await?;
            Ok::<i64, PeerError>(last)
        };
        match cursor.await {
            Ok(cursor) => {
                peer.borrow_mut().machine.set_cursor(self.network.now_ms(), cursor);
                // From now on the log retains the changes that this peer lacks.
                self.persist(PeerProgress::Acknowledged { peer: node, sequence: cursor }).await;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot begin to replicate with a peer yet");
                self.network.sleep(SALT_AGREEMENT_INTERVAL).await;
            }
        }
    }

    /// Agrees on a salt with the peers: until there is one, and as long as it may have to be replaced.
    async fn agree_on_salt(self: Rc<Self>) {
        let begun_ms = self.network.now_ms();
        loop {
            self.update_joining();
            let own = self.own_info();
            let candidates: Vec<Candidate> = self
                .peers
                .borrow()
                .iter()
                .map(|peer| peer.borrow())
                .map(|peer| match (peer.machine.state(), &peer.node_info) {
                    (State::Myself, _) => Candidate::Myself,
                    (
                        State::Incompatible(
                            IncompatibleReason::Identity(IdentityError::Unproven | IdentityError::OtherPort)
                            | IncompatibleReason::Tls(_),
                        ),
                        _,
                    ) => Candidate::Unreachable,
                    (State::Incompatible(IncompatibleReason::Identity(_)), _) => Candidate::Foreign,
                    (State::Healthy | State::Incompatible(_), Some(node_info)) => {
                        Candidate::Known(node_info.clone())
                    }
                    _ => Candidate::Unreachable,
                })
                .collect();
            match decide(&own, &candidates, self.network.now_ms().saturating_sub(begun_ms)) {
                Decision::Keep => self.view.salt().open(),
                Decision::Wait => {}
                Decision::Generate => match self.service.salt.generate().await {
                    Ok(()) => self.view.salt().open(),
                    Err(error) => tracing::error!(%error, "cannot generate a salt"),
                },
                Decision::Adopt(index) => self.adopt_salt(index).await,
            }
            self.network.sleep(SALT_AGREEMENT_INTERVAL).await;
        }
    }

    /// Opens or closes the gate of a new node, one that has never been in sync with a peer: it waits for its peers
    /// before it serves.
    fn update_joining(&self) {
        if self.view.has_joined() {
            return;
        }
        let now_ms = self.network.now_ms();
        let peers = self.peers.borrow();
        let is_any_awaited =
            |timeout_ms| peers.iter().any(|peer| peer.borrow().machine.is_awaited(now_ms, timeout_ms));
        if !self.is_new || !is_any_awaited(SALT_AGREEMENT_TIMEOUT_MS) {
            self.view.set_joined();
        } else if is_any_awaited(PEER_CONTACT_TIMEOUT_MS) {
            // The gate may have been open: it closes again for a peer that replies only after the timeout.
            self.view.joining().close();
        } else {
            self.view.joining().open();
        }
    }

    async fn adopt_salt(&self, index: usize) {
        let (address, expected) = {
            let Some(peer) = self.peers.borrow().get(index).cloned() else { return };
            let peer = peer.borrow();
            (peer.address.clone(), peer.node_info.as_ref().map(|node_info| node_info.instance))
        };
        let mut transport = Transport::<N>::new(address.clone(), Arc::clone(&self.auth), expected);
        match transport.call(&*self.network, &Message::Salt, PEER_HEALTH_TIMEOUT).await {
            Ok(salt) => match self.service.salt.replace_unused(salt).await {
                Ok(ReplaceResult::Replaced) => {
                    tracing::info!(%address, "adopted the salt of this peer");
                    self.view.salt().open();
                }
                Ok(ReplaceResult::Kept) => {}
                Ok(ReplaceResult::Refused(problem)) => {
                    tracing::error!(%address, %problem, "rejected the salt of this peer");
                    // Limits the rate of this message, which would otherwise be logged in each evaluation.
                    self.network.sleep(PEER_HEALTH_TIMEOUT).await;
                }
                Err(error) => tracing::error!(%error, "cannot write the salt"),
            },
            Err(error) => tracing::debug!(%address, %error, "cannot fetch the salt"),
        }
    }

    async fn collect_tombstones(self: Rc<Self>) {
        loop {
            self.network.sleep(TOMBSTONE_COLLECTION_INTERVAL).await;
            let now = HlcTimestamp::from_milliseconds(Timestamp::now().as_milliseconds());
            let before = now.earlier(TOMBSTONE_GRACE);
            if let Some(peers) = self.replica_ids() {
                self.persist(PeerProgress::Members { peers, before }).await;
            }
            self.persist(PeerProgress::Collect { before }).await;
        }
    }

    /// Returns the replica IDs of all peers, once every peer has reported its own.
    fn replica_ids(&self) -> Option<Vec<ReplicaId>> {
        let peers = self.peers.borrow();
        let others =
            peers.iter().map(|peer| peer.borrow()).filter(|peer| *peer.machine.state() != State::Myself);
        others.map(|peer| peer.machine.node()).collect()
    }
}

fn log_state(peer: &PeerTask) {
    let address = &peer.address;
    match peer.machine.state() {
        State::Unknown => {}
        State::Healthy => tracing::info!(%address, "peer is healthy"),
        State::Down => tracing::warn!(%address, "peer is down"),
        State::Myself => tracing::info!(%address, "this address in OSC_CLUSTER_NODES is the node itself"),
        State::Incompatible(reason) => tracing::error!(%address, %reason, "no replication with this peer"),
    }
}
