//! Chaos tests: random writes on random nodes of a cluster whose network and nodes fail at random.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::slice;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opensecureconf::model::{EntryId, ReplicaId, Version};
use opensecureconf::wire::Protocol;
use opensecureconf::wire::replication::{decode_changes, encode_ids};

use crate::link::{Mode, Place};
use crate::nodes::{CONVERGENCE, Cluster, Links, Node, ask, happens_within, within};
use crate::support::{PATIENCE, USER_KEY};

const SEEDS_COUNT: u64 = 20;
/// Seeds that run concurrently: more than there are cores, because a run mostly waits.
const CONCURRENT_SEEDS: usize = 4;
const KEYS_COUNT: u64 = 12;
const ACKNOWLEDGED_COUNT_MIN: usize = 24;
/// Less than the five minutes beyond which versions are refused; the module `hostile` tests larger clock skew.
const SKEW_MS: u64 = 4 * 60 * 1000;

/// The network between the nodes of a cluster, with fault injection.
pub(crate) trait Network {
    /// Interval of anti-entropy rounds. All nodes must be equal two intervals after the network has healed.
    const SYNC_INTERVAL: Duration;
    /// How long faults are injected.
    const DURATION: Duration;
    /// Range of the pause between two faults.
    const PAUSE_MS: Range<u64>;

    /// Breaks or heals a random part of the network.
    fn disturb(&self, random: &mut Random);

    /// Heals the whole network.
    fn heal(&self);

    /// Returns a counter that grows in each sync interval in which nodes exchange more than equal digests.
    fn exchanges(&self) -> usize;
}

/// `SplitMix64`: a small generator with the same sequence on every platform.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    pub(crate) fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("fits in usize")
    }
}

/// The state after a write: a value, or `None` for a deletion. No value is written twice.
type State = Option<String>;

/// The sequential writes of one key through one node.
#[derive(Clone, Debug, Default)]
struct Traces {
    /// State after the last acknowledged write.
    last: Option<State>,
    /// Version of that write, if it is known.
    version: Option<Version>,
    /// States of later writes without a response, because the node was killed: each was applied or never will be.
    unacknowledged: BTreeSet<State>,
    acknowledged_count: usize,
    /// The largest version that the node reported after an acknowledged write: that of the write or of a later one.
    largest: Version,
}

impl Traces {
    /// Returns whether this node may have written a state under a version that names the node.
    fn explain(&self, version: Version, state: &State) -> bool {
        let is_last = self.last.as_ref() == Some(state);
        let is_unacknowledged = self.unacknowledged.contains(state);
        match self.version {
            Some(last) if last == version => is_last,
            Some(_) => is_unacknowledged,
            None => is_last || is_unacknowledged,
        }
    }
}

type Journal = BTreeMap<String, Traces>;

impl Network for Links {
    const SYNC_INTERVAL: Duration = Duration::from_secs(5);
    const DURATION: Duration = Duration::from_secs(5);
    const PAUSE_MS: Range<u64> = 50..400;

    fn disturb(&self, random: &mut Random) {
        let (node, ..) = self[random.index(self.len())];
        let (.., link) = &self[random.index(self.len())];
        let ends_there = |(from, to, _): &&(usize, usize, _)| [*from, *to].contains(&node);
        match random.below(10) {
            0..=2 => link.set(Mode::Cut),
            3 => link.set(Mode::Stalled),
            4 => link.set(Mode::Delayed(Duration::from_millis(random.below(200)))),
            5..=7 => link.set(Mode::Open),
            8 => self.iter().filter(ends_there).for_each(|(.., link)| link.set(Mode::Cut)),
            _ => self.iter().filter(ends_there).for_each(|(.., link)| link.set(Mode::Open)),
        }
    }

    fn heal(&self) {
        self.iter().for_each(|(.., link)| link.set(Mode::Open));
    }

    fn exchanges(&self) -> usize {
        let targets = ["/cluster/changes", "/cluster/versions", "/cluster/entries"];
        self.iter().flat_map(|(.., link)| targets.map(|target| link.requests(target))).sum()
    }
}

#[test]
fn nodes_converge_after_network_faults_pauses_and_crashes() {
    for_each_seed(SEEDS_COUNT, |seed| chaos(Cluster::of(3), seed));
}

/// Digests do not cover tombstones, so only a push delivers one to a peer.
#[test]
fn tombstone_is_pushed_after_a_crash() {
    let mut cluster = Cluster::started(2);
    cluster.wait_until_whole();
    cluster.links.iter().for_each(|(.., link)| link.set(Mode::Cut));
    let keys = ["deleted".to_owned()];
    assert_eq!(cluster.nodes[0].create(&keys[0], "1").status, 201);
    assert_eq!(cluster.nodes[0].delete(&keys[0]).status, 200);
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.links.heal();
    within(CONVERGENCE, "the peer has the tombstone", || {
        let versions: Vec<_> = cluster.nodes.iter().map(|node| versions_on(node, &keys)).collect();
        versions[0].contains_key(&keys[0]) && versions[0] == versions[1]
    });
}

/// Runs a trial with `count` seeds. `OSC_TEST_CLUSTER_SEEDS` overrides the count; `OSC_TEST_SEED` selects a single
/// seed.
pub(crate) fn for_each_seed(count: u64, trial: impl Fn(u64) + Sync) {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seeds: Vec<u64> = match variable("OSC_TEST_SEED") {
        Some(seed) => vec![seed],
        None => {
            let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
            (0..variable("OSC_TEST_CLUSTER_SEEDS").unwrap_or(count)).map(|index| now * 1000 + index).collect()
        }
    };
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..CONCURRENT_SEEDS {
            let (seeds, next, failed, trial) = (&seeds, &next, &failed, &trial);
            scope.spawn(move || {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A failure is reported with the name of its thread.
                    let thread = thread::Builder::new().name(format!("seed {seed}"));
                    let trial = thread.spawn_scoped(scope, move || trial(seed)).expect("the thread starts");
                    if trial.join().is_err() {
                        failed.lock().expect("the lock is not poisoned").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("the lock is not poisoned");
    let count = seeds.len();
    assert!(
        failed.is_empty(),
        "{} of {count} seeds failed, OSC_TEST_SEED=n runs one again: {failed:?}",
        failed.len()
    );
}

pub(crate) fn chaos<N: Network>(mut cluster: Cluster<N>, seed: u64) {
    let mut random = Random(seed);
    let offset_ms = i64::try_from(random.below(2 * SKEW_MS)).expect("a few minutes") - SKEW_MS.cast_signed();
    let skewed_node = random.index(cluster.nodes.len());
    cluster.nodes[skewed_node].set("OSC_TEST_CLOCK_OFFSET_MS", &offset_ms.to_string());
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_SYNC_INTERVAL", &N::SYNC_INTERVAL.as_secs().to_string());
    }
    cluster.start();
    cluster.wait_until_whole();

    let replicas: Vec<ReplicaId> = cluster.nodes.iter().map(replica_id).collect();
    let is_done = AtomicBool::new(false);
    let serial = AtomicU64::new(0);
    let places: Vec<Place> = cluster.nodes.iter().map(|node| node.place.clone()).collect();
    let journals: Vec<Journal> = thread::scope(|scope| {
        let mut writers = Vec::new();
        for (index, (place, replica)) in places.iter().zip(&replicas).enumerate() {
            let random = Random(seed ^ (index as u64 + 1) << 32);
            let (is_done, serial) = (&is_done, &serial);
            writers.push(scope.spawn(move || write_at_random(place, *replica, random, is_done, serial)));
        }
        inject_faults(&mut cluster, &mut random);
        is_done.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });

    cluster.links.heal();
    let healed = Instant::now();
    cluster.wait_until_equal_within(2 * N::SYNC_INTERVAL);
    let keys: Vec<String> = (0..KEYS_COUNT).map(|number| format!("key-{number}")).collect();
    // Digests do not cover tombstones: only the node that wrote one pushes it, and a push that failed twice backs off
    // before its next attempt.
    let timeout = (3 * N::SYNC_INTERVAL).saturating_sub(healed.elapsed());
    let versions = || -> Vec<_> { cluster.nodes.iter().map(|node| versions_on(node, &keys)).collect() };
    let are_equal = happens_within(timeout, || versions().windows(2).all(|pair| pair[0] == pair[1]));
    assert!(are_equal, "tombstones differ after {timeout:?}: {:?}\n{}", versions(), cluster.reports());
    cluster.wait_until_whole();
    let digests = cluster.digests();
    assert_latest_writes(&cluster, &keys, &replicas, &journals);
    assert_quiet(&cluster);
    assert_eq!(cluster.digests(), digests, "the digests are stable");
}

/// Asserts that on all nodes every key has the state of the write with the largest version.
fn assert_latest_writes<N>(
    cluster: &Cluster<N>,
    keys: &[String],
    replicas: &[ReplicaId],
    journals: &[Journal],
) {
    let versions: Vec<_> = cluster.nodes.iter().map(|node| versions_on(node, keys)).collect();
    assert!(versions.iter().all(|other| *other == versions[0]), "{versions:?}");
    let mut acknowledged_count = 0;
    for key in keys {
        let states: Vec<State> = cluster.nodes.iter().map(|node| node.value(key)).collect();
        let state = &states[0];
        assert!(states.iter().all(|other| other == state), "{key}: {states:?}");
        let traces: Vec<&Traces> = journals.iter().filter_map(|journal| journal.get(key)).collect();
        acknowledged_count += traces.iter().map(|traces| traces.acknowledged_count).sum::<usize>();
        let largest = traces.iter().map(|traces| traces.largest).max().unwrap_or_default();
        let version = versions[0].get(key).copied().unwrap_or_default();
        assert!(version >= largest, "{key} is {state:?} of {version:?}, the writes were {traces:?}");
        if version == Version::default() {
            assert!(
                state.is_none() && traces.iter().all(|traces| traces.last.is_none()),
                "{key}: {traces:?}"
            );
            continue;
        }
        let writer =
            replicas.iter().position(|replica| *replica == version.replica).expect("one of the nodes");
        let is_explained = journals[writer].get(key).is_some_and(|traces| traces.explain(version, state));
        assert!(
            is_explained,
            "{key} is {state:?} of {version:?}, by node {writer}, the writes were {traces:?}"
        );
    }
    // With few acknowledged writes the agreement proves nothing.
    assert!(
        acknowledged_count > ACKNOWLEDGED_COUNT_MIN,
        "only {acknowledged_count} writes were acknowledged"
    );
}

/// Asserts that equal nodes stop exchanging entries. A push that backed off may still arrive, so the quiet time must
/// begin soon, but not immediately.
fn assert_quiet<N: Network>(cluster: &Cluster<N>) {
    // With a jitter of a tenth, every node runs an anti-entropy round with every peer within this time.
    let quiet_time = N::SYNC_INTERVAL * 6 / 5;
    let (mut last, mut since) = (cluster.links.exchanges(), Instant::now());
    within(5 * quiet_time, "equal nodes exchange no entries", || {
        let now = cluster.links.exchanges();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > quiet_time
    });
}

fn write_at_random(
    place: &Place,
    replica: ReplicaId,
    mut random: Random,
    is_done: &AtomicBool,
    serial: &AtomicU64,
) -> Journal {
    let mut journal = Journal::new();
    while !is_done.load(Ordering::Relaxed) {
        // Throttled, so that faults hit between writes as well as during them.
        thread::sleep(Duration::from_millis(random.below(20)));
        let key = format!("key-{}", random.below(KEYS_COUNT));
        let value = serial.fetch_add(1, Ordering::Relaxed).to_string();
        let create = format!(r#"{{"key":"{key}","value":{value}}}"#);
        let update = format!(r#"{{"value":{value}}}"#);
        let target = format!("/configs/{key}");
        let (method, target, body, state) = match random.below(5) {
            0 | 1 => ("POST", "/configs", Some(create.as_str()), Some(value)),
            2 | 3 => ("PUT", target.as_str(), Some(update.as_str()), Some(value)),
            _ => ("DELETE", target.as_str(), None, None),
        };
        let Some(address) = place.get() else { continue };
        let result = ask(address, PATIENCE, method, target, USER_KEY, body);
        let traces = journal.entry(key.clone()).or_default();
        match result.map(|response| response.status) {
            Ok(200 | 201) => {
                let reported = versions(address, slice::from_ref(&key)).ok().map(|versions| versions[&key]);
                traces.last = Some(state);
                // A write of another node may have superseded it immediately.
                traces.version = reported.filter(|version| version.replica == replica);
                traces.unacknowledged.clear();
                traces.acknowledged_count += 1;
                traces.largest = traces.largest.max(reported.unwrap_or_default());
            }
            // The entry already exists, or does not exist: the request changed nothing.
            Ok(400 | 404 | 409) => {}
            Ok(503) | Err(_) => {
                traces.unacknowledged.insert(state);
            }
            Ok(status) => panic!("{status} for {method} {target}"),
        }
    }
    journal
}

fn inject_faults<N: Network>(cluster: &mut Cluster<N>, random: &mut Random) {
    let deadline = Instant::now() + N::DURATION;
    while Instant::now() < deadline {
        let length_ms = N::PAUSE_MS.end - N::PAUSE_MS.start;
        let pause = Duration::from_millis(N::PAUSE_MS.start + random.below(length_ms));
        let node = random.index(cluster.nodes.len());
        match random.below(12) {
            0..=9 => cluster.links.disturb(random),
            10 => {
                cluster.nodes[node].signal("STOP");
                thread::sleep(pause);
                cluster.nodes[node].signal("CONT");
            }
            _ => {
                cluster.nodes[node].kill();
                thread::sleep(pause);
                cluster.nodes[node].start();
            }
        }
        // The duration of the fault; the sleep synchronises nothing.
        thread::sleep(pause);
    }
}

fn replica_id(node: &Node) -> ReplicaId {
    node.report()["node"].as_str().and_then(|text| text.parse().ok()).expect("a number")
}

fn versions_on(node: &Node, keys: &[String]) -> BTreeMap<String, Version> {
    versions(node.place.get().expect("the node is running"), keys).expect("the node responds")
}

/// Returns the versions of those entries that the node knows, tombstones included.
fn versions(address: SocketAddr, keys: &[String]) -> io::Result<BTreeMap<String, Version>> {
    let ids: Vec<EntryId> = keys.iter().map(|key| EntryId { key: key.clone(), environment: None }).collect();
    let body = String::from_utf8(encode_ids(Protocol::V1, &ids)).expect("JSON");
    let response = ask(address, PATIENCE, "POST", "/cluster/entries", USER_KEY, Some(&body))?;
    assert_eq!(response.status, 200, "{response:?}");
    let (_, changes) = decode_changes(&response.body).expect("changes");
    Ok(changes.into_iter().map(|change| (change.id.key, change.version)).collect())
}
