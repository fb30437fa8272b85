//! Identity of nodes: a node that lists itself, and a copied data directory.

use crate::nodes::{CONVERGENCE, Cluster, within};
use crate::support::copy_files;

#[test]
fn a_node_on_a_copied_data_directory_is_refused() {
    let mut cluster = Cluster::started(2);
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    cluster.wait_for("k", Some("1"));
    cluster.nodes.iter_mut().for_each(|node| node.stop());
    let (from, to) = (cluster.nodes[0].path(""), cluster.nodes[1].path(""));
    copy_files(&from, &to, &["configurations.db", "encryption.salt"]);
    // The overwritten database left these side files behind.
    for name in ["configurations.db-wal", "configurations.db-shm"] {
        std::fs::remove_file(to.join(name)).ok();
    }
    cluster.start();
    for node in &cluster.nodes {
        within(CONVERGENCE, "the copy is refused", || node.states()[0].0 == "refused");
        let reason = &node.states()[0].1;
        assert!(reason.contains("copy of this node's data directory"), "{reason}");
    }
    // Both have the same data, so exactly one of them stays ready.
    let ready = cluster.nodes.iter().filter(|node| node.is_ready()).count();
    assert_eq!(ready, 1);
    // The two nodes exchange nothing.
    let before = cluster.requests("/cluster/changes");
    assert_eq!(cluster.nodes[0].update("k", "2").status, 200);
    assert_eq!(cluster.nodes[1].value("k").as_deref(), Some("1"));
    assert_eq!(cluster.requests("/cluster/changes"), before);
}

#[test]
fn peer_list_may_include_the_node_itself() {
    let mut cluster = Cluster::of(2);
    let link_to_itself = crate::link::Link::to(cluster.nodes[0].place.clone());
    let peers = format!("{},{}", link_to_itself.address, cluster.link(0, 1).address);
    cluster.nodes[0].set("OSC_CLUSTER_NODES", &peers);
    // If the node counted itself as a peer, the write below could not be acknowledged.
    cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
    cluster.start();
    within(CONVERGENCE, "the node recognises itself", || {
        let states: Vec<String> = cluster.nodes[0].states().into_iter().map(|(state, _)| state).collect();
        states == ["self", "healthy"]
    });
    within(CONVERGENCE, "the node is ready", || cluster.nodes[0].is_ready());
    let response = cluster.nodes[0].create("k", "1");
    assert_eq!(response.status, 201, "{response:?}");
    assert_eq!(cluster.nodes[1].value("k").as_deref(), Some("1"));
    assert_eq!(link_to_itself.requests("/cluster/changes"), 0);
}
