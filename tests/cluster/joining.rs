//! A new or wiped node of a cluster: it reports no entry as missing until its first anti-entropy round has finished.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::link::Mode;
use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// Creates nodes with the same salt and starts none of them.
fn with_salt(count: usize) -> Cluster {
    let cluster = Cluster::of(count);
    for node in &cluster.nodes {
        write_salt(node);
    }
    cluster
}

fn write_salt(node: &Node) {
    fs::write(node.path("encryption.salt"), crate::support::proper_salt(7)).expect("writable");
}

/// Stops a node, and gives it an empty directory with the salt.
fn wipe(node: &mut Node) {
    node.stop();
    node.directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    write_salt(node);
}

/// Creates two nodes with an entry, wipes the second one and restarts it behind links with this delay.
fn with_wiped_node(delay: Duration) -> Cluster {
    let mut cluster = with_salt(2);
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", r#""old""#).status, 201);
    cluster.wait_for("k", Some(r#""old""#));
    wipe(&mut cluster.nodes[1]);
    cluster.set_links_of(1, Mode::Delayed(delay));
    cluster.nodes[1].start();
    cluster
}

#[test]
fn wiped_node_syncs_before_it_serves() {
    let cluster = with_wiped_node(Duration::from_millis(50));
    let wiped = &cluster.nodes[1];
    let (created, read, listed) = thread::scope(|scope| {
        let create = scope.spawn(|| wiped.create("k", r#""new""#));
        let read = scope.spawn(|| wiped.value("k"));
        let list = scope.spawn(|| wiped.ask("GET", "/configs", None));
        let ready = wiped.ask("GET", "/ready", None);
        assert_eq!(ready.status, 503, "{ready:?}");
        assert_eq!(
            wiped.ask("GET", "/health", None).status,
            200,
            "a node that is not ready is still healthy"
        );
        (create.join().expect("no panic"), read.join().expect("no panic"), list.join().expect("no panic"))
    });
    assert_eq!(created.status, 400, "{created:?}");
    assert_eq!(read.as_deref(), Some(r#""old""#));
    assert!(listed.text().contains("old"), "{listed:?}");
    within(CONVERGENCE, "the node is ready", || wiped.is_ready());
    assert_eq!(cluster.nodes[0].value("k").as_deref(), Some(r#""old""#));
}

#[test]
fn writes_fail_fast_during_a_long_initial_sync() {
    let cluster = with_wiped_node(Duration::from_millis(200));
    let wiped = &cluster.nodes[1];
    within(CONVERGENCE, "the peer is healthy", || wiped.states()[0].0 == "healthy");
    cluster.set_links_of(1, Mode::Stalled);
    let started = Instant::now();
    let created = wiped.create("k", r#""new""#);
    let (status, detail) = (created.status, created.text());
    assert!(status == 503 && detail.contains("has not compared its entries"), "{created:?}");
    assert!(created.headers.contains_key("retry-after"), "{created:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let ready = wiped.ask("GET", "/ready", None);
    assert!(ready.status == 503 && ready.text().contains("has not compared its entries"), "{ready:?}");
    cluster.set_links_of(1, Mode::Open);
    within(CONVERGENCE, "the node is ready", || wiped.is_ready());
    assert_eq!(wiped.create("k", r#""new""#).status, 400);
    for node in &cluster.nodes {
        assert_eq!(node.value("k").as_deref(), Some(r#""old""#));
    }
}

#[test]
fn new_node_serves_after_a_timeout_if_no_peer_responds() {
    let mut cluster = with_salt(2);
    let started = Instant::now();
    cluster.nodes[0].start();
    assert!(!cluster.nodes[0].is_ready(), "a peer may have entries");
    // Requests are served before the node is ready.
    assert_eq!(cluster.nodes[0].value("k"), None);
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    within(CONVERGENCE, "the node is ready", || cluster.nodes[0].is_ready());
    assert!(started.elapsed() >= Duration::from_secs(9), "{:?}", started.elapsed());
    // The second node waits for its peer and receives its entries.
    cluster.nodes[1].start();
    assert_eq!(cluster.nodes[1].create("k", "2").status, 400);
}

#[test]
fn previously_synced_node_serves_immediately_without_its_peers() {
    let mut cluster = with_salt(2);
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_until_equal();
    within(CONVERGENCE, "the nodes are in sync", || {
        cluster.nodes[0].report()["members"][0]["synced_ms"].is_number()
    });
    cluster.nodes[1].stop();
    cluster.nodes[0].stop();
    cluster.nodes[0].start();
    let started = Instant::now();
    within(CONVERGENCE, "the node is ready", || cluster.nodes[0].is_ready());
    assert_eq!(cluster.nodes[0].value("other"), None);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

/// Replaces a node by one with an empty directory, and waits until it and `other` are equal in the words of the
/// documentation: ready, in sync, and with an empty outbox.
fn replace(cluster: &mut Cluster, index: usize, other: usize) {
    wipe(&mut cluster.nodes[index]);
    cluster.nodes[index].start();
    let (new, other) = (&cluster.nodes[index], &cluster.nodes[other]);
    within(CONVERGENCE, "the new node is ready", || new.is_ready());
    within(CONVERGENCE, "the nodes are equal", || {
        let report = other.report();
        let members = report["members"].as_array().expect("an array");
        let is_equal = |member: &&serde_json::Value| {
            member["node"] == new.report()["node"]
                && member["outbox_length"] == 0
                && member["synced_ms"].is_number()
        };
        members.iter().any(|member| is_equal(&member))
    });
}

/// Digests do not cover tombstones, so a new node has to get those of entries that it never had.
#[test]
fn a_deletion_stays_although_all_other_nodes_were_replaced() {
    let mut cluster = with_salt(3);
    cluster.start();
    cluster.wait_until_whole();
    for key in ["deleted", "kept"] {
        assert_eq!(cluster.nodes[0].create(key, "1").status, 201);
        cluster.wait_for(key, Some("1"));
    }
    cluster.nodes[2].stop();
    assert_eq!(cluster.nodes[0].delete("deleted").status, 200);
    within(CONVERGENCE, "the deletion is replicated", || cluster.nodes[1].value("deleted").is_none());
    replace(&mut cluster, 1, 0);
    replace(&mut cluster, 0, 1);
    cluster.nodes[2].start();
    cluster.wait_until_equal();
    for node in &cluster.nodes {
        assert_eq!(node.value("deleted"), None, "it came back");
        assert_eq!(node.value("kept").as_deref(), Some("1"));
    }
}
