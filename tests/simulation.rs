//! Deterministic simulation of three nodes: real stores and real peer state machines, on a clock and a network that a
//! seeded generator controls. Regardless of lost and delayed messages, partitions and restarts, once all faults have
//! ended every node holds the latest version of every entry, and the nodes then stop exchanging entries.
//!
//! `OSC_TEST_SEED` runs one seed again; `OSC_TEST_SIMULATION_SEEDS` sets the number of seeds. A run depends on its seed
//! only: the clocks from which versions are generated are simulated, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread;

use futures_lite::future::block_on;
use opensecureconf::cluster::{
    Action, Comparison, Difference, Effect, Event, NodeInfo, Peer, PeerError, Pushed, State, difference,
    settled_count,
};
use opensecureconf::limits::{BUCKETS_COUNT, ENTRY_CACHE_BYTES_MIN};
use opensecureconf::model::{
    Change, Ciphertext, Digest, EntryId, Filter, HlcTimestamp, OwnerTag, ReplicaId, VersionedDigest,
};
use opensecureconf::storage::sqlite::Options;
use opensecureconf::storage::{
    Commit, PeerProgress, ReplicationLog, Storage, Subscriber, VersioningOptions, VersionsPage, Write,
    WriteError,
};
use opensecureconf::wire::Protocol;

const NODES_COUNT: usize = 3;
const KEYS_COUNT: u64 = 8;
const SEEDS_COUNT: u64 = 1000;
/// Start of the simulated time, in milliseconds since 1970: in the year 2200, because rows carry real times, which must
/// not be ahead of the simulated clocks.
const EPOCH_MS: u64 = 7_258_118_400_000;
const SYNC_INTERVAL_MS: u64 = 30_000;
/// Timeouts as in the server.
const HEALTH_TIMEOUT_MS: u64 = 5_000;
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// Time from the end of all faults to convergence: a timeout, the longest backoff, and two anti-entropy rounds.
const CONVERGENCE_MS: u64 = 3 * SYNC_INTERVAL_MS;
const QUIET_MS: u64 = 5 * SYNC_INTERVAL_MS;
/// Limit on the actions at one instant; above it, a state machine is in a busy loop.
const ACTIONS_COUNT_MAX_PER_INSTANT: u32 = 200;
/// So few that several replies are needed if many entries differ.
const VERSIONS_BYTES: usize = 300;
const OWNER: OwnerTag = OwnerTag([1; 32]);

/// `SplitMix64`: a small generator with the same sequence on every platform.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("fits in usize")
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A peer request in transit.
enum Request {
    Health,
    Apply(Vec<Change>),
    Digests(Digest),
    Versions(Vec<usize>),
    Entries(Vec<EntryId>),
}

/// A reply in transit.
enum Reply {
    NodeInfo(NodeInfo),
    /// Whether the target refused some changes.
    Applied {
        has_refused: bool,
    },
    /// Empty when the digests are equal.
    Digests(Vec<Digest>),
    Versions(VersionsPage),
    Entries(Vec<Change>),
}

/// The state that the requesting node needs to turn the reply into an event.
enum Pending {
    Health,
    Push(Pushed),
    Digests { begun: HlcTimestamp },
    Versions(Vec<usize>),
    Fetch(Vec<EntryId>),
    Send(usize),
}

impl Pending {
    fn failed(self, error: PeerError) -> Event {
        match self {
            Self::Health => Event::Health(Err(error)),
            Self::Push(_) => Event::Pushed(Err(error)),
            Self::Digests { .. } => Event::Digests(Err(error)),
            Self::Versions(_) => Event::Versions(Err(error)),
            Self::Fetch(_) => Event::Fetched(Err(error)),
            Self::Send(_) => Event::Sent(Err(error)),
        }
    }
}

/// A peer request between two nodes. The number distinguishes its reply from late replies to earlier requests.
#[derive(Clone, Copy)]
struct Call {
    from: usize,
    to: usize,
    number: u64,
}

/// A scheduled event of the simulation.
enum SimEvent {
    WakeUp { node: usize, peer: usize, instance: u64 },
    RequestArrival(Call, Request),
    ReplyArrival(Call, Result<Reply, PeerError>),
    Timeout(Call),
    ClientWrite,
    NetworkChange,
    Stop,
    Start { node: usize },
}

/// A peer of a node, with the request in flight and the next wake-up.
struct PeerTask {
    machine: Peer,
    in_flight: Option<(u64, Pending)>,
    wakes_at_ms: Option<u64>,
}

/// Engine of the nodes. A store in memory outlives the restarts of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineKind {
    Sqlite,
    Memory,
}

/// Last position in the replication log of a node.
#[derive(Default)]
struct LogEnd(AtomicI64);

impl Subscriber for LogEnd {
    fn publish(&self, commit: &Commit) {
        if let Some(position) = commit.log_position {
            self.0.fetch_max(position, Ordering::SeqCst);
        }
    }
}

struct Node {
    store: Option<Storage>,
    /// Store in memory of a node that is stopped.
    parked: Option<Storage>,
    directory: tempfile::TempDir,
    instance: u64,
    replica: ReplicaId,
    /// Number of times that the node was replaced by one with an empty directory.
    generation: u64,
    log_end: Arc<LogEnd>,
    /// Peers by node index; the entry of the node itself is never driven.
    peers: Vec<PeerTask>,
    clock_offset_ms: Arc<AtomicI64>,
}

impl Node {
    fn store(&self) -> &Storage {
        self.store.as_ref().expect("the node is running")
    }

    fn log(&self) -> &dyn ReplicationLog {
        self.store().replication().expect("a clustered store")
    }

    fn changes(&self, ids: &[EntryId]) -> Vec<Change> {
        block_on(self.log().changes(ids.to_vec())).expect("readable")
    }

    fn versions(&self, buckets: &[usize], bytes_max: usize) -> VersionsPage {
        block_on(self.log().versions(buckets.to_vec(), bytes_max)).expect("readable")
    }

    fn bucket_digests(&self) -> Vec<Digest> {
        self.log().digests().all().expect("a small store")
    }

    /// Returns the root digest. The digests of a small store are computed when it is opened.
    fn digest(&self) -> Digest {
        self.log().digests().root().expect("a small store")
    }

    fn node_info(&self) -> NodeInfo {
        NodeInfo {
            name: "node".to_owned(),
            instance: self.instance,
            node: Some(self.replica),
            is_federated: false,
            salt: Some(1),
            has_entries: true,
            horizon: self.log().horizon(),
            protocol: Protocol::NEWEST,
        }
    }

    /// Applies changes of a peer, and returns whether some were refused. Asserts that no version is replaced by an
    /// older one.
    fn apply(&self, changes: Vec<Change>) -> bool {
        let ids: Vec<EntryId> = changes.iter().map(|change| change.id.clone()).collect();
        let before = self.versions_of(&ids);
        let applied = block_on(self.log().apply(changes)).expect("applied");
        let after = self.versions_of(&ids);
        for (id, version) in before {
            assert!(after.get(&id) >= Some(&version), "{id:?} was replaced by an older version");
        }
        !applied.ahead.is_empty()
    }

    fn versions_of(&self, ids: &[EntryId]) -> BTreeMap<EntryId, opensecureconf::model::Version> {
        let changes = self.changes(ids);
        changes.into_iter().map(|change| (change.id, change.version)).collect()
    }

    fn record_progress(&self, progress: PeerProgress) {
        block_on(self.log().record_progress(progress)).expect("recorded");
    }
}

struct Simulation {
    random: Random,
    now_ms: u64,
    /// The correct wall clock at `now_ms`, in milliseconds since 1970.
    clock: Arc<AtomicU64>,
    queue: BTreeMap<(u64, u64), SimEvent>,
    scheduled_count: u64,
    nodes: Vec<Node>,
    /// `is_cut[from][to]`.
    is_cut: [[bool; NODES_COUNT]; NODES_COUNT],
    loss_percent: u64,
    /// The end of all faults.
    heals_at_ms: u64,
    /// Clock offsets in milliseconds that no node has had yet.
    clock_offsets: Vec<i64>,
    skew: Skew,
    engine: EngineKind,
    /// Pushes that were partly refused.
    refused_count: u64,
    replaced_count: u64,
    /// The latest change ever written, by entry.
    latest: BTreeMap<EntryId, Change>,
    writes_count: u64,
    /// The time of the last action other than a health check or a digest comparison.
    active_at_ms: u64,
    actions_at_instant: (u64, u32),
    trace: VecDeque<String>,
}

/// Clock skew of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skew {
    /// All clocks agree.
    None,
    /// Up to two minutes in either direction: no version is refused.
    Small,
    /// Up to an hour in either direction, until all faults end.
    Large,
}

impl Skew {
    fn step_ms(self) -> i64 {
        match self {
            Self::None => 0,
            Self::Small => 4_000,
            Self::Large => 120_000,
        }
    }

    /// The time from the end of all faults until all nodes must be equal.
    fn convergence_ms(self) -> u64 {
        match self {
            Self::None | Self::Small => CONVERGENCE_MS,
            // The correct clocks must first catch up with the versions from clocks that were ahead.
            Self::Large => CONVERGENCE_MS + 60 * 60 * 1000,
        }
    }
}

impl Simulation {
    fn new(seed: u64, root: &Path, skew: Skew, engine: EngineKind) -> Self {
        let mut random = Random(seed);
        let heals_at_ms = 60_000 + random.below(240_000);
        let clock_offsets: Vec<i64> = (-30..=30).map(|step| step * skew.step_ms()).collect();
        let mut simulation = Self {
            now_ms: 0,
            clock: Arc::new(AtomicU64::new(EPOCH_MS)),
            queue: BTreeMap::new(),
            scheduled_count: 0,
            nodes: Vec::new(),
            is_cut: Default::default(),
            loss_percent: random.below(30),
            heals_at_ms,
            clock_offsets,
            skew,
            engine,
            refused_count: 0,
            replaced_count: 0,
            latest: BTreeMap::new(),
            writes_count: 0,
            active_at_ms: 0,
            actions_at_instant: (0, 0),
            trace: VecDeque::new(),
            random,
        };
        for index in 0..NODES_COUNT {
            let directory = new_node_directory(root);
            simulation.nodes.push(Node {
                store: None,
                parked: None,
                directory,
                instance: 0,
                replica: ReplicaId::default(),
                generation: 0,
                log_end: Arc::default(),
                peers: Vec::new(),
                clock_offset_ms: Arc::default(),
            });
            // Nodes start together or minutes apart.
            let delay_ms = if simulation.random.percent(50) { 0 } else { simulation.random.below(30_000) };
            simulation.schedule(delay_ms, SimEvent::Start { node: index });
        }
        simulation.schedule(1, SimEvent::ClientWrite);
        simulation.schedule(1, SimEvent::NetworkChange);
        simulation.schedule(20_000, SimEvent::Stop);
        simulation
    }

    fn schedule(&mut self, delay_ms: u64, sim_event: SimEvent) {
        self.scheduled_count += 1;
        self.queue.insert((self.now_ms + delay_ms, self.scheduled_count), sim_event);
    }

    fn is_healed(&self) -> bool {
        self.now_ms >= self.heals_at_ms
    }

    fn log(&mut self, line: String) {
        if self.trace.len() == 120 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>7} {line}", self.now_ms));
    }

    fn run_until(&mut self, end_ms: u64) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end_ms) {
            self.now_ms = entry.key().0;
            self.clock.store(EPOCH_MS + self.now_ms, Ordering::SeqCst);
            let sim_event = entry.remove();
            self.dispatch(sim_event);
        }
        self.now_ms = end_ms;
    }

    fn dispatch(&mut self, sim_event: SimEvent) {
        match sim_event {
            SimEvent::WakeUp { node, peer, instance } => {
                if self.nodes[node].store.is_some() && self.nodes[node].instance == instance {
                    self.nodes[node].peers[peer].wakes_at_ms = None;
                    self.drive_peer(node, peer);
                }
            }
            SimEvent::RequestArrival(call, request) => self.handle_request(call, request),
            SimEvent::ReplyArrival(call, reply) => {
                if let Some(pending) = self.take_pending(call) {
                    let event = self.event_of(call, pending, reply);
                    self.handle_event(call.from, call.to, event);
                    self.drive_peer(call.from, call.to);
                }
            }
            SimEvent::Timeout(call) => {
                if let Some(pending) = self.take_pending(call) {
                    self.log(format!("{}>{} timeout", call.from, call.to));
                    self.handle_event(call.from, call.to, pending.failed(PeerError::Unreachable));
                    self.drive_peer(call.from, call.to);
                }
            }
            SimEvent::ClientWrite => self.write_something(),
            SimEvent::NetworkChange => self.change_network(),
            SimEvent::Stop => self.stop_random_node(),
            SimEvent::Start { node } => self.start(node),
        }
    }

    /// Takes the request that a reply belongs to, if the node still waits for it.
    fn take_pending(&mut self, call: Call) -> Option<Pending> {
        let task = self.nodes[call.from].peers.get_mut(call.to)?;
        let (_, pending) = task.in_flight.take_if(|(number, _)| *number == call.number)?;
        self.nodes[call.from].store.is_some().then_some(pending)
    }

    fn start(&mut self, index: usize) {
        // The clock may have been set forward or back in the meantime.
        let choice = self.random.index(self.clock_offsets.len());
        let clock_offset_ms = match self.is_healed() && self.skew == Skew::Large {
            true => 0,
            false => self.clock_offsets.swap_remove(choice),
        };
        self.nodes[index].clock_offset_ms.store(clock_offset_ms, Ordering::SeqCst);
        let offset = Arc::clone(&self.nodes[index].clock_offset_ms);
        self.log(format!("{index} starts, clock off by {clock_offset_ms}"));
        let clock = Arc::clone(&self.clock);
        let versions = VersioningOptions {
            is_clustered: true,
            wall_clock: Arc::new(move || {
                clock.load(Ordering::SeqCst).saturating_add_signed(offset.load(Ordering::SeqCst))
            }),
            // It decides between equal timestamps, and a run must be reproducible from its seed.
            node_bits: Some(
                4 * (u64::try_from(index).expect("few nodes") + 1) + 64 * self.nodes[index].generation,
            ),
        };
        let (parked, directory) = (self.nodes[index].parked.take(), self.nodes[index].directory.path());
        let (mut log_end, subscribers) = (Arc::<LogEnd>::default(), |log_end: &Arc<LogEnd>| {
            vec![Arc::<LogEnd>::clone(log_end) as Arc<dyn Subscriber>]
        });
        let store = match (self.engine, parked) {
            (EngineKind::Memory, Some(parked)) => {
                log_end = Arc::clone(&self.nodes[index].log_end);
                parked
            }
            (EngineKind::Memory, None) => {
                Storage::in_memory(ENTRY_CACHE_BYTES_MIN, subscribers(&log_end), versions)
            }
            (EngineKind::Sqlite, _) => {
                let on_fatal = Box::new(|error| panic!("the writer failed: {error}"));
                let options = Options { versions, ..Options::standalone(on_fatal) };
                let (database, salt) = (directory.join("c.db"), directory.join("c.salt"));
                Storage::open_sqlite(&database, &salt, ENTRY_CACHE_BYTES_MIN, subscribers(&log_end), options)
                    .expect("opens")
            }
        };
        let peers = (0..NODES_COUNT).map(|_| PeerTask {
            machine: Peer::new(self.now_ms, SYNC_INTERVAL_MS, self.random.next()),
            in_flight: None,
            wakes_at_ms: None,
        });
        let peers = peers.collect();
        let node = &mut self.nodes[index];
        node.instance = self.random.next();
        node.replica = store.replication().expect("a clustered store").replica();
        node.store = Some(store);
        node.log_end = log_end;
        node.peers = peers;
        self.drive_peers(index);
    }

    fn stop_random_node(&mut self) {
        if self.is_healed() {
            return;
        }
        let replaceable: Vec<usize> = (0..NODES_COUNT).filter(|index| self.is_replaceable(*index)).collect();
        let is_replaced = !replaceable.is_empty() && self.random.percent(70);
        let index = match is_replaced {
            true => replaceable[self.random.index(replaceable.len())],
            false => self.random.index(NODES_COUNT),
        };
        if self.nodes[index].store.is_some() && self.clock_offsets.len() > 1 {
            self.log(format!("{index} stops"));
            let stopped = self.nodes[index].store.take();
            self.nodes[index].parked = stopped.filter(|_| self.engine == EngineKind::Memory && !is_replaced);
            self.nodes[index].peers.clear();
            if is_replaced {
                self.replace(index);
            }
            let rest_ms = self.heals_at_ms - self.now_ms;
            // Long enough for the replacement of both other nodes.
            let is_long = self.random.percent(30);
            let away_ms = if is_replaced {
                2_000
            } else if is_long {
                150_000
            } else {
                25_000
            };
            let delay_ms = self.random.below(away_ms).min(rest_ms);
            self.schedule(delay_ms, SimEvent::Start { node: index });
        }
        let delay_ms = 5_000 + self.random.below(25_000);
        self.schedule(delay_ms, SimEvent::Stop);
    }

    /// Returns whether an operator may replace a node: another one runs, has confirmed its changes, and is equal.
    fn is_replaceable(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let is_equal = |(peer, task): (usize, &PeerTask)| {
            let other = &self.nodes[peer];
            peer != index
                && other.store.is_some()
                && task.machine.state() == &State::Healthy
                && task.machine.node() == Some(other.replica)
                && task.machine.outbox_length() == Some(0)
                && other.digest() == node.digest()
        };
        // A tombstone from a clock that is far ahead is refused, and not sent again.
        self.skew != Skew::Large && node.store.is_some() && node.peers.iter().enumerate().any(is_equal)
    }

    /// Replaces a stopped node by one with an empty directory.
    fn replace(&mut self, index: usize) {
        self.log(format!("{index} is replaced"));
        self.replaced_count += 1;
        let node = &mut self.nodes[index];
        let root = node.directory.path().parent().expect("a directory in the root").to_owned();
        node.directory = new_node_directory(&root);
        node.generation += 1;
    }

    fn change_network(&mut self) {
        if self.is_healed() {
            self.is_cut = Default::default();
            self.loss_percent = 0;
            if self.skew == Skew::Large {
                self.nodes.iter().for_each(|node| node.clock_offset_ms.store(0, Ordering::SeqCst));
            }
            self.log("all faults end".to_owned());
            return;
        }
        let index = self.random.index(NODES_COUNT);
        let other = (index + 1 + self.random.index(NODES_COUNT - 1)) % NODES_COUNT;
        match self.random.below(5) {
            0 => self.is_cut = Default::default(),
            // In one direction only: requests arrive and replies do not, or vice versa.
            1 => self.is_cut[index][other] = true,
            2 => self.is_cut[index][other] = false,
            3 => {
                for other in 0..NODES_COUNT {
                    self.is_cut[index][other] = true;
                    self.is_cut[other][index] = true;
                }
            }
            _ => self.loss_percent = self.random.below(40),
        }
        self.log(format!("cut {:?}, {}% lost", self.is_cut, self.loss_percent));
        let rest_ms = self.heals_at_ms - self.now_ms;
        let delay_ms = self.random.below(30_000).min(rest_ms);
        self.schedule(delay_ms, SimEvent::NetworkChange);
    }

    /// Performs a client write of one entry on one node: reads the current row as the service does, then writes.
    fn write_something(&mut self) {
        if self.is_healed() {
            return;
        }
        // Occasionally several in a row.
        let delay_ms = if self.random.percent(30) { self.random.below(20) } else { self.random.below(6_000) };
        self.schedule(delay_ms, SimEvent::ClientWrite);
        let index = self.random.index(NODES_COUNT);
        if self.nodes[index].store.is_none() {
            return;
        }
        let number = self.random.below(KEYS_COUNT);
        let environment = (number.is_multiple_of(4) && self.random.percent(50)).then(|| "e".to_owned());
        let id = EntryId { key: format!("k{number}"), environment };
        self.writes_count += 1;
        let ciphertext = Ciphertext::from_bytes(self.writes_count.to_be_bytes().to_vec());
        let (choice, moves) = (self.random.below(10), self.random.percent(10));
        let node = &self.nodes[index];
        let store = node.store();
        let group = block_on(store.get(&id.key)).expect("readable").expect("few entries");
        let write = match group.exact(id.environment.as_deref()).cloned() {
            None => Write::create(id, Some(format!("c{choice}")), ciphertext),
            Some(seen) if choice < 4 => Write::delete(&seen),
            Some(seen) => Write::update(&seen, None, moves.then(|| "moved".to_owned()), ciphertext),
        };
        let before = block_on(node.log().log_range()).expect("readable").1;
        let line = format!("{index} {write:?}");
        match block_on(store.commit_one(write, Some(OWNER))) {
            Ok(_) | Err(WriteError::AlreadyExists) => {}
            // The version of the entry is from a clock that was far ahead.
            Err(WriteError::Ahead { .. }) if self.skew == Skew::Large => {}
            Err(error) => panic!("the row has not changed since it was read: {error}"),
        }
        for change in block_on(node.log().log_changes(before)).expect("readable").changes {
            if self.skew == Skew::None {
                // So the later of two writes wins, whatever the nodes have been through.
                assert_eq!(change.version.timestamp.milliseconds(), EPOCH_MS + self.now_ms, "{change:?}");
            }
            let earlier = self.latest.get(&change.id);
            if earlier.is_none_or(|earlier| earlier.version < change.version) {
                self.latest.insert(change.id.clone(), change);
            }
        }
        self.log(line);
        self.drive_peers(index);
    }

    fn drive_peers(&mut self, index: usize) {
        for peer in (0..NODES_COUNT).filter(|peer| *peer != index) {
            self.drive_peer(index, peer);
        }
    }

    /// Drives a peer as `Context::drive_peer` does, until a request is in flight or there is nothing to do.
    fn drive_peer(&mut self, index: usize, peer: usize) {
        while self.nodes[index].peers[peer].in_flight.is_none() {
            self.load_cursor(index, peer);
            let last = self.nodes[index].log_end.0.load(Ordering::SeqCst);
            self.handle_event(index, peer, Event::LogGrew(last));
            match self.nodes[index].peers[peer].machine.next(self.now_ms) {
                Action::Wait { until_ms } => {
                    assert!(until_ms > self.now_ms, "a wait must end in the future");
                    let (task, instance) = {
                        let node = &mut self.nodes[index];
                        (&mut node.peers[peer], node.instance)
                    };
                    if task.wakes_at_ms.is_none_or(|at_ms| until_ms < at_ms) {
                        task.wakes_at_ms = Some(until_ms);
                        let delay_ms = until_ms - self.now_ms;
                        self.schedule(delay_ms, SimEvent::WakeUp { node: index, peer, instance });
                    }
                    return;
                }
                action => self.perform(index, peer, action),
            }
        }
    }

    fn load_cursor(&mut self, index: usize, peer: usize) {
        let machine = &self.nodes[index].peers[peer].machine;
        let Some(replica) = machine.node().filter(|_| machine.needs_cursor()) else { return };
        let log = self.nodes[index].log();
        let (first, last) = block_on(log.log_range()).expect("readable");
        let acknowledged = block_on(log.acknowledged()).expect("readable");
        let known = acknowledged.iter().find(|(node, _)| *node == replica).map(|(_, sequence)| *sequence);
        let cursor = match known.filter(|sequence| sequence + 1 >= first) {
            Some(known) => known,
            None if self.is_cut[index][peer] || self.nodes[peer].store.is_none() => return,
            None => {
                let all: Vec<usize> = (0..BUCKETS_COUNT).collect();
                let known = self.nodes[index].versions(&all, usize::MAX).known;
                self.nodes[peer].apply(known.into_iter().filter_map(|known| known.tombstone()).collect());
                last
            }
        };
        self.nodes[index].peers[peer].machine.set_cursor(self.now_ms, cursor);
        self.nodes[index].record_progress(PeerProgress::Acknowledged { peer: replica, sequence: cursor });
    }

    fn handle_event(&mut self, index: usize, peer: usize, event: Event) {
        let own = self.nodes[index].node_info();
        let effects = self.nodes[index].peers[peer].machine.step(self.now_ms, event, &own);
        let replica = self.nodes[index].peers[peer].machine.node();
        for effect in effects {
            match (effect, replica) {
                (Effect::Acknowledged(sequence), Some(peer)) => {
                    self.nodes[index].record_progress(PeerProgress::Acknowledged { peer, sequence });
                }
                (Effect::Refused { last: sequence, .. }, Some(peer)) => {
                    self.refused_count += 1;
                    self.nodes[index].record_progress(PeerProgress::Acknowledged { peer, sequence });
                }
                (Effect::Synced { begun: stamp, forgotten }, Some(peer)) => {
                    self.nodes[index].record_progress(PeerProgress::Synced { peer, stamp, forgotten });
                }
                (Effect::StateChanged, _) => {
                    let state = self.nodes[index].peers[peer].machine.state().clone();
                    self.log(format!("{index}>{peer} is {state:?}"));
                }
                (effect, None) => panic!("{effect:?} of an unknown peer"),
            }
        }
    }

    /// Performs an action: sends its request, or handles the result directly if no request is needed.
    fn perform(&mut self, index: usize, peer: usize, action: Action) {
        self.log(format!("{index}>{peer} {}", describe(&action)));
        if self.actions_at_instant.0 != self.now_ms {
            self.actions_at_instant = (self.now_ms, 0);
        }
        self.actions_at_instant.1 += 1;
        assert!(self.actions_at_instant.1 < ACTIONS_COUNT_MAX_PER_INSTANT, "a busy loop");
        if !matches!(action, Action::CheckHealth | Action::CompareDigests) {
            self.active_at_ms = self.now_ms;
        }
        let node = &self.nodes[index];
        let (request, pending) = match action {
            Action::Wait { .. } => unreachable!("handled by the caller"),
            Action::CheckHealth => (Request::Health, Pending::Health),
            Action::Push { after } => {
                let page = block_on(node.log().log_changes(after)).expect("readable");
                let pushed = Pushed { sequence: page.sequence, more: page.more, has_refused: false };
                if page.changes.is_empty() {
                    return self.handle_event(index, peer, Event::Pushed(Ok(pushed)));
                }
                (Request::Apply(page.changes), Pending::Push(pushed))
            }
            Action::CompareDigests => {
                let begun = HlcTimestamp::from_milliseconds(self.clock.load(Ordering::SeqCst));
                (Request::Digests(node.digest()), Pending::Digests { begun })
            }
            Action::CompareVersions(buckets) => {
                (Request::Versions(buckets.clone()), Pending::Versions(buckets))
            }
            Action::Fetch(ids) => (Request::Entries(ids.clone()), Pending::Fetch(ids)),
            Action::Send(ids) => {
                let changes = node.changes(&ids);
                let count = settled_count(&ids, changes.last().map(|change| &change.id));
                if changes.is_empty() {
                    return self.handle_event(index, peer, Event::Sent(Ok(count)));
                }
                (Request::Apply(changes), Pending::Send(count))
            }
        };
        let timeout_ms = match pending {
            Pending::Health => HEALTH_TIMEOUT_MS,
            _ => REQUEST_TIMEOUT_MS,
        };
        let call = Call { from: index, to: peer, number: self.random.next() };
        self.nodes[index].peers[peer].in_flight = Some((call.number, pending));
        self.schedule(timeout_ms, SimEvent::Timeout(call));
        if let Some(delay_ms) = self.transit_ms(index, peer) {
            self.schedule(delay_ms, SimEvent::RequestArrival(call, request));
        }
    }

    /// Returns the transit time of a message in milliseconds; `None` if it is lost.
    fn transit_ms(&mut self, from: usize, to: usize) -> Option<u64> {
        let is_lost = self.random.percent(self.loss_percent) || self.is_cut[from][to];
        // A few messages are so late that the requesting node has timed out, retried and written in the meantime.
        let is_late = !self.is_healed() && self.random.percent(3);
        let bound_ms = if is_late { 40_000 } else { 2_000 };
        let delay_ms = 1 + self.random.below(bound_ms);
        (!is_lost).then_some(delay_ms)
    }

    /// Handles a request on the target as the handlers of `/cluster/...` do, and sends the reply.
    fn handle_request(&mut self, call: Call, request: Request) {
        let node = &self.nodes[call.to];
        let reply = match (&node.store, request) {
            // The node is not running.
            (None, _) => Err(PeerError::Unreachable),
            (Some(_), Request::Health) => Ok(Reply::NodeInfo(node.node_info())),
            (Some(_), Request::Apply(changes)) => Ok(Reply::Applied { has_refused: node.apply(changes) }),
            (Some(_), Request::Digests(theirs)) => Ok(Reply::Digests(match theirs == node.digest() {
                true => Vec::new(),
                false => node.bucket_digests(),
            })),
            (Some(_), Request::Versions(buckets)) => {
                Ok(Reply::Versions(node.versions(&buckets, VERSIONS_BYTES)))
            }
            (Some(_), Request::Entries(ids)) => Ok(Reply::Entries(node.changes(&ids))),
        };
        if let Some(delay_ms) = self.transit_ms(call.to, call.from) {
            self.schedule(delay_ms, SimEvent::ReplyArrival(call, reply));
        }
    }

    /// Turns a reply into the event that `Context::{push, compare_digests, ...}` return to the requesting node.
    fn event_of(&mut self, call: Call, pending: Pending, reply: Result<Reply, PeerError>) -> Event {
        let node = &self.nodes[call.from];
        match (pending, reply) {
            (pending, Err(error)) => pending.failed(error),
            (Pending::Health, Ok(Reply::NodeInfo(node_info))) => Event::Health(Ok(node_info)),
            (Pending::Push(pushed), Ok(Reply::Applied { has_refused })) => {
                Event::Pushed(Ok(Pushed { has_refused, ..pushed }))
            }
            (Pending::Send(count), Ok(Reply::Applied { .. })) => Event::Sent(Ok(count)),
            (Pending::Digests { begun }, Ok(Reply::Digests(theirs))) => {
                let own = node.bucket_digests();
                let pairs = own.iter().zip(&theirs).enumerate();
                let differing = pairs.filter(|(_, (own, theirs))| own != theirs).map(|(bucket, _)| bucket);
                Event::Digests(Ok(Comparison { buckets: differing.collect(), begun }))
            }
            (Pending::Versions(buckets), Ok(Reply::Versions(theirs))) => {
                let VersionsPage { known, buckets_count } = theirs;
                let own = node.versions(&buckets[..buckets_count], usize::MAX);
                let is_ahead = |known: &&VersionedDigest| node.log().ahead_ms(known.version).is_some();
                let ahead: BTreeSet<EntryId> =
                    known.iter().filter(is_ahead).map(|known| known.id.clone()).collect();
                let mut difference = Difference { buckets_count, ..difference(own.known, known) };
                difference.fetch.retain(|id| !ahead.contains(id));
                Event::Versions(Ok(difference))
            }
            (Pending::Fetch(ids), Ok(Reply::Entries(changes))) => {
                let count = settled_count(&ids, changes.last().map(|change| &change.id));
                node.apply(changes);
                Event::Fetched(Ok(count))
            }
            (_, Ok(_)) => unreachable!("the reply matches its request"),
        }
    }

    /// Asserts that all nodes have equal contents: for each entry the latest version ever written.
    fn check_contents(&self) {
        let all: Vec<usize> = (0..BUCKETS_COUNT).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            for (peer, task) in node.peers.iter().enumerate().filter(|(peer, _)| *peer != index) {
                assert_eq!(task.machine.state(), &State::Healthy, "{index}>{peer}");
                assert_eq!(task.machine.outbox_length(), Some(0), "{index}>{peer}");
            }
            let store = node.store();
            assert_eq!(node.digest(), self.nodes[0].digest(), "node {index}");
            for known in node.versions(&all, usize::MAX).known {
                let latest = &self.latest[&known.id];
                // Digests do not cover tombstones, so a node with a tombstone may never learn that the entry was
                // recreated and deleted again.
                let both_deleted = known.digest == Digest::default() && latest.body.is_none();
                let is_latest = known.version == latest.version;
                assert!(is_latest || (both_deleted && known.version < latest.version), "{index} {known:?}");
            }
            let page = block_on(store.scan(&Filter::default(), 0)).expect("readable");
            assert!(page.next_after.is_none(), "one page holds all rows");
            let rows = page.rows.iter().map(|row| (row.entry_id(), row.ciphertext.clone()));
            let rows: BTreeMap<EntryId, Option<Ciphertext>> = rows.collect();
            let live = self.latest.values().filter(|change| change.body.is_some());
            assert_eq!(rows.len(), live.clone().count(), "node {index}: {:?}", rows.keys());
            for change in live {
                let found = node.changes(std::slice::from_ref(&change.id));
                assert_eq!(found, std::slice::from_ref(change), "node {index}");
                let sealed = change.body.as_ref().map(|content| content.ciphertext.clone());
                assert_eq!(rows[&change.id], sealed, "node {index}");
                // The cache, from which clients are served, agrees.
                if let Some(group) = store.cached(&change.id.key) {
                    let cached = group.exact(change.id.environment.as_deref()).expect("cached");
                    assert_eq!(cached.ciphertext, sealed, "node {index}");
                }
            }
            assert_eq!(node.log().digests().entries_count(), rows.len() as u64, "node {index}");
        }
    }

    fn run(&mut self) {
        let heals_at_ms = self.heals_at_ms;
        let converged_at_ms = heals_at_ms + self.skew.convergence_ms();
        self.run_until(converged_at_ms);
        self.check_contents();
        let settled_ms = self.active_at_ms;
        self.run_until(converged_at_ms + QUIET_MS);
        assert_eq!(self.active_at_ms, settled_ms, "equal nodes exchange no entries");
        self.check_contents();
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::CompareVersions(buckets) => format!("CompareVersions of {} buckets", buckets.len()),
        action => format!("{action:?}"),
    }
}

/// Sums over all seeds.
#[derive(Default)]
struct Counts {
    /// Pushes that were partly refused.
    refused: AtomicU64,
    /// Nodes that were replaced by ones with empty directories.
    replaced: AtomicU64,
}

/// Runs a seed; returns the failure and the end of the trace, if the run fails.
fn run_seed(seed: u64, root: &Path, (skew, engine): (Skew, EngineKind), counts: &Counts) -> Option<String> {
    let mut simulation = Simulation::new(seed, root, skew, engine);
    let outcome = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    counts.refused.fetch_add(simulation.refused_count, Ordering::Relaxed);
    counts.replaced.fetch_add(simulation.replaced_count, Ordering::Relaxed);
    let panic = outcome.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let trace: Vec<String> = simulation.trace.iter().cloned().collect();
    let text = text.unwrap_or_default();
    Some(format!("{}\nseed {seed} failed (OSC_TEST_SEED={seed} runs it again): {text}", trace.join("\n")))
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Creates the directory of a new node, with the salt of the cluster.
fn new_node_directory(root: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir_in(root).expect("temporary directory");
    let salt = std::array::from_fn::<u8, 64, _>(|at| at.to_le_bytes()[0]);
    std::fs::write(directory.path().join("c.salt"), salt).expect("writable");
    directory
}

/// Creates a temporary directory in memory, where fsync is cheap.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(root).expect("temporary directory")
}

#[test]
fn run_is_reproducible_from_its_seed() {
    let root = directory();
    for seed in 0..5 {
        let run = || {
            let mut simulation = Simulation::new(seed, root.path(), Skew::Small, EngineKind::Sqlite);
            simulation.run();
            let Simulation { latest, random, scheduled_count, active_at_ms, .. } = simulation;
            let sealed = |change: Change| change.body.map(|content| content.ciphertext);
            let latest: Vec<_> = latest.into_iter().map(|(id, change)| (id, sealed(change))).collect();
            (random.0, scheduled_count, active_at_ms, latest)
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn nodes_converge_despite_network_faults() {
    assert_eq!(
        simulate(Skew::Small, EngineKind::Sqlite, 1),
        0,
        "no change is refused while the clock skew is small"
    );
}

/// While clocks agree, a version has the time of its write, also after a node was stopped.
#[test]
fn the_later_write_wins_while_clocks_agree() {
    assert_eq!(simulate(Skew::None, EngineKind::Sqlite, 5), 0, "no change is refused");
}

/// A version ahead of a node's clock is refused, and accepted once the corrected clocks have caught up with it.
#[test]
fn nodes_converge_once_wrong_clocks_are_corrected() {
    assert!(simulate(Skew::Large, EngineKind::Sqlite, 5) > 0, "no change was refused");
}

/// The same on the engine in memory: what replication relies on is the interface, not SQLite.
#[test]
fn nodes_in_memory_converge() {
    assert_eq!(simulate(Skew::Small, EngineKind::Memory, 1), 0, "no change is refused");
    assert!(simulate(Skew::Large, EngineKind::Memory, 5) > 0, "no change was refused");
}

/// Runs the number of seeds divided by `divisor`; returns the number of refused pushes.
fn simulate(skew: Skew, engine: EngineKind, divisor: u64) -> u64 {
    let root = directory();
    let counts = Counts::default();
    let seeds = match number_from_environment("OSC_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from_environment("OSC_TEST_SIMULATION_SEEDS").unwrap_or(SEEDS_COUNT) / divisor,
    };
    let next = AtomicU64::new(seeds.start);
    let threads_count = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads_count)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            return None;
                        }
                        if let Some(error) = run_seed(seed, root.path(), (skew, engine), &counts) {
                            // Stops the other workers.
                            next.store(seeds.end, Ordering::Relaxed);
                            return Some(error);
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().expect("panics are caught")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let is_single_seed = number_from_environment("OSC_TEST_SEED").is_some();
    assert!(
        skew == Skew::Large || is_single_seed || counts.replaced.into_inner() > 0,
        "no node was replaced"
    );
    counts.refused.into_inner()
}
