//! Bounded queue that is shared fairly between requesters.
//!
//! One FIFO per requester, served round robin: all jobs cost the same, so equal turns are equal
//! shares. A full queue takes a newcomer in place of the newest job of the requester that has most.

use std::collections::VecDeque;

use crate::model::Requester;

/// Jobs by requester. Each requester with a job has exactly one share, and no share is empty.
pub(super) struct FairQueue<T> {
    /// In the order of their turns.
    shares: VecDeque<Share<T>>,
    len: usize,
    len_max: usize,
}

struct Share<T> {
    requester: Requester,
    jobs: VecDeque<T>,
}

impl<T> FairQueue<T> {
    /// An empty queue for at most this many jobs.
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
    /// The job itself, when no other requester has at least two jobs more than this one.
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

    /// Takes out the jobs for which `is_over` is true.
    pub(super) fn take_if(&mut self, is_over: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for share in &mut self.shares {
            for job in std::mem::take(&mut share.jobs) {
                if is_over(&job) {
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

    /// Takes the newest job of the requester with most jobs, if the newcomer has clearly fewer: with one
    /// fewer, the two would displace each other in turn.
    fn displace(&mut self, newcomer: Requester) -> Option<T> {
        let waiting = self.shares.iter().find(|share| share.requester == newcomer);
        let waiting = waiting.map_or(0, |share| share.jobs.len());
        let largest = (0..self.shares.len()).max_by_key(|&index| self.shares[index].jobs.len())?;
        let jobs = &mut self.shares[largest].jobs;
        if jobs.len() <= waiting + 1 {
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
    fn requesters_take_turns_and_each_keeps_its_order() {
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
    fn a_newcomer_displaces_the_newest_job_of_the_largest_share() {
        let mut queue = FairQueue::new(4);
        for job in 1..=4 {
            assert_eq!(queue.push(FLOOD, job), Ok(None));
        }
        assert_eq!(queue.push(FLOOD, 5), Err(5), "its own requester has most");
        assert_eq!(queue.push(HONEST, 11), Ok(Some(4)));
        assert_eq!(queue.push(HONEST, 12), Ok(Some(3)));
        assert_eq!(queue.push(HONEST, 13), Err(13), "the shares are equal");
        assert_eq!(queue.push(THIRD, 21), Ok(Some(12)));
        assert_eq!(queue.push(FLOOD, 6), Err(6), "it has most again");
        assert_eq!(queue.len(), 4);
        assert_eq!(drain(&mut queue), [1, 11, 21, 2]);
    }

    #[test]
    fn equal_shares_displace_none() {
        let mut queue = FairQueue::new(2);
        assert_eq!((queue.push(FLOOD, 1), queue.push(HONEST, 2)), (Ok(None), Ok(None)));
        assert_eq!(queue.push(THIRD, 3), Err(3));
        let mut none = FairQueue::new(0);
        assert_eq!(none.push(FLOOD, 1), Err(1));
    }

    #[test]
    fn jobs_that_are_over_make_room() {
        let mut queue = FairQueue::new(4);
        for (requester, job) in [(FLOOD, 1), (FLOOD, 2), (HONEST, 11), (FLOOD, 3)] {
            assert_eq!(queue.push(requester, job), Ok(None));
        }
        assert_eq!(queue.take_if(|job| [1, 11].contains(job)), [1, 11]);
        assert_eq!(queue.len(), 2);
        assert_eq!((queue.push(THIRD, 21), queue.push(THIRD, 22)), (Ok(None), Ok(None)));
        assert_eq!(drain(&mut queue), [2, 21, 3, 22]);
    }

    /// Whatever the flood does, a requester with one job at a time waits for one job of each other.
    #[test]
    fn a_flood_delays_others_by_its_turn_only() {
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
