//! Completion queues: batched delivery of results from pool threads to the executors that wait for them.
//!
//! Delivered one by one, each result wakes an executor that pre-empts the niced pool thread on its core: two context
//! switches, and a wake-up of the executor that costs more than the read did. So a pool thread collects its results
//! for a short time, puts them into the queues of the executors, and wakes each executor once.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Delivery of one result to the task that waits for it.
pub(super) type Delivery = Box<dyn FnOnce() + Send>;

thread_local! {
    static CURRENT: RefCell<Option<Arc<QueueState>>> = const { RefCell::new(None) };
}

/// Completion queue of the thread that has opened it, for the jobs that it submits to the pool from then on. When the
/// queue is dropped, the results in it are delivered; later ones are delivered directly to the waiting tasks.
pub struct CompletionQueue(Arc<QueueState>);

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompletionQueue").finish_non_exhaustive()
    }
}

#[derive(Default)]
pub(super) struct QueueState(Mutex<State>);

#[derive(Default)]
struct State {
    deliveries: Vec<Delivery>,
    owner: Option<Waker>,
    is_closed: bool,
}

impl CompletionQueue {
    /// Opens the completion queue of this thread.
    #[must_use]
    pub fn open() -> Self {
        let shared = Arc::<QueueState>::default();
        CURRENT.set(Some(Arc::clone(&shared)));
        Self(shared)
    }

    /// Delivers results until the queue is dropped. To be run by the executor of the thread.
    pub fn run(&self) -> impl Future<Output = ()> + use<> {
        let shared = Arc::clone(&self.0);
        poll_fn(move |context| shared.poll(context))
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        let (deliveries, owner) = (mem::take(&mut state.deliveries), state.owner.take());
        drop(state);
        deliveries.into_iter().for_each(|delivery| delivery());
        owner.into_iter().for_each(Waker::wake);
    }
}

impl QueueState {
    /// Returns the completion queue of this thread, if it has one.
    pub(super) fn of_this_thread() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Queues a result without waking the owner; returns the result if the queue is closed.
    fn push(&self, delivery: Delivery) -> Result<(), Delivery> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(delivery);
        }
        state.deliveries.push(delivery);
        Ok(())
    }

    /// Wakes the owner if there are undelivered results.
    fn wake_owner(&self) {
        let mut state = self.lock();
        let owner = if state.deliveries.is_empty() { None } else { state.owner.take() };
        drop(state);
        owner.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.is_closed {
            return Poll::Ready(());
        }
        match &mut state.owner {
            Some(owner) => owner.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        let deliveries = mem::take(&mut state.deliveries);
        drop(state);
        deliveries.into_iter().for_each(|delivery| delivery());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Results of a pool thread that have not been delivered yet.
#[derive(Default)]
pub(super) struct CompletionBatch(Vec<(Option<Arc<QueueState>>, Delivery)>);

impl CompletionBatch {
    /// Adds a result; without a queue, it will be delivered directly.
    pub(super) fn add(&mut self, queue: Option<Arc<QueueState>>, delivery: Delivery) {
        self.0.push((queue, delivery));
    }

    /// Delivers all results, and wakes the owner of each queue once.
    pub(super) fn send(&mut self) {
        let mut queues: Vec<Arc<QueueState>> = Vec::new();
        for (queue, delivery) in self.0.drain(..) {
            let Some(queue) = queue else {
                delivery();
                continue;
            };
            match queue.push(delivery) {
                Ok(()) if queues.iter().any(|other| Arc::ptr_eq(other, &queue)) => {}
                Ok(()) => queues.push(queue),
                Err(delivery) => delivery(),
            }
        }
        queues.iter().for_each(|queue| queue.wake_owner());
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::mpsc;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn poll(task: Pin<&mut impl Future<Output = ()>>, wakes: &Arc<Wakes>) -> Poll<()> {
        task.poll(&mut Context::from_waker(&Arc::clone(wakes).into()))
    }

    fn add(
        batch: &mut CompletionBatch,
        queue: Option<Arc<QueueState>>,
        results: &mpsc::Sender<u32>,
        result: u32,
    ) {
        let results = results.clone();
        batch.add(queue, Box::new(move || results.send(result).expect("the test waits")));
    }

    #[test]
    fn a_batch_is_delivered_with_one_wake() {
        let (queue, wakes) = (CompletionQueue::open(), Arc::<Wakes>::default());
        let (sender, results) = mpsc::channel();
        let mut task = pin!(queue.run());
        assert!(poll(task.as_mut(), &wakes).is_pending());
        let mut batch = CompletionBatch::default();
        for result in 0..3 {
            add(&mut batch, QueueState::of_this_thread(), &sender, result);
        }
        batch.send();
        assert_eq!((wakes.0.load(Relaxed), results.try_recv().ok()), (1, None));
        assert!(poll(task.as_mut(), &wakes).is_pending());
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        batch.send();
        assert_eq!(wakes.0.load(Relaxed), 1, "the batch is empty");
    }

    #[test]
    fn results_from_before_the_first_poll_are_not_missed() {
        let (queue, wakes) = (CompletionQueue::open(), Arc::<Wakes>::default());
        let (sender, results) = mpsc::channel();
        let mut batch = CompletionBatch::default();
        add(&mut batch, QueueState::of_this_thread(), &sender, 1);
        batch.send();
        assert!(poll(pin!(queue.run()), &wakes).is_pending());
        assert_eq!(results.try_recv(), Ok(1));
    }

    #[test]
    fn without_an_open_queue_results_are_delivered_directly() {
        let (sender, results) = mpsc::channel();
        let mut batch = CompletionBatch::default();
        add(&mut batch, None, &sender, 1);
        batch.send();
        assert_eq!(results.try_recv(), Ok(1));

        let (queue, wakes) = (CompletionQueue::open(), Arc::<Wakes>::default());
        let mut task = pin!(queue.run());
        assert!(poll(task.as_mut(), &wakes).is_pending());
        add(&mut batch, QueueState::of_this_thread(), &sender, 2);
        batch.send();
        let late = QueueState::of_this_thread();
        drop(queue);
        assert_eq!(results.try_recv(), Ok(2), "it was in the queue");
        add(&mut batch, late, &sender, 3);
        batch.send();
        assert_eq!(results.try_recv(), Ok(3));
        assert!(poll(task.as_mut(), &wakes).is_ready());
    }
}
