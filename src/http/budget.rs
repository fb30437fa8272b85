//! Byte budgets for memory that connections hold for slow clients: arriving request bodies and unread responses.
//! Connections that wait for the server are never evicted. Once a budget is exhausted, connections that wait for their
//! client are: first those of the address that holds the most bytes, the slowest one first.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::timers::Deadline;
use crate::limits::{EVICTIONS_COUNT_MAX_PER_TICK, STALL_UNDER_PRESSURE};
use crate::model::requester::network;

/// A limit on the bytes that all executors hold together.
#[derive(Debug)]
pub struct ByteBudget {
    bytes_max: usize,
    held_bytes: AtomicUsize,
    /// Reservations that failed. Each one makes every executor look for a stalled connection to evict.
    refused_count: AtomicU64,
    evicted_count: AtomicU64,
}

impl ByteBudget {
    /// Creates an empty budget of `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let (held_bytes, refused_count) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { bytes_max, held_bytes, refused_count, evicted_count: AtomicU64::new(0) })
    }

    /// Returns the limit in bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Returns the bytes held now.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Relaxed)
    }

    /// Returns the number of failed reservations since the start.
    pub fn refused_count(&self) -> u64 {
        self.refused_count.load(Relaxed)
    }

    /// Returns the number of evicted connections since the start.
    pub fn evicted_count(&self) -> u64 {
        self.evicted_count.load(Relaxed)
    }

    fn exceeds(&self, more_bytes: usize) -> bool {
        self.held_bytes().saturating_add(more_bytes) > self.bytes_max
    }
}

/// Memory held by one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Memory of this connection alone, in bytes.
    pub(super) bytes: usize,
    /// Memory that several connections may share, as its address and its size in bytes; it counts once.
    pub(super) shared: Option<(usize, usize)>,
}

impl Held {
    /// Returns the bytes that count against the client's address: shared memory counts in full for every sharer.
    fn weight(self) -> usize {
        self.bytes + self.shared.map_or(0, |(_, bytes)| bytes)
    }
}

impl From<usize> for Held {
    fn from(bytes: usize) -> Self {
        Self { bytes, shared: None }
    }
}

/// The connections of one executor that hold bytes of a budget. Not shared between threads.
pub(super) struct Holders {
    budget: Arc<ByteBudget>,
    all: RefCell<BTreeMap<u64, Rc<Holder>>>,
    next_number: Cell<u64>,
    bytes_by_client: RefCell<HashMap<Option<IpAddr>, usize>>,
    /// Number of connections that share each piece of memory, by its address.
    sharers: RefCell<HashMap<usize, usize>>,
    refusals_seen: Cell<u64>,
}

/// A connection that holds bytes.
struct Holder {
    client: Option<IpAddr>,
    held: Cell<Held>,
    /// Time since which the connection waits for its client; `None` while the client waits for the server.
    stalled_since_ms: Cell<Option<u64>>,
    is_evicted: Cell<bool>,
    deadline: Rc<Deadline>,
}

/// One connection's share of a budget, released on drop.
pub(super) struct Share<'a> {
    holders: &'a Holders,
    deadline: Rc<Deadline>,
    /// The holder and its number; `None` while nothing is held.
    holder: Option<(u64, Rc<Holder>)>,
}

impl Holders {
    pub(super) fn new(budget: Arc<ByteBudget>) -> Self {
        Self {
            refusals_seen: Cell::new(budget.refused_count()),
            budget,
            all: RefCell::default(),
            next_number: Cell::new(0),
            bytes_by_client: RefCell::default(),
            sharers: RefCell::default(),
        }
    }

    /// Evicts stalled connections for failed reservations of any executor, and while the budget is exceeded. To be
    /// called several times per second.
    pub(super) fn tick(&self, now_ms: u64) {
        let refused_count = self.budget.refused_count();
        let refused = refused_count - self.refusals_seen.replace(refused_count);
        for number in 0..EVICTIONS_COUNT_MAX_PER_TICK {
            if number >= refused && !self.budget.exceeds(0) {
                return;
            }
            let Some(slowest) = self.slowest(|_, age_ms| age_ms >= stall_ms(), now_ms) else { return };
            self.evict(&slowest);
        }
    }

    /// Makes room for `more_bytes`, evicting other connections if necessary. False if that fails.
    fn make_room(&self, more_bytes: usize, client: Option<IpAddr>, now_ms: u64) -> bool {
        while self.budget.exceeds(more_bytes) {
            let own_bytes = self.bytes_of(client).saturating_add(more_bytes);
            // Even a fast connection is evicted if its address holds more than this one would.
            let is_evictable = |bytes: usize, age_ms: u64| bytes > own_bytes || age_ms >= stall_ms();
            let Some(slowest) = self.slowest(is_evictable, now_ms) else {
                self.budget.refused_count.fetch_add(1, Relaxed);
                return false;
            };
            self.evict(&slowest);
        }
        true
    }

    /// Returns the slowest eligible connection of the address that holds the most bytes.
    fn slowest(&self, is_eligible: impl Fn(usize, u64) -> bool, now_ms: u64) -> Option<Rc<Holder>> {
        let all = self.all.borrow();
        let found = all.values().filter_map(|holder| {
            let age_ms = now_ms.saturating_sub(holder.stalled_since_ms.get()?);
            let bytes = self.bytes_of(holder.client);
            let weight = holder.held.get().weight();
            (weight > 0 && is_eligible(bytes, age_ms)).then_some(((bytes, age_ms, weight), holder))
        });
        found.max_by_key(|(rank, _)| *rank).map(|(_, holder)| Rc::clone(holder))
    }

    fn bytes_of(&self, client: Option<IpAddr>) -> usize {
        self.bytes_by_client.borrow().get(&client).copied().unwrap_or_default()
    }

    /// Evicts a connection. Its bytes no longer count, because the executor frees them when it next runs it.
    fn evict(&self, holder: &Holder) {
        self.set(holder, Held::default());
        holder.is_evicted.set(true);
        holder.deadline.fire();
        self.budget.evicted_count.fetch_add(1, Relaxed);
    }

    fn set(&self, holder: &Holder, held: Held) {
        let before = holder.held.replace(held);
        if held == before {
            return;
        }
        let mut by_client = self.bytes_by_client.borrow_mut();
        let of_client = by_client.entry(holder.client).or_default();
        *of_client = *of_client - before.weight() + held.weight();
        if *of_client == 0 {
            by_client.remove(&holder.client);
        }
        let total = &self.budget.held_bytes;
        // Additions come first, so that the total never drops below zero.
        total.fetch_add(held.bytes, Relaxed);
        let mut sharers = self.sharers.borrow_mut();
        if let Some((address, bytes)) = held.shared {
            let count = sharers.entry(address).or_default();
            *count += 1;
            if *count == 1 {
                total.fetch_add(bytes, Relaxed);
            }
        }
        total.fetch_sub(before.bytes, Relaxed);
        if let Some((address, bytes)) = before.shared
            && let Some(count) = sharers.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                sharers.remove(&address);
                total.fetch_sub(bytes, Relaxed);
            }
        }
    }
}

impl<'a> Share<'a> {
    /// Creates an empty share.
    pub(super) fn new(holders: &'a Holders, deadline: Rc<Deadline>) -> Self {
        Self { holders, deadline, holder: None }
    }

    /// Changes the number of bytes held. If the budget has no room, returns false and releases everything.
    pub(super) fn hold(&mut self, bytes: usize, client: Option<IpAddr>, now_ms: u64) -> bool {
        let more_bytes = bytes.saturating_sub(self.bytes());
        let has_room =
            !self.is_evicted() && (more_bytes == 0 || self.holders.make_room(more_bytes, client, now_ms));
        self.hold_anyway(if has_room { bytes } else { 0 }.into(), client);
        has_room
    }

    /// Changes what is held, for memory that is already allocated. If that exceeds the budget, the next tick evicts
    /// stalled connections.
    pub(super) fn hold_anyway(&mut self, held: Held, client: Option<IpAddr>) {
        if self.holder.is_none() && held.weight() > 0 {
            let number = self.holders.next_number.get();
            self.holders.next_number.set(number + 1);
            let holder = Rc::new(Holder {
                client: client.map(network),
                held: Cell::default(),
                stalled_since_ms: Cell::new(None),
                is_evicted: Cell::new(false),
                deadline: Rc::clone(&self.deadline),
            });
            self.holders.all.borrow_mut().insert(number, Rc::clone(&holder));
            self.holder = Some((number, holder));
        }
        match &self.holder {
            Some((_, holder)) if holder.is_evicted.get() => {}
            Some((_, holder)) if held.weight() > 0 => self.holders.set(holder, held),
            _ => self.release(),
        }
    }

    /// Sets the time since which the connection waits for its client; `None` if it does not.
    pub(super) fn stall(&self, since_ms: Option<u64>) {
        if let Some((_, holder)) = &self.holder {
            holder.stalled_since_ms.set(since_ms);
        }
    }

    /// Returns whether this connection has been evicted.
    pub(super) fn is_evicted(&self) -> bool {
        self.holder.as_ref().is_some_and(|(_, holder)| holder.is_evicted.get())
    }

    /// Returns the bytes held, without shared memory.
    pub(super) fn bytes(&self) -> usize {
        self.holder.as_ref().map_or(0, |(_, holder)| holder.held.get().bytes)
    }

    fn release(&mut self) {
        if let Some((number, holder)) = self.holder.take() {
            self.holders.set(&holder, Held::default());
            self.holders.all.borrow_mut().remove(&number);
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

fn stall_ms() -> u64 {
    u64::try_from(STALL_UNDER_PRESSURE.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALLED: u64 = 2000;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn share(holders: &Holders) -> Share<'_> {
        Share::new(holders, Rc::default())
    }

    /// Returns a share that holds bytes and has waited for its client since the given time.
    fn stalled(holders: &Holders, bytes: usize, client: u8, since_ms: u64) -> Share<'_> {
        let mut share = share(holders);
        share.hold_anyway(bytes.into(), address(client));
        share.stall(Some(since_ms));
        share
    }

    #[test]
    fn held_bytes_are_released() {
        let budget = ByteBudget::new(100);
        let holders = Holders::new(Arc::clone(&budget));
        let mut one = share(&holders);
        assert!(one.hold(60, address(1), 0) && one.hold(100, address(1), 0) && one.hold(30, address(1), 0));
        assert_eq!((budget.held_bytes(), one.bytes()), (30, 30));
        let mut other = share(&holders);
        other.hold_anyway(90.into(), address(2));
        assert_eq!(budget.held_bytes(), 120, "allocated memory always counts");
        other.hold_anyway(0.into(), address(2));
        drop(one);
        assert_eq!(budget.held_bytes(), 0);
        assert!(holders.all.borrow().is_empty() && holders.bytes_by_client.borrow().is_empty());
    }

    #[test]
    fn a_client_that_waits_for_the_server_is_never_evicted() {
        let holders = Holders::new(ByteBudget::new(100));
        let mut one = stalled(&holders, 100, 1, 0);
        one.stall(None);
        let mut newcomer = share(&holders);
        assert!(!newcomer.hold(10, address(2), 60_000));
        assert_eq!((newcomer.bytes(), one.bytes(), holders.budget.refused_count()), (0, 100, 1));
        one.stall(Some(60_000));
        assert!(newcomer.hold(10, address(2), 60_000), "the other address holds more");
        assert!(one.is_evicted() && !one.hold(1, address(1), 60_000));
        assert_eq!((one.bytes(), holders.budget.held_bytes(), holders.budget.evicted_count()), (0, 10, 1));
    }

    #[test]
    fn the_slowest_connection_of_the_largest_address_is_evicted() {
        let holders = Holders::new(ByteBudget::new(100));
        let alone = stalled(&holders, 40, 1, 0);
        let slower = stalled(&holders, 30, 2, 100);
        let faster = stalled(&holders, 30, 2, 200);
        let mut newcomer = share(&holders);
        assert!(newcomer.hold(20, address(3), 300));
        assert!(slower.is_evicted() && !faster.is_evicted() && !alone.is_evicted());
        // Now the first address holds the most.
        assert!(newcomer.hold(35, address(3), 300));
        assert!(alone.is_evicted() && !faster.is_evicted());
    }

    #[test]
    fn within_one_address_only_stalled_connections_are_evicted() {
        let holders = Holders::new(ByteBudget::new(100));
        let one = stalled(&holders, 60, 1, 0);
        let other = stalled(&holders, 40, 1, 500);
        let mut newcomer = share(&holders);
        assert!(!newcomer.hold(10, address(1), STALLED - 1));
        assert!(newcomer.hold(10, address(1), STALLED));
        assert!(one.is_evicted() && !other.is_evicted());
    }

    #[test]
    fn an_ipv6_network_counts_as_one_client() {
        let holders = Holders::new(ByteBudget::new(100));
        let v6 = |text: &str| Some(text.parse().expect("an address"));
        let mut shares: Vec<Share<'_>> = (0..10).map(|_| share(&holders)).collect();
        for (number, share) in shares.iter_mut().enumerate() {
            share.hold_anyway(10.into(), v6(&format!("2001:db8::{number}")));
            share.stall(Some(0));
        }
        assert_eq!(holders.bytes_of(v6("2001:db8::")), 100);
        let mut newcomer = share(&holders);
        assert!(newcomer.hold(20, v6("2001:db8:0:1::1"), 0));
        assert_eq!(shares.iter().filter(|share| share.is_evicted()).count(), 2);
    }

    #[test]
    fn shared_memory_counts_once() {
        let budget = ByteBudget::new(100);
        let holders = Holders::new(Arc::clone(&budget));
        let shared = |bytes| Held { bytes, shared: Some((7, 50)) };
        let mut readers: Vec<Share<'_>> = (0..4).map(|_| share(&holders)).collect();
        for reader in &mut readers {
            reader.hold_anyway(shared(10), address(1));
            reader.stall(Some(0));
        }
        assert_eq!((budget.held_bytes(), holders.bytes_of(address(1))), (90, 240));
        readers[0].hold_anyway(5.into(), address(1));
        assert_eq!(budget.held_bytes(), 85);
        // The memory is free once its last sharer is evicted.
        let mut newcomer = share(&holders);
        assert!(newcomer.hold(60, address(2), 0));
        assert!(readers[1..].iter().all(Share::is_evicted) && !readers[0].is_evicted());
        drop(readers);
        assert_eq!(budget.held_bytes(), 60);
        assert!(holders.sharers.borrow().is_empty());
    }

    #[test]
    fn one_executor_makes_room_for_another() {
        let budget = ByteBudget::new(100);
        let (local, remote) = (Holders::new(Arc::clone(&budget)), Holders::new(Arc::clone(&budget)));
        let stalled = stalled(&remote, 100, 1, 0);
        let mut newcomer = share(&local);
        assert!(!newcomer.hold(10, address(2), 0));
        remote.tick(STALLED - 1);
        assert!(!stalled.is_evicted(), "the stall is too recent");
        assert!(!newcomer.hold(10, address(2), STALLED));
        remote.tick(STALLED);
        assert!(stalled.is_evicted() && newcomer.hold(10, address(2), STALLED));
        // No further reservation fails.
        let other = self::stalled(&remote, 50, 1, 0);
        remote.tick(10 * STALLED);
        assert!(!other.is_evicted());
        // The budget is exceeded.
        newcomer.hold_anyway(60.into(), address(2));
        remote.tick(10 * STALLED);
        assert!(other.is_evicted());
    }
}
