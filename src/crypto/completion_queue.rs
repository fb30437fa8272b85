//! Results of the pool on their way to the thread that waits for them, several at a time.
//!
//! A result that comes by itself wakes an executor that goes before the pool on its core: two switches between
//! threads, and a wait of the executor that costs more than the read did. So a thread of the pool lays what it has
//! done during a short while into the inboxes of the executors, and wakes each of them once.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Tells one result to whoever waits for it.
pub(super) type Delivery = Box<dyn FnOnce() + Send>;

thread_local! {
    static OWN: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// The inbox of the thread that has opened it, for what it submits to the pool from then on. When it is dropped,
/// what is in it is delivered, and what comes later goes to the waiting tasks directly.
pub struct CompletionQueue(Arc<Shared>);

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inbox").finish_non_exhaustive()
    }
}

#[derive(Default)]
pub(super) struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    deliveries: Vec<Delivery>,
    owner: Option<Waker>,
    is_closed: bool,
}

impl CompletionQueue {
    /// Opens the inbox of this thread.
    #[must_use]
    pub fn open() -> Self {
        let shared = Arc::<Shared>::default();
        OWN.set(Some(Arc::clone(&shared)));
        Self(shared)
    }

    /// Delivers what comes, until the inbox is dropped. To be run by the executor of the thread.
    pub fn deliver(&self) -> impl Future<Output = ()> + use<> {
        let shared = Arc::clone(&self.0);
        poll_fn(move |context| shared.poll(context))
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        let (left, owner) = (mem::take(&mut state.deliveries), state.owner.take());
        drop(state);
        left.into_iter().for_each(|delivery| delivery());
        owner.into_iter().for_each(Waker::wake);
    }
}

impl Shared {
    /// The inbox of this thread, if it has one.
    pub(super) fn of_this_thread() -> Option<Arc<Self>> {
        OWN.with_borrow(Clone::clone)
    }

    /// Lays a result into the inbox, without a word; gives it back when the inbox is closed.
    fn put(&self, delivery: Delivery) -> Result<(), Delivery> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(delivery);
        }
        state.deliveries.push(delivery);
        Ok(())
    }

    /// Wakes the owner, if there is something that he has not seen.
    fn call(&self) {
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

/// What a thread of the pool has done and not yet told.
#[derive(Default)]
pub(super) struct CompletionBatch(Vec<(Option<Arc<Shared>>, Delivery)>);

impl CompletionBatch {
    pub(super) fn add(&mut self, inbox: Option<Arc<Shared>>, delivery: Delivery) {
        self.0.push((inbox, delivery));
    }

    /// Tells it.
    pub(super) fn send(&mut self) {
        let mut inboxes: Vec<Arc<Shared>> = Vec::new();
        for (inbox, delivery) in self.0.drain(..) {
            let Some(inbox) = inbox else {
                delivery();
                continue;
            };
            match inbox.put(delivery) {
                Ok(()) if inboxes.iter().any(|other| Arc::ptr_eq(other, &inbox)) => {}
                Ok(()) => inboxes.push(inbox),
                Err(delivery) => delivery(),
            }
        }
        inboxes.iter().for_each(|inbox| inbox.call());
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

    fn put(
        outbox: &mut CompletionBatch,
        inbox: Option<Arc<Shared>>,
        results: &mpsc::Sender<u32>,
        result: u32,
    ) {
        let results = results.clone();
        outbox.add(inbox, Box::new(move || results.send(result).expect("the test waits")));
    }

    #[test]
    fn what_was_done_in_a_while_comes_with_one_wake() {
        let (inbox, wakes) = (CompletionQueue::open(), Arc::<Wakes>::default());
        let (sender, results) = mpsc::channel();
        let mut task = pin!(inbox.deliver());
        assert!(poll(task.as_mut(), &wakes).is_pending());
        let mut outbox = CompletionBatch::default();
        for result in 0..3 {
            put(&mut outbox, Shared::of_this_thread(), &sender, result);
        }
        outbox.send();
        assert_eq!((wakes.0.load(Relaxed), results.try_recv().ok()), (1, None));
        assert!(poll(task.as_mut(), &wakes).is_pending());
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
        outbox.send();
        assert_eq!(wakes.0.load(Relaxed), 1, "nothing was done");
    }

    #[test]
    fn what_comes_before_the_task_first_looks_is_not_missed() {
        let (inbox, wakes) = (CompletionQueue::open(), Arc::<Wakes>::default());
        let (sender, results) = mpsc::channel();
        let mut outbox = CompletionBatch::default();
        put(&mut outbox, Shared::of_this_thread(), &sender, 1);
        outbox.send();
        assert!(poll(pin!(inbox.deliver()), &wakes).is_pending());
        assert_eq!(results.try_recv(), Ok(1));
    }

    #[test]
    fn without_an_inbox_or_with_a_closed_one_results_come_directly() {
        let (sender, results) = mpsc::channel();
        let mut outbox = CompletionBatch::default();
        put(&mut outbox, None, &sender, 1);
        outbox.send();
        assert_eq!(results.try_recv(), Ok(1));

        let (inbox, wakes) = (CompletionQueue::open(), Arc::<Wakes>::default());
        let mut task = pin!(inbox.deliver());
        assert!(poll(task.as_mut(), &wakes).is_pending());
        put(&mut outbox, Shared::of_this_thread(), &sender, 2);
        outbox.send();
        let late = Shared::of_this_thread();
        drop(inbox);
        assert_eq!(results.try_recv(), Ok(2), "it was in the inbox");
        put(&mut outbox, late, &sender, 3);
        outbox.send();
        assert_eq!(results.try_recv(), Ok(3));
        assert!(poll(task.as_mut(), &wakes).is_ready());
    }
}
