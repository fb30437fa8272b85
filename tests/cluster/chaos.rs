//! Random writes on random nodes of a cluster whose network and nodes fail at random.

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
use opensecureconf::service::exchange::{decode_changes, encode_ids};

use crate::link::{Mode, Place};
use crate::nodes::{CONVERGENCE, Cluster, Links, Node, ask, happens_within, within};
use crate::support::{PATIENCE, USER_KEY};

const SEEDS_COUNT: u64 = 20;
/// A seed is mostly waiting, so that more of them than there are cores go on at a time.
const SEEDS_AT_ONCE: usize = 4;
const KEYS_COUNT: u64 = 12;
const ACKNOWLEDGED_COUNT_MIN: usize = 24;
/// Less than the five minutes after which versions are refused; `hostile` has clocks that are further off.
const SKEW_MS: u64 = 4 * 60 * 1000;

/// What lies between the nodes of a cluster, and can fail.
pub(crate) trait Network {
    /// Nodes must be equal two of these after everything works again.
    const SYNC_INTERVAL: Duration;
    /// How long everything fails.
    const DURATION: Duration;
    /// Between two failures.
    const PAUSE_MS: Range<u64>;

    /// Lets some part fail, or work again.
    fn disturb(&self, random: &mut Random);

    /// Lets all of it work again.
    fn heal(&self);

    /// Grows in each sync interval in which nodes exchange more than equal digests.
    fn exchanges(&self) -> usize;
}

/// `SplitMix64`: small, and the same everywhere.
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
        usize::try_from(self.below(end as u64)).expect("it is below a usize")
    }
}

/// What a write leaves behind: a value, or `None` for a deletion. No value is written twice.
type State = Option<String>;

/// One node's own writes of one key. They are made one after the other.
#[derive(Clone, Debug, Default)]
struct Traces {
    /// What the last acknowledged one wrote.
    last: Option<State>,
    /// Its version, where that is known.
    version: Option<Version>,
    /// What was sent after it and not answered, because the node was killed: it is done, or never will be.
    unanswered: BTreeSet<State>,
    acknowledged_count: usize,
    /// The largest version that the node told after an acknowledged write, its own or a later one.
    largest: Version,
}

impl Traces {
    /// Whether this node may have written a state under a version that names the node.
    fn explain(&self, version: Version, state: &State) -> bool {
        let is_last = self.last.as_ref() == Some(state);
        let is_unanswered = self.unanswered.contains(state);
        match self.version {
            Some(last) if last == version => is_last,
            Some(_) => is_unanswered,
            None => is_last || is_unanswered,
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
fn nodes_agree_after_everything_that_can_happen_to_them() {
    for_each_seed(SEEDS_COUNT, |seed| chaos(Cluster::of(3), seed));
}

/// Digests do not show it, so nothing but a push brings it to the peer.
#[test]
fn a_deletion_is_pushed_after_a_crash() {
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

/// Runs a trial with so many seeds, or as many as `OSC_TEST_CLUSTER_SEEDS` says, or only with the one that
/// `OSC_TEST_SEED` says.
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
        for _ in 0..SEEDS_AT_ONCE {
            let (seeds, next, failed, trial) = (&seeds, &next, &failed, &trial);
            scope.spawn(move || {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Whatever fails is reported with the name of its thread.
                    let thread = thread::Builder::new().name(format!("seed {seed}"));
                    let trial = thread.spawn_scoped(scope, move || trial(seed)).expect("a thread");
                    if trial.join().is_err() {
                        failed.lock().expect("no panic while it is held").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic while it is held");
    let count = seeds.len();
    assert!(failed.is_empty(), "OSC_TEST_SEED=n runs one of those that failed, of {count}: {failed:?}");
}

pub(crate) fn chaos<N: Network>(mut cluster: Cluster<N>, seed: u64) {
    let mut random = Random(seed);
    let offset = i64::try_from(random.below(2 * SKEW_MS)).expect("some minutes") - SKEW_MS.cast_signed();
    let wrong = random.index(cluster.nodes.len());
    cluster.nodes[wrong].set("OSC_TEST_CLOCK_OFFSET_MS", &offset.to_string());
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_SYNC_INTERVAL", &N::SYNC_INTERVAL.as_secs().to_string());
    }
    cluster.start();
    cluster.wait_until_whole();

    let numbers: Vec<ReplicaId> = cluster.nodes.iter().map(number).collect();
    let is_over = AtomicBool::new(false);
    let serial = AtomicU64::new(0);
    let places: Vec<Place> = cluster.nodes.iter().map(|node| node.place.clone()).collect();
    let journals: Vec<Journal> = thread::scope(|scope| {
        let mut writers = Vec::new();
        for (index, (place, number)) in places.iter().zip(&numbers).enumerate() {
            let random = Random(seed ^ (index as u64 + 1) << 32);
            let (is_over, serial) = (&is_over, &serial);
            writers.push(scope.spawn(move || write_at_random(place, *number, random, is_over, serial)));
        }
        disturb(&mut cluster, &mut random);
        is_over.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });

    cluster.links.heal();
    let healed = Instant::now();
    cluster.wait_until_equal_within(2 * N::SYNC_INTERVAL);
    let keys: Vec<String> = (0..KEYS_COUNT).map(|number| format!("key-{number}")).collect();
    // Digests leave deletions out: only the node that made one pushes it, and a push that failed twice waits for its
    // next attempt.
    let patience = (3 * N::SYNC_INTERVAL).saturating_sub(healed.elapsed());
    let versions = || -> Vec<_> { cluster.nodes.iter().map(|node| versions_on(node, &keys)).collect() };
    let are_equal = happens_within(patience, || versions().windows(2).all(|pair| pair[0] == pair[1]));
    assert!(are_equal, "deletions differ after {patience:?}: {:?}\n{}", versions(), cluster.reports());
    cluster.wait_until_whole();
    let digests = cluster.digests();
    expect_written(&cluster, &keys, &numbers, &journals);
    expect_quiet(&cluster);
    assert_eq!(cluster.digests(), digests, "nothing changes any more");
}

/// Every key is everywhere what the write with the largest version made it.
fn expect_written<N>(cluster: &Cluster<N>, keys: &[String], numbers: &[ReplicaId], journals: &[Journal]) {
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
        let writer = numbers.iter().position(|number| *number == version.replica).expect("one of the nodes");
        let is_explained = journals[writer].get(key).is_some_and(|traces| traces.explain(version, state));
        assert!(
            is_explained,
            "{key} is {state:?} of {version:?}, by node {writer}, the writes were {traces:?}"
        );
    }
    // Otherwise the nodes agree on next to nothing, which shows nothing.
    assert!(
        acknowledged_count > ACKNOWLEDGED_COUNT_MIN,
        "only {acknowledged_count} writes were acknowledged"
    );
}

/// Once the nodes are equal they stop exchanging entries. A push that waited for its next attempt may
/// still come, so the time without any has to begin soon, not at once.
fn expect_quiet<N: Network>(cluster: &Cluster<N>) {
    // The intervals vary by a tenth; all nodes compare themselves with all others in this time.
    let long_enough = N::SYNC_INTERVAL * 6 / 5;
    let (mut last, mut since) = (cluster.links.exchanges(), Instant::now());
    within(5 * long_enough, "equal nodes are quiet", || {
        let now = cluster.links.exchanges();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > long_enough
    });
}

fn write_at_random(
    place: &Place,
    number: ReplicaId,
    mut random: Random,
    is_over: &AtomicBool,
    serial: &AtomicU64,
) -> Journal {
    let mut journal = Journal::new();
    while !is_over.load(Ordering::Relaxed) {
        // Not too fast: disturbances should fall between writes as well as into them.
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
                let told = versions(address, slice::from_ref(&key)).ok().map(|versions| versions[&key]);
                traces.last = Some(state);
                // Another node's may have come right after it.
                traces.version = told.filter(|version| version.replica == number);
                traces.unanswered.clear();
                traces.acknowledged_count += 1;
                traces.largest = traces.largest.max(told.unwrap_or_default());
            }
            // It is there already, or not there: nothing was done.
            Ok(400 | 404 | 409) => {}
            Ok(503) | Err(_) => {
                traces.unanswered.insert(state);
            }
            Ok(status) => panic!("{status} for {method} {target}"),
        }
    }
    journal
}

fn disturb<N: Network>(cluster: &mut Cluster<N>, random: &mut Random) {
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
        // How long a disturbance lasts; nothing is waited for.
        thread::sleep(pause);
    }
}

fn number(node: &Node) -> ReplicaId {
    node.report()["node"].as_str().and_then(|text| text.parse().ok()).expect("a number")
}

fn versions_on(node: &Node, keys: &[String]) -> BTreeMap<String, Version> {
    versions(node.place.get().expect("it runs"), keys).expect("it answers")
}

/// The versions of those entries that the node knows, deleted ones too.
fn versions(address: SocketAddr, keys: &[String]) -> io::Result<BTreeMap<String, Version>> {
    let ids: Vec<EntryId> = keys.iter().map(|key| EntryId { key: key.clone(), environment: None }).collect();
    let body = String::from_utf8(encode_ids(&ids)).expect("JSON");
    let response = ask(address, PATIENCE, "POST", "/cluster/entries", USER_KEY, Some(&body))?;
    assert_eq!(response.status, 200, "{response:?}");
    let (_, changes) = decode_changes(&response.body).expect("changes");
    Ok(changes.into_iter().map(|change| (change.id.key, change.version)).collect())
}
