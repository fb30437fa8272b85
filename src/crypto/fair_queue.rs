//! Bounded queue, shared fairly between requesters.
//!
//! One FIFO per requester, served round robin: all jobs cost the same, so equal turns are equal
//! shares. In a full queue, a new job displaces the newest job of the requester with the most jobs.

use std::collections::VecDeque;

use crate::model::Requester;

/// Error for a queue that is full, or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Busy;

/// Jobs by requester. Each requester with a job has exactly one share, and no share is empty.
pub(super) struct FairQueue<T> {
    /// Shares in the order of their turns.
    shares: VecDeque<Share<T>>,
    len: usize,
    len_max: usize,
}

struct Share<T> {
    requester: Requester,
    jobs: VecDeque<T>,
}

impl<T> FairQueue<T> {
    /// Creates an empty queue for at most this many jobs.
    pub(super) fn new(len_max: usize) -> Self {
        Self { shares: VecDeque::new(), len: 0, len_max }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn len_max(&self) -> usize {
        self.len_max
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= self.len_max
    }

    /// Adds a job, and returns the one that it displaced from a full queue.
    ///
    /// # Errors
    /// Returns the job itself if no other requester has at least two jobs more than this one.
    pub(super) fn push(&mut self, requester: Requester, job: T) -> Result<Option<T>, T> {
        let displaced = match self.is_full() {
            false => None,
            true => match self.displace(requester) {
                None => return Err(job),
                displaced => displaced,
            },
        };
        self.len += 1;
        match self.shares.iter_mut().find(|share| share.requester == requester) {
            Some(share) => share.jobs.push_back(job),
            None => self.shares.push_back(Share { requester, jobs: VecDeque::from([job]) }),
        }
        Ok(displaced)
    }

    /// Takes the oldest job of the requester whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let mut share = self.shares.pop_front()?;
        let job = share.jobs.pop_front()?;
        self.len -= 1;
        if !share.jobs.is_empty() {
            self.shares.push_back(share);
        }
        Some(job)
    }

    /// Removes and returns the jobs that satisfy `predicate`.
    pub(super) fn take_if(&mut self, predicate: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for share in &mut self.shares {
            for job in std::mem::take(&mut share.jobs) {
                if predicate(&job) {
                    taken.push(job);
                } else {
                    share.jobs.push_back(job);
                }
            }
        }
        self.shares.retain(|share| !share.jobs.is_empty());
        self.len -= taken.len();
        taken
    }

    /// Removes and returns the newest job of the requester with the most jobs, if `requester` has at least two
    /// fewer: with one fewer, the two would displace each other in turn.
    fn displace(&mut self, requester: Requester) -> Option<T> {
        let own = self.shares.iter().find(|share| share.requester == requester);
        let own_len = own.map_or(0, |share| share.jobs.len());
        let largest = (0..self.shares.len()).max_by_key(|&index| self.shares[index].jobs.len())?;
        let jobs = &mut self.shares[largest].jobs;
        if jobs.len() <= own_len + 1 {
            return None;
        }
        self.len -= 1;
        jobs.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: Requester = Requester { network: None, api_key: Some(0) };
    const HONEST: Requester = Requester { network: None, api_key: Some(1) };
    const THIRD: Requester = Requester { network: None, api_key: Some(2) };

    fn drain(queue: &mut FairQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn requesters_take_turns_and_their_jobs_stay_in_order() {
        let mut queue = FairQueue::new(10);
        for (requester, job) in [(FLOOD, 1), (FLOOD, 2), (FLOOD, 3), (HONEST, 11), (HONEST, 12), (THIRD, 21)]
        {
            assert_eq!(queue.push(requester, job), Ok(None));
        }
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.push(THIRD, 22), Ok(None));
        assert_eq!(drain(&mut queue), [11, 21, 2, 12, 22, 3]);
        assert_eq!((queue.len(), queue.pop()), (0, None));
    }

    #[test]
    fn a_new_job_displaces_the_newest_job_of_the_largest_share() {
        let mut queue = FairQueue::new(4);
        for job in 1..=4 {
            assert_eq!(queue.push(FLOOD, job), Ok(None));
        }
        assert_eq!(queue.push(FLOOD, 5), Err(5), "its requester has the most jobs");
        assert_eq!(queue.push(HONEST, 11), Ok(Some(4)));
        assert_eq!(queue.push(HONEST, 12), Ok(Some(3)));
        assert_eq!(queue.push(HONEST, 13), Err(13), "the shares are equal");
        assert_eq!(queue.push(THIRD, 21), Ok(Some(12)));
        assert_eq!(queue.push(FLOOD, 6), Err(6), "its requester has the most jobs again");
        assert_eq!(queue.len(), 4);
        assert_eq!(drain(&mut queue), [1, 11, 21, 2]);
    }

    #[test]
    fn equal_shares_do_not_displace_each_other() {
        let mut queue = FairQueue::new(2);
        assert_eq!((queue.push(FLOOD, 1), queue.push(HONEST, 2)), (Ok(None), Ok(None)));
        assert_eq!(queue.push(THIRD, 3), Err(3));
        let mut empty = FairQueue::new(0);
        assert_eq!(empty.push(FLOOD, 1), Err(1));
    }

    #[test]
    fn removed_jobs_make_room() {
        let mut queue = FairQueue::new(4);
        for (requester, job) in [(FLOOD, 1), (FLOOD, 2), (HONEST, 11), (FLOOD, 3)] {
            assert_eq!(queue.push(requester, job), Ok(None));
        }
        assert_eq!(queue.take_if(|job| [1, 11].contains(job)), [1, 11]);
        assert_eq!(queue.len(), 2);
        assert_eq!((queue.push(THIRD, 21), queue.push(THIRD, 22)), (Ok(None), Ok(None)));
        assert_eq!(drain(&mut queue), [2, 21, 3, 22]);
    }

    /// Whatever the flood does, a requester with a single job waits for at most one job of each other requester.
    #[test]
    fn a_flood_delays_other_requesters_by_one_turn() {
        let mut queue = FairQueue::new(64);
        let mut next = 0;
        for round in 0..1000 {
            for _ in 0..100 {
                next += 1;
                let _refused = queue.push(FLOOD, next).is_err();
            }
            assert_ne!(queue.push(HONEST, 0), Err(0), "round {round}");
            assert!(queue.pop() == Some(0) || queue.pop() == Some(0), "round {round}");
            assert!(queue.len() <= queue.len_max());
        }
    }
}
