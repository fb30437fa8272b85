//! Peers that come and go while a node runs: SIGHUP reads `OSC_CLUSTER_NODES` again.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// Nodes that know of no other one. What they are told later stands in `.env`.
fn strangers(count: usize, mode: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..count).map(|_| Node::new()).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        node.join(&format!("node-{index}"), "");
        node.forget("OSC_CLUSTER_NODES");
        node.set("OSC_CLUSTER_MODE", mode);
        // All of them seal with the same salt.
        fs::write(node.path("encryption.salt"), crate::support::proper_salt(7)).expect("written");
        node.start();
    }
    nodes
}

fn introduce(node: &Node, peers: &[&Node]) {
    let peers: Vec<String> =
        peers.iter().map(|peer| peer.place.get().expect("it runs").to_string()).collect();
    list(node, &peers.join(","));
}

/// Another list of peers.
fn list(node: &Node, peers: &str) {
    fs::write(node.path(".env"), format!("OSC_CLUSTER_NODES={peers}\n")).expect("written");
    let before = node.log().matches("configuration reloaded").count();
    node.signal("HUP");
    within(CONVERGENCE, "the settings were read", || {
        node.log().matches("configuration reloaded").count() > before
    });
}

fn is_healthy(node: &Node, peers_count: usize) -> bool {
    let states = node.states();
    states.len() == peers_count && states.iter().all(|(state, _)| state == "healthy")
}

#[test]
fn replicas_meet_and_part_while_they_run() {
    let nodes = strangers(3, "replica");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(node.create(&format!("of-{index}"), "1").status, 201);
    }
    introduce(&nodes[0], &[&nodes[1], &nodes[2]]);
    introduce(&nodes[1], &[&nodes[0], &nodes[2]]);
    introduce(&nodes[2], &[&nodes[0], &nodes[1]]);
    within(CONVERGENCE, "all have everything", || {
        nodes.iter().all(|node| {
            is_healthy(node, 2) && (0..3).all(|index| node.value(&format!("of-{index}")).is_some())
        })
    });
    assert_eq!(nodes[1].create("later", "2").status, 201);
    within(CONVERGENCE, "it goes on", || nodes.iter().all(|node| node.value("later").is_some()));
    // The last one leaves.
    introduce(&nodes[0], &[&nodes[1]]);
    introduce(&nodes[1], &[&nodes[0]]);
    introduce(&nodes[2], &[]);
    within(CONVERGENCE, "the others know", || is_healthy(&nodes[0], 1) && is_healthy(&nodes[1], 1));
    assert_eq!(nodes[0].create("without", "3").status, 201);
    within(CONVERGENCE, "the other one has it", || nodes[1].value("without").is_some());
    assert_eq!(nodes[2].value("without"), None);
}

#[test]
fn a_federation_grows_and_shrinks_while_it_is_asked() {
    let nodes = strangers(3, "federated");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(node.create(&format!("of-{index}"), "1").status, 201);
    }
    assert_eq!(nodes[0].value("of-1"), None);
    introduce(&nodes[0], &[&nodes[1], &nodes[2]]);
    within(CONVERGENCE, "others are asked", || {
        nodes[0].value("of-1").is_some() && nodes[0].value("of-2").is_some()
    });
    // The place of `of-2` is known, and its number is beyond the peers that are left.
    introduce(&nodes[0], &[&nodes[1]]);
    within(CONVERGENCE, "one is gone", || nodes[0].value("of-2").is_none());
    assert_eq!(nodes[0].value("of-1").as_deref(), Some("1"));
    introduce(&nodes[0], &[&nodes[2], &nodes[1]]);
    within(CONVERGENCE, "it is back", || nodes[0].value("of-2").is_some());
    assert_eq!(nodes[0].value("of-1").as_deref(), Some("1"));
}

#[test]
fn peers_that_stay_answer_while_the_list_changes() {
    let nodes = strangers(3, "federated");
    assert_eq!(nodes[1].create("stays", "1").status, 201);
    introduce(&nodes[0], &[&nodes[1], &nodes[2]]);
    within(CONVERGENCE, "both are healthy", || is_healthy(&nodes[0], 2));
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let states = thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        assert_eq!(nodes[0].value("stays").as_deref(), Some("1"));
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // Its place in the list changes each time.
        let mut rounds = 0;
        let enough =
            || asked.load(Ordering::Relaxed) >= 100 || readers.iter().any(ScopedJoinHandle::is_finished);
        while rounds < 5 || !enough() {
            introduce(&nodes[0], &[&nodes[1]]);
            introduce(&nodes[0], &[&nodes[2], &nodes[1]]);
            rounds += 1;
        }
        let kept = nodes[0].states();
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("it read"));
        kept
    });
    assert_eq!(states[1].0, "healthy", "what is known of it stays");
}

#[test]
fn replicas_that_stay_keep_what_is_known_of_them() {
    let mut cluster = Cluster::of(2);
    for node in &mut cluster.nodes {
        let peers = node.setting("OSC_CLUSTER_NODES");
        node.forget("OSC_CLUSTER_NODES");
        fs::write(node.path(".env"), format!("OSC_CLUSTER_NODES={peers}\n")).expect("written");
    }
    cluster.start();
    cluster.wait_until_whole();
    let link = cluster.link(0, 1);
    within(CONVERGENCE, "they have compared", || {
        cluster.nodes[0].report()["members"][0]["digest"].is_string()
    });
    let connections = link.connections();
    for peers in [format!("127.0.0.1:9,{}", link.address), link.address.to_string()] {
        list(&cluster.nodes[0], &peers);
        let count = peers.split(',').count();
        within(CONVERGENCE, "the list is another one", || cluster.nodes[0].states().len() == count);
        let report = cluster.nodes[0].report();
        let member = &report["members"][count - 1];
        assert_eq!(member["state"], "healthy", "{report:#}");
        assert!(member["digest"].is_string(), "{report:#}");
    }
    assert_eq!(cluster.nodes[0].create("later", "1").status, 201);
    cluster.wait_for("later", Some("1"));
    assert_eq!(link.connections(), connections, "the connection is kept");
}
