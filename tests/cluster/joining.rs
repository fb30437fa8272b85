//! A new or wiped node of a cluster: until it has compared with its peers it says nothing of what is not there.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::link::Mode;
use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// Nodes with the same salt, none of which runs.
fn with_salt(count: usize) -> Cluster {
    let cluster = Cluster::of(count);
    for node in &cluster.nodes {
        write_salt(node);
    }
    cluster
}

fn write_salt(node: &Node) {
    fs::write(node.path("encryption.salt"), crate::support::proper_salt(7)).expect("written");
}

/// Two nodes with an entry, of which the second one is wiped and is far away from the first one.
fn with_a_wiped_node(delay: Duration) -> Cluster {
    let mut cluster = with_salt(2);
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", r#""old""#).status, 201);
    cluster.wait_for("k", Some(r#""old""#));
    let wiped = &mut cluster.nodes[1];
    wiped.stop();
    wiped.directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    write_salt(wiped);
    cluster.set_links_of(1, Mode::Delayed(delay));
    cluster.nodes[1].start();
    cluster
}

#[test]
fn a_wiped_node_gets_what_its_peer_has_before_it_answers() {
    let cluster = with_a_wiped_node(Duration::from_millis(50));
    let wiped = &cluster.nodes[1];
    let (created, read, listed) = thread::scope(|scope| {
        let create = scope.spawn(|| wiped.create("k", r#""new""#));
        let read = scope.spawn(|| wiped.value("k"));
        let list = scope.spawn(|| wiped.ask("GET", "/configs", None));
        let ready = wiped.ask("GET", "/ready", None);
        assert_eq!(ready.status, 503, "{ready:?}");
        assert_eq!(wiped.ask("GET", "/health", None).status, 200, "it works, it is only not ready");
        (create.join().expect("answered"), read.join().expect("answered"), list.join().expect("answered"))
    });
    assert_eq!(created.status, 400, "{created:?}");
    assert_eq!(read.as_deref(), Some(r#""old""#));
    assert!(listed.text().contains("old"), "{listed:?}");
    within(CONVERGENCE, "it is ready", || wiped.is_ready());
    assert_eq!(cluster.nodes[0].value("k").as_deref(), Some(r#""old""#));
}

#[test]
fn a_comparison_that_takes_long_makes_writes_fail_and_not_wait() {
    let cluster = with_a_wiped_node(Duration::from_millis(200));
    let wiped = &cluster.nodes[1];
    within(CONVERGENCE, "it has met its peer", || wiped.states()[0].0 == "healthy");
    cluster.set_links_of(1, Mode::Stalled);
    let begun = Instant::now();
    let created = wiped.create("k", r#""new""#);
    let (status, detail) = (created.status, created.text());
    assert!(status == 503 && detail.contains("has not compared its entries"), "{created:?}");
    assert!(created.headers.contains_key("retry-after"), "{created:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let ready = wiped.ask("GET", "/ready", None);
    assert!(ready.status == 503 && ready.text().contains("has not compared its entries"), "{ready:?}");
    cluster.set_links_of(1, Mode::Open);
    within(CONVERGENCE, "it is ready", || wiped.is_ready());
    assert_eq!(wiped.create("k", r#""new""#).status, 400);
    for node in &cluster.nodes {
        assert_eq!(node.value("k").as_deref(), Some(r#""old""#));
    }
}

#[test]
fn a_new_node_serves_after_some_seconds_if_no_peer_answers() {
    let mut cluster = with_salt(2);
    let begun = Instant::now();
    cluster.nodes[0].start();
    assert!(!cluster.nodes[0].is_ready(), "a peer may have entries");
    // Requests are answered before that.
    assert_eq!(cluster.nodes[0].value("k"), None);
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    within(CONVERGENCE, "it is ready", || cluster.nodes[0].is_ready());
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    // The other one has a peer to wait for, and gets its entries.
    cluster.nodes[1].start();
    assert_eq!(cluster.nodes[1].create("k", "2").status, 400);
}

#[test]
fn a_node_that_was_in_step_once_serves_at_once_without_its_peers() {
    let mut cluster = with_salt(2);
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_until_equal();
    within(CONVERGENCE, "it knows that they are equal", || {
        cluster.nodes[0].report()["members"][0]["synced_ms"].is_number()
    });
    cluster.nodes[1].stop();
    cluster.nodes[0].stop();
    cluster.nodes[0].start();
    let begun = Instant::now();
    within(CONVERGENCE, "it is ready", || cluster.nodes[0].is_ready());
    assert_eq!(cluster.nodes[0].value("other"), None);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
