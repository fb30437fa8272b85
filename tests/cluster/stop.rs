//! Stop time of a cluster node while its peers keep running.

use std::time::{Duration, Instant};

use crate::nodes::{CONVERGENCE, Cluster, within};

/// Less than the lingering close of a connection whose peer does not close its end.
const STOP_TIME_MAX: Duration = Duration::from_millis(1500);

/// Returns the shortest of several stop times, because a busy machine can prolong any of them.
fn shortest_stop(mode: &str) -> Duration {
    let mut cluster = Cluster::of(4);
    cluster.nodes.iter_mut().for_each(|node| node.set("OSC_CLUSTER_MODE", mode));
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    for node in &cluster.nodes {
        within(CONVERGENCE, "every node has the entry or reads it from its owner", || {
            node.value("k").is_some()
        });
    }
    let stop = |node: &mut crate::nodes::Node| {
        let started = Instant::now();
        node.stop();
        started.elapsed()
    };
    cluster.nodes[..3].iter_mut().map(stop).min().expect("three")
}

#[test]
fn replica_stops_immediately() {
    let shortest = shortest_stop("replica");
    assert!(shortest < STOP_TIME_MAX, "{shortest:?}");
}

#[test]
fn federated_node_stops_immediately() {
    let shortest = shortest_stop("federated");
    assert!(shortest < STOP_TIME_MAX, "{shortest:?}");
}

/// A draining node is still a full member: its peers keep their connections, which begin with several requests.
#[test]
fn a_draining_node_replicates() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_DRAIN_SECONDS", "3600");
    cluster.start();
    cluster.wait_until_whole();
    let [draining, other] = &cluster.nodes[..] else { unreachable!("two nodes") };
    draining.signal("TERM");
    within(CONVERGENCE, "the drain has begun", || !draining.is_ready());
    assert!(other.is_ready());
    for (number, (from, to)) in [(draining, other), (other, draining)].into_iter().enumerate() {
        let key = format!("k{number}");
        assert_eq!(from.create(&key, "1").status, 201);
        within(CONVERGENCE, "the entry is replicated", || to.value(&key).is_some());
    }
    // A peer that starts meanwhile authenticates itself on a new connection.
    cluster.nodes[1].stop();
    cluster.nodes[1].start();
    assert_eq!(cluster.nodes[0].create("k2", "1").status, 201);
    within(CONVERGENCE, "the entry is replicated", || cluster.nodes[1].value("k2").is_some());
    // The second signal.
    cluster.nodes[0].stop();
}
