//! Peers that come and go while a node runs: SIGHUP reads `OSC_CLUSTER_NODES` again.

use std::fs;

use crate::nodes::{CONVERGENCE, Node, within};

/// Nodes that know of no other one. What they are told later stands in `.env`.
fn strangers(count: usize, mode: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..count).map(|_| Node::new()).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        node.join(&format!("node-{index}"), "");
        node.forget("OSC_CLUSTER_NODES");
        node.set("OSC_CLUSTER_MODE", mode);
        // All of them seal with the same salt.
        fs::write(node.path("encryption.salt"), [7; 64]).expect("written");
        node.start();
    }
    nodes
}

fn introduce(node: &Node, peers: &[&Node]) {
    let peers: Vec<String> =
        peers.iter().map(|peer| peer.place.get().expect("it runs").to_string()).collect();
    fs::write(node.path(".env"), format!("OSC_CLUSTER_NODES={}\n", peers.join(","))).expect("written");
    let before = node.log().matches("the settings were read again").count();
    node.signal("HUP");
    within(CONVERGENCE, "the settings were read", || {
        node.log().matches("the settings were read again").count() > before
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
