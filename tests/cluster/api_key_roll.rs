//! Rolling change of the clients' API key, as a Deployment or a StatefulSet does it: one node after another restarts.

use std::fs;

use crate::nodes::{API_KEY, CONVERGENCE, Cluster, Node, within};

const NEW_API_KEY: &str = "the-api-key-that-takes-its-place-everywhere";

/// Node authentication: by a cluster secret, or by the first API key.
const SECRETS: [Option<&str>; 2] = [Some("a-secret-of-nodes-0123456789abcdef"), None];

fn started(secret: Option<&str>) -> Cluster {
    let mut cluster = Cluster::of(3);
    for node in &mut cluster.nodes {
        if let Some(secret) = secret {
            node.set("OSC_CLUSTER_SECRET", secret);
        }
    }
    cluster.start();
    cluster.wait_until_whole();
    cluster
}

/// Asserts that every node but `stopped` is ready, serves reads and accepts writes.
fn assert_serving(nodes: &[Node], stopped: usize, step: &str) {
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| *index != stopped) {
        assert!(node.is_ready(), "{step}: node {index}: {:?}\n{}", node.states(), node.log());
        assert_eq!(node.value("k").as_deref(), Some("1"), "{step}: node {index}");
        let created = node.create(&format!("{step}-{index}"), "2");
        assert_eq!(created.status, 201, "{step}: node {index}: {created:?}");
    }
}

#[test]
fn all_nodes_serve_during_a_rolling_change_of_the_api_key() {
    for secret in SECRETS {
        let mut cluster = started(secret);
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        cluster.wait_for("k", Some("1"));
        cluster.wait_until_equal();
        for index in 0..cluster.nodes.len() {
            cluster.nodes[index].stop();
            assert_serving(&cluster.nodes, index, &format!("without-{index}"));
            cluster.nodes[index].set("OSC_API_KEY", NEW_API_KEY);
            cluster.nodes[index].api_key = NEW_API_KEY.to_owned();
            cluster.nodes[index].start();
            within(CONVERGENCE, "the node is ready", || cluster.nodes[index].is_ready());
            assert_serving(&cluster.nodes, usize::MAX, &format!("with-{index}"));
            if secret.is_some() {
                within(CONVERGENCE, "node authentication does not depend on the clients' API key", || {
                    cluster.nodes.iter().all(|node| node.states().iter().all(|(state, _)| state == "healthy"))
                });
            }
        }
        cluster.wait_until_whole();
        cluster.wait_until_equal();
        for (index, node) in cluster.nodes.iter().enumerate() {
            for writer in 0..3 {
                let key = format!("with-0-{writer}");
                assert_eq!(node.value(&key).as_deref(), Some("2"), "{secret:?}: node {index}: {key}");
            }
        }
    }
}

/// Both API keys are accepted in the meantime, so that clients can switch at any time, and no node restarts.
#[test]
fn no_client_is_refused_while_a_file_has_both_api_keys() {
    for secret in SECRETS {
        let mut cluster = Cluster::of(3);
        for node in &mut cluster.nodes {
            node.forget("OSC_API_KEY");
            fs::write(node.path("keys"), API_KEY).expect("writable");
            node.set("OSC_API_KEY_FILE", "keys");
            if let Some(secret) = secret {
                node.set("OSC_CLUSTER_SECRET", secret);
            }
        }
        cluster.start();
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        cluster.wait_for("k", Some("1"));
        // The new key is accepted on all nodes before it becomes the first one; the old key is removed last.
        for (step, keys) in
            [[API_KEY, NEW_API_KEY], [NEW_API_KEY, API_KEY], [NEW_API_KEY, NEW_API_KEY]].iter().enumerate()
        {
            for index in 0..cluster.nodes.len() {
                let node = &mut cluster.nodes[index];
                let before = node.log().matches("configuration reloaded").count();
                fs::write(node.path("keys"), keys.join("\n")).expect("writable");
                node.signal("HUP");
                within(CONVERGENCE, "the settings are reloaded", || {
                    node.log().matches("configuration reloaded").count() > before
                });
                node.api_key = keys[1].to_owned();
                assert_serving(&cluster.nodes, usize::MAX, &format!("step-{step}-{index}"));
                // Without a cluster secret, nodes authenticate each other by the first API key.
                for node in cluster.nodes.iter().filter(|_| secret.is_some()) {
                    assert!(!node.states().iter().any(|(state, _)| state == "refused"), "{}", node.log());
                }
            }
        }
        cluster.wait_until_whole();
        cluster.wait_until_equal();
        assert_eq!(cluster.nodes[0].create("last", "3").status, 201);
        cluster.wait_for("last", Some("3"));
    }
}
