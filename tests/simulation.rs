//! Three nodes on a simulated network: real stores and the real machines of their peers, but a clock and
//! a network that one seeded generator rules. Whatever is lost, late, cut off or restarted meanwhile,
//! once everything works again all nodes hold the latest version of everything, and then keep quiet.
//!
//! `OSC_TEST_SEED` runs one seed again, `OSC_TEST_SIMULATION_SEEDS` says how many are run. A run depends
//! on its seed alone: the clocks that versions are made from are simulated, too.

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
use opensecureconf::model::{Change, Ciphertext, Digest, EntryId, HlcTimestamp, ReplicaId, VersionedDigest};
use opensecureconf::store::{
    Filter, Options, OwnerTag, PeerProgress, Store, VersioningOptions, VersionsPage, Write, WriteError,
};

const NODES_COUNT: usize = 3;
const KEYS_COUNT: u64 = 8;
const SEEDS_COUNT: u64 = 1000;
/// When all of it happens, in milliseconds since 1970: in the year 2200, because rows carry real times, which must
/// not be ahead of simulated clocks.
const EPOCH_MS: u64 = 7_258_118_400_000;
const SYNC_INTERVAL_MS: u64 = 30_000;
/// As the driver has them.
const HEALTH_TIMEOUT_MS: u64 = 5_000;
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// After everything works again: a timeout, the longest backoff, and two comparisons.
const CONVERGENCE_MS: u64 = 3 * SYNC_INTERVAL_MS;
const QUIET_MS: u64 = 5 * SYNC_INTERVAL_MS;
/// More than this at one instant is a machine that has forgotten to wait.
const ACTIONS_COUNT_MAX_AT_ONCE: u32 = 200;
/// So few that several answers are needed where many entries differ.
const VERSIONS_BYTES: usize = 300;
const OWNER: OwnerTag = OwnerTag([1; 32]);

/// `SplitMix64`: small, and the same everywhere.
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
        usize::try_from(self.below(count as u64)).expect("below a usize")
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A request on its way, with what the target needs.
enum Request {
    Health,
    Apply(Vec<Change>),
    Digests(Digest),
    Versions(Vec<usize>),
    Entries(Vec<EntryId>),
}

/// What the target answered.
enum Reply {
    Introduction(NodeInfo),
    /// Whether some were refused.
    Applied {
        has_refused: bool,
    },
    /// Empty when the digests are equal.
    Digests(Vec<Digest>),
    Versions(VersionsPage),
    Entries(Vec<Change>),
}

/// What the node that asks needs to make an event of the answer.
enum Pending {
    Health,
    Push(Pushed),
    Digests { begun: HlcTimestamp },
    Versions(Vec<usize>),
    Fetch(Vec<EntryId>),
    Send(usize),
}

impl Pending {
    fn failed(self, failure: PeerError) -> Event {
        match self {
            Self::Health => Event::Health(Err(failure)),
            Self::Push(_) => Event::Pushed(Err(failure)),
            Self::Digests { .. } => Event::Digests(Err(failure)),
            Self::Versions(_) => Event::Versions(Err(failure)),
            Self::Fetch(_) => Event::Fetched(Err(failure)),
            Self::Send(_) => Event::Sent(Err(failure)),
        }
    }
}

/// A conversation: which node asks which, and for which request, so that late answers are told apart.
#[derive(Clone, Copy)]
struct Call {
    from: usize,
    to: usize,
    number: u64,
}

enum Happening {
    Look { node: usize, peer: usize, instance: u64 },
    Arrival(Call, Request),
    Answer(Call, Result<Reply, PeerError>),
    Timeout(Call),
    Client,
    Weather,
    Stop,
    Start { node: usize },
}

/// What a node knows of another one.
struct PeerTask {
    machine: Peer,
    under_way: Option<(u64, Pending)>,
    looks_at_ms: Option<u64>,
}

struct Node {
    store: Option<Store>,
    directory: tempfile::TempDir,
    instance: u64,
    number: ReplicaId,
    outbox_last: Arc<AtomicI64>,
    /// By the index of the node they are about; the own one is never asked.
    peers: Vec<PeerTask>,
    clock_offset_ms: Arc<AtomicI64>,
}

impl Node {
    fn store(&self) -> &Store {
        self.store.as_ref().expect("the node runs")
    }

    fn introduction(&self) -> NodeInfo {
        NodeInfo {
            name: "node".to_owned(),
            instance: self.instance,
            node: Some(self.number),
            is_federated: false,
            salt: Some(1),
            has_entries: true,
            horizon: self.store().horizon(),
        }
    }

    /// Takes changes of a peer; nothing that a node holds may ever be replaced by something older.
    /// Says whether some were refused.
    fn apply(&self, changes: Vec<Change>) -> bool {
        let ids: Vec<EntryId> = changes.iter().map(|change| change.id.clone()).collect();
        let before = self.versions_of(&ids);
        let applied =
            block_on(self.store().apply(changes).expect("room")).expect("answered").expect("applied");
        let after = self.versions_of(&ids);
        for (id, version) in before {
            assert!(after.get(&id) >= Some(&version), "{id:?} went back");
        }
        !applied.ahead.is_empty()
    }

    fn versions_of(&self, ids: &[EntryId]) -> BTreeMap<EntryId, opensecureconf::model::Version> {
        let changes = self.store().changes(ids).expect("readable");
        changes.into_iter().map(|change| (change.id, change.version)).collect()
    }

    fn note(&self, note: PeerProgress) {
        block_on(self.store().record_progress(note).expect("room")).expect("answered").expect("noted");
    }
}

struct Simulation {
    random: Random,
    now_ms: u64,
    /// Milliseconds since 1970 at `now_ms`, for those whose clocks are right.
    clock: Arc<AtomicU64>,
    queue: BTreeMap<(u64, u64), Happening>,
    scheduled_count: u64,
    nodes: Vec<Node>,
    /// `is_cut[from][to]`.
    is_cut: [[bool; NODES_COUNT]; NODES_COUNT],
    loss_percent: u64,
    /// From here on everything works.
    heals_at_ms: u64,
    /// Differences of clocks that no node has had yet.
    clock_offsets: Vec<i64>,
    skew: Skew,
    /// Pushes of which a part was refused.
    refused_count: u64,
    /// The latest of all changes that were ever made, by entry.
    latest: BTreeMap<EntryId, Change>,
    writes_count: u64,
    /// When a machine last did more than to look whether there is something to do.
    busy_at_ms: u64,
    actions_at_once: (u64, u32),
    trace: VecDeque<String>,
}

/// How wrong clocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skew {
    /// By two minutes each way: no version is refused.
    Small,
    /// By an hour each way, until everything works again.
    Large,
}

impl Skew {
    fn step_ms(self) -> i64 {
        match self {
            Self::Small => 4_000,
            Self::Large => 120_000,
        }
    }

    /// From when everything works again until all nodes must be equal.
    fn convergence_ms(self) -> u64 {
        match self {
            Self::Small => CONVERGENCE_MS,
            // The clocks that are right have to reach the versions of those that were not.
            Self::Large => CONVERGENCE_MS + 60 * 60 * 1000,
        }
    }
}

impl Simulation {
    fn new(seed: u64, root: &Path, skew: Skew) -> Self {
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
            refused_count: 0,
            latest: BTreeMap::new(),
            writes_count: 0,
            busy_at_ms: 0,
            actions_at_once: (0, 0),
            trace: VecDeque::new(),
            random,
        };
        for index in 0..NODES_COUNT {
            let directory = tempfile::tempdir_in(root).expect("a temporary directory");
            std::fs::write(
                directory.path().join("c.salt"),
                std::array::from_fn::<u8, 64, _>(|at| at.to_le_bytes()[0]),
            )
            .expect("writable");
            simulation.nodes.push(Node {
                store: None,
                directory,
                instance: 0,
                number: ReplicaId::default(),
                outbox_last: Arc::default(),
                peers: Vec::new(),
                clock_offset_ms: Arc::default(),
            });
            // Nodes start together or minutes apart.
            let delay_ms = if simulation.random.percent(50) { 0 } else { simulation.random.below(30_000) };
            simulation.after(delay_ms, Happening::Start { node: index });
        }
        simulation.after(1, Happening::Client);
        simulation.after(1, Happening::Weather);
        simulation.after(20_000, Happening::Stop);
        simulation
    }

    fn after(&mut self, delay_ms: u64, happening: Happening) {
        self.scheduled_count += 1;
        self.queue.insert((self.now_ms + delay_ms, self.scheduled_count), happening);
    }

    fn is_healed(&self) -> bool {
        self.now_ms >= self.heals_at_ms
    }

    fn note(&mut self, line: String) {
        if self.trace.len() == 120 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>7} {line}", self.now_ms));
    }

    fn run_until(&mut self, end_ms: u64) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end_ms) {
            self.now_ms = entry.key().0;
            self.clock.store(EPOCH_MS + self.now_ms, Ordering::SeqCst);
            let happening = entry.remove();
            self.happen(happening);
        }
        self.now_ms = end_ms;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Look { node, peer, instance } => {
                if self.nodes[node].store.is_some() && self.nodes[node].instance == instance {
                    self.nodes[node].peers[peer].looks_at_ms = None;
                    self.attend(node, peer);
                }
            }
            Happening::Arrival(call, request) => self.arrive(call, request),
            Happening::Answer(call, answer) => {
                if let Some(pending) = self.take_pending(call) {
                    let event = self.conclude(call, pending, answer);
                    self.tell(call.from, call.to, event);
                    self.attend(call.from, call.to);
                }
            }
            Happening::Timeout(call) => {
                if let Some(pending) = self.take_pending(call) {
                    self.note(format!("{}>{} timeout", call.from, call.to));
                    self.tell(call.from, call.to, pending.failed(PeerError::Unreachable));
                    self.attend(call.from, call.to);
                }
            }
            Happening::Client => self.write_something(),
            Happening::Weather => self.change_weather(),
            Happening::Stop => self.stop_one(),
            Happening::Start { node } => self.start(node),
        }
    }

    /// The request that this answer belongs to, if the node still waits for it.
    fn take_pending(&mut self, call: Call) -> Option<Pending> {
        let task = self.nodes[call.from].peers.get_mut(call.to)?;
        let (_, pending) = task.under_way.take_if(|(number, _)| *number == call.number)?;
        self.nodes[call.from].store.is_some().then_some(pending)
    }

    fn start(&mut self, index: usize) {
        // A clock that was set meanwhile, forward or back.
        let choice = self.random.index(self.clock_offsets.len());
        let clock_offset_ms = match self.is_healed() && self.skew == Skew::Large {
            true => 0,
            false => self.clock_offsets.swap_remove(choice),
        };
        self.nodes[index].clock_offset_ms.store(clock_offset_ms, Ordering::SeqCst);
        let offset = Arc::clone(&self.nodes[index].clock_offset_ms);
        self.note(format!("{index} starts, clock off by {clock_offset_ms}"));
        let outbox_last = Arc::new(AtomicI64::new(0));
        let grown = Arc::clone(&outbox_last);
        let clock = Arc::clone(&self.clock);
        let directory = self.nodes[index].directory.path();
        let options = Options {
            cache_bytes_max: ENTRY_CACHE_BYTES_MIN,
            accepted_salt: None,
            readers_count: 1,
            versions: VersioningOptions {
                is_clustered: true,
                wall_clock: Arc::new(move || {
                    clock.load(Ordering::SeqCst).saturating_add_signed(offset.load(Ordering::SeqCst))
                }),
                // Equal stamps are decided by it, and a seed must always run the same.
                node_bits: Some(4 * (u64::try_from(index).expect("few nodes") + 1)),
            },
            on_fatal: Box::new(|error| panic!("the writer gave up: {error}")),
            on_log_append: Box::new(move |line| {
                grown.fetch_max(line, Ordering::SeqCst);
            }),
        };
        let store = Store::open(&directory.join("c.db"), &directory.join("c.salt"), options).expect("opens");
        let peers = (0..NODES_COUNT).map(|_| PeerTask {
            machine: Peer::new(self.now_ms, SYNC_INTERVAL_MS, self.random.next()),
            under_way: None,
            looks_at_ms: None,
        });
        let peers = peers.collect();
        let node = &mut self.nodes[index];
        node.instance = self.random.next();
        node.number = store.node().expect("it is clustered");
        node.store = Some(store);
        node.outbox_last = outbox_last;
        node.peers = peers;
        self.attend_all(index);
    }

    fn stop_one(&mut self) {
        if self.is_healed() {
            return;
        }
        let index = self.random.index(NODES_COUNT);
        if self.nodes[index].store.is_some() && self.clock_offsets.len() > 1 {
            self.note(format!("{index} stops"));
            self.nodes[index].store = None;
            self.nodes[index].peers.clear();
            let rest_ms = self.heals_at_ms - self.now_ms;
            let delay_ms = self.random.below(25_000).min(rest_ms);
            self.after(delay_ms, Happening::Start { node: index });
        }
        let delay_ms = 5_000 + self.random.below(60_000);
        self.after(delay_ms, Happening::Stop);
    }

    fn change_weather(&mut self) {
        if self.is_healed() {
            self.is_cut = Default::default();
            self.loss_percent = 0;
            if self.skew == Skew::Large {
                self.nodes.iter().for_each(|node| node.clock_offset_ms.store(0, Ordering::SeqCst));
            }
            self.note("everything works again".to_owned());
            return;
        }
        let index = self.random.index(NODES_COUNT);
        let other = (index + 1 + self.random.index(NODES_COUNT - 1)) % NODES_COUNT;
        match self.random.below(5) {
            0 => self.is_cut = Default::default(),
            // One direction only: requests arrive and answers do not, or the other way round.
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
        self.note(format!("cut {:?}, {}% lost", self.is_cut, self.loss_percent));
        let rest_ms = self.heals_at_ms - self.now_ms;
        let delay_ms = self.random.below(30_000).min(rest_ms);
        self.after(delay_ms, Happening::Weather);
    }

    /// One client, one node, one entry: reads the row as it is there, as the service does, and writes.
    fn write_something(&mut self) {
        if self.is_healed() {
            return;
        }
        // Several in a row now and then.
        let delay_ms = if self.random.percent(30) { self.random.below(20) } else { self.random.below(6_000) };
        self.after(delay_ms, Happening::Client);
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
        let group = match store.cache().get(&id.key) {
            Some(group) => group,
            None => store.key_entries(&id.key).expect("readable").expect("few entries"),
        };
        let write = match group.exact(id.environment.as_deref()).cloned() {
            None => {
                let (key, environment) = (id.key.clone(), id.environment.clone());
                Write::Create { key, environment, category: Some(format!("c{choice}")), ciphertext }
            }
            Some(seen) if choice < 4 => Write::Delete { seen },
            Some(seen) => {
                let environment = moves.then(|| "moved".to_owned());
                Write::Update { seen, category: None, environment, ciphertext }
            }
        };
        let before = store.log_range().expect("readable").1;
        let line = format!("{index} {write:?}");
        match block_on(store.write(write, OWNER).expect("room")).expect("answered") {
            Ok(_) | Err(WriteError::AlreadyExists) => {}
            // Its version is of a clock that was far ahead.
            Err(WriteError::Ahead { .. }) if self.skew == Skew::Large => {}
            Err(error) => panic!("what was just read has not changed: {error}"),
        }
        for change in store.log_changes(before).expect("readable").changes {
            let earlier = self.latest.get(&change.id);
            if earlier.is_none_or(|earlier| earlier.version < change.version) {
                self.latest.insert(change.id.clone(), change);
            }
        }
        self.note(line);
        self.attend_all(index);
    }

    fn attend_all(&mut self, index: usize) {
        for peer in (0..NODES_COUNT).filter(|peer| *peer != index) {
            self.attend(index, peer);
        }
    }

    /// What `Context::attend` does, until a request is under way or there is nothing to do.
    fn attend(&mut self, index: usize, peer: usize) {
        while self.nodes[index].peers[peer].under_way.is_none() {
            self.look_up_cursor(index, peer);
            let last = self.nodes[index].outbox_last.load(Ordering::SeqCst);
            self.tell(index, peer, Event::LogGrew(last));
            match self.nodes[index].peers[peer].machine.next(self.now_ms) {
                Action::Wait { until_ms } => {
                    assert!(until_ms > self.now_ms, "a wait until now is a busy loop");
                    let (task, instance) = {
                        let node = &mut self.nodes[index];
                        (&mut node.peers[peer], node.instance)
                    };
                    if task.looks_at_ms.is_none_or(|at_ms| until_ms < at_ms) {
                        task.looks_at_ms = Some(until_ms);
                        let delay_ms = until_ms - self.now_ms;
                        self.after(delay_ms, Happening::Look { node: index, peer, instance });
                    }
                    return;
                }
                action => self.act(index, peer, action),
            }
        }
    }

    fn look_up_cursor(&mut self, index: usize, peer: usize) {
        let machine = &self.nodes[index].peers[peer].machine;
        let Some(number) = machine.node().filter(|_| machine.needs_cursor()) else { return };
        let store = self.nodes[index].store();
        let (first, last) = store.log_range().expect("readable");
        let acknowledged = store.acknowledged().expect("readable");
        let known = acknowledged.iter().find(|(node, _)| *node == number).map(|(_, line)| *line);
        let cursor = known.filter(|line| line + 1 >= first).unwrap_or(last);
        self.nodes[index].peers[peer].machine.set_cursor(self.now_ms, cursor);
        self.nodes[index].note(PeerProgress::Acknowledged { peer: number, sequence: cursor });
    }

    fn tell(&mut self, index: usize, peer: usize, event: Event) {
        let own = self.nodes[index].introduction();
        let notices = self.nodes[index].peers[peer].machine.step(self.now_ms, event, &own);
        let number = self.nodes[index].peers[peer].machine.node();
        for notice in notices {
            match (notice, number) {
                (Effect::Acknowledged(sequence), Some(peer)) => {
                    self.nodes[index].note(PeerProgress::Acknowledged { peer, sequence });
                }
                (Effect::Refused { last: sequence, .. }, Some(peer)) => {
                    self.refused_count += 1;
                    self.nodes[index].note(PeerProgress::Acknowledged { peer, sequence });
                }
                (Effect::Synced { begun: stamp, forgotten }, Some(peer)) => {
                    self.nodes[index].note(PeerProgress::Synced { peer, stamp, forgotten });
                }
                (Effect::StateChanged, _) => {
                    let state = self.nodes[index].peers[peer].machine.state().clone();
                    self.note(format!("{index}>{peer} is {state:?}"));
                }
                (notice, None) => panic!("{notice:?} of an unknown peer"),
            }
        }
    }

    /// Sends the request of an action on its way, or concludes what needs none.
    fn act(&mut self, index: usize, peer: usize, action: Action) {
        self.note(format!("{index}>{peer} {}", brief(&action)));
        if self.actions_at_once.0 != self.now_ms {
            self.actions_at_once = (self.now_ms, 0);
        }
        self.actions_at_once.1 += 1;
        assert!(self.actions_at_once.1 < ACTIONS_COUNT_MAX_AT_ONCE, "a busy loop");
        if !matches!(action, Action::CheckHealth | Action::CompareDigests) {
            self.busy_at_ms = self.now_ms;
        }
        let store = self.nodes[index].store();
        let (request, pending) = match action {
            Action::Wait { .. } => unreachable!("handled by the caller"),
            Action::CheckHealth => (Request::Health, Pending::Health),
            Action::Push { after } => {
                let page = store.log_changes(after).expect("readable");
                let pushed = Pushed { sequence: page.sequence, more: page.more, has_refused: false };
                if page.changes.is_empty() {
                    return self.tell(index, peer, Event::Pushed(Ok(pushed)));
                }
                (Request::Apply(page.changes), Pending::Push(pushed))
            }
            Action::CompareDigests => {
                let begun = HlcTimestamp::from_milliseconds(self.clock.load(Ordering::SeqCst));
                (Request::Digests(digest_of(store)), Pending::Digests { begun })
            }
            Action::CompareVersions(buckets) => {
                (Request::Versions(buckets.clone()), Pending::Versions(buckets))
            }
            Action::Fetch(ids) => (Request::Entries(ids.clone()), Pending::Fetch(ids)),
            Action::Send(ids) => {
                let changes = store.changes(&ids).expect("readable");
                let count = settled_count(&ids, changes.last().map(|change| &change.id));
                if changes.is_empty() {
                    return self.tell(index, peer, Event::Sent(Ok(count)));
                }
                (Request::Apply(changes), Pending::Send(count))
            }
        };
        let timeout_ms = match pending {
            Pending::Health => HEALTH_TIMEOUT_MS,
            _ => REQUEST_TIMEOUT_MS,
        };
        let call = Call { from: index, to: peer, number: self.random.next() };
        self.nodes[index].peers[peer].under_way = Some((call.number, pending));
        self.after(timeout_ms, Happening::Timeout(call));
        if let Some(delay_ms) = self.travel(index, peer) {
            self.after(delay_ms, Happening::Arrival(call, request));
        }
    }

    /// How long a message takes; `None` if it is lost.
    fn travel(&mut self, from: usize, to: usize) -> Option<u64> {
        let is_lost = self.random.percent(self.loss_percent) || self.is_cut[from][to];
        // A few are so late that the node which asked has given up, asked again and written since.
        let is_late = !self.is_healed() && self.random.percent(3);
        let bound_ms = if is_late { 40_000 } else { 2_000 };
        let delay_ms = 1 + self.random.below(bound_ms);
        (!is_lost).then_some(delay_ms)
    }

    /// The target does what it is asked, as the handlers of `/cluster/...` do.
    fn arrive(&mut self, call: Call, request: Request) {
        let node = &self.nodes[call.to];
        let answer = match (&node.store, request) {
            // Its port is closed.
            (None, _) => Err(PeerError::Unreachable),
            (Some(_), Request::Health) => Ok(Reply::Introduction(node.introduction())),
            (Some(_), Request::Apply(changes)) => Ok(Reply::Applied { has_refused: node.apply(changes) }),
            (Some(store), Request::Digests(theirs)) => Ok(Reply::Digests(match theirs == digest_of(store) {
                true => Vec::new(),
                false => store.digest_table().all().expect("a small store"),
            })),
            (Some(store), Request::Versions(buckets)) => {
                Ok(Reply::Versions(store.versions(&buckets, VERSIONS_BYTES).expect("readable")))
            }
            (Some(store), Request::Entries(ids)) => {
                Ok(Reply::Entries(store.changes(&ids).expect("readable")))
            }
        };
        if let Some(delay_ms) = self.travel(call.to, call.from) {
            self.after(delay_ms, Happening::Answer(call, answer));
        }
    }

    /// The node that asked makes of the answer what `Context::{push, compare_digests, ...}` do.
    fn conclude(&mut self, call: Call, pending: Pending, answer: Result<Reply, PeerError>) -> Event {
        let node = &self.nodes[call.from];
        let store = node.store();
        match (pending, answer) {
            (pending, Err(failure)) => pending.failed(failure),
            (Pending::Health, Ok(Reply::Introduction(introduction))) => Event::Health(Ok(introduction)),
            (Pending::Push(pushed), Ok(Reply::Applied { has_refused })) => {
                Event::Pushed(Ok(Pushed { has_refused, ..pushed }))
            }
            (Pending::Send(count), Ok(Reply::Applied { .. })) => Event::Sent(Ok(count)),
            (Pending::Digests { begun }, Ok(Reply::Digests(theirs))) => {
                let own = store.digest_table().all().expect("a small store");
                let pairs = own.iter().zip(&theirs).enumerate();
                let differing = pairs.filter(|(_, (own, theirs))| own != theirs).map(|(bucket, _)| bucket);
                Event::Digests(Ok(Comparison { buckets: differing.collect(), begun }))
            }
            (Pending::Versions(buckets), Ok(Reply::Versions(theirs))) => {
                let VersionsPage { known, buckets_count } = theirs;
                let own = store.versions(&buckets[..buckets_count], usize::MAX).expect("readable");
                let is_ahead = |known: &&VersionedDigest| store.ahead_ms(known.version).is_some();
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
            (_, Ok(_)) => unreachable!("the target answers what it was asked"),
        }
    }

    /// All nodes hold the same, and of each entry the latest version that was ever made.
    fn check_contents(&self) {
        let all: Vec<usize> = (0..BUCKETS_COUNT).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            for (peer, task) in node.peers.iter().enumerate().filter(|(peer, _)| *peer != index) {
                assert_eq!(task.machine.state(), &State::Healthy, "{index}>{peer}");
                assert_eq!(task.machine.outbox_length(), Some(0), "{index}>{peer}");
            }
            let store = node.store();
            assert_eq!(
                store.digest_table().root(),
                self.nodes[0].store().digest_table().root(),
                "node {index}"
            );
            for known in store.versions(&all, usize::MAX).expect("readable").known {
                let latest = &self.latest[&known.id];
                // Deletions count for nothing in digests, so that a node which had the entry deleted may
                // never hear that it was made and deleted again since.
                let both_deleted = known.digest == Digest::default() && latest.body.is_none();
                let is_latest = known.version == latest.version;
                assert!(is_latest || (both_deleted && known.version < latest.version), "{index} {known:?}");
            }
            let page = store.page(&Filter::default(), 0).expect("readable");
            assert!(page.next_after.is_none(), "one page shows all");
            let rows = page.rows.iter().map(|row| (row.entry_id(), row.ciphertext.clone()));
            let rows: BTreeMap<EntryId, Option<Ciphertext>> = rows.collect();
            let live = self.latest.values().filter(|change| change.body.is_some());
            assert_eq!(rows.len(), live.clone().count(), "node {index}: {:?}", rows.keys());
            for change in live {
                let found = store.changes(std::slice::from_ref(&change.id)).expect("readable");
                assert_eq!(found, std::slice::from_ref(change), "node {index}");
                let sealed = change.body.as_ref().map(|content| content.ciphertext.clone());
                assert_eq!(rows[&change.id], sealed, "node {index}");
                // What clients are answered from the cache is the same.
                if let Some(group) = store.cache().get(&change.id.key) {
                    let cached = group.exact(change.id.environment.as_deref()).expect("cached");
                    assert_eq!(cached.ciphertext, sealed, "node {index}");
                }
            }
            assert_eq!(store.digest_table().entries_count(), rows.len() as u64, "node {index}");
        }
    }

    fn run(&mut self) {
        let heals_at_ms = self.heals_at_ms;
        let converged_at_ms = heals_at_ms + self.skew.convergence_ms();
        self.run_until(converged_at_ms);
        self.check_contents();
        let settled_ms = self.busy_at_ms;
        self.run_until(converged_at_ms + QUIET_MS);
        assert_eq!(self.busy_at_ms, settled_ms, "nodes that are equal keep quiet");
        self.check_contents();
    }
}

fn brief(action: &Action) -> String {
    match action {
        Action::CompareVersions(buckets) => format!("CompareVersions of {} buckets", buckets.len()),
        action => format!("{action:?}"),
    }
}

/// What went wrong with a seed, with what happened before.
fn failure_of(seed: u64, root: &Path, skew: Skew, refused_count: &AtomicU64) -> Option<String> {
    let mut simulation = Simulation::new(seed, root, skew);
    let outcome = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    refused_count.fetch_add(simulation.refused_count, Ordering::Relaxed);
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

/// In memory, where fsync costs nothing.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(root).expect("a temporary directory")
}

#[test]
fn a_seed_always_runs_the_same() {
    let root = directory();
    for seed in 0..5 {
        let run = || {
            let mut simulation = Simulation::new(seed, root.path(), Skew::Small);
            simulation.run();
            let Simulation { latest, random, scheduled_count, busy_at_ms, .. } = simulation;
            let sealed = |change: Change| change.body.map(|content| content.ciphertext);
            let latest: Vec<_> = latest.into_iter().map(|(id, change)| (id, sealed(change))).collect();
            (random.0, scheduled_count, busy_at_ms, latest)
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn nodes_agree_whatever_the_network_does() {
    assert_eq!(simulate(Skew::Small, 1), 0, "nothing is refused as long as clocks are about right");
}

/// What is ahead of a node's clock is refused, and there once the clocks are right and have reached it.
#[test]
fn nodes_agree_once_wrong_clocks_are_right_again() {
    assert!(simulate(Skew::Large, 5) > 0, "nothing was refused");
}

/// Runs one of so many seeds; returns how often something was refused.
fn simulate(skew: Skew, one_of: u64) -> u64 {
    let root = directory();
    let refused_count = AtomicU64::new(0);
    let seeds = match number_from_environment("OSC_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from_environment("OSC_TEST_SIMULATION_SEEDS").unwrap_or(SEEDS_COUNT) / one_of,
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
                        if let Some(failure) = failure_of(seed, root.path(), skew, &refused_count) {
                            // The others need not go on either.
                            next.store(seeds.end, Ordering::Relaxed);
                            return Some(failure);
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().expect("it catches panics")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    refused_count.into_inner()
}

/// Small stores are added up when they are opened.
fn digest_of(store: &Store) -> Digest {
    store.digest_table().root().expect("a small store")
}
