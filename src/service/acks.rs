//! Acknowledgements of local changes by peers, and the writes that wait for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use super::PeerId;

/// Maximum number of separate refused ranges that are tracked per peer.
const REFUSED_RANGES_COUNT_MAX: usize = 64;

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
    since: Instant,
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
                // Fails if the request was cancelled.
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

    /// Returns a receiver that resolves once `peers_count` peers have the change at a position in the replication log,
    /// or to `Canceled` after the timeout.
    pub(super) fn wait_for(&self, position: i64, peers_count: usize) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        if reached(&state.peers, position) >= peers_count {
            sender.send(()).ok();
        } else {
            state.waiting.push(Waiter { position, peers_count, since: Instant::now(), sender });
        }
        receiver
    }

    /// Fails the writes that have waited for longer than `timeout`.
    pub fn expire(&self, timeout: Duration) {
        self.lock().waiting.retain(|waiter| waiter.since.elapsed() < timeout);
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
    use super::*;

    #[test]
    fn a_write_waits_for_the_required_number_of_peers() {
        let acks = Acknowledgements::default();
        acks.note(PeerId::new(2), 5);
        let mut enough = acks.wait_for(5, 1);
        assert_eq!(enough.try_recv(), Ok(Some(())));
        let mut two = acks.wait_for(6, 2);
        acks.note(PeerId::new(0), 6);
        assert_eq!((two.try_recv(), acks.reached(6)), (Ok(None), 1));
        acks.note(PeerId::new(0), 9);
        assert_eq!(two.try_recv(), Ok(None), "one peer counts once");
        acks.note(PeerId::new(1), 7);
        assert_eq!((two.try_recv(), acks.reached(6)), (Ok(Some(())), 2));
        let mut late = acks.wait_for(100, 1);
        acks.expire(Duration::from_secs(3600));
        assert_eq!(late.try_recv(), Ok(None));
        acks.expire(Duration::ZERO);
        assert!(late.try_recv().is_err());
    }

    #[test]
    fn a_refused_change_is_not_acknowledged() {
        let acks = Acknowledgements::default();
        acks.note(PeerId::new(0), 4);
        let mut refused = acks.wait_for(6, 1);
        acks.note_refused(PeerId::new(0), 4, 6);
        acks.note(PeerId::new(0), 9);
        assert_eq!(refused.try_recv(), Ok(None), "later changes do not acknowledge it");
        assert_eq!([4, 5, 6, 7, 9, 10].map(|position| acks.reached(position)), [1, 0, 0, 1, 1, 0]);
        for position in (10..400).step_by(2) {
            acks.note_refused(PeerId::new(0), position, position + 1);
        }
        assert_eq!([6, 9, 11, 399].map(|position| acks.reached(position)), [0, 1, 0, 0]);
        acks.note_equal(PeerId::new(0));
        assert_eq!([6, 11, 399].map(|position| acks.reached(position)), [1, 1, 1]);
        assert_eq!(refused.try_recv(), Ok(Some(())));
    }
}
