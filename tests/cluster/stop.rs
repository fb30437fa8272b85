//! How long a node of a cluster takes to stop while its peers go on.

use std::time::{Duration, Instant};

use crate::nodes::{CONVERGENCE, Cluster, within};

/// Less than a connection lingers whose other end does not notice that it is over.
const STOP_TIME_MAX: Duration = Duration::from_millis(1500);

/// The shortest of several times: the others may be those of a busy machine.
fn shortest_stop(mode: &str) -> Duration {
    let mut cluster = Cluster::of(4);
    cluster.nodes.iter_mut().for_each(|node| node.set("OSC_CLUSTER_MODE", mode));
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    for node in &cluster.nodes {
        within(CONVERGENCE, "it has asked or been sent", || node.value("k").is_some());
    }
    let stop = |node: &mut crate::nodes::Node| {
        let begun = Instant::now();
        node.stop();
        begun.elapsed()
    };
    cluster.nodes[..3].iter_mut().map(stop).min().expect("three")
}

#[test]
fn a_replica_stops_at_once() {
    let shortest = shortest_stop("replica");
    assert!(shortest < STOP_TIME_MAX, "{shortest:?}");
}

#[test]
fn a_node_of_a_federation_stops_at_once() {
    let shortest = shortest_stop("federated");
    assert!(shortest < STOP_TIME_MAX, "{shortest:?}");
}
