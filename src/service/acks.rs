//! Acknowledgements of local changes by peers, and the writes that wait for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

use super::PeerId;
use crate::limits::{ACKS_TIMEOUT, REFUSED_RANGES_COUNT_MAX};
use crate::timer;

/// Positions in the replication log that peers have acknowledged.
#[derive(Debug, Default)]
pub struct Acknowledgements(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<PeerId, Peer>,
    waiting: Vec<Waiter>,
}

/// Progress of one peer.
#[derive(Debug, Default)]
struct Peer {
    /// Position up to which all changes were sent.
    position: i64,
    /// Ranges below it that contain a refused change, each as (exclusive start, inclusive end).
    refused: Vec<(i64, i64)>,
}

impl Peer {
    fn has(&self, position: i64) -> bool {
        let is_refused = |(after, last): &(i64, i64)| (after + 1..=*last).contains(&position);
        self.position >= position && !self.refused.iter().any(is_refused)
    }

    fn refuse(&mut self, after: i64, last: i64) {
        let are_many = self.refused.len() >= REFUSED_RANGES_COUNT_MAX;
        match self.refused.last_mut() {
            // Adjacent ranges are merged. Above the limit, all are: an overestimate is safe.
            Some((_, end)) if *end == after || are_many => *end = last,
            _ => self.refused.push((after, last)),
        }
    }
}

#[derive(Debug)]
struct Waiter {
    position: i64,
    peers_count: usize,
    sender: oneshot::Sender<()>,
}

impl Acknowledgements {
    /// Records that a peer has accepted all local changes up to a position in the replication log.
    pub fn note(&self, peer: PeerId, position: i64) {
        self.update(peer, |peer| peer.position = peer.position.max(position));
    }

    /// Records that a peer was sent the local changes after position `after` up to `last`, and has refused at least
    /// one of them.
    pub fn note_refused(&self, peer: PeerId, after: i64, last: i64) {
        self.update(peer, |peer| {
            peer.refuse(after, last);
            peer.position = peer.position.max(last);
        });
    }

    /// Records that a peer is in sync with this node, so it has the changes that it had refused.
    pub fn note_equal(&self, peer: PeerId) {
        self.update(peer, |peer| peer.refused.clear());
    }

    fn update(&self, peer: PeerId, change: impl FnOnce(&mut Peer)) {
        let mut state = self.lock();
        change(state.peers.entry(peer).or_default());
        for waiter in std::mem::take(&mut state.waiting) {
            if reached(&state.peers, waiter.position) >= waiter.peers_count {
                // Fails if the request was cancelled or has timed out.
                waiter.sender.send(()).ok();
            } else if !waiter.sender.is_canceled() {
                state.waiting.push(waiter);
            }
        }
    }

    /// Removes all peers except these.
    pub fn keep(&self, peers: &[PeerId]) {
        self.lock().peers.retain(|peer, _| peers.contains(peer));
    }

    /// Returns the number of peers that have the change at a position in the replication log.
    pub fn reached(&self, position: i64) -> usize {
        reached(&self.lock().peers, position)
    }

    /// Waits until `peers_count` peers have the change at a position in the replication log.
    ///
    /// # Errors
    /// Returns the number of peers that have it after the timeout.
    pub(super) async fn wait_for(&self, position: i64, peers_count: usize) -> Result<(), usize> {
        let receiver = {
            let mut state = self.lock();
            if reached(&state.peers, position) >= peers_count {
                return Ok(());
            }
            let (sender, receiver) = oneshot::channel();
            // Without a connection to any peer, `update` does not remove the writes that no longer wait.
            state.waiting.retain(|waiter| !waiter.sender.is_canceled());
            state.waiting.push(Waiter { position, peers_count, sender });
            receiver
        };
        match timer::timeout(ACKS_TIMEOUT, receiver).await {
            Some(Ok(())) => Ok(()),
            _ => Err(self.reached(position)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reached(peers: &BTreeMap<PeerId, Peer>, position: i64) -> usize {
    peers.values().filter(|peer| peer.has(position)).count()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::timer::manual::ManualTimer;

    fn poll(wait: &mut (impl Future<Output = Result<(), usize>> + Unpin)) -> Option<Result<(), usize>> {
        block_on(poll_once(wait))
    }

    #[test]
    fn a_write_waits_for_the_required_number_of_peers() {
        let (_timer, acks) = (ManualTimer::install(), Acknowledgements::default());
        acks.note(PeerId::new(2), 5);
        assert_eq!(block_on(acks.wait_for(5, 1)), Ok(()));
        let mut two = pin!(acks.wait_for(6, 2));
        assert_eq!(poll(&mut two), None);
        acks.note(PeerId::new(0), 6);
        assert_eq!((poll(&mut two), acks.reached(6)), (None, 1));
        acks.note(PeerId::new(0), 9);
        assert_eq!(poll(&mut two), None, "one peer counts once");
        acks.note(PeerId::new(1), 7);
        assert_eq!((poll(&mut two), acks.reached(6)), (Some(Ok(())), 2));
    }

    #[test]
    fn a_write_fails_after_the_timeout_and_is_forgotten() {
        let (timer, acks) = (ManualTimer::install(), Acknowledgements::default());
        let mut late = Box::pin(acks.wait_for(100, 2));
        assert_eq!(poll(&mut late), None);
        acks.note(PeerId::new(0), 100);
        timer.advance(ACKS_TIMEOUT - Duration::from_millis(1));
        assert_eq!(poll(&mut late), None);
        timer.advance(Duration::from_millis(1));
        assert_eq!(poll(&mut late), Some(Err(1)));
        drop(late);
        assert_eq!(poll(&mut Box::pin(acks.wait_for(100, 2))), None);
        assert_eq!(acks.lock().waiting.len(), 1);
    }

    #[test]
    fn a_refused_change_is_not_acknowledged() {
        let (_timer, acks) = (ManualTimer::install(), Acknowledgements::default());
        acks.note(PeerId::new(0), 4);
        let mut refused = pin!(acks.wait_for(6, 1));
        assert_eq!(poll(&mut refused), None);
        acks.note_refused(PeerId::new(0), 4, 6);
        acks.note(PeerId::new(0), 9);
        assert_eq!(poll(&mut refused), None, "later changes do not acknowledge it");
        assert_eq!([4, 5, 6, 7, 9, 10].map(|position| acks.reached(position)), [1, 0, 0, 1, 1, 0]);
        for position in (10..400).step_by(2) {
            acks.note_refused(PeerId::new(0), position, position + 1);
        }
        assert_eq!([6, 9, 11, 399].map(|position| acks.reached(position)), [0, 1, 0, 0]);
        acks.note_equal(PeerId::new(0));
        assert_eq!([6, 11, 399].map(|position| acks.reached(position)), [1, 1, 1]);
        assert_eq!(poll(&mut refused), Some(Ok(())));
    }
}
