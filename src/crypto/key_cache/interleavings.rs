//! The key cache in the interleavings of requests, derivations, sweeps and a change of the salt.

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::crypto::test_data::{salt, start};
use crate::limits::DERIVED_KEY_IDLE;
use crate::sync::{explore, explore_all};

/// Cache and salt of a node, which uses them as the service does.
struct Node {
    cache: KeyCache,
    salt: Mutex<Salt>,
    now_seconds: u64,
}

impl Node {
    fn new() -> Self {
        Self { cache: KeyCache::new(), salt: Mutex::new(salt()), now_seconds: 0 }
    }

    fn lookup(&self) -> Lookup {
        self.cache.lookup(&UserKey::from_header(b"key"), self.now_seconds)
    }

    fn derive(&self, claim: DerivationClaim) {
        // Read after the claim was taken.
        let salt = self.salt.lock().expect("no panic").clone();
        if claim.begin(&salt).is_some() && claim.is_wanted() {
            claim.complete(&salt, &RawKey::new([7; 32]));
        }
    }

    /// Returns the key; `None` if its derivation was abandoned.
    fn request(&self) -> Option<Arc<DerivedKey>> {
        let waiter = match self.lookup() {
            Lookup::Ready(key) => return Some(key),
            Lookup::Wait(waiter) => waiter,
            Lookup::Derive(claim, waiter) => {
                self.derive(claim);
                waiter
            }
        };
        block_on(waiter).ok()
    }

    /// Makes a request whose client disconnects at once.
    fn request_and_leave(&self) {
        if let Lookup::Derive(claim, waiter) = self.lookup() {
            drop(waiter);
            self.derive(claim);
        }
    }

    fn replace_salt(&self) -> Salt {
        let other = Salt::new(b"other salt").expect("it is not empty");
        *self.salt.lock().expect("no panic") = other.clone();
        self.cache.clear();
        other
    }

    fn check(&self) {
        assert!(self.cache.shared.lock().is_consistent());
    }

    /// Returns the number of derivations that have started, and of keys.
    fn check_idle(&self) -> (u64, usize) {
        self.check();
        let counts = self.cache.counts();
        assert_eq!(counts.pending, 0);
        (counts.derivations_started, counts.unproven + counts.proven)
    }
}

#[test]
fn concurrent_requests_share_one_derivation() {
    explore(|| {
        let node = Node::new();
        let keys = thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(|| node.request().expect("it is derived")));
            threads.map(|thread| thread.join().expect("no panic"))
        });
        assert!(keys.iter().all(|key| Arc::ptr_eq(key, &keys[0])));
        assert_eq!(node.check_idle(), (1, 1));
    });
}

#[test]
fn a_replaced_salt_leaves_no_key_of_the_old_one() {
    explore(|| {
        let node = Node::new();
        thread::scope(|scope| {
            scope.spawn(|| node.request());
            scope.spawn(|| node.request());
            scope.spawn(|| {
                let salt = node.replace_salt();
                let key = node.request().expect("it is not abandoned");
                assert!(key.salt().as_bytes() == salt.as_bytes(), "derived with the old salt");
            });
        });
        assert_eq!(node.check_idle().1, 1);
    });
}

#[test]
fn a_completed_claim_does_not_survive_a_clear() {
    explore_all(|| {
        let node = Node::new();
        let (claim, waiter) = start(&node.cache, "key");
        thread::scope(|scope| {
            scope.spawn(|| claim.complete(&salt(), &RawKey::new([7; 32])));
            scope.spawn(|| {
                node.cache.clear();
                // The claim of another request now owns the slot.
                let Lookup::Derive(_claim, mut waiter) = node.lookup() else {
                    panic!("a key of before the clear, or its claim, is found")
                };
                assert!(waiter.try_recv().is_ok_and(|key| key.is_none()));
            });
        });
        drop(waiter);
        node.check_idle();
    });
}

#[test]
fn every_waiter_of_a_dropped_claim_is_told() {
    explore(|| {
        let node = Node::new();
        let (claim, waiter) = start(&node.cache, "key");
        thread::scope(|scope| {
            scope.spawn(|| drop(claim));
            for _ in 0..2 {
                // The second derivation is not abandoned.
                scope.spawn(|| node.request().or_else(|| node.request()).expect("it is derived"));
            }
            assert!(block_on(waiter).is_err());
        });
        assert_eq!(node.check_idle(), (1, 1));
    });
}

#[test]
fn requests_that_leave_take_no_key_from_one_that_waits() {
    explore(|| {
        let node = Node::new();
        thread::scope(|scope| {
            scope.spawn(|| node.request_and_leave());
            scope.spawn(|| node.request_and_leave());
            scope.spawn(|| node.request().expect("it waits, so the derivation is wanted"));
            let counts = node.cache.counts();
            assert!(counts.derivations_completed <= counts.derivations_started, "{counts:?}");
        });
        assert_eq!(node.check_idle().1, 1);
    });
}

#[test]
fn each_key_is_in_one_queue_during_sweeps_and_clears() {
    explore(|| {
        let mut node = Node::new();
        node.request().expect("it is derived");
        node.now_seconds = DERIVED_KEY_IDLE.as_secs() + 1;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    node.cache.sweep(node.now_seconds);
                    node.check();
                });
            }
            scope.spawn(|| {
                if let Some(key) = node.request() {
                    key.mark_proven();
                }
                node.check();
            });
            scope.spawn(|| node.cache.clear());
        });
        node.cache.sweep(node.now_seconds);
        let (_, keys_count) = node.check_idle();
        assert!(keys_count <= 1);
        assert_eq!(node.cache.cached(b"key", node.now_seconds).is_some(), keys_count == 1);
    });
}
