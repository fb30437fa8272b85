//! Budgets of bytes that connections hold for slow clients: request bodies that arrive, and answers that wait to be
//! taken. A client that waits for the server is never a reason to end a connection; when a budget is used up, the
//! address with the most bytes gives way first, and of its connections the slowest.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::timers::Deadline;
use crate::limits::{EVICTIONS_COUNT_MAX_PER_TICK, STALL_UNDER_PRESSURE};
use crate::model::requester::network;

/// A bound on bytes that all executors hold together.
#[derive(Debug)]
pub struct ByteBudget {
    bytes_max: usize,
    held_bytes: AtomicUsize,
    /// Requests that found no room. Each one is a reason for every executor to look for a stalled connection.
    refused_count: AtomicU64,
    evicted_count: AtomicU64,
}

impl ByteBudget {
    /// A budget of so many bytes, none of which is held.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let (held_bytes, refused_count) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { bytes_max, held_bytes, refused_count, evicted_count: AtomicU64::new(0) })
    }

    /// The bound.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes that are held now.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Relaxed)
    }

    /// Requests that found no room, so far.
    pub fn refused_count(&self) -> u64 {
        self.refused_count.load(Relaxed)
    }

    /// Connections that had to give way, so far.
    pub fn evicted_count(&self) -> u64 {
        self.evicted_count.load(Relaxed)
    }

    fn exceeds(&self, more_bytes: usize) -> bool {
        self.held_bytes().saturating_add(more_bytes) > self.bytes_max
    }
}

/// What one connection holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Memory of its own.
    pub(super) bytes: usize,
    /// Memory that several connections may share, by its address, and its size: it counts once.
    pub(super) shared: Option<(usize, usize)>,
}

impl Held {
    /// As if nothing were shared: what counts against the address of the client.
    fn weight(self) -> usize {
        self.bytes + self.shared.map_or(0, |(_, bytes)| bytes)
    }
}

impl From<usize> for Held {
    fn from(bytes: usize) -> Self {
        Self { bytes, shared: None }
    }
}

/// The holders of a budget on one executor. Not shared between threads.
pub(super) struct Holders {
    budget: Arc<ByteBudget>,
    all: RefCell<BTreeMap<u64, Rc<Holder>>>,
    next_number: Cell<u64>,
    bytes_by_client: RefCell<HashMap<Option<IpAddr>, usize>>,
    /// How many connections share each piece of memory.
    sharers: RefCell<HashMap<usize, usize>>,
    refusals_seen: Cell<u64>,
}

/// One connection that holds bytes.
struct Holder {
    client: Option<IpAddr>,
    held: Cell<Held>,
    /// Since when it waits for its client; `None` while the client waits for it.
    stalled_since_ms: Cell<Option<u64>>,
    is_evicted: Cell<bool>,
    alarm: Rc<Deadline>,
}

/// What one connection holds of a budget, given back when it is dropped.
pub(super) struct Share<'a> {
    holders: &'a Holders,
    alarm: Rc<Deadline>,
    /// With its number; none as long as nothing is held.
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

    /// Makes room where other executors found none, and where more is held than may be. To be called some times a
    /// second.
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

    /// Whether there is room for more, if need be after others had to give way.
    fn make_room(&self, more_bytes: usize, client: Option<IpAddr>, now_ms: u64) -> bool {
        while self.budget.exceeds(more_bytes) {
            let own_bytes = self.bytes_of(client).saturating_add(more_bytes);
            // Others may be as quick as they like, if their address has more than this one would have.
            let gives_way = |bytes: usize, age_ms: u64| bytes > own_bytes || age_ms >= stall_ms();
            let Some(slowest) = self.slowest(gives_way, now_ms) else {
                self.budget.refused_count.fetch_add(1, Relaxed);
                return false;
            };
            self.evict(&slowest);
        }
        true
    }

    /// The slowest connection of the address that holds most, among those that may be chosen.
    fn slowest(&self, may_be: impl Fn(usize, u64) -> bool, now_ms: u64) -> Option<Rc<Holder>> {
        let all = self.all.borrow();
        let found = all.values().filter_map(|holder| {
            let age_ms = now_ms.saturating_sub(holder.stalled_since_ms.get()?);
            let bytes = self.bytes_of(holder.client);
            let weight = holder.held.get().weight();
            (weight > 0 && may_be(bytes, age_ms)).then_some(((bytes, age_ms, weight), holder))
        });
        found.max_by_key(|(rank, _)| *rank).map(|(_, holder)| Rc::clone(holder))
    }

    fn bytes_of(&self, client: Option<IpAddr>) -> usize {
        self.bytes_by_client.borrow().get(&client).copied().unwrap_or_default()
    }

    /// Ends a connection. Its memory is free as soon as the executor comes to it, so it no longer counts.
    fn evict(&self, holder: &Holder) {
        self.set(holder, Held::default());
        holder.is_evicted.set(true);
        holder.alarm.ring();
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
        // First what is added, so that nothing goes below zero.
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
    /// Nothing yet.
    pub(super) fn new(holders: &'a Holders, alarm: Rc<Deadline>) -> Self {
        Self { holders, alarm, holder: None }
    }

    /// Changes the number of bytes that are held; false, and nothing is held, when there is no room for it.
    pub(super) fn hold(&mut self, bytes: usize, client: Option<IpAddr>, now_ms: u64) -> bool {
        let more_bytes = bytes.saturating_sub(self.bytes());
        let has_room =
            !self.is_evicted() && (more_bytes == 0 || self.holders.make_room(more_bytes, client, now_ms));
        self.hold_anyway(if has_room { bytes } else { 0 }.into(), client);
        has_room
    }

    /// Changes what is held, for memory that is taken already. When the budget is exceeded by it, others give way at
    /// the next tick.
    pub(super) fn hold_anyway(&mut self, held: Held, client: Option<IpAddr>) {
        if self.holder.is_none() && held.weight() > 0 {
            let number = self.holders.next_number.get();
            self.holders.next_number.set(number + 1);
            let holder = Rc::new(Holder {
                client: client.map(network),
                held: Cell::default(),
                stalled_since_ms: Cell::new(None),
                is_evicted: Cell::new(false),
                alarm: Rc::clone(&self.alarm),
            });
            self.holders.all.borrow_mut().insert(number, Rc::clone(&holder));
            self.holder = Some((number, holder));
        }
        match &self.holder {
            Some((_, holder)) if holder.is_evicted.get() => {}
            Some((_, holder)) if held.weight() > 0 => self.holders.set(holder, held),
            _ => self.give_back(),
        }
    }

    /// Says since when the connection waits for its client, or that it does not.
    pub(super) fn stall(&self, since_ms: Option<u64>) {
        if let Some((_, holder)) = &self.holder {
            holder.stalled_since_ms.set(since_ms);
        }
    }

    /// Whether this connection has to give way.
    pub(super) fn is_evicted(&self) -> bool {
        self.holder.as_ref().is_some_and(|(_, holder)| holder.is_evicted.get())
    }

    /// Bytes that are held, besides what is shared.
    pub(super) fn bytes(&self) -> usize {
        self.holder.as_ref().map_or(0, |(_, holder)| holder.held.get().bytes)
    }

    fn give_back(&mut self) {
        if let Some((number, holder)) = self.holder.take() {
            self.holders.set(&holder, Held::default());
            self.holders.all.borrow_mut().remove(&number);
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.give_back();
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

    /// One that holds bytes and waits for its client since then.
    fn stalled(holders: &Holders, bytes: usize, client: u8, since_ms: u64) -> Share<'_> {
        let mut share = share(holders);
        share.hold_anyway(bytes.into(), address(client));
        share.stall(Some(since_ms));
        share
    }

    #[test]
    fn what_is_held_is_given_back() {
        let budget = ByteBudget::new(100);
        let holders = Holders::new(Arc::clone(&budget));
        let mut one = share(&holders);
        assert!(one.hold(60, address(1), 0) && one.hold(100, address(1), 0) && one.hold(30, address(1), 0));
        assert_eq!((budget.held_bytes(), one.bytes()), (30, 30));
        let mut other = share(&holders);
        other.hold_anyway(90.into(), address(2));
        assert_eq!(budget.held_bytes(), 120, "memory that is taken counts in any case");
        other.hold_anyway(0.into(), address(2));
        drop(one);
        assert_eq!(budget.held_bytes(), 0);
        assert!(holders.all.borrow().is_empty() && holders.bytes_by_client.borrow().is_empty());
    }

    #[test]
    fn a_client_that_waits_for_the_server_never_gives_way() {
        let holders = Holders::new(ByteBudget::new(100));
        let mut one = stalled(&holders, 100, 1, 0);
        one.stall(None);
        let mut newcomer = share(&holders);
        assert!(!newcomer.hold(10, address(2), 60_000));
        assert_eq!((newcomer.bytes(), one.bytes(), holders.budget.refused_count()), (0, 100, 1));
        one.stall(Some(60_000));
        assert!(newcomer.hold(10, address(2), 60_000), "the other address has more");
        assert!(one.is_evicted() && !one.hold(1, address(1), 60_000));
        assert_eq!((one.bytes(), holders.budget.held_bytes(), holders.budget.evicted_count()), (0, 10, 1));
    }

    #[test]
    fn the_slowest_of_the_address_with_most_gives_way() {
        let holders = Holders::new(ByteBudget::new(100));
        let alone = stalled(&holders, 40, 1, 0);
        let slower = stalled(&holders, 30, 2, 100);
        let faster = stalled(&holders, 30, 2, 200);
        let mut newcomer = share(&holders);
        assert!(newcomer.hold(20, address(3), 300));
        assert!(slower.is_evicted() && !faster.is_evicted() && !alone.is_evicted());
        // Now the first address has most.
        assert!(newcomer.hold(35, address(3), 300));
        assert!(alone.is_evicted() && !faster.is_evicted());
    }

    #[test]
    fn within_one_address_only_what_stalls_gives_way() {
        let holders = Holders::new(ByteBudget::new(100));
        let one = stalled(&holders, 60, 1, 0);
        let other = stalled(&holders, 40, 1, 500);
        let mut newcomer = share(&holders);
        assert!(!newcomer.hold(10, address(1), STALLED - 1));
        assert!(newcomer.hold(10, address(1), STALLED));
        assert!(one.is_evicted() && !other.is_evicted());
    }

    #[test]
    fn an_ipv6_client_has_a_whole_network() {
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
    fn what_is_shared_counts_once() {
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
        // The memory is free when the last one that shares it has given way.
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
        let (here, there) = (Holders::new(Arc::clone(&budget)), Holders::new(Arc::clone(&budget)));
        let stalled = stalled(&there, 100, 1, 0);
        let mut newcomer = share(&here);
        assert!(!newcomer.hold(10, address(2), 0));
        there.tick(STALLED - 1);
        assert!(!stalled.is_evicted(), "it has only just stalled");
        assert!(!newcomer.hold(10, address(2), STALLED));
        there.tick(STALLED);
        assert!(stalled.is_evicted() && newcomer.hold(10, address(2), STALLED));
        // Nothing more is asked for.
        let other = self::stalled(&there, 50, 1, 0);
        there.tick(10 * STALLED);
        assert!(!other.is_evicted());
        // More is held than may be.
        newcomer.hold_anyway(60.into(), address(2));
        there.tick(10 * STALLED);
        assert!(other.is_evicted());
    }
}
