//! Clusters of two releases: the present binary, and one of the previous protocol version that `.ci/rolling-upgrade`
//! builds.

#[allow(dead_code, reason = "these tests use only a part of the shared helpers")]
#[path = "server/certificates.rs"]
mod certificates;
#[allow(dead_code, reason = "these tests use only a part of the shared helpers")]
#[path = "cluster/link.rs"]
mod link;
#[allow(dead_code, reason = "these tests use only a part of the shared helpers")]
#[path = "cluster/nodes.rs"]
mod nodes;
#[allow(dead_code, reason = "these tests use only a part of the shared helpers")]
#[path = "server/support.rs"]
mod support;

use std::path::PathBuf;

use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// Returns two nodes of which only this one runs the previous binary; none is started.
fn mixed(mode: &str, previous: usize) -> Cluster {
    let binary = std::env::var_os("OSC_TEST_PREVIOUS_BINARY");
    let binary = PathBuf::from(binary.expect("OSC_TEST_PREVIOUS_BINARY is set: run .ci/rolling-upgrade"));
    let mut cluster = Cluster::of(2);
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_MODE", mode);
    }
    cluster.nodes[previous].binary = Some(binary);
    cluster
}

/// Returns the protocol version in which a node of the present release sends requests to the other node.
fn protocol(node: &Node) -> Option<u64> {
    node.report()["members"][0]["protocol"].as_u64()
}

fn create(node: &Node, key: &str, value: &str) {
    let response = node.create(key, value);
    assert_eq!(response.status, 201, "{key}: {response:?}\n{}", node.log());
}

fn update(node: &Node, key: &str, value: &str) {
    let response = node.update(key, value);
    assert_eq!(response.status, 200, "{key}: {response:?}\n{}", node.log());
}

fn delete(node: &Node, key: &str) {
    let response = node.delete(key);
    assert_eq!(response.status, 200, "{key}: {response:?}\n{}", node.log());
}

/// Creates, changes and deletes entries on each node, and expects the results on both.
fn expect_replication(cluster: &Cluster, round: &str) {
    for (from, to) in [(0, 1), (1, 0)] {
        let (from_node, to_node) = (&cluster.nodes[from], &cluster.nodes[to]);
        let (kept, gone) = (format!("{round}-{from}-kept"), format!("{round}-{from}-gone"));
        create(from_node, &kept, r#"{"number":1.0}"#);
        create(from_node, &gone, "0");
        cluster.wait_for(&kept, Some(r#"{"number":1.0}"#));
        cluster.wait_for(&gone, Some("0"));
        update(to_node, &kept, "[2]");
        delete(to_node, &gone);
        cluster.wait_for(&kept, Some("[2]"));
        cluster.wait_for(&gone, None);
    }
    cluster.wait_until_equal();
}

/// Replaces the previous binary by the present one, on the same data directory.
fn upgrade(cluster: &mut Cluster, previous: usize) {
    cluster.nodes[previous].stop();
    cluster.nodes[previous].binary = None;
    cluster.nodes[previous].start();
    cluster.wait_until_whole();
    within(CONVERGENCE, "both nodes use the newest version", || {
        cluster.nodes.iter().all(|node| protocol(node) == Some(2))
    });
}

/// The second node joins the first one, is away for a while, and then the older one of the two is upgraded.
fn expect_replica_upgrade(previous: usize) {
    let mut cluster = mixed("replica", previous);
    cluster.nodes[0].start();
    within(CONVERGENCE, "a node without its peer is ready", || cluster.nodes[0].is_ready());
    for index in 0..20 {
        create(&cluster.nodes[0], &format!("old-{index}"), &index.to_string());
    }
    cluster.nodes[1].start();
    cluster.wait_until_whole();
    assert!(cluster.nodes[0].salt().is_some() && cluster.nodes[0].salt() == cluster.nodes[1].salt());
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[1].value("old-19").as_deref(), Some("19"));
    for target in ["/cluster/salt", "/cluster/digests", "/cluster/versions", "/cluster/entries"] {
        assert!(cluster.requests(target) > 0, "{target} was not called");
    }
    expect_replication(&cluster, "together");
    assert_eq!(protocol(&cluster.nodes[1 - previous]), Some(1));
    for away in [0, 1] {
        cluster.nodes[away].stop();
        let present = &cluster.nodes[1 - away];
        create(present, &format!("while-{away}-was-away"), "true");
        update(present, "old-0", &format!(r#"["without {away}"]"#));
        delete(present, &format!("old-{}", 1 + away));
        cluster.nodes[away].start();
        cluster.wait_until_whole();
        cluster.wait_until_equal();
        cluster.wait_for(&format!("while-{away}-was-away"), Some("true"));
        cluster.wait_for("old-0", Some(&format!(r#"["without {away}"]"#)));
        cluster.wait_for(&format!("old-{}", 1 + away), None);
    }
    let digest = cluster.nodes[0].digest();
    upgrade(&mut cluster, previous);
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[previous].digest(), digest, "the upgrade has changed entries");
    expect_replication(&cluster, "upgraded");
}

#[test]
fn a_replica_of_this_release_joins_and_replaces_one_of_the_previous() {
    expect_replica_upgrade(0);
}

#[test]
fn a_replica_of_the_previous_release_joins_one_of_this() {
    expect_replica_upgrade(1);
}

/// Reads, lists, changes and deletes entries of each node through the other one.
fn expect_federation(cluster: &Cluster, round: &str) {
    for (owner, other) in [(0, 1), (1, 0)] {
        let (owner_node, other_node) = (&cluster.nodes[owner], &cluster.nodes[other]);
        let key = format!("{round}-{owner}");
        create(owner_node, &key, "[1.0]");
        assert_eq!(other_node.value(&key).as_deref(), Some("[1.0]"));
        let list = other_node.ask("GET", "/configs", None);
        assert!(list.status == 200 && list.text().contains(&format!(r#""key":"{key}""#)), "{list:?}");
        assert!(!list.headers.contains_key("x-partial-result"), "{list:?}");
        update(other_node, &key, "2");
        assert_eq!(owner_node.value(&key).as_deref(), Some("2"));
        delete(other_node, &key);
        assert_eq!(owner_node.value(&key), None);
        create(owner_node, &format!("{key}-kept"), "3");
        assert_eq!(other_node.value(&format!("{key}-missing")), None);
    }
}

#[test]
fn federated_nodes_of_two_releases_share_their_entries() {
    for previous in [0, 1] {
        let mut cluster = mixed("federated", previous);
        cluster.start();
        cluster.wait_until_whole();
        expect_federation(&cluster, "together");
        assert_eq!(protocol(&cluster.nodes[1 - previous]), Some(1));
        upgrade(&mut cluster, previous);
        for node in &cluster.nodes {
            for owner in [0, 1] {
                assert_eq!(node.value(&format!("together-{owner}-kept")).as_deref(), Some("3"));
            }
        }
        expect_federation(&cluster, "upgraded");
    }
}
