//! A new API key for clients, rolled out as a Deployment or a StatefulSet does it: one node after the other restarts.

use std::fs;

use crate::nodes::{API_KEY, CONVERGENCE, Cluster, Node, within};

const NEW_KEY: &str = "the-api-key-that-takes-its-place-everywhere";

/// How nodes know each other: by a secret of their own, or by the first API key.
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

/// Every node that runs is ready, answers its clients and takes their writes.
fn serve(nodes: &[Node], without: usize, step: &str) {
    for (index, node) in nodes.iter().enumerate().filter(|(index, _)| *index != without) {
        assert!(node.is_ready(), "{step}: node {index}: {:?}\n{}", node.states(), node.log());
        assert_eq!(node.value("k").as_deref(), Some("1"), "{step}: node {index}");
        let created = node.create(&format!("{step}-{index}"), "2");
        assert_eq!(created.status, 201, "{step}: node {index}: {created:?}");
    }
}

#[test]
fn every_node_serves_while_another_api_key_is_rolled_out() {
    for secret in SECRETS {
        let mut cluster = started(secret);
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        cluster.wait_for("k", Some("1"));
        cluster.wait_until_equal();
        for index in 0..cluster.nodes.len() {
            cluster.nodes[index].stop();
            serve(&cluster.nodes, index, &format!("without-{index}"));
            cluster.nodes[index].set("OSC_API_KEY", NEW_KEY);
            cluster.nodes[index].api_key = NEW_KEY.to_owned();
            cluster.nodes[index].start();
            within(CONVERGENCE, "it is ready", || cluster.nodes[index].is_ready());
            serve(&cluster.nodes, usize::MAX, &format!("with-{index}"));
            if secret.is_some() {
                within(CONVERGENCE, "the nodes know each other whatever key clients have", || {
                    cluster.nodes.iter().all(|node| node.states().iter().all(|(state, _)| state == "healthy"))
                });
            }
        }
        cluster.wait_until_whole();
        cluster.wait_until_equal();
        for (index, node) in cluster.nodes.iter().enumerate() {
            for other in 0..3 {
                let key = format!("with-0-{other}");
                assert_eq!(node.value(&key).as_deref(), Some("2"), "{secret:?}: node {index}: {key}");
            }
        }
    }
}

/// Both keys are accepted meanwhile, so that clients can change when they like, and nothing restarts.
#[test]
fn with_two_keys_in_a_file_no_client_is_refused() {
    for secret in SECRETS {
        let mut cluster = Cluster::of(3);
        for node in &mut cluster.nodes {
            node.forget("OSC_API_KEY");
            fs::write(node.path("keys"), API_KEY).expect("written");
            node.set("OSC_API_KEY_FILE", "keys");
            if let Some(secret) = secret {
                node.set("OSC_CLUSTER_SECRET", secret);
            }
        }
        cluster.start();
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        cluster.wait_for("k", Some("1"));
        // The new one is accepted everywhere before it comes first, and the old one goes last.
        for (step, keys) in [[API_KEY, NEW_KEY], [NEW_KEY, API_KEY], [NEW_KEY, NEW_KEY]].iter().enumerate() {
            for index in 0..cluster.nodes.len() {
                let node = &mut cluster.nodes[index];
                let before = node.log().matches("configuration reloaded").count();
                fs::write(node.path("keys"), keys.join("\n")).expect("written");
                node.signal("HUP");
                within(CONVERGENCE, "it is read", || {
                    node.log().matches("configuration reloaded").count() > before
                });
                node.api_key = keys[1].to_owned();
                serve(&cluster.nodes, usize::MAX, &format!("step-{step}-{index}"));
                // Without a secret, the first key is what nodes know each other by.
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
