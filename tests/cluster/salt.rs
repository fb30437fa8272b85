//! Salt agreement: one salt for all nodes in any start order, and no salt is ever lost.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::nodes::{CONVERGENCE, Cluster, within};
use crate::support::{Launch, PATIENCE, USER_KEY, proper_salt};

/// A step of a scenario in a new cluster.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start(usize),
    /// Writes on this node; the write must be acknowledged.
    Write(usize),
    /// Sends a write now that is acknowledged once the node has a salt.
    WriteInBackground(usize),
    WaitUntilServing(usize),
    /// Waits for this long.
    Sleep(Duration),
}

fn wait_for_one_salt(cluster: &Cluster, what: &str) -> Vec<u8> {
    within(CONVERGENCE, &format!("{what}: all nodes have the same salt"), || {
        let first = cluster.nodes[0].salt();
        first.is_some() && cluster.nodes.iter().all(|node| node.salt() == first)
    });
    cluster.nodes[0].salt().expect("a salt")
}

/// Database and salt file have their default names, relative to the working directory of each node.
#[test]
fn nodes_agree_on_a_salt_in_any_start_order() {
    use Step::{Start, WaitUntilServing, Write, WriteInBackground};
    for steps in [
        // All nodes start together, with a write on each before they have agreed on a salt.
        vec![Start(0), Start(1), Start(2), WriteInBackground(0), WriteInBackground(1), WriteInBackground(2)],
        vec![Start(2), WriteInBackground(2), Start(1), WriteInBackground(1), Start(0), WriteInBackground(0)],
        // The nodes start one by one; each one serves before the next one starts.
        vec![Start(1), WaitUntilServing(1), Write(1), Start(2), Write(2), Start(0), Write(0)],
        // One node starts late.
        vec![Start(0), Start(2), Write(0), Write(2), WaitUntilServing(2), Start(1), Write(1)],
    ] {
        // In containers all nodes listen on the same port, from which the default node name is derived.
        for names in [["a", "b", "c"], ["node-9000"; 3]] {
            run_steps(&names, &steps);
        }
    }
}

/// The delay is longer than nodes wait for each other, and longer than every other timeout.
#[test]
fn one_is_late_by_a_minute() {
    use Step::{Sleep, Start, Write};
    let minute = Duration::from_secs(60);
    run_steps(&["a", "b", "c"], &[Start(1), Start(2), Write(1), Write(2), Sleep(minute), Start(0), Write(0)]);
}

fn run_steps(names: &[&str; 3], steps: &[Step]) {
    let what = format!("{names:?}, {steps:?}");
    let mut cluster = Cluster::of(3);
    for (node, name) in cluster.nodes.iter_mut().zip(names) {
        node.set("OSC_CLUSTER_NODE_ID", name);
    }
    let mut writers = Vec::new();
    let mut keys = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let key = format!("k{number}");
        match *step {
            Step::Start(node) => cluster.nodes[node].start(),
            Step::WaitUntilServing(node) => within(CONVERGENCE, &what, || cluster.nodes[node].is_ready()),
            Step::Sleep(time) => thread::sleep(time),
            Step::Write(node) => {
                let response = cluster.nodes[node].create(&key, "1");
                assert_eq!(response.status, 201, "{what}, {step:?}: {response:?}");
                keys.push(key);
            }
            Step::WriteInBackground(node) => {
                let address = cluster.nodes[node].place.get().expect("the node is running");
                let body = format!(r#"{{"key":"{key}","value":1}}"#);
                writers.push(thread::spawn(move || {
                    crate::nodes::ask(address, PATIENCE, "POST", "/configs", USER_KEY, Some(&body))
                }));
                keys.push(key);
            }
        }
    }
    for writer in writers {
        let response = writer.join().expect("no panic").expect("the node responds");
        assert_eq!(response.status, 201, "{what}: {response:?}");
    }
    wait_for_one_salt(&cluster, &what);
    for key in keys {
        cluster.wait_for(&key, Some("1"));
    }
}

/// A node whose peers never start must be as useful as a node without peers.
#[test]
fn lone_node_serves_after_a_timeout() {
    let mut cluster = Cluster::of(3);
    let started = Instant::now();
    cluster.nodes[1].start();
    assert!(!cluster.nodes[1].is_ready(), "the node is still waiting for its peers");
    let mut refusals = 0;
    within(CONVERGENCE, "the node accepts writes", || {
        let response = cluster.nodes[1].create("k", "1");
        if response.status == 503 {
            assert!(response.detail().contains("have not agreed on a salt"), "{response:?}");
            refusals += 1;
        }
        response.status == 201
    });
    let took = started.elapsed();
    assert!((Duration::from_secs(8)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert!(refusals < 3, "requests wait instead of failing immediately: {refusals}");
    assert!(cluster.nodes[1].is_ready());
    let salt = cluster.nodes[1].salt();
    cluster.nodes[0].start();
    cluster.nodes[2].start();
    assert_eq!(Some(wait_for_one_salt(&cluster, "the other nodes have started")), salt);
    cluster.wait_for("k", Some("1"));
}

/// Runs a node standalone, so that it has its own salt and an entry.
fn run_standalone(cluster: &Cluster, node: usize, key: &str) {
    let mut server = Launch::at(Arc::clone(&cluster.nodes[node].directory)).start();
    assert_eq!(server.create(key, "1").status, 201);
    assert!(server.stop().success());
}

#[test]
fn two_conflicting_salts_in_use_are_both_kept() {
    let mut cluster = Cluster::of(2);
    let keys = ["of-0", "of-1"];
    for (node, key) in keys.iter().enumerate() {
        run_standalone(&cluster, node, key);
    }
    let salts: Vec<_> = cluster.nodes.iter().map(crate::nodes::Node::salt).collect();
    assert_ne!(salts[0], salts[1]);
    cluster.start();
    for node in &cluster.nodes {
        within(CONVERGENCE, "the peer is refused", || node.states()[0].0 == "refused");
        assert!(node.states()[0].1.contains("salt differs"), "{:?}", node.states());
    }
    for (index, node) in cluster.nodes.iter().enumerate() {
        // One against one: in a tie both nodes stay ready.
        assert!(node.is_ready());
        // Each node keeps serving its own entries, and none of its peer's.
        assert_eq!(node.value(keys[index]).as_deref(), Some("1"));
        assert_eq!(node.value(keys[1 - index]), None);
        assert_eq!(node.salt(), salts[index]);
    }
    // The same holds after a restart.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    within(CONVERGENCE, "the peer is refused again", || cluster.nodes[0].states()[0].0 == "refused");
    assert_eq!(cluster.nodes.iter().map(crate::nodes::Node::salt).collect::<Vec<_>>(), salts);
}

#[test]
fn of_three_nodes_the_one_with_a_different_salt_is_not_ready() {
    let mut cluster = Cluster::of(3);
    run_standalone(&cluster, 2, "of-2");
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    within(CONVERGENCE, "two nodes agree", || cluster.nodes[..2].iter().all(crate::nodes::Node::is_ready));
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    within(CONVERGENCE, "two nodes have the entry", || cluster.nodes[1].value("k").as_deref() == Some("1"));
    cluster.nodes[2].start();
    within(CONVERGENCE, "the odd node reports why it is not ready", || {
        let ready = cluster.nodes[2].ask("GET", "/ready", None);
        ready.status == 503 && ready.text().contains("salt differs")
    });
    for node in &cluster.nodes[..2] {
        within(CONVERGENCE, "the odd node is refused", || {
            node.states().iter().any(|(_, reason)| reason.contains("salt differs"))
        });
        assert!(node.is_ready());
    }
    assert_eq!(
        cluster.nodes[2].value("of-2").as_deref(),
        Some("1"),
        "the odd node keeps serving its own entries"
    );
}

#[test]
fn unused_salt_is_replaced_by_one_in_use() {
    // The unused salt may be the smaller or the larger one, and its node may start first or last.
    for (fill, sealed_first) in [(0, true), (0, false), (255, true), (255, false)] {
        let what = format!("{fill}, {sealed_first}");
        let mut cluster = Cluster::of(2);
        run_standalone(&cluster, 0, "k");
        let salt = cluster.nodes[0].salt().expect("the node has a salt");
        std::fs::write(cluster.nodes[1].path("encryption.salt"), proper_salt(fill)).expect("writable");
        for node in if sealed_first { [0, 1] } else { [1, 0] } {
            cluster.nodes[node].start();
        }
        within(CONVERGENCE, &format!("{what}: the unused salt is replaced"), || {
            cluster.nodes[1].salt().as_ref() == Some(&salt)
        });
        cluster.wait_for("k", Some("1"));
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].salt().as_ref(), Some(&salt), "{what}");
    }
}

/// Also on a node that has received no client writes.
#[test]
fn replicated_entries_bind_the_database_to_the_salt() {
    let mut cluster = Cluster::of(2);
    cluster.start();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_for("k", Some("1"));
    let shared_salt = cluster.nodes[1].salt().expect("the node has a salt");
    cluster.nodes[1].kill();
    let again = || Launch::at(Arc::clone(&cluster.nodes[1].directory));
    std::fs::write(cluster.nodes[1].path("encryption.salt"), proper_salt(1)).expect("writable");
    let refused = again().try_start().err().expect("the start fails");
    assert!(refused.log.contains("another salt"), "{}", refused.log);
    std::fs::write(cluster.nodes[1].path("encryption.salt"), shared_salt).expect("writable");
    assert_eq!(again().start().value("k"), "1");
}

/// An operator may keep using such a salt; other nodes do not adopt it.
#[test]
fn degenerate_salt_of_a_peer_is_not_adopted() {
    let mut cluster = Cluster::of(2);
    std::fs::write(cluster.nodes[0].path("encryption.salt"), [0; 64]).expect("writable");
    let sha256_of_zeros = "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b";
    cluster.nodes[0].set("OSC_ACCEPT_SALT", sha256_of_zeros);
    cluster.start();
    within(CONVERGENCE, "the peer reports why it has no salt", || {
        cluster.nodes[1].log().contains("is not random (distinct byte values: 1)")
    });
    assert_eq!(cluster.nodes[1].salt(), None);
    assert!(!cluster.nodes[1].is_ready());
    // The node that has the salt serves.
    within(CONVERGENCE, "the node accepts writes", || cluster.nodes[0].create("k", "1").status == 201);
}
