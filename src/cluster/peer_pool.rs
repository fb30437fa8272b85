//! Connection pool for peer requests in federated mode: each peer has several connections, one request in flight on
//! each.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures_channel::oneshot;
use futures_lite::{Stream, StreamExt};
use futures_util::stream::FuturesUnordered;

use super::peer::{Event, PeerError};
use super::remarks::Remark;
use super::transport::Transport;
use super::{Context, Network, PeerTask, SharedPeerTask};
use crate::limits::{
    PEER_RECONTACT_TIMEOUT, PEER_REPLY_DRAIN_TIMEOUT, PEER_REQUESTS_COUNT_MAX,
    PEER_REQUESTS_COUNT_MAX_PER_PEER,
};
use crate::service::PeerId;
use crate::service::federation::{ClusterTask, ClusterTaskQueue, PeerRequest};

/// Connections to one peer, and the requests that wait for one.
#[derive(Default)]
struct PeerConnections {
    /// Senders of the next request, one per idle worker. The connection of the worker may be closed by now.
    idle: Vec<oneshot::Sender<PeerRequest>>,
    busy_count: usize,
    waiting: VecDeque<PeerRequest>,
}

type ConnectionsByPeer = Rc<RefCell<BTreeMap<PeerId, PeerConnections>>>;
type Tasks = FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>>;

/// Workers of each peer. If a peer leaves the list, its workers and the reply channels of their requests are dropped:
/// to the callers, the peer did not reply.
#[derive(Default)]
struct Running {
    workers: BTreeMap<PeerId, Tasks>,
    list_number: u64,
}

/// Processes cluster tasks until the queue is closed.
pub(super) async fn run<N: Network>(context: Rc<Context<N>>, mut queue: ClusterTaskQueue) {
    let mut running = Running::default();
    let connections = ConnectionsByPeer::default();
    while let Some(task) = next_task(&context, &connections, &mut queue, &mut running).await {
        match task {
            ClusterTask::NoteMalformed(id) => {
                let Some(peer) = context.peer(id) else { continue };
                context.remark(&peer, Remark::Malformed);
                context.publish();
                if let Some(of_peer) = connections.borrow_mut().get_mut(&id) {
                    // Idle workers stop, and close their connections.
                    of_peer.idle.clear();
                }
            }
            ClusterTask::Recontact(id, waiting) => {
                let Some(peer) = context.peer(id) else { continue };
                context.recontact(&peer, waiting);
            }
            ClusterTask::Request(request) => {
                // A request to a peer that has left the list in the meantime gets no reply.
                let Some(peer) = context.peer(request.peer) else { continue };
                let mut by_peer = connections.borrow_mut();
                let of_peer = by_peer.entry(request.peer).or_default();
                if of_peer.busy_count >= PEER_REQUESTS_COUNT_MAX_PER_PEER {
                    of_peer.waiting.push_back(request);
                    continue;
                }
                of_peer.busy_count += 1;
                let Some(request) = of_peer.hand_to_idle(request) else { continue };
                let workers = running.workers.entry(request.peer).or_default();
                workers.push(Box::pin(run_worker(
                    Rc::clone(&context),
                    Rc::clone(&connections),
                    peer,
                    request,
                )));
            }
        }
    }
}

impl PeerConnections {
    /// Hands a request to an idle worker; returns the request if there is none.
    fn hand_to_idle(&mut self, mut request: PeerRequest) -> Option<PeerRequest> {
        while let Some(idle) = self.idle.pop() {
            match idle.send(request) {
                Ok(()) => return None,
                Err(returned) => request = returned,
            }
        }
        Some(request)
    }
}

/// Returns the next task of the queue, and drives the running futures in the meantime.
async fn next_task<N: Network>(
    context: &Context<N>,
    connections: &ConnectionsByPeer,
    queue: &mut ClusterTaskQueue,
    running: &mut Running,
) -> Option<ClusterTask> {
    poll_fn(|cx| {
        let list_number = context.list_generation.get();
        if std::mem::replace(&mut running.list_number, list_number) != list_number {
            running.workers.retain(|id, _| context.peer(*id).is_some());
            connections.borrow_mut().retain(|id, _| context.peer(*id).is_some());
        }
        for tasks in running.workers.values_mut() {
            while let Poll::Ready(Some(())) = Pin::new(&mut *tasks).poll_next(cx) {}
        }
        queue.poll_next(cx)
    })
    .await
}

/// Runs one worker of a peer: sends `first`, then the requests that wait for a connection, then those that arrive
/// while its connection is open.
async fn run_worker<N: Network>(
    context: Rc<Context<N>>,
    connections: ConnectionsByPeer,
    peer: SharedPeerTask,
    first: PeerRequest,
) {
    let id = first.peer;
    let mut transport = Transport::new(peer.borrow().address.clone(), Arc::clone(&context.auth), None);
    let mut next = Some(first);
    while let Some(request) = next {
        send_request(&context, &mut transport, &peer, request).await;
        let idle = {
            let mut by_peer = connections.borrow_mut();
            let Some(of_peer) = by_peer.get_mut(&id) else { return };
            next = of_peer.waiting.pop_front();
            if next.is_some() {
                continue;
            }
            of_peer.busy_count -= 1;
            let (sender, receiver) = oneshot::channel();
            of_peer.idle.push(sender);
            receiver
        };
        next = next_of_idle(&mut transport, idle).await;
    }
}

/// Returns the next request of an idle worker; `None` once its connection is closed.
async fn next_of_idle<N: Network>(
    transport: &mut Transport<N>,
    mut idle: oneshot::Receiver<PeerRequest>,
) -> Option<PeerRequest> {
    poll_fn(|cx| match Pin::new(&mut idle).poll(cx) {
        Poll::Ready(request) => Poll::Ready(request.ok()),
        Poll::Pending if !transport.is_kept() => Poll::Ready(None),
        Poll::Pending => transport.poll_closed(cx).map(|()| None),
    })
    .await
}

async fn send_request<N: Network>(
    context: &Context<N>,
    transport: &mut Transport<N>,
    peer: &RefCell<PeerTask>,
    request: PeerRequest,
) {
    let PeerRequest { message, deadline, answer: mut reply, .. } = request;
    let timeout = deadline.saturating_duration_since(Instant::now());
    if reply.is_canceled() || timeout.is_zero() {
        return;
    }
    let outcome = {
        let mut call = pin!(transport.call(&*context.network, &message, timeout));
        let mut drain = None;
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            if drain.is_none() && reply.poll_canceled(cx).is_ready() {
                drain = Some(Box::pin(context.network.sleep(PEER_REPLY_DRAIN_TIMEOUT)));
            }
            match &mut drain {
                Some(drain) => drain.as_mut().poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    };
    match outcome {
        Some(Ok(body)) => {
            // The caller may have been cancelled.
            reply.send(body).ok();
        }
        Some(Err(error)) => {
            tracing::debug!(%error, target = message.path(), "peer request failed");
            if matches!(error, PeerError::Unreachable | PeerError::Identity(_) | PeerError::Distrust(_)) {
                context.report_unanswered(peer);
            }
        }
        // The connection was dropped with the call, so a late reply cannot be taken for that of the next request.
        None => {}
    }
}

impl<N: Network> Context<N> {
    /// Reports an unanswered request to the state machine of the peer, so that later requests do not wait for an
    /// unreachable peer, too.
    fn report_unanswered(&self, peer: &RefCell<PeerTask>) {
        self.notify(&mut peer.borrow_mut(), Event::RequestUnanswered);
    }

    /// Checks the health of a peer that was down, and drops `waiting` afterwards. A check that already takes longer
    /// than a request waits is not awaited by another one, so that a dead peer delays only a few requests.
    fn recontact(&self, peer: &RefCell<PeerTask>, waiting: oneshot::Sender<()>) {
        let (mut peer, now_ms) = (peer.borrow_mut(), self.network.now_ms());
        if peer.waiting.is_empty() {
            peer.waiting_since_ms = now_ms;
        }
        let is_late = u128::from(now_ms - peer.waiting_since_ms) >= PEER_RECONTACT_TIMEOUT.as_millis();
        let are_many = peer.waiting.len() >= PEER_REQUESTS_COUNT_MAX;
        if peer.machine.may_reply(now_ms) || is_late || are_many {
            return;
        }
        peer.waiting.push(waiting);
        self.notify(&mut peer, Event::Needed);
    }

    fn notify(&self, peer: &mut PeerTask, event: Event) {
        peer.machine.step(self.network.now_ms(), event, &self.own_info());
        if let Some(waker) = peer.waker.take() {
            waker.wake();
        }
    }
}
