//! `OSC_CLUSTER_WRITE_ACKS`: when a write is acknowledged while a node is missing.

use std::time::{Duration, Instant};

use crate::link::Mode;
use crate::nodes::Cluster;

/// How the third node is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Killed,
    Stalled,
}

fn cluster_with(acks: &str) -> Cluster {
    let mut cluster = Cluster::of(3);
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_WRITE_ACKS", acks);
    }
    cluster.start();
    cluster.wait_until_whole();
    // The derivation of the user key must not count as waiting for peers.
    let response = cluster.nodes[0].create("before", "0");
    assert_eq!(response.status, 201, "{acks}: {response:?}");
    cluster
}

fn take_away(cluster: &mut Cluster, missing: Missing) {
    match missing {
        Missing::Killed => cluster.nodes[2].kill(),
        Missing::Stalled => cluster.set_links_of(2, Mode::Stalled),
    }
}

fn bring_back(cluster: &mut Cluster, missing: Missing) {
    match missing {
        Missing::Killed => cluster.nodes[2].start(),
        Missing::Stalled => cluster.set_links_of(2, Mode::Open),
    }
}

#[test]
fn all_with_a_node_missing_says_who_has_it_and_the_write_stays() {
    let mut cluster = cluster_with("all");
    for missing in [Missing::Killed, Missing::Stalled] {
        take_away(&mut cluster, missing);
        let key = format!("while-{missing:?}");
        let begun = Instant::now();
        let response = cluster.nodes[0].create(&key, "1");
        let took = begun.elapsed();
        assert_eq!(response.status, 503, "{missing:?}: {response:?}");
        assert!(took < Duration::from_secs(7), "{missing:?}: {took:?}");
        assert!(response.detail().contains("only 1 of 2 other nodes"), "{missing:?}: {}", response.detail());
        assert!(response.headers.contains_key("retry-after"), "{missing:?}: {response:?}");
        for node in &cluster.nodes[..2] {
            assert_eq!(node.value(&key).as_deref(), Some("1"), "{missing:?}");
        }
        bring_back(&mut cluster, missing);
        cluster.wait_for(&key, Some("1"));
        cluster.wait_until_whole();
        let response = cluster.nodes[0].update(&key, "2");
        assert_eq!(response.status, 200, "{missing:?}: {response:?}");
        // Nothing to wait for: that is what the acknowledgement says.
        for node in &cluster.nodes {
            assert_eq!(node.value(&key).as_deref(), Some("2"), "{missing:?}");
        }
    }
}

#[test]
fn a_quorum_does_without_one_of_three() {
    let mut cluster = cluster_with("quorum");
    for missing in [Missing::Killed, Missing::Stalled] {
        take_away(&mut cluster, missing);
        let key = format!("while-{missing:?}");
        for (what, status, value) in
            [("create", 201, Some("1")), ("update", 200, Some("2")), ("delete", 200, None)]
        {
            let response = match what {
                "create" => cluster.nodes[0].create(&key, "1"),
                "update" => cluster.nodes[0].update(&key, "2"),
                _ => cluster.nodes[0].delete(&key),
            };
            assert_eq!(response.status, status, "{missing:?}, {what}: {response:?}");
            // One of the others has it already, and only one other can be reached.
            assert_eq!(cluster.nodes[1].value(&key).as_deref(), value, "{missing:?}, {what}");
        }
        bring_back(&mut cluster, missing);
        cluster.wait_until_whole();
    }
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let response = cluster.nodes[0].create("alone", "1");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.detail().contains("only 0 of 1 other nodes"), "{}", response.detail());
}

/// The first writes after a start must wait for the same peers as all others, known or not.
#[test]
fn a_write_that_comes_first_thing_after_the_start_waits_too() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
    // It has its salt already, so that a write does not wait for that.
    std::fs::write(cluster.nodes[0].path("encryption.salt"), crate::support::proper_salt(7))
        .expect("it can be written");
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].states().len(), 1, "the peer is there before anything is known of it");
    let response = cluster.nodes[0].create("k", "1");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.detail().contains("only 0 of 1 other nodes"), "{}", response.detail());
}

/// Writes one after the other: a change that is committed while the machine of a peer is being told of
/// the one before must not lie there until the next health check, twice as long as a write waits.
#[test]
fn no_write_of_many_is_left_behind() {
    let cluster = cluster_with("all");
    let node = &cluster.nodes[0];
    std::thread::scope(|scope| {
        for writer in 0..4 {
            scope.spawn(move || {
                let key = format!("many-{writer}");
                assert_eq!(node.create(&key, "0").status, 201);
                for step in 1..150 {
                    let response = node.update(&key, &step.to_string());
                    assert_eq!(response.status, 200, "{key}, step {step}: {response:?}");
                }
            });
        }
    });
}
