//! Random writes on random nodes of a cluster whose links and nodes fail at random.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::link::{Mode, Place};
use crate::nodes::{CONVERGENCE, Cluster, SYNC_INTERVAL, ask, within};
use crate::support::USER_KEY;

const KEYS_COUNT: u64 = 12;
const ACKNOWLEDGED_COUNT_MIN: usize = 24;
const DURATION: Duration = Duration::from_secs(5);
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Long enough to derive a key on a busy machine, and for a node that is stopped to go on.
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("it is below a usize")
    }
}

/// The states of one key that one node's own writes may have left it in; `None` is "deleted".
///
/// A node's write is later than everything that the node had seen, so of the acknowledged ones only
/// the last counts. What was sent and not answered may be done at any time, or never.
#[derive(Clone, Debug, Default)]
struct Traces {
    last: Option<Option<String>>,
    acknowledged_count: usize,
    unanswered: BTreeSet<Option<String>>,
    /// What this node gave just before it acknowledged a write, whoever had written that: the write
    /// replaced it, or something later still. No value is written twice, so it cannot come back.
    replaced: BTreeSet<String>,
}

type Journal = BTreeMap<String, Traces>;

#[test]
fn nodes_agree_after_everything_that_can_happen_to_them() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seeds: Vec<u64> = match variable("OSC_TEST_SEED") {
        Some(seed) => vec![seed],
        None => {
            let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
            (0..variable("OSC_TEST_CLUSTER_SEEDS").unwrap_or(3)).map(|index| now * 1000 + index).collect()
        }
    };
    for seed in seeds {
        // Shown by the test harness when the test fails.
        eprintln!("OSC_TEST_SEED={seed} replays this");
        chaos(seed);
    }
}

fn chaos(seed: u64) {
    let mut random = Random(seed);
    let mut cluster = Cluster::of(3);
    // Within an hour before and after the others.
    let offset = i64::try_from(random.below(2 * HOUR_MS)).expect("two hours") - HOUR_MS.cast_signed();
    let wrong = random.index(3);
    cluster.nodes[wrong].set("OSC_TEST_CLOCK_OFFSET_MS", &offset.to_string());
    cluster.start();
    cluster.wait_until_whole();

    let is_over = AtomicBool::new(false);
    let serial = AtomicU64::new(0);
    let places: Vec<Place> = cluster.nodes.iter().map(|node| node.place.clone()).collect();
    let journals: Vec<Journal> = thread::scope(|scope| {
        let mut writers = Vec::new();
        for (index, place) in places.iter().enumerate() {
            let random = Random(seed ^ (index as u64 + 1) << 32);
            let (is_over, serial) = (&is_over, &serial);
            writers.push(scope.spawn(move || write_at_random(place, random, is_over, serial)));
        }
        disturb(&mut cluster, &mut random);
        is_over.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
    });

    for (.., link) in &cluster.links {
        link.set(Mode::Open);
    }
    cluster.wait_until_equal();
    cluster.wait_until_whole();
    let digest = cluster.nodes[0].digest();
    assert_eq!(cluster.digests(), [digest.as_str(); 3]);
    let mut acknowledged = 0;
    for key in (0..KEYS_COUNT).map(|number| format!("key-{number}")) {
        let values: Vec<Option<String>> = cluster.nodes.iter().map(|node| node.value(&key)).collect();
        assert!(values.iter().all(|value| *value == values[0]), "seed {seed}, {key}: {values:?}");
        let traces: Vec<&Traces> = journals.iter().filter_map(|journal| journal.get(&key)).collect();
        acknowledged += traces.iter().map(|traces| traces.acknowledged_count).sum::<usize>();
        let came_back = values[0]
            .as_ref()
            .is_some_and(|value| traces.iter().any(|traces| traces.replaced.contains(value)));
        assert!(!came_back, "seed {seed}: {key} is {:?} again, after {traces:?}", values[0]);
        let is_explained = traces
            .iter()
            .any(|traces| traces.last.as_ref() == Some(&values[0]) || traces.unanswered.contains(&values[0]));
        let was_never_written = values[0].is_none() && traces.iter().all(|traces| traces.last.is_none());
        assert!(
            is_explained || was_never_written,
            "seed {seed}: {key} is {:?}, but the writes were {traces:?}",
            values[0]
        );
    }
    // Otherwise the nodes agree on next to nothing, which shows nothing.
    assert!(
        acknowledged > ACKNOWLEDGED_COUNT_MIN,
        "seed {seed}: only {acknowledged} writes were acknowledged"
    );
    expect_quiet(&cluster, seed);
    assert_eq!(cluster.digests(), [digest.as_str(); 3], "seed {seed}");
}

/// Once the nodes are equal they stop exchanging entries. A push that waited for its next attempt may
/// still come, so the time without any has to begin soon, not at once.
fn expect_quiet(cluster: &Cluster, seed: u64) {
    let exchanged = || {
        ["/cluster/changes", "/cluster/versions", "/cluster/entries"]
            .map(|target| cluster.requests(target))
            .iter()
            .sum::<usize>()
    };
    let (mut last, mut since) = (exchanged(), Instant::now());
    within(CONVERGENCE, &format!("seed {seed}: equal nodes are quiet"), || {
        let now = exchanged();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > 2 * SYNC_INTERVAL + SYNC_INTERVAL / 2
    });
}

fn write_at_random(place: &Place, mut random: Random, is_over: &AtomicBool, serial: &AtomicU64) -> Journal {
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
        let read = ask(address, CLIENT_PATIENCE, "GET", &format!("/configs/{key}"), USER_KEY, None);
        let seen = read.ok().filter(|response| response.status == 200).map(|response| response.value());
        let result = ask(address, CLIENT_PATIENCE, method, target, USER_KEY, body);
        let traces = journal.entry(key).or_default();
        match result.map(|response| response.status) {
            Ok(200 | 201) => {
                traces.last = Some(state);
                traces.replaced.extend(seen);
                traces.acknowledged_count += 1;
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

fn disturb(cluster: &mut Cluster, random: &mut Random) {
    let deadline = Instant::now() + DURATION;
    while Instant::now() < deadline {
        let pause = Duration::from_millis(50 + random.below(350));
        let node = random.index(cluster.nodes.len());
        let link = random.index(cluster.links.len());
        match random.below(12) {
            0..=2 => cluster.links[link].2.set(Mode::Cut),
            3 => cluster.links[link].2.set(Mode::Stalled),
            4 => cluster.links[link].2.set(Mode::Delayed(Duration::from_millis(random.below(200)))),
            5..=7 => cluster.links[link].2.set(Mode::Open),
            8 => cluster.set_links_of(node, Mode::Cut),
            9 => cluster.set_links_of(node, Mode::Open),
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
