//! Keeps this node equal to its peers: asks for their health, sends own changes, compares everything
//! now and then, and agrees on the salt.
//!
//! Knows the service and the client side of HTTP/1.1; never sees a user key or a plaintext. Runs on an
//! executor of its own, so that bursts of replication do not disturb requests. What decides is pure
//! (`peer`, `difference`, `bootstrap`); what does I/O is `transport` and this file.

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

use futures_channel::mpsc;
use futures_lite::Stream;

pub use difference::{difference, settled_count};
pub use peer::{
    Action, Comparison, Difference, Effect, Event, HEALTH_INTERVAL_MS, IdentityError, IncompatibleReason,
    NodeInfo, Peer, PeerError, Pushed, State,
};
pub use readiness::obstacle;
pub use salt_agreement::{Candidate, Decision, PATIENCE_MS, decide};
pub use transport::Network;

use self::remarks::{Remark, Remarks};
use self::transport::{HEALTH_TIMEOUT, Request, Transport};
use crate::config::{ClusterConfig, PeerAddress};
use crate::http1::Method;
use crate::limits::TOMBSTONE_GRACE;
use crate::model::{Digest, HlcTimestamp, ReplicaId, Timestamp};
use crate::service::federation::ClusterTaskQueue;
use crate::service::{ClusterView, Error, Member, NodeAuth, PeerId, Service};
use crate::store::{PeerProgress, Yielded};

/// How long any other request to a peer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests of clients wait for the salt.
const SALT_PATIENCE: Duration = Duration::from_secs(12);
/// How long requests of clients wait for the first comparison of a new node; somewhat longer than for a peer that does
/// not answer.
const JOIN_PATIENCE: Duration = Duration::from_millis(2500);
/// How long after the start of a new node requests wait for a peer that does not answer. `/ready` waits for longer.
const CONTACT_PATIENCE_MS: u64 = 2000;
/// How long a write waits for its acknowledgements by peers.
const ACKS_PATIENCE: Duration = Duration::from_secs(5);
/// How often the salt is looked at while there is none.
const SALT_INTERVAL: Duration = Duration::from_millis(100);
/// How often old tombstones are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What all tasks of the cluster share; they run on one thread.
struct Context<N> {
    network: Rc<N>,
    service: Arc<Service>,
    view: Arc<ClusterView>,
    node_id: String,
    auth: Arc<NodeAuth>,
    /// At the start it had never held the same as a peer.
    is_new: bool,
    /// In the order of the configuration.
    peers: RefCell<Vec<KnownPeer>>,
    /// Raised with each new list of peers.
    list_number: Cell<u64>,
    ids: Cell<u32>,
    sync_interval_ms: u64,
    /// How long a remark about a peer is shown after it was made last: nodes compare meanwhile.
    remarks_patience: Duration,
}

/// Shared by the task of the peer and by the list.
type KnownPeer = Rc<RefCell<PeerTask>>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Lists of peers, each of which replaces the one before.
pub type PeerLists = mpsc::UnboundedReceiver<Vec<PeerAddress>>;

/// A peer, and what only this file needs to know of it.
struct PeerTask {
    /// Stays the same as long as the peer is in the list.
    id: PeerId,
    address: PeerAddress,
    machine: Peer,
    introduction: Option<NodeInfo>,
    synced_at_ms: Option<u64>,
    /// Of everything that it holds, as it told last.
    digest: Option<Digest>,
    /// What is wrong with it besides.
    remarks: Remarks,
    /// Wakes the task that does what the machine says, when another one has told the machine something.
    waker: Option<Waker>,
}

/// Runs until the returned future is dropped. A new list of peers leaves those that stay as they are.
pub async fn run<N: Network>(
    network: N,
    service: Arc<Service>,
    config: ClusterConfig,
    node_id: String,
    auth: Arc<NodeAuth>,
    errands: Option<ClusterTaskQueue>,
    mut lists: PeerLists,
) {
    let Some(view) = service.cluster().cloned() else { return };
    let is_new = !service.is_federated() && service.horizon().synced == HlcTimestamp::default();
    let context = Rc::new(Context {
        network: Rc::new(network),
        service,
        view,
        node_id,
        auth,
        is_new,
        peers: RefCell::default(),
        list_number: Cell::default(),
        ids: Cell::default(),
        sync_interval_ms: u64::try_from(config.sync_interval.as_millis()).unwrap_or(u64::MAX),
        remarks_patience: config.sync_interval.saturating_mul(2).saturating_add(REQUEST_TIMEOUT),
    });
    let mut peer_tasks = BTreeMap::new();
    context.set_peers(&config.peers, &mut peer_tasks);
    let mut tasks: Vec<Task> = vec![Box::pin(Rc::clone(&context).agree_on_salt())];
    match errands {
        Some(errands) => tasks.push(Box::pin(peer_pool::run(Rc::clone(&context), errands))),
        None => tasks.push(Box::pin(Rc::clone(&context).collect_tombstones())),
    }
    poll_fn(|cx| {
        while let Poll::Ready(Some(peers)) = Pin::new(&mut lists).poll_next(cx) {
            context.set_peers(&peers, &mut peer_tasks);
            tracing::info!(peers = peers.len(), "peer list changed");
        }
        for task in peer_tasks.values_mut().chain(&mut tasks) {
            // None of them ends.
            let _ = task.as_mut().poll(cx);
        }
        Poll::<()>::Pending
    })
    .await;
}

impl<N: Network> Context<N> {
    /// Takes a list of peers. A peer that stays keeps its connection and everything that is known of it; the tasks of
    /// one that goes are dropped.
    fn set_peers(self: &Rc<Self>, addresses: &[PeerAddress], tasks: &mut BTreeMap<PeerId, Task>) {
        let before = self.peers.take();
        let list = addresses.iter().map(|address| {
            let stays = before.iter().find(|peer| peer.borrow().address == *address);
            stays.cloned().unwrap_or_else(|| self.add_peer(address, tasks))
        });
        let list: Vec<KnownPeer> = list.collect();
        let ids: Vec<PeerId> = list.iter().map(|peer| peer.borrow().id).collect();
        tasks.retain(|id, _| ids.contains(id));
        self.view.acknowledgements().keep(&ids);
        self.peers.replace(list);
        self.list_number.set(self.list_number.get() + 1);
        self.publish();
        if let Some(federation) = self.service.federation() {
            federation.peers_changed();
        }
    }

    fn add_peer(self: &Rc<Self>, address: &PeerAddress, tasks: &mut BTreeMap<PeerId, Task>) -> KnownPeer {
        let number = self.ids.get();
        self.ids.set(number.wrapping_add(1));
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
            introduction: None,
            synced_at_ms: None,
            digest: None,
            remarks: Remarks::default(),
            waker: None,
        }));
        tasks.insert(id, Box::pin(Rc::clone(self).drive_peer(Rc::clone(&peer))));
        peer
    }

    /// A peer that is still in the list.
    fn peer(&self, id: PeerId) -> Option<KnownPeer> {
        self.peers.borrow().iter().find(|peer| peer.borrow().id == id).cloned()
    }

    /// Does what the machine of one peer says, one thing at a time.
    async fn drive_peer(self: Rc<Self>, peer: KnownPeer) {
        let address = peer.borrow().address.clone();
        let mut transport = Transport::new(address, Arc::clone(&self.auth), None);
        loop {
            self.look_up_cursor(&peer).await;
            let told = self.view.outbox().value();
            self.handle_event(&peer, Event::OutboxGrew(told)).await;
            let action = peer.borrow().machine.next(self.network.now_ms());
            let event = match action {
                Action::Wait { until_ms } => {
                    self.wait(&peer, &mut transport, until_ms, told).await;
                    continue;
                }
                Action::CheckHealth => Event::Health(transport.introduce(&*self.network).await),
                Action::Push { after } => Event::Pushed(self.push(&mut transport, &peer, after).await),
                Action::CompareDigests => {
                    let began = Instant::now();
                    let digests = self.compare_digests(&mut transport, &peer).await;
                    self.view.note_comparison(began.elapsed());
                    Event::Digests(digests)
                }
                Action::CompareVersions(buckets) => {
                    Event::Versions(self.compare_versions(&mut transport, &peer, buckets).await)
                }
                Action::Fetch(ids) => Event::Fetched(self.fetch(&mut transport, &peer, &ids).await),
                Action::Send(ids) => Event::Sent(self.send(&mut transport, &peer, ids).await),
            };
            if event.failure() == Some(PeerError::Malformed) {
                // Its name may lead to another host by now.
                transport.close();
                self.remark(&peer, Remark::Malformed);
            }
            self.handle_event(&peer, event).await;
        }
    }

    /// Until a time has come, or the outbox has grown beyond what the machine was told of: what came in
    /// between would otherwise wait for the next health check.
    async fn wait(&self, peer: &RefCell<PeerTask>, transport: &mut Transport<N>, until_ms: u64, told: i64) {
        let now_ms = self.network.now_ms();
        let mut sleep = pin!(self.network.sleep(Duration::from_millis(until_ms.saturating_sub(now_ms))));
        poll_fn(|cx| {
            let mut peer = peer.borrow_mut();
            let has_more = !matches!(peer.machine.next(self.network.now_ms()), Action::Wait { .. });
            if has_more || self.view.outbox().poll_past(told, cx).is_ready() {
                return Poll::Ready(());
            }
            peer.waker = Some(cx.waker().clone());
            // Polled again only when it was ready: then there is no connection any more.
            let _ = transport.poll_over(cx);
            sleep.as_mut().poll(cx)
        })
        .await;
    }

    async fn handle_event(&self, known: &RefCell<PeerTask>, event: Event) {
        let own = self.introduction();
        if let Event::Health(Ok(introduction)) = &event {
            known.borrow_mut().introduction = Some(introduction.clone());
        }
        let (id, notices, peer) = {
            let mut known = known.borrow_mut();
            let notices = known.machine.step(self.network.now_ms(), event, &own);
            (known.id, notices, known.machine.node())
        };
        for notice in notices {
            match (notice, peer) {
                (Effect::StateChanged, _) => log_state(&known.borrow()),
                (Effect::Acknowledged(sequence), Some(peer)) => {
                    self.view.acknowledgements().note(id, sequence);
                    self.note(PeerProgress::Acknowledged { peer, sequence }).await;
                }
                (Effect::Refused { after, last }, Some(peer)) => {
                    self.view.acknowledgements().note_refused(id, after, last);
                    self.note(PeerProgress::Acknowledged { peer, sequence: last }).await;
                }
                (Effect::Synced { begun: stamp, forgotten }, Some(peer)) => {
                    self.view.acknowledgements().note_equal(id);
                    self.view.clocks().forget(peer);
                    known.borrow_mut().remarks = Remarks::default();
                    known.borrow_mut().synced_at_ms = Some(self.network.now_ms());
                    self.note(PeerProgress::Synced { peer, stamp, forgotten }).await;
                }
                (Effect::Acknowledged(_) | Effect::Refused { .. } | Effect::Synced { .. }, None) => {}
            }
        }
        self.look_at_joining();
        self.publish();
    }

    async fn note(&self, note: PeerProgress) {
        if let Err(error) = self.service.note(note).await {
            tracing::debug!(%error, "not noted of a peer; it will be learnt again");
        }
    }

    fn introduction(&self) -> NodeInfo {
        let (salt, has_entries) = self.service.salt_in_use();
        NodeInfo {
            name: self.node_id.clone(),
            instance: self.view.instance,
            node: self.service.node(),
            is_federated: self.service.is_federated(),
            salt,
            has_entries,
            horizon: self.service.horizon(),
        }
    }

    /// Shows the peers as they are now to those who ask.
    fn publish(&self) {
        let now_ms = self.network.now_ms();
        let ago = |then: Option<u64>| then.map(|then| now_ms.saturating_sub(then));
        let patience = self.remarks_patience;
        let list = self.peers.borrow();
        let peers: Vec<Ref<'_, PeerTask>> = list.iter().map(|peer| peer.borrow()).collect();
        let votes: Vec<_> =
            peers.iter().map(|peer| (peer.machine.state(), peer.introduction.as_ref())).collect();
        let obstacle = obstacle(&self.introduction(), &votes);
        let members = peers.iter().enumerate().map(|(index, peer)| {
            let (state, refusal) = match peer.machine.state() {
                State::Unknown => ("unknown", None),
                State::Healthy => ("healthy", None),
                State::Down => ("down", None),
                State::Myself => ("self", None),
                State::Incompatible(refusal) => ("refused", Some(refusal)),
            };
            let remark = || {
                let theirs = peer.machine.node().and_then(|node| self.view.clocks().ahead_ms(node, patience));
                peer.remarks.text(now_ms, patience, theirs)
            };
            let reason = refusal.map(ToString::to_string).or_else(remark);
            Member {
                id: peer.id,
                address: peer.address.to_string(),
                node: peer.machine.node(),
                state,
                may_answer: peer.machine.may_answer(now_ms),
                reason,
                blocks_readiness: obstacle == Some(index),
                last_contact_ms: ago(peer.machine.last_contact_ms()),
                lag_ms: peer.machine.lag_ms(now_ms),
                outbox_length: peer.machine.outbox_length(),
                digest: peer.digest,
                synced_ms: ago(peer.synced_at_ms),
            }
        });
        self.view.publish(members.collect());
    }

    /// Where the changes for a peer go on, once it is known which node it is.
    async fn look_up_cursor(&self, known: &RefCell<PeerTask>) {
        let node = {
            let machine = &known.borrow().machine;
            match machine.needs_cursor() {
                true => machine.node(),
                false => None,
            }
        };
        let Some(node) = node else { return };
        let found = async {
            let (first, last) = self.service.outbox_range().await?;
            let acknowledged = self.service.acknowledged(node).await?;
            // What a new peer lacks, or one for which lines were dropped, it gets by comparing.
            Ok::<i64, Error>(acknowledged.filter(|line| line + 1 >= first).unwrap_or(last))
        };
        match found.await {
            Ok(cursor) => {
                known.borrow_mut().machine.set_cursor(self.network.now_ms(), cursor);
                // From now on the outbox keeps what this peer lacks, too.
                self.note(PeerProgress::Acknowledged { peer: node, sequence: cursor }).await;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the outbox");
                self.network.sleep(SALT_INTERVAL).await;
            }
        }
    }

    /// Looks after the salt: until there is one, and as long as it may have to yield. Ends the waiting of requests.
    async fn agree_on_salt(self: Rc<Self>) {
        let begun_ms = self.network.now_ms();
        loop {
            self.view.salt().give_up(SALT_PATIENCE);
            self.view.joining().give_up(JOIN_PATIENCE);
            self.look_at_joining();
            self.view.acknowledgements().give_up(ACKS_PATIENCE);
            let own = self.introduction();
            let candidates: Vec<Candidate> = self
                .peers
                .borrow()
                .iter()
                .map(|peer| peer.borrow())
                .map(|peer| match (peer.machine.state(), &peer.introduction) {
                    (State::Myself, _) => Candidate::Myself,
                    (
                        State::Incompatible(
                            IncompatibleReason::Identity(IdentityError::Unproven | IdentityError::OtherPort)
                            | IncompatibleReason::Distrust(_),
                        ),
                        _,
                    ) => Candidate::Silent,
                    (State::Incompatible(IncompatibleReason::Identity(_)), _) => Candidate::Stranger,
                    (State::Healthy | State::Incompatible(_), Some(introduction)) => {
                        Candidate::Known(introduction.clone())
                    }
                    _ => Candidate::Silent,
                })
                .collect();
            match decide(&own, &candidates, self.network.now_ms().saturating_sub(begun_ms)) {
                Decision::Keep => self.view.salt().open(),
                Decision::Wait => {}
                Decision::Make => match self.service.make_salt().await {
                    Ok(()) => self.view.salt().open(),
                    Err(error) => tracing::error!(%error, "cannot make the salt"),
                },
                Decision::Take(index) => self.take_salt(index).await,
            }
            self.network.sleep(SALT_INTERVAL).await;
        }
    }

    /// A node that has never been in step with a peer is new: it waits for its peers before it serves.
    fn look_at_joining(&self) {
        if self.view.has_joined() {
            return;
        }
        let now_ms = self.network.now_ms();
        let peers = self.peers.borrow();
        let is_any_awaited =
            |patience_ms| peers.iter().any(|peer| peer.borrow().machine.is_awaited(now_ms, patience_ms));
        if !self.is_new || !is_any_awaited(PATIENCE_MS) {
            self.view.set_joined();
        } else if is_any_awaited(CONTACT_PATIENCE_MS) {
            // A peer that answers late is waited for all the same.
            self.view.joining().close();
        } else {
            self.view.joining().open();
        }
    }

    async fn take_salt(&self, index: usize) {
        let (address, expected) = {
            let Some(peer) = self.peers.borrow().get(index).cloned() else { return };
            let peer = peer.borrow();
            (peer.address.clone(), peer.introduction.as_ref().map(|peer| peer.instance))
        };
        let mut transport = Transport::<N>::new(address.clone(), Arc::clone(&self.auth), expected);
        let request =
            Request { method: Method::Get, target: "/cluster/salt", body: b"", timeout: HEALTH_TIMEOUT };
        match transport.call(&*self.network, &request).await {
            Ok(salt) => match self.service.yield_salt_to(salt).await {
                Ok(Yielded::Taken) => {
                    tracing::info!(%address, "took over the salt of this peer");
                    self.view.salt().open();
                }
                Ok(Yielded::Kept) => {}
                Ok(Yielded::Refused(problem)) => {
                    tracing::error!(%address, "the salt of this peer {problem}; its salt file is not taken over");
                    // Not with each look at the salt.
                    self.network.sleep(HEALTH_TIMEOUT).await;
                }
                Err(error) => tracing::error!(%error, "cannot write the salt"),
            },
            Err(error) => tracing::debug!(%address, %error, "cannot get the salt"),
        }
    }

    async fn collect_tombstones(self: Rc<Self>) {
        loop {
            self.network.sleep(COLLECT_INTERVAL).await;
            let grace = u64::try_from(TOMBSTONE_GRACE.as_millis()).unwrap_or(u64::MAX);
            let before = Timestamp::now().as_milliseconds().saturating_sub(grace);
            let before = HlcTimestamp::from_milliseconds(before);
            if let Some(peers) = self.members() {
                self.note(PeerProgress::Members { peers, before }).await;
            }
            self.note(PeerProgress::Collect { before }).await;
        }
    }

    /// The numbers of all peers, once all have told theirs.
    fn members(&self) -> Option<Vec<ReplicaId>> {
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
        State::Down => tracing::warn!(%address, "peer does not answer"),
        State::Myself => tracing::info!(%address, "this name in OSC_CLUSTER_NODES is the node itself"),
        State::Incompatible(reason) => tracing::error!(%address, %reason, "no replication with this peer"),
    }
}
