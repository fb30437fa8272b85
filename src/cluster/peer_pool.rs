//! Carries the questions of requests to the peers, several at a time, and the answers back.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use futures_lite::{Stream, StreamExt};
use futures_util::stream::FuturesUnordered;

use super::peer::{Event, PeerError};
use super::remarks::Remark;
use super::transport::{Request, Transport};
use super::{Context, KnownPeer, Network, PeerTask};
use crate::http1::Method;
use crate::limits::QUESTIONS_COUNT_MAX_PER_PEER;
use crate::service::PeerId;
use crate::service::federation::{ClusterTask, ClusterTaskQueue, PeerRequest};

/// An answer for which nobody waits any more is taken in for so long, so that its connection can be kept.
const UNWANTED_GRACE: Duration = Duration::from_millis(100);

/// The connections to one peer, and what waits for one.
#[derive(Default)]
struct PeerConnections {
    /// The next question of each idle line. Its connection may be over by now.
    idle: Vec<oneshot::Sender<PeerRequest>>,
    busy_count: usize,
    waiting: VecDeque<PeerRequest>,
}

type ConnectionsByPeer = Rc<RefCell<BTreeMap<PeerId, PeerConnections>>>;
type Tasks = FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>>;

/// Work for requests of clients: what is asked of each peer, and alarms. Questions to a peer that leaves the list are
/// dropped, and with them where their answers would go: to those who wait, the peer does not answer.
#[derive(Default)]
struct Work {
    asking: BTreeMap<PeerId, Tasks>,
    alarms: Tasks,
    list_number: u64,
}

/// Takes errands until none can come.
pub(super) async fn run<N: Network>(context: Rc<Context<N>>, mut errands: ClusterTaskQueue) {
    let mut work = Work::default();
    let lines = ConnectionsByPeer::default();
    while let Some(errand) = next(&context, &lines, &mut errands, &mut work).await {
        match errand {
            ClusterTask::Alarm { after, ring } => {
                let network = Rc::clone(&context.network);
                work.alarms.push(Box::pin(async move {
                    network.sleep(after).await;
                    // Nobody may wait for it any more.
                    ring.send(()).ok();
                }));
            }
            ClusterTask::NoteMalformed(id) => {
                let Some(peer) = context.peer(id) else { continue };
                context.remark(&peer, Remark::Malformed);
                context.publish();
                if let Some(own) = lines.borrow_mut().get_mut(&id) {
                    // Each ends its connection with that.
                    own.idle.clear();
                }
            }
            ClusterTask::Request(ask) => {
                // A question to a peer that has left the list meanwhile has no answer.
                let Some(peer) = context.peer(ask.peer) else { continue };
                let mut of_all = lines.borrow_mut();
                let own = of_all.entry(ask.peer).or_default();
                if own.busy_count >= QUESTIONS_COUNT_MAX_PER_PEER {
                    own.waiting.push_back(ask);
                    continue;
                }
                own.busy_count += 1;
                let Some(ask) = own.hand_to_idle(ask) else { continue };
                let tasks = work.asking.entry(ask.peer).or_default();
                tasks.push(Box::pin(run_worker(Rc::clone(&context), Rc::clone(&lines), peer, ask)));
            }
        }
    }
}

impl PeerConnections {
    /// Gives a question to an idle line; back if there is none.
    fn hand_to_idle(&mut self, mut ask: PeerRequest) -> Option<PeerRequest> {
        while let Some(idle) = self.idle.pop() {
            match idle.send(ask) {
                Ok(()) => return None,
                Err(back) => ask = back,
            }
        }
        Some(ask)
    }
}

/// The next errand; the work goes on meanwhile.
async fn next<N: Network>(
    context: &Context<N>,
    lines: &ConnectionsByPeer,
    errands: &mut ClusterTaskQueue,
    work: &mut Work,
) -> Option<ClusterTask> {
    poll_fn(|cx| {
        if std::mem::replace(&mut work.list_number, context.list_number.get()) != context.list_number.get() {
            work.asking.retain(|id, _| context.peer(*id).is_some());
            lines.borrow_mut().retain(|id, _| context.peer(*id).is_some());
        }
        for tasks in work.asking.values_mut().chain([&mut work.alarms]) {
            while let Poll::Ready(Some(())) = Pin::new(&mut *tasks).poll_next(cx) {}
        }
        errands.poll_next(cx)
    })
    .await
}

/// One line to a peer: this question, those that wait for a line, and those that come as long as its connection is
/// there.
async fn run_worker<N: Network>(
    context: Rc<Context<N>>,
    lines: ConnectionsByPeer,
    peer: KnownPeer,
    first: PeerRequest,
) {
    let id = first.peer;
    let mut transport = Transport::new(peer.borrow().address.clone(), Arc::clone(&context.auth), None);
    let mut next = Some(first);
    while let Some(ask) = next {
        send_request(&context, &mut transport, &peer, ask).await;
        let idle = {
            let mut lines = lines.borrow_mut();
            let Some(own) = lines.get_mut(&id) else { return };
            next = own.waiting.pop_front();
            if next.is_some() {
                continue;
            }
            own.busy_count -= 1;
            let (sender, receiver) = oneshot::channel();
            own.idle.push(sender);
            receiver
        };
        next = next_of_idle(&mut transport, idle).await;
    }
}

/// The next question to an idle line; `None` once its connection is over.
async fn next_of_idle<N: Network>(
    transport: &mut Transport<N>,
    mut idle: oneshot::Receiver<PeerRequest>,
) -> Option<PeerRequest> {
    poll_fn(|cx| match Pin::new(&mut idle).poll(cx) {
        Poll::Ready(ask) => Poll::Ready(ask.ok()),
        Poll::Pending if !transport.is_kept() => Poll::Ready(None),
        Poll::Pending => transport.poll_over(cx).map(|()| None),
    })
    .await
}

async fn send_request<N: Network>(
    context: &Context<N>,
    transport: &mut Transport<N>,
    peer: &RefCell<PeerTask>,
    ask: PeerRequest,
) {
    let PeerRequest { target, body, deadline, answer: mut wanted, .. } = ask;
    let left = deadline.saturating_duration_since(Instant::now());
    if wanted.is_canceled() || left.is_zero() {
        return;
    }
    let request = Request { method: Method::Post, target, body: &body, timeout: left };
    let outcome = {
        let mut call = pin!(transport.call(&*context.network, &request));
        let mut grace = None;
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            if grace.is_none() && wanted.poll_canceled(cx).is_ready() {
                grace = Some(Box::pin(context.network.sleep(UNWANTED_GRACE)));
            }
            match &mut grace {
                Some(grace) => grace.as_mut().poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    };
    match outcome {
        Some(Ok(body)) => {
            // Nobody may wait for it any more.
            wanted.send(body).ok();
        }
        Some(Err(failure)) => {
            tracing::debug!(%failure, target, "a peer has not answered a question");
            if matches!(failure, PeerError::Unreachable | PeerError::Identity(_) | PeerError::Distrust(_)) {
                context.tell_unanswered(peer);
            }
        }
        // The connection has gone with the call: what still comes on it is no answer to the next question.
        None => {}
    }
}

impl<N: Network> Context<N> {
    /// The next questions should not wait for a peer in vain as well.
    fn tell_unanswered(&self, peer: &RefCell<PeerTask>) {
        let own = self.introduction();
        let mut known = peer.borrow_mut();
        known.machine.step(self.network.now_ms(), Event::Unanswered, &own);
        if let Some(waker) = known.waker.take() {
            waker.wake();
        }
    }
}
