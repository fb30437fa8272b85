//! Which peers have which own changes, and the writes that wait for that.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use super::PeerId;

/// Parts of the outbox that are told apart in which a peer has refused something.
const REFUSED_PARTS_COUNT_MAX: usize = 64;

/// Lines of the outbox that peers have acknowledged.
#[derive(Debug, Default)]
pub struct Acknowledgements(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<PeerId, Peer>,
    waiting: Vec<Waiter>,
}

/// What one peer has.
#[derive(Debug, Default)]
struct Peer {
    /// It was sent everything up to this line.
    line: i64,
    /// Parts of that of which it has refused something: after the first line, up to the second.
    refused: Vec<(i64, i64)>,
}

impl Peer {
    fn has(&self, line: i64) -> bool {
        self.line >= line && !self.refused.iter().any(|(after, last)| (after + 1..=*last).contains(&line))
    }

    fn refuse(&mut self, after: i64, last: i64) {
        let are_many = self.refused.len() >= REFUSED_PARTS_COUNT_MAX;
        match self.refused.last_mut() {
            // Rather too much than too many.
            Some((_, end)) if *end == after || are_many => *end = last,
            _ => self.refused.push((after, last)),
        }
    }
}

#[derive(Debug)]
struct Waiter {
    line: i64,
    peers_count: usize,
    since: Instant,
    answer: oneshot::Sender<()>,
}

impl Acknowledgements {
    /// A peer was sent all own changes up to a line, and has taken them.
    pub fn note(&self, peer: PeerId, line: i64) {
        self.update(peer, |peer| peer.line = peer.line.max(line));
    }

    /// A peer was sent the own changes of some lines, and has refused one of them at least.
    pub fn note_refused(&self, peer: PeerId, after: i64, last: i64) {
        self.update(peer, |peer| {
            peer.refuse(after, last);
            peer.line = peer.line.max(last);
        });
    }

    /// A peer holds the same as this node: it has what it had refused.
    pub fn note_equal(&self, peer: PeerId) {
        self.update(peer, |peer| peer.refused.clear());
    }

    fn update(&self, peer: PeerId, change: impl FnOnce(&mut Peer)) {
        let mut state = self.lock();
        change(state.peers.entry(peer).or_default());
        for waiting in std::mem::take(&mut state.waiting) {
            if reached(&state.peers, waiting.line) >= waiting.peers_count {
                // The client may be gone.
                waiting.answer.send(()).ok();
            } else if !waiting.answer.is_canceled() {
                state.waiting.push(waiting);
            }
        }
    }

    /// Forgets all peers but these.
    pub fn keep(&self, peers: &[PeerId]) {
        self.lock().peers.retain(|peer, _| peers.contains(peer));
    }

    /// How many peers have the change of a line.
    pub fn reached(&self, line: i64) -> usize {
        reached(&self.lock().peers, line)
    }

    /// Resolves when that many peers have everything up to a line; `Canceled` when it takes too long.
    pub(super) fn wait_for(&self, line: i64, peers_count: usize) -> oneshot::Receiver<()> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.lock();
        if reached(&state.peers, line) >= peers_count {
            answer.send(()).ok();
        } else {
            state.waiting.push(Waiter { line, peers_count, since: Instant::now(), answer });
        }
        receiver
    }

    /// Tells those who have waited this long that they wait in vain.
    pub fn give_up(&self, patience: Duration) {
        self.lock().waiting.retain(|waiting| waiting.since.elapsed() < patience);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reached(peers: &BTreeMap<PeerId, Peer>, line: i64) -> usize {
    peers.values().filter(|peer| peer.has(line)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_waits_for_as_many_peers_as_it_was_told() {
        let board = Acknowledgements::default();
        board.note(PeerId::new(2), 5);
        let mut enough = board.wait_for(5, 1);
        assert_eq!(enough.try_recv(), Ok(Some(())));
        let mut two = board.wait_for(6, 2);
        board.note(PeerId::new(0), 6);
        assert_eq!((two.try_recv(), board.reached(6)), (Ok(None), 1));
        board.note(PeerId::new(0), 9);
        assert_eq!(two.try_recv(), Ok(None), "one peer counts once");
        board.note(PeerId::new(1), 7);
        assert_eq!((two.try_recv(), board.reached(6)), (Ok(Some(())), 2));
        let mut late = board.wait_for(100, 1);
        board.give_up(Duration::from_secs(3600));
        assert_eq!(late.try_recv(), Ok(None));
        board.give_up(Duration::ZERO);
        assert!(late.try_recv().is_err());
    }

    #[test]
    fn what_a_peer_has_refused_it_does_not_have() {
        let board = Acknowledgements::default();
        board.note(PeerId::new(0), 4);
        let mut refused = board.wait_for(6, 1);
        board.note_refused(PeerId::new(0), 4, 6);
        board.note(PeerId::new(0), 9);
        assert_eq!(refused.try_recv(), Ok(None), "later changes do not stand for it");
        assert_eq!([4, 5, 6, 7, 9, 10].map(|line| board.reached(line)), [1, 0, 0, 1, 1, 0]);
        for line in (10..400).step_by(2) {
            board.note_refused(PeerId::new(0), line, line + 1);
        }
        assert_eq!([6, 9, 11, 399].map(|line| board.reached(line)), [0, 1, 0, 0]);
        board.note_equal(PeerId::new(0));
        assert_eq!([6, 11, 399].map(|line| board.reached(line)), [1, 1, 1]);
        assert_eq!(refused.try_recv(), Ok(Some(())));
    }
}
