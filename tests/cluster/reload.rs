//! Changes of the peer list at runtime: SIGHUP rereads `OSC_CLUSTER_NODES`.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// Starts nodes without peers. Later peer lists are written to `.env`.
fn nodes_without_peers(count: usize, mode: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..count).map(|_| Node::new()).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        node.join(&format!("node-{index}"), "");
        node.forget("OSC_CLUSTER_NODES");
        node.set("OSC_CLUSTER_MODE", mode);
        // All nodes have the same salt.
        fs::write(node.path("encryption.salt"), crate::support::proper_salt(7)).expect("writable");
        node.start();
    }
    nodes
}

fn set_peers(node: &Node, peers: &[&Node]) {
    let peers: Vec<String> =
        peers.iter().map(|peer| peer.place.get().expect("the node is running").to_string()).collect();
    set_peer_list(node, &peers.join(","));
}

/// Sets the peer list and reloads the configuration.
fn set_peer_list(node: &Node, peers: &str) {
    fs::write(node.path(".env"), format!("OSC_CLUSTER_NODES={peers}\n")).expect("writable");
    let before = node.log().matches("configuration reloaded").count();
    node.signal("HUP");
    within(CONVERGENCE, "the settings are reloaded", || {
        node.log().matches("configuration reloaded").count() > before
    });
}

fn is_healthy(node: &Node, peers_count: usize) -> bool {
    let states = node.states();
    states.len() == peers_count && states.iter().all(|(state, _)| state == "healthy")
}

#[test]
fn replicas_join_and_leave_at_runtime() {
    let nodes = nodes_without_peers(3, "replica");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(node.create(&format!("of-{index}"), "1").status, 201);
    }
    set_peers(&nodes[0], &[&nodes[1], &nodes[2]]);
    set_peers(&nodes[1], &[&nodes[0], &nodes[2]]);
    set_peers(&nodes[2], &[&nodes[0], &nodes[1]]);
    within(CONVERGENCE, "all nodes have all entries", || {
        nodes.iter().all(|node| {
            is_healthy(node, 2) && (0..3).all(|index| node.value(&format!("of-{index}")).is_some())
        })
    });
    assert_eq!(nodes[1].create("later", "2").status, 201);
    within(CONVERGENCE, "replication continues", || nodes.iter().all(|node| node.value("later").is_some()));
    // The last node leaves.
    set_peers(&nodes[0], &[&nodes[1]]);
    set_peers(&nodes[1], &[&nodes[0]]);
    set_peers(&nodes[2], &[]);
    within(CONVERGENCE, "the other nodes have one peer each", || {
        is_healthy(&nodes[0], 1) && is_healthy(&nodes[1], 1)
    });
    assert_eq!(nodes[0].create("without", "3").status, 201);
    within(CONVERGENCE, "the remaining peer has the entry", || nodes[1].value("without").is_some());
    assert_eq!(nodes[2].value("without"), None);
}

#[test]
fn federation_grows_and_shrinks_at_runtime() {
    let nodes = nodes_without_peers(3, "federated");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(node.create(&format!("of-{index}"), "1").status, 201);
    }
    assert_eq!(nodes[0].value("of-1"), None);
    set_peers(&nodes[0], &[&nodes[1], &nodes[2]]);
    within(CONVERGENCE, "the new peers are queried", || {
        nodes[0].value("of-1").is_some() && nodes[0].value("of-2").is_some()
    });
    // The owner hint of `of-2` has an index beyond the end of the new peer list.
    set_peers(&nodes[0], &[&nodes[1]]);
    within(CONVERGENCE, "the removed peer is no longer queried", || nodes[0].value("of-2").is_none());
    assert_eq!(nodes[0].value("of-1").as_deref(), Some("1"));
    set_peers(&nodes[0], &[&nodes[2], &nodes[1]]);
    within(CONVERGENCE, "the peer is queried again", || nodes[0].value("of-2").is_some());
    assert_eq!(nodes[0].value("of-1").as_deref(), Some("1"));
}

#[test]
fn remaining_peers_reply_while_the_list_changes() {
    let nodes = nodes_without_peers(3, "federated");
    assert_eq!(nodes[1].create("stays", "1").status, 201);
    set_peers(&nodes[0], &[&nodes[1], &nodes[2]]);
    within(CONVERGENCE, "both peers are healthy", || is_healthy(&nodes[0], 2));
    let (is_done, reads_count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let states = thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        assert_eq!(nodes[0].value("stays").as_deref(), Some("1"));
                        reads_count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // The index of node 1 in the list changes each time.
        let mut rounds = 0;
        let enough = || {
            reads_count.load(Ordering::Relaxed) >= 100 || readers.iter().any(ScopedJoinHandle::is_finished)
        };
        while rounds < 5 || !enough() {
            set_peers(&nodes[0], &[&nodes[1]]);
            set_peers(&nodes[0], &[&nodes[2], &nodes[1]]);
            rounds += 1;
        }
        let kept = nodes[0].states();
        is_done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("all reads succeeded"));
        kept
    });
    assert_eq!(states[1].0, "healthy", "the state of a remaining peer is kept");
}

#[test]
fn remaining_replicas_keep_their_state() {
    let mut cluster = Cluster::of(2);
    for node in &mut cluster.nodes {
        let peers = node.setting("OSC_CLUSTER_NODES");
        node.forget("OSC_CLUSTER_NODES");
        fs::write(node.path(".env"), format!("OSC_CLUSTER_NODES={peers}\n")).expect("writable");
    }
    cluster.start();
    cluster.wait_until_whole();
    let link = cluster.link(0, 1);
    within(CONVERGENCE, "the first anti-entropy round has finished", || {
        cluster.nodes[0].report()["members"][0]["digest"].is_string()
    });
    let connections = link.connections();
    for peers in [format!("127.0.0.1:9,{}", link.address), link.address.to_string()] {
        set_peer_list(&cluster.nodes[0], &peers);
        let count = peers.split(',').count();
        within(CONVERGENCE, "the new list is applied", || cluster.nodes[0].states().len() == count);
        let report = cluster.nodes[0].report();
        let member = &report["members"][count - 1];
        assert_eq!(member["state"], "healthy", "{report:#}");
        assert!(member["digest"].is_string(), "{report:#}");
    }
    assert_eq!(cluster.nodes[0].create("later", "1").status, 201);
    cluster.wait_for("later", Some("1"));
    assert_eq!(link.connections(), connections, "the connection is kept");
}
