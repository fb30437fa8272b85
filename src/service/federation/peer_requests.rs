//! Queue of peer requests from the executors to the cluster executor, with replies through oneshot channels.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};

use super::duplicate_names::DuplicateNames;
use super::owner_hints::OwnerHints;
use crate::config::FederationConfig;
use crate::limits::{PEER_RECONTACT_TIMEOUT, PEER_REQUESTS_COUNT_MAX};
use crate::service::{ClusterView, Member, PeerId};
use crate::timer;
use crate::wire::Message;

/// Access of client requests to the peers; one per process.
#[derive(Debug)]
pub struct Federation {
    queue: mpsc::UnboundedSender<ClusterTask>,
    /// Counter of the peer requests in flight, each of which holds a clone.
    in_flight: Arc<()>,
    view: Arc<ClusterView>,
    pub(super) locations: OwnerHints,
    pub(super) duplicates: DuplicateNames,
    pub(super) timeout: Duration,
    pub(super) is_strict: bool,
}

/// Queue of tasks for the cluster executor.
pub type ClusterTaskQueue = mpsc::UnboundedReceiver<ClusterTask>;

/// Task that only the cluster executor can perform.
#[derive(Debug)]
pub enum ClusterTask {
    /// Sends a request to a peer.
    Request(PeerRequest),
    /// Records that a peer has sent a malformed reply.
    NoteMalformed(PeerId),
    /// Checks now whether a peer that was down is back; the sender is dropped when that is known.
    Recontact(PeerId, oneshot::Sender<()>),
}

/// Request to one peer.
#[derive(Debug)]
pub struct PeerRequest {
    /// Peer to query.
    pub peer: PeerId,
    /// Message to send; shared by the requests to all peers of one lookup.
    pub message: Arc<Message<'static>>,
    /// Time by which the reply must arrive.
    pub deadline: Instant,
    /// Sender of the reply; dropped if there is none. Cancelled when the client request is.
    pub answer: oneshot::Sender<Vec<u8>>,
    _in_flight: Arc<()>,
}

/// Snapshot of the peers, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Peers {
    members: Arc<Vec<Member>>,
}

impl Peers {
    /// Returns the peers that may reply.
    pub(super) fn askable(&self) -> impl Iterator<Item = PeerId> {
        self.members.iter().filter(|member| member.may_reply).map(|member| member.id)
    }

    /// Returns the peers that are known not to reply.
    pub(super) fn unreachable(&self) -> impl Iterator<Item = PeerId> {
        let peers = self.members.iter().filter(|member| member.state != "self");
        peers.filter(|member| !member.may_reply).map(|member| member.id)
    }

    /// Returns the peers that were down when they were last contacted, and may be back.
    fn down(&self) -> impl Iterator<Item = PeerId> {
        let is_down = |member: &&Member| !member.may_reply && matches!(member.state, "down" | "unknown");
        self.members.iter().filter(is_down).map(|member| member.id)
    }

    /// Returns the address of a peer; empty if the peer is not in the list.
    pub(super) fn name(&self, peer: PeerId) -> String {
        self.members
            .iter()
            .find(|member| member.id == peer)
            .map_or_else(String::new, |member| member.address.clone())
    }

    /// Returns the addresses of these peers, in the order of the configuration.
    pub(super) fn names(&self, peers: &[PeerId]) -> Vec<String> {
        let members = self.members.iter().filter(|member| peers.contains(&member.id));
        members.map(|member| member.address.clone()).collect()
    }
}

impl Federation {
    /// Creates the access to the peers of `view`, and the queue of tasks for the cluster executor.
    pub fn new(config: &FederationConfig, view: Arc<ClusterView>) -> (Self, ClusterTaskQueue) {
        let (queue, receiver) = mpsc::unbounded();
        let federation = Self {
            queue,
            in_flight: Arc::default(),
            view,
            locations: OwnerHints::default(),
            duplicates: DuplicateNames::default(),
            timeout: config.timeout,
            is_strict: config.is_strict,
        };
        (federation, receiver)
    }

    /// Records that the list of peers has changed. The owner hints stay valid, apart from which owner is the nearest.
    pub fn peers_changed(&self) {
        self.locations.order_changed();
    }

    /// Returns the number of names that were found on several nodes since the start.
    pub fn duplicates_count(&self) -> usize {
        self.duplicates.count()
    }

    /// Returns the current peers.
    pub(super) fn peers(&self) -> Peers {
        Peers { members: self.view.members() }
    }

    /// Has the peers contacted that were down, and waits for the outcome, for at most [`PEER_RECONTACT_TIMEOUT`].
    /// Returns whether one of them is back. A contact that has taken longer is not awaited by later requests.
    pub(super) async fn is_peer_back(&self) -> bool {
        let down: Vec<PeerId> = self.peers().down().collect();
        if down.is_empty() {
            return false;
        }
        let contact = |peer: &PeerId| {
            let (sender, receiver) = oneshot::channel();
            self.queue.unbounded_send(ClusterTask::Recontact(*peer, sender)).ok();
            receiver
        };
        let contacts: Vec<_> = down.iter().map(contact).collect();
        let all = async {
            for contact in contacts {
                // An error: the sender is dropped, which is the signal.
                contact.await.ok();
            }
        };
        timer::timeout(PEER_RECONTACT_TIMEOUT, all).await;
        self.peers().askable().any(|peer| down.contains(&peer))
    }

    /// Sends a request to one peer. If too many are in flight, the receiver resolves without a reply.
    pub(super) fn send(
        &self,
        peer: PeerId,
        message: &Arc<Message<'static>>,
        deadline: Instant,
    ) -> oneshot::Receiver<Vec<u8>> {
        let (answer, receiver) = oneshot::channel();
        let in_flight = Arc::clone(&self.in_flight);
        if Arc::strong_count(&in_flight) <= PEER_REQUESTS_COUNT_MAX {
            let message = Arc::clone(message);
            let request = PeerRequest { peer, message, deadline, answer, _in_flight: in_flight };
            // If the cluster executor has stopped, the request is dropped and gets no reply.
            self.queue.unbounded_send(ClusterTask::Request(request)).ok();
        }
        receiver
    }

    /// Reports that a peer has sent a malformed reply. Its idle connections are closed, because its name may resolve to
    /// another host by now.
    pub(super) fn report_malformed(&self, peer: PeerId) {
        self.queue.unbounded_send(ClusterTask::NoteMalformed(peer)).ok();
    }
}

/// Set of pending replies.
#[derive(Default)]
pub(super) struct Answers {
    waiting: Vec<(PeerId, oneshot::Receiver<Vec<u8>>)>,
}

impl Answers {
    /// Adds the reply of a peer.
    pub(super) fn expect(&mut self, peer: PeerId, receiver: oneshot::Receiver<Vec<u8>>) {
        self.waiting.push((peer, receiver));
    }

    /// Waits for the next peer that has replied, or that will not (without a reply); `None` if no reply is pending.
    pub(super) async fn next(&mut self) -> Option<(PeerId, Option<Vec<u8>>)> {
        poll_fn(|context| {
            for index in 0..self.waiting.len() {
                if let Poll::Ready(reply) = Pin::new(&mut self.waiting[index].1).poll(context) {
                    let (peer, _) = self.waiting.swap_remove(index);
                    return Poll::Ready(Some((peer, reply.ok())));
                }
            }
            if self.waiting.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}
