//! Which peers have which own changes, and the writes that wait for that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

/// Lines of the outbox that peers have acknowledged.
#[derive(Debug, Default)]
pub struct Acknowledgements(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the peer's place in the configuration.
    lines: Vec<i64>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    line: i64,
    peers_count: usize,
    since: Instant,
    answer: oneshot::Sender<()>,
}

impl Acknowledgements {
    /// A peer has all own changes up to a line.
    pub fn note(&self, peer: usize, line: i64) {
        let mut state = self.lock();
        if state.lines.len() <= peer {
            state.lines.resize(peer + 1, 0);
        }
        state.lines[peer] = state.lines[peer].max(line);
        let lines = std::mem::take(&mut state.lines);
        for waiting in std::mem::take(&mut state.waiting) {
            if reached(&lines, waiting.line) >= waiting.peers_count {
                // The client may be gone.
                waiting.answer.send(()).ok();
            } else if !waiting.answer.is_canceled() {
                state.waiting.push(waiting);
            }
        }
        state.lines = lines;
    }

    /// Forgets what peers have: they are others now.
    pub(super) fn forget(&self) {
        self.lock().lines.clear();
    }

    /// How many peers have everything up to a line.
    pub fn reached(&self, line: i64) -> usize {
        reached(&self.lock().lines, line)
    }

    /// Resolves when that many peers have everything up to a line; `Canceled` when it takes too long.
    pub(super) fn wait_for(&self, line: i64, peers_count: usize) -> oneshot::Receiver<()> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.lock();
        if reached(&state.lines, line) >= peers_count {
            answer.send(()).ok();
        } else {
            state.waiting.push(Waiting { line, peers_count, since: Instant::now(), answer });
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

fn reached(lines: &[i64], line: i64) -> usize {
    lines.iter().filter(|acknowledged| **acknowledged >= line).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_waits_for_as_many_peers_as_it_was_told() {
        let board = Acknowledgements::default();
        board.note(2, 5);
        let mut enough = board.wait_for(5, 1);
        assert_eq!(enough.try_recv(), Ok(Some(())));
        let mut two = board.wait_for(6, 2);
        board.note(0, 6);
        assert_eq!((two.try_recv(), board.reached(6)), (Ok(None), 1));
        board.note(0, 9);
        assert_eq!(two.try_recv(), Ok(None), "one peer counts once");
        board.note(1, 7);
        assert_eq!((two.try_recv(), board.reached(6)), (Ok(Some(())), 2));
        let mut late = board.wait_for(100, 1);
        board.give_up(Duration::from_secs(3600));
        assert_eq!(late.try_recv(), Ok(None));
        board.give_up(Duration::ZERO);
        assert!(late.try_recv().is_err());
    }
}
