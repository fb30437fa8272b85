//! Keeps this node equal to its peers: asks for their health, sends own changes, compares everything
//! now and then, and agrees on the salt.
//!
//! Knows the service and the client side of HTTP/1.1; never sees a user key or a plaintext. Runs on an
//! executor of its own, so that bursts of replication do not disturb requests. What decides is pure
//! (`peer`, `difference`, `bootstrap`); what does I/O is `transport` and this file.

mod bootstrap;
mod difference;
mod federate;
mod peer;
mod transport;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

pub use bootstrap::{Candidate, Decision, PATIENCE_MS, decide};
pub use difference::{dealt_with, difference};
pub use peer::{
    Action, Comparison, Difference, Event, Failure, HEALTH_INTERVAL_MS, Introduction, Notice, Peer, Pushed,
    Refusal, State,
};
pub use transport::Network;

use self::transport::{Request, Transport};
use crate::config::{ClusterConfig, PeerAddress};
use crate::http1::Method;
use crate::limits::{CHANGES_PER_MESSAGE_MAX, TOMBSTONE_GRACE};
use crate::model::{ApiKeys, Digest, EntryId, NodeNumber, Stamp, Timestamp};
use crate::service::exchange::{
    API_KEY_HEADER, ENTRIES_HEADER, FEDERATED, HORIZON_HEADER, INSTANCE_HEADER, MODE_HEADER, NODE_HEADER,
    SALT_HEADER, decode_changes, decode_digests, decode_horizon, decode_versions, encode_buckets,
    encode_changes, encode_digest, encode_ids,
};
use crate::service::federation::Errands;
use crate::service::{ClusterView, Error, Member, Service};
use crate::store::{PeerNote, root_of};

/// How long a health check may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long any other request to a peer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests of clients wait for the salt.
const SALT_PATIENCE: Duration = Duration::from_secs(12);
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
    api_keys: ApiKeys,
    peers: RefCell<Vec<PeerTask>>,
}

/// A peer, and what only this file needs to know of it.
struct PeerTask {
    address: PeerAddress,
    machine: Peer,
    introduction: Option<Introduction>,
    synced_at_ms: Option<u64>,
    /// Of everything that it holds, as it told last.
    digest: Option<Digest>,
    /// Wakes the task that does what the machine says, when another one has told the machine something.
    waker: Option<Waker>,
}

/// Runs until the returned future is dropped.
pub async fn run<N: Network>(
    network: N,
    service: Arc<Service>,
    config: ClusterConfig,
    node_id: String,
    api_keys: ApiKeys,
    errands: Option<Errands>,
) {
    let Some(view) = service.cluster().cloned() else { return };
    let network = Rc::new(network);
    let now_ms = network.now_ms();
    let sync_interval_ms = u64::try_from(config.sync_interval.as_millis()).unwrap_or(u64::MAX);
    let mut seed = view.instance;
    let peers = config.peers.iter().map(|address| {
        seed = seed.rotate_left(7).wrapping_add(1);
        PeerTask {
            address: address.clone(),
            machine: match service.is_federated() {
                true => Peer::federated(now_ms, sync_interval_ms, seed),
                false => Peer::new(now_ms, sync_interval_ms, seed),
            },
            introduction: None,
            synced_at_ms: None,
            digest: None,
            waker: None,
        }
    });
    let peers = peers.collect();
    let context = Rc::new(Context { network, service, view, node_id, api_keys, peers: RefCell::new(peers) });
    context.publish();
    let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for index in 0..config.peers.len() {
        tasks.push(Box::pin(Rc::clone(&context).attend(index)));
    }
    tasks.push(Box::pin(Rc::clone(&context).agree_on_salt()));
    match errands {
        Some(errands) => tasks.push(Box::pin(federate::run(Rc::clone(&context), errands))),
        None => tasks.push(Box::pin(Rc::clone(&context).collect_tombstones())),
    }
    poll_fn(|cx| {
        for task in &mut tasks {
            // None of them ends.
            let _ = task.as_mut().poll(cx);
        }
        Poll::<()>::Pending
    })
    .await;
}

impl<N: Network> Context<N> {
    /// Does what the machine of one peer says, one thing at a time.
    async fn attend(self: Rc<Self>, index: usize) {
        let address = self.peers.borrow()[index].address.clone();
        let mut transport = Transport::new(address, self.api_keys.clone());
        loop {
            self.look_up_cursor(index).await;
            let told = self.view.outbox().value();
            self.tell(index, Event::OutboxGrew(told)).await;
            let action = self.peers.borrow()[index].machine.next(self.network.now_ms());
            let event = match action {
                Action::Wait { until_ms } => {
                    self.wait(index, until_ms, told).await;
                    continue;
                }
                Action::CheckHealth => Event::Health(self.check_health(&mut transport).await),
                Action::Push { after } => Event::Pushed(self.push(&mut transport, after).await),
                Action::CompareDigests => {
                    let began = Instant::now();
                    let digests = self.compare_digests(&mut transport, index).await;
                    self.view.note_comparison(began.elapsed());
                    Event::Digests(digests)
                }
                Action::CompareVersions(buckets) => {
                    Event::Versions(self.compare_versions(&mut transport, buckets).await)
                }
                Action::Fetch(ids) => Event::Fetched(self.fetch(&mut transport, &ids).await),
                Action::Send(ids) => Event::Sent(self.send(&mut transport, ids).await),
            };
            self.tell(index, event).await;
        }
    }

    /// Until a time has come, or the outbox has grown beyond what the machine was told of: what came in
    /// between would otherwise wait for the next health check.
    async fn wait(&self, index: usize, until_ms: u64, told: i64) {
        let now_ms = self.network.now_ms();
        let mut sleep = pin!(self.network.sleep(Duration::from_millis(until_ms.saturating_sub(now_ms))));
        poll_fn(|cx| {
            let peer = &mut self.peers.borrow_mut()[index];
            let has_more = !matches!(peer.machine.next(self.network.now_ms()), Action::Wait { .. });
            if has_more || self.view.outbox().poll_above(told, cx).is_ready() {
                return Poll::Ready(());
            }
            peer.waker = Some(cx.waker().clone());
            sleep.as_mut().poll(cx)
        })
        .await;
    }

    async fn tell(&self, index: usize, event: Event) {
        let own = self.introduction();
        if let Event::Health(Ok(introduction)) = &event {
            self.peers.borrow_mut()[index].introduction = Some(introduction.clone());
        }
        let (notices, peer) = {
            let mut peers = self.peers.borrow_mut();
            let known = &mut peers[index];
            let notices = known.machine.step(self.network.now_ms(), event, &own);
            (notices, known.machine.node())
        };
        for notice in notices {
            match (notice, peer) {
                (Notice::StateChanged, _) => self.log_state(index),
                (Notice::Acknowledged(sequence), Some(peer)) => {
                    self.view.acknowledgements().note(index, sequence);
                    self.note(PeerNote::Acknowledged { peer, sequence }).await;
                }
                (Notice::Synced { begun: stamp, forgotten }, Some(peer)) => {
                    self.peers.borrow_mut()[index].synced_at_ms = Some(self.network.now_ms());
                    self.note(PeerNote::Synced { peer, stamp, forgotten }).await;
                }
                (Notice::Acknowledged(_) | Notice::Synced { .. }, None) => {}
            }
        }
        self.publish();
    }

    async fn note(&self, note: PeerNote) {
        if let Err(error) = self.service.note(note).await {
            tracing::debug!(%error, "not noted of a peer; it will be learnt again");
        }
    }

    fn log_state(&self, index: usize) {
        let peers = self.peers.borrow();
        let peer = &peers[index];
        let address = &peer.address;
        match peer.machine.state() {
            State::Unknown => {}
            State::Healthy => tracing::info!(%address, "peer is healthy"),
            State::Down => tracing::warn!(%address, "peer does not answer"),
            State::Myself => tracing::info!(%address, "this name in OSC_CLUSTER_NODES is the node itself"),
            State::Refused(reason) => tracing::error!(%address, %reason, "no replication with this peer"),
        }
    }

    fn introduction(&self) -> Introduction {
        let (salt, has_entries) = self.service.salt_in_use();
        Introduction {
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
        let peers = self.peers.borrow();
        let members = peers.iter().map(|peer| {
            let (state, refusal) = match peer.machine.state() {
                State::Unknown => ("unknown", None),
                State::Healthy => ("healthy", None),
                State::Down => ("down", None),
                State::Myself => ("self", None),
                State::Refused(refusal) => ("refused", Some(refusal)),
            };
            let reason = refusal.map(ToString::to_string);
            let is_in_the_way = refusal.is_some_and(|refusal| refusal.is_in_the_way());
            Member {
                address: peer.address.to_string(),
                node: peer.machine.node(),
                state,
                may_answer: peer.machine.may_answer(now_ms),
                reason,
                is_in_the_way,
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
    async fn look_up_cursor(&self, index: usize) {
        let node = {
            let peers = self.peers.borrow();
            match peers[index].machine.needs_cursor() {
                true => peers[index].machine.node(),
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
                self.peers.borrow_mut()[index].machine.set_cursor(self.network.now_ms(), cursor);
                // From now on the outbox keeps what this peer lacks, too.
                self.note(PeerNote::Acknowledged { peer: node, sequence: cursor }).await;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the outbox");
                self.network.sleep(SALT_INTERVAL).await;
            }
        }
    }

    async fn check_health(&self, transport: &mut Transport<N>) -> Result<Introduction, Failure> {
        let request = Request {
            method: Method::Get,
            target: "/cluster/health",
            body: b"",
            timeout: HEALTH_TIMEOUT,
            wanted: &[
                INSTANCE_HEADER,
                NODE_HEADER,
                MODE_HEADER,
                SALT_HEADER,
                ENTRIES_HEADER,
                HORIZON_HEADER,
                API_KEY_HEADER,
            ],
        };
        let reply = transport.call(&self.network, &request).await?;
        let headers: HashMap<&str, String> = reply.headers.into_iter().collect();
        // Health needs no API key, so a wrong one is told apart.
        if headers.contains_key(API_KEY_HEADER) {
            return Err(Failure::ApiKey);
        }
        let hexadecimal = |name: &str| u64::from_str_radix(headers.get(name)?, 16).ok();
        let body: serde_json::Value = serde_json::from_slice(&reply.body).map_err(|_| Failure::Refused)?;
        Ok(Introduction {
            name: body["node_id"].as_str().unwrap_or_default().to_owned(),
            instance: hexadecimal(INSTANCE_HEADER).ok_or(Failure::Refused)?,
            node: headers.get(NODE_HEADER).and_then(|text| text.parse().ok()),
            is_federated: headers.get(MODE_HEADER).is_some_and(|text| text == FEDERATED),
            salt: hexadecimal(SALT_HEADER),
            has_entries: headers.get(ENTRIES_HEADER).is_some_and(|text| text == "true"),
            horizon: headers
                .get(HORIZON_HEADER)
                .and_then(|text| decode_horizon(text))
                .ok_or(Failure::Refused)?,
        })
    }

    async fn post(
        &self,
        transport: &mut Transport<N>,
        target: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let request = Request { method: Method::Post, target, body, timeout: REQUEST_TIMEOUT, wanted: &[] };
        Ok(transport.call(&self.network, &request).await?.body)
    }

    async fn push(&self, transport: &mut Transport<N>, after: i64) -> Result<Pushed, Failure> {
        let page = self.service.outbox(after).await.map_err(own_failure)?;
        if !page.changes.is_empty() {
            let body = encode_changes(self.salt()?, &page.changes);
            self.post(transport, "/cluster/changes", &body).await?;
        }
        Ok(Pushed { sequence: page.sequence, more: page.more })
    }

    async fn compare_digests(
        &self,
        transport: &mut Transport<N>,
        index: usize,
    ) -> Result<Comparison, Failure> {
        let begun = Stamp::from_milliseconds(Timestamp::now().as_milliseconds());
        // Before the digest is taken, which therefore covers it.
        let line = self.view.outbox().value();
        let root = self.service.root_digest().ok_or(Failure::Refused)?;
        let theirs = self.post(transport, "/cluster/digests", encode_digest(root).as_bytes()).await?;
        let told = |digest| self.peers.borrow_mut()[index].digest = Some(digest);
        if theirs.is_empty() {
            told(root);
            return Ok(Comparison { buckets: Vec::new(), begun, line });
        }
        let theirs = decode_digests(&theirs).map_err(|_| Failure::Refused)?;
        told(root_of(&theirs));
        let own = self.service.bucket_digests().map_err(own_failure)?;
        let differing = own.iter().zip(&theirs).enumerate().filter(|(_, (own, theirs))| own != theirs);
        Ok(Comparison { buckets: differing.map(|(bucket, _)| bucket).collect(), begun, line })
    }

    async fn compare_versions(
        &self,
        transport: &mut Transport<N>,
        mut buckets: Vec<usize>,
    ) -> Result<Difference, Failure> {
        let theirs = self.post(transport, "/cluster/versions", &encode_buckets(&buckets)).await?;
        let theirs = decode_versions(&theirs).map_err(|_| Failure::Refused)?;
        let buckets_count = theirs.buckets_count.min(buckets.len());
        buckets.truncate(buckets_count);
        let own = self.service.versions(buckets, usize::MAX).await.map_err(own_failure)?;
        Ok(Difference { buckets_count, ..difference(own.known, theirs.known) })
    }

    async fn fetch(&self, transport: &mut Transport<N>, ids: &[EntryId]) -> Result<usize, Failure> {
        let reply = self.post(transport, "/cluster/entries", &encode_ids(ids)).await?;
        let (salt, changes) = decode_changes(&reply).map_err(|_| Failure::Refused)?;
        let dealt_with = dealt_with(ids, changes.last().map(|change| &change.id));
        self.service.apply(salt, changes).await.map_err(own_failure)?;
        Ok(dealt_with)
    }

    async fn send(&self, transport: &mut Transport<N>, ids: Vec<EntryId>) -> Result<usize, Failure> {
        let changes = self.service.changes(ids.clone()).await.map_err(own_failure)?;
        let dealt_with = dealt_with(&ids, changes.last().map(|change| &change.id));
        for group in changes.chunks(CHANGES_PER_MESSAGE_MAX) {
            let body = encode_changes(self.salt()?, group);
            self.post(transport, "/cluster/changes", &body).await?;
        }
        Ok(dealt_with)
    }

    fn salt(&self) -> Result<u64, Failure> {
        self.service.salt_in_use().0.ok_or(Failure::SaltDiffers)
    }

    /// Looks after the salt: until there is one, and as long as it may have to yield.
    async fn agree_on_salt(self: Rc<Self>) {
        let begun_ms = self.network.now_ms();
        loop {
            self.view.give_up_on_salt(SALT_PATIENCE);
            self.view.acknowledgements().give_up(ACKS_PATIENCE);
            let own = self.introduction();
            let candidates: Vec<Candidate> = self
                .peers
                .borrow()
                .iter()
                .map(|peer| match (peer.machine.state(), &peer.introduction) {
                    (State::Myself, _) => Candidate::Myself,
                    (State::Healthy | State::Refused(_), Some(introduction)) => {
                        Candidate::Known(introduction.clone())
                    }
                    _ => Candidate::Silent,
                })
                .collect();
            match decide(&own, &candidates, self.network.now_ms().saturating_sub(begun_ms)) {
                Decision::Keep => self.view.agree_on_salt(),
                Decision::Wait => {}
                Decision::Make => match self.service.make_salt().await {
                    Ok(()) => self.view.agree_on_salt(),
                    Err(error) => tracing::error!(%error, "cannot make the salt"),
                },
                Decision::Take(index) => self.take_salt(index).await,
            }
            self.network.sleep(SALT_INTERVAL).await;
        }
    }

    async fn take_salt(&self, index: usize) {
        let address = self.peers.borrow()[index].address.clone();
        let mut transport = Transport::<N>::new(address.clone(), self.api_keys.clone());
        let request = Request {
            method: Method::Get,
            target: "/cluster/salt",
            body: b"",
            timeout: HEALTH_TIMEOUT,
            wanted: &[],
        };
        match transport.call(&self.network, &request).await {
            Ok(reply) => match self.service.yield_salt_to(reply.body).await {
                Ok(true) => {
                    tracing::info!(%address, "took over the salt of this peer");
                    self.view.agree_on_salt();
                }
                Ok(false) => {}
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
            let before = Stamp::from_milliseconds(before);
            if let Some(peers) = self.members() {
                self.note(PeerNote::Members { peers, before }).await;
            }
            self.note(PeerNote::Collect { before }).await;
        }
    }

    /// The numbers of all peers, once all have told theirs.
    fn members(&self) -> Option<Vec<NodeNumber>> {
        let peers = self.peers.borrow();
        let others = peers.iter().filter(|peer| *peer.machine.state() != State::Myself);
        others.map(|peer| peer.machine.node()).collect()
    }
}

fn own_failure(error: Error) -> Failure {
    tracing::debug!(%error, "own store");
    match error {
        Error::SaltDiffers => Failure::SaltDiffers,
        _ => Failure::Refused,
    }
}
