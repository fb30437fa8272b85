//! Carries the questions of requests to the peers, several at a time, and the answers back.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_lite::StreamExt;

use super::peer::{Event, Failure};
use super::transport::{Request, Transport};
use super::{Context, Network};
use crate::http1::Method;
use crate::limits::QUESTIONS_COUNT_MAX_PER_PEER;
use crate::service::federation::{Ask, Errand, Errands};

/// An answer for which nobody waits any more is taken in for so long, so that its connection can be kept.
const UNWANTED_GRACE: Duration = Duration::from_millis(100);

/// The connections to one peer, and what waits for one.
struct Lines<N: Network> {
    idle: Vec<Transport<N>>,
    busy_count: usize,
    waiting: VecDeque<Ask>,
}

/// Takes errands until nobody can give any more.
pub(super) async fn run<N: Network>(context: Rc<Context<N>>, mut errands: Errands) {
    let lines = (0..context.peers.borrow().len()).map(|_| Lines {
        idle: Vec::new(),
        busy_count: 0,
        waiting: VecDeque::new(),
    });
    let lines: Rc<RefCell<Vec<Lines<N>>>> = Rc::new(RefCell::new(lines.collect()));
    while let Some(errand) = errands.next().await {
        match errand {
            Errand::Alarm { after, ring } => {
                let network = Rc::clone(&context.network);
                context.network.spawn(async move {
                    network.sleep(after).await;
                    // Nobody may wait for it any more.
                    ring.send(()).ok();
                });
            }
            Errand::Ask(ask) => {
                let peer = ask.peer;
                let mut of_all = lines.borrow_mut();
                // A question from before the peers were others.
                let Some(own) = of_all.get_mut(peer) else { continue };
                if own.busy_count >= QUESTIONS_COUNT_MAX_PER_PEER {
                    own.waiting.push_back(ask);
                    continue;
                }
                own.busy_count += 1;
                drop(of_all);
                context.network.spawn(serve(Rc::clone(&context), Rc::clone(&lines), ask));
            }
        }
    }
}

/// One line to a peer: this question, and then those that wait for a line.
async fn serve<N: Network>(context: Rc<Context<N>>, lines: Rc<RefCell<Vec<Lines<N>>>>, first: Ask) {
    let peer = first.peer;
    let idle = lines.borrow_mut()[peer].idle.pop();
    let mut transport = idle.unwrap_or_else(|| {
        let address = context.peers.borrow()[peer].address.clone();
        Transport::new(address, context.api_keys.clone())
    });
    let mut next = Some(first);
    while let Some(ask) = next {
        answer(&context, &mut transport, ask).await;
        next = lines.borrow_mut()[peer].waiting.pop_front();
    }
    let own = &mut lines.borrow_mut()[peer];
    own.busy_count -= 1;
    own.idle.push(transport);
}

async fn answer<N: Network>(context: &Context<N>, transport: &mut Transport<N>, ask: Ask) {
    let Ask { peer, target, body, deadline, answer: mut wanted, .. } = ask;
    let left = deadline.saturating_duration_since(Instant::now());
    if wanted.is_canceled() || left.is_zero() {
        return;
    }
    let request = Request { method: Method::Post, target, body: &body, timeout: left, wanted: &[] };
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
        Some(Ok(reply)) => {
            // Nobody may wait for it any more.
            wanted.send(reply.body).ok();
        }
        Some(Err(failure)) => {
            tracing::debug!(%failure, target, "a peer has not answered a question");
            if matches!(failure, Failure::Unreachable | Failure::Distrust(_)) {
                context.tell_unanswered(peer);
            }
        }
        // The connection has gone with the call: what still comes on it is no answer to the next question.
        None => {}
    }
}

impl<N: Network> Context<N> {
    /// The next questions should not wait for a peer in vain as well.
    fn tell_unanswered(&self, peer: usize) {
        let own = self.introduction();
        let mut peers = self.peers.borrow_mut();
        let known = &mut peers[peer];
        known.machine.step(self.network.now_ms(), Event::Unanswered, &own);
        if let Some(waker) = known.waker.take() {
            waker.wake();
        }
    }
}
