//! One salt for all nodes, in whatever order they come, and none that is ever lost.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::nodes::{CONVERGENCE, Cluster, within};
use crate::support::{Launch, PATIENCE, USER_KEY, proper_salt};

/// What happens next in the life of a young cluster.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start(usize),
    /// A write on this node, which must be acknowledged.
    Write(usize),
    /// A write that is sent now, and answered whenever the salt is there.
    WriteMeanwhile(usize),
    WaitUntilServing(usize),
    /// Nothing happens for so long.
    Rest(Duration),
}

fn wait_for_one_salt(cluster: &Cluster, what: &str) -> Vec<u8> {
    within(CONVERGENCE, &format!("{what}: all nodes have the same salt"), || {
        let first = cluster.nodes[0].salt();
        first.is_some() && cluster.nodes.iter().all(|node| node.salt() == first)
    });
    cluster.nodes[0].salt().expect("it is there")
}

/// Database and salt file have their default names, relative to a directory of each node's own.
#[test]
fn whatever_order_the_nodes_come_in() {
    use Step::{Start, WaitUntilServing, Write, WriteMeanwhile};
    for steps in [
        // All at once, and everybody writes before anything is agreed on.
        vec![Start(0), Start(1), Start(2), WriteMeanwhile(0), WriteMeanwhile(1), WriteMeanwhile(2)],
        vec![Start(2), WriteMeanwhile(2), Start(1), WriteMeanwhile(1), Start(0), WriteMeanwhile(0)],
        // One by one, each serves before the next one comes.
        vec![Start(1), WaitUntilServing(1), Write(1), Start(2), Write(2), Start(0), Write(0)],
        // One is late.
        vec![Start(0), Start(2), Write(0), Write(2), WaitUntilServing(2), Start(1), Write(1)],
    ] {
        // In containers all nodes listen on the same port, and the name is made of that.
        for names in [["a", "b", "c"], ["node-9000"; 3]] {
            live(&names, &steps);
        }
    }
}

/// Longer than nodes wait for each other, and long enough for everything else to have timed out.
#[test]
fn one_is_late_by_a_minute() {
    use Step::{Rest, Start, Write};
    let minute = Duration::from_secs(60);
    live(&["a", "b", "c"], &[Start(1), Start(2), Write(1), Write(2), Rest(minute), Start(0), Write(0)]);
}

fn live(names: &[&str; 3], steps: &[Step]) {
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
            Step::Rest(time) => thread::sleep(time),
            Step::Write(node) => {
                let response = cluster.nodes[node].create(&key, "1");
                assert_eq!(response.status, 201, "{what}, {step:?}: {response:?}");
                keys.push(key);
            }
            Step::WriteMeanwhile(node) => {
                let address = cluster.nodes[node].place.get().expect("it runs");
                let body = format!(r#"{{"key":"{key}","value":1}}"#);
                writers.push(thread::spawn(move || {
                    crate::nodes::ask(address, PATIENCE, "POST", "/configs", USER_KEY, Some(&body))
                }));
                keys.push(key);
            }
        }
    }
    for writer in writers {
        let response = writer.join().expect("no panic").expect("it answers");
        assert_eq!(response.status, 201, "{what}: {response:?}");
    }
    wait_for_one_salt(&cluster, &what);
    for key in keys {
        cluster.wait_for(&key, Some("1"));
    }
}

/// A node whose peers never come must not be of less use than one without peers.
#[test]
fn a_node_alone_serves_after_some_seconds() {
    let mut cluster = Cluster::of(3);
    let begun = Instant::now();
    cluster.nodes[1].start();
    assert!(!cluster.nodes[1].is_ready(), "it cannot know yet that nobody comes");
    let mut refusals = 0;
    within(CONVERGENCE, "it serves", || {
        let response = cluster.nodes[1].create("k", "1");
        if response.status == 503 {
            assert!(response.detail().contains("have not agreed on a salt"), "{response:?}");
            refusals += 1;
        }
        response.status == 201
    });
    let took = begun.elapsed();
    assert!((Duration::from_secs(8)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert!(refusals < 3, "requests wait, they do not spin: {refusals}");
    assert!(cluster.nodes[1].is_ready());
    let salt = cluster.nodes[1].salt();
    cluster.nodes[0].start();
    cluster.nodes[2].start();
    assert_eq!(Some(wait_for_one_salt(&cluster, "the others come at last")), salt);
    cluster.wait_for("k", Some("1"));
}

/// Runs a node by itself, so that it has a salt of its own and an entry.
fn live_alone(cluster: &Cluster, node: usize, key: &str) {
    let mut server = Launch::at(Arc::clone(&cluster.nodes[node].directory)).start();
    assert_eq!(server.create(key, "1").status, 201);
    assert!(server.stop().success());
}

#[test]
fn two_salts_that_both_sealed_something_both_stay() {
    let mut cluster = Cluster::of(2);
    let keys = ["of-0", "of-1"];
    for (node, key) in keys.iter().enumerate() {
        live_alone(&cluster, node, key);
    }
    let salts: Vec<_> = cluster.nodes.iter().map(crate::nodes::Node::salt).collect();
    assert_ne!(salts[0], salts[1]);
    cluster.start();
    for node in &cluster.nodes {
        within(CONVERGENCE, "the other one is refused", || node.states()[0].0 == "refused");
        assert!(node.states()[0].1.contains("salt differs"), "{:?}", node.states());
    }
    for (index, node) in cluster.nodes.iter().enumerate() {
        // One against one: a tie takes neither out.
        assert!(node.is_ready());
        // It still serves what it has, and nothing of the other one's.
        assert_eq!(node.value(keys[index]).as_deref(), Some("1"));
        assert_eq!(node.value(keys[1 - index]), None);
        assert_eq!(node.salt(), salts[index]);
    }
    // With and without a restart.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    within(CONVERGENCE, "it is refused again", || cluster.nodes[0].states()[0].0 == "refused");
    assert_eq!(cluster.nodes.iter().map(crate::nodes::Node::salt).collect::<Vec<_>>(), salts);
}

#[test]
fn of_three_nodes_the_one_with_an_odd_salt_is_not_ready() {
    let mut cluster = Cluster::of(3);
    live_alone(&cluster, 2, "of-2");
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    within(CONVERGENCE, "two agree", || cluster.nodes[..2].iter().all(crate::nodes::Node::is_ready));
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    within(CONVERGENCE, "two have it", || cluster.nodes[1].value("k").as_deref() == Some("1"));
    cluster.nodes[2].start();
    within(CONVERGENCE, "the odd one says why it is not ready", || {
        let ready = cluster.nodes[2].ask("GET", "/ready", None);
        ready.status == 503 && ready.text().contains("salt differs")
    });
    for node in &cluster.nodes[..2] {
        within(CONVERGENCE, "the odd one is refused", || {
            node.states().iter().any(|(_, reason)| reason.contains("salt differs"))
        });
        assert!(node.is_ready());
    }
    assert_eq!(cluster.nodes[2].value("of-2").as_deref(), Some("1"), "it goes on to serve what it has");
}

#[test]
fn a_salt_that_sealed_nothing_yields_to_one_that_did() {
    // The one that yields may be the smaller or the larger one, and come first or last.
    for (fill, sealed_first) in [(0, true), (0, false), (255, true), (255, false)] {
        let what = format!("{fill}, {sealed_first}");
        let mut cluster = Cluster::of(2);
        live_alone(&cluster, 0, "k");
        let salt = cluster.nodes[0].salt().expect("it has one");
        std::fs::write(cluster.nodes[1].path("encryption.salt"), proper_salt(fill))
            .expect("it can be written");
        for node in if sealed_first { [0, 1] } else { [1, 0] } {
            cluster.nodes[node].start();
        }
        within(CONVERGENCE, &format!("{what}: it yields"), || {
            cluster.nodes[1].salt().as_ref() == Some(&salt)
        });
        cluster.wait_for("k", Some("1"));
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].salt().as_ref(), Some(&salt), "{what}");
    }
}

/// Also on a node where no client ever wrote.
#[test]
fn entries_of_peers_bind_the_database_to_the_salt() {
    let mut cluster = Cluster::of(2);
    cluster.start();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_for("k", Some("1"));
    let right = cluster.nodes[1].salt().expect("it has one");
    cluster.nodes[1].kill();
    let again = || Launch::at(Arc::clone(&cluster.nodes[1].directory));
    std::fs::write(cluster.nodes[1].path("encryption.salt"), proper_salt(1)).expect("it can be written");
    let refused = again().try_start().err().expect("it must not start");
    assert!(refused.log.contains("another salt"), "{}", refused.log);
    std::fs::write(cluster.nodes[1].path("encryption.salt"), right).expect("it can be written");
    assert_eq!(again().start().value("k"), "1");
}

/// An operator may go on with such a salt; other nodes do not take it over.
#[test]
fn a_degenerate_salt_of_a_peer_is_not_taken_over() {
    let mut cluster = Cluster::of(2);
    std::fs::write(cluster.nodes[0].path("encryption.salt"), [0; 64]).expect("it can be written");
    let sha256_of_zeros = "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b";
    cluster.nodes[0].set("OSC_ACCEPT_SALT", sha256_of_zeros);
    cluster.start();
    within(CONVERGENCE, "the other one says why it has no salt", || {
        cluster.nodes[1].log().contains("is not random (distinct byte values: 1)")
    });
    assert_eq!(cluster.nodes[1].salt(), None);
    assert!(!cluster.nodes[1].is_ready());
    // The one with the salt serves.
    within(CONVERGENCE, "it serves", || cluster.nodes[0].create("k", "1").status == 201);
}
