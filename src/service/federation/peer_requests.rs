//! Questions on their way from the executors to the one that talks to peers, and the answers back.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_channel::{mpsc, oneshot};

use super::owner_hints::OwnerHints;
use crate::config::FederationConfig;
use crate::limits::QUESTIONS_COUNT_MAX;
use crate::service::{ClusterView, Member, PeerId};

/// How a request reaches the peers; one for the process.
#[derive(Debug)]
pub struct Federation {
    errands: mpsc::UnboundedSender<ClusterTask>,
    /// Each question under way holds a clone.
    tickets: Arc<()>,
    view: Arc<ClusterView>,
    pub(super) locations: OwnerHints,
    pub(super) timeout: Duration,
    pub(super) is_strict: bool,
}

/// What the cluster's executor takes from the others.
pub type ClusterTaskQueue = mpsc::UnboundedReceiver<ClusterTask>;

/// Something that only the cluster's executor can do.
#[derive(Debug)]
pub enum ClusterTask {
    /// Ask a peer.
    Request(PeerRequest),
    /// Note that an answer of a peer was not one of a node.
    NoteMalformed(PeerId),
    /// Tell when some time has passed.
    Alarm {
        /// How much.
        after: Duration,
        /// Told then; nobody may listen any more.
        ring: oneshot::Sender<()>,
    },
}

/// A question to one peer.
#[derive(Debug)]
pub struct PeerRequest {
    /// The peer.
    pub peer: PeerId,
    /// The endpoint.
    pub target: &'static str,
    /// What is asked.
    pub body: Arc<[u8]>,
    /// When it has to be answered.
    pub deadline: Instant,
    /// Where the answer goes; dropped when there is none. Canceled when nobody waits any more.
    pub answer: oneshot::Sender<Vec<u8>>,
    _ticket: Arc<()>,
}

/// The peers as they are now, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Peers {
    members: Arc<Vec<Member>>,
}

impl Peers {
    /// Those that may answer.
    pub(super) fn askable(&self) -> impl Iterator<Item = PeerId> {
        self.members.iter().filter(|member| member.may_answer).map(|member| member.id)
    }

    /// Those that are known not to answer.
    pub(super) fn silent(&self) -> impl Iterator<Item = PeerId> {
        let others = self.members.iter().filter(|member| member.state != "self");
        others.filter(|member| !member.may_answer).map(|member| member.id)
    }

    /// The address of a peer; empty for one that is not in the list.
    pub(super) fn name(&self, peer: PeerId) -> String {
        self.members.iter().find(|member| member.id == peer).map_or_else(String::new, |it| it.address.clone())
    }

    /// Peers by address, in the order of the configuration.
    pub(super) fn names(&self, peers: &[PeerId]) -> Vec<String> {
        let named = self.members.iter().filter(|member| peers.contains(&member.id));
        named.map(|member| member.address.clone()).collect()
    }
}

impl Federation {
    /// What reaches the peers that the view shows, and what the cluster's executor has to take care of.
    pub fn new(config: &FederationConfig, view: Arc<ClusterView>) -> (Self, ClusterTaskQueue) {
        let (errands, receiver) = mpsc::unbounded();
        let federation = Self {
            errands,
            tickets: Arc::default(),
            view,
            locations: OwnerHints::default(),
            timeout: config.timeout,
            is_strict: config.is_strict,
        };
        (federation, receiver)
    }

    /// Takes note of another list of peers. Where entries are stays known; which peer is the nearest does not.
    pub fn peers_changed(&self) {
        self.locations.order_changed();
    }

    pub(super) fn peers(&self) -> Peers {
        Peers { members: self.view.members() }
    }

    /// Asks one peer. With too many questions under way there is no answer.
    pub(super) fn ask(
        &self,
        peer: PeerId,
        target: &'static str,
        body: &Arc<[u8]>,
        deadline: Instant,
    ) -> oneshot::Receiver<Vec<u8>> {
        let (answer, receiver) = oneshot::channel();
        let ticket = Arc::clone(&self.tickets);
        if Arc::strong_count(&ticket) <= QUESTIONS_COUNT_MAX {
            let ask = PeerRequest { peer, target, body: Arc::clone(body), deadline, answer, _ticket: ticket };
            // The executor may have ended: the question is dropped, and has no answer.
            self.errands.unbounded_send(ClusterTask::Request(ask)).ok();
        }
        receiver
    }

    /// Has it noted that an answer of a peer was not one of a node. Its connections are given up: its name may lead to
    /// another host by now.
    pub(super) fn note_malformed(&self, peer: PeerId) {
        self.errands.unbounded_send(ClusterTask::NoteMalformed(peer)).ok();
    }

    /// Resolves after some time.
    pub(super) fn alarm(&self, after: Duration) -> oneshot::Receiver<()> {
        let (ring, receiver) = oneshot::channel();
        self.errands.unbounded_send(ClusterTask::Alarm { after, ring }).ok();
        receiver
    }
}

/// Answers that are waited for.
#[derive(Default)]
pub(super) struct Answers {
    waiting: Vec<(PeerId, oneshot::Receiver<Vec<u8>>)>,
}

impl Answers {
    pub(super) fn expect(&mut self, peer: PeerId, receiver: oneshot::Receiver<Vec<u8>>) {
        self.waiting.push((peer, receiver));
    }

    /// The next peer that has answered, or will not; `None` once no more are waited for.
    pub(super) async fn next(&mut self) -> Option<(PeerId, Option<Vec<u8>>)> {
        poll_fn(|context| {
            for index in 0..self.waiting.len() {
                if let Poll::Ready(answer) = Pin::new(&mut self.waiting[index].1).poll(context) {
                    let (peer, _) = self.waiting.swap_remove(index);
                    return Poll::Ready(Some((peer, answer.ok())));
                }
            }
            if self.waiting.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}
