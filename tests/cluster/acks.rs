//! `OSC_CLUSTER_WRITE_ACKS`: when a write is acknowledged while a node is down.

use std::time::{Duration, Instant};

use crate::link::Mode;
use crate::nodes::{Cluster, ask};
use crate::support::{PATIENCE, Response};

/// Failure of the third node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    Killed,
    Stalled,
}

fn cluster_with(acks: &str) -> Cluster {
    let mut cluster = Cluster::of(3);
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_WRITE_ACKS", acks);
    }
    cluster.start();
    cluster.wait_until_whole();
    // The derivation of the user key must not count as waiting for peers.
    let response = cluster.nodes[0].create("before", "0");
    assert_eq!(response.status, 201, "{acks}: {response:?}");
    cluster
}

fn fail_third_node(cluster: &mut Cluster, outage: Outage) {
    match outage {
        Outage::Killed => cluster.nodes[2].kill(),
        Outage::Stalled => cluster.set_links_of(2, Mode::Stalled),
    }
}

fn recover_third_node(cluster: &mut Cluster, outage: Outage) {
    match outage {
        Outage::Killed => cluster.nodes[2].start(),
        Outage::Stalled => cluster.set_links_of(2, Mode::Open),
    }
}

#[test]
fn all_reports_missing_acks_and_keeps_the_write() {
    let mut cluster = cluster_with("all");
    for outage in [Outage::Killed, Outage::Stalled] {
        fail_third_node(&mut cluster, outage);
        let key = format!("while-{outage:?}");
        let started = Instant::now();
        let response = cluster.nodes[0].create(&key, "1");
        let took = started.elapsed();
        assert_eq!(response.status, 503, "{outage:?}: {response:?}");
        assert!(took < Duration::from_secs(7), "{outage:?}: {took:?}");
        assert!(response.detail().contains("only 1 of 2 other nodes"), "{outage:?}: {}", response.detail());
        assert!(response.headers.contains_key("retry-after"), "{outage:?}: {response:?}");
        for node in &cluster.nodes[..2] {
            assert_eq!(node.value(&key).as_deref(), Some("1"), "{outage:?}");
        }
        recover_third_node(&mut cluster, outage);
        cluster.wait_for(&key, Some("1"));
        cluster.wait_until_whole();
        let response = cluster.nodes[0].update(&key, "2");
        assert_eq!(response.status, 200, "{outage:?}: {response:?}");
        // Without a wait: an acknowledged write is on all nodes.
        for node in &cluster.nodes {
            assert_eq!(node.value(&key).as_deref(), Some("2"), "{outage:?}");
        }
    }
}

#[test]
fn quorum_tolerates_the_loss_of_one_node_of_three() {
    let mut cluster = cluster_with("quorum");
    for outage in [Outage::Killed, Outage::Stalled] {
        fail_third_node(&mut cluster, outage);
        let key = format!("while-{outage:?}");
        for (what, status, value) in
            [("create", 201, Some("1")), ("update", 200, Some("2")), ("delete", 200, None)]
        {
            let response = match what {
                "create" => cluster.nodes[0].create(&key, "1"),
                "update" => cluster.nodes[0].update(&key, "2"),
                _ => cluster.nodes[0].delete(&key),
            };
            assert_eq!(response.status, status, "{outage:?}, {what}: {response:?}");
            // One peer already has the write, and only one peer is reachable.
            assert_eq!(cluster.nodes[1].value(&key).as_deref(), value, "{outage:?}, {what}");
        }
        recover_third_node(&mut cluster, outage);
        cluster.wait_until_whole();
    }
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let response = cluster.nodes[0].create("alone", "1");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.detail().contains("only 0 of 1 other nodes"), "{}", response.detail());
}

/// The first writes after a start must wait for the same peers as all later ones, whether those peers are known or not.
#[test]
fn first_write_after_a_start_waits_for_acks() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
    // The salt exists, so that a write does not wait for salt agreement.
    std::fs::write(cluster.nodes[0].path("encryption.salt"), crate::support::proper_salt(7))
        .expect("writable");
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].states().len(), 1, "the peer is listed before its first health check");
    let response = cluster.nodes[0].create("k", "1");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.detail().contains("only 0 of 1 other nodes"), "{}", response.detail());
}

/// Consecutive writes: a change that is committed while the state machine of a peer is being informed of the previous
/// one must not stay unsent until the next health check, which is twice as long as a write waits.
#[test]
fn concurrent_writes_are_all_acknowledged() {
    let cluster = cluster_with("all");
    let node = &cluster.nodes[0];
    std::thread::scope(|scope| {
        for writer in 0..4 {
            scope.spawn(move || {
                let key = format!("many-{writer}");
                assert_eq!(node.create(&key, "0").status, 201);
                for step in 1..150 {
                    let response = node.update(&key, &step.to_string());
                    assert_eq!(response.status, 200, "{key}, step {step}: {response:?}");
                }
            });
        }
    });
}

/// A retry after a 503 gets the response that the first request would have got; every other request gets the same
/// response as without the 503.
#[test]
fn retries_of_unacknowledged_writes_get_the_first_response() {
    const CREATE: &str = r#"{"key":"k","value":[1.0],"category":"c"}"#;
    let cluster = cluster_with("quorum");
    let node = &cluster.nodes[0];
    let create = |body: &str| node.ask("POST", "/configs", Some(body));
    let by_other = |method: &str, target: &str, body: Option<&str>| {
        let address = node.place.get().expect("the node is running");
        ask(address, PATIENCE, method, target, "another-user-key", body).expect("the node responds")
    };
    let expect = |response: &Response, status: u16, text: &str| {
        assert_eq!(response.status, status, "{response:?}");
        assert!(response.text().contains(text), "{text}: {response:?}");
    };
    assert_eq!(create(r#"{"key":"n","value":0}"#).status, 201);
    assert_eq!(create(r#"{"key":"n","value":1,"environment":"e"}"#).status, 201);
    assert_eq!(create(r#"{"key":"d","value":1}"#).status, 201);

    cluster.set_links_of(0, Mode::Cut);
    let exists = "Configuration with key 'k' already exists";
    for _ in 0..2 {
        expect(&create(CREATE), 503, "only 0 of 1 other nodes");
        expect(&create(r#"{"key":"k","value":[1.00],"category":"c"}"#), 400, exists);
        expect(&create(r#"{"key":"k","value":[1.0]}"#), 400, exists);
        expect(&by_other("POST", "/configs", Some(CREATE)), 400, exists);
    }
    for _ in 0..2 {
        expect(&node.delete("d"), 503, "only 0 of 1 other nodes");
        expect(&by_other("DELETE", "/configs/d", None), 401, "does not open");
    }
    // The next entry that this name selects is another one.
    expect(&node.delete("n"), 503, "only 0 of 1 other nodes");

    cluster.set_links_of(0, Mode::Open);
    cluster.wait_until_whole();
    let stored: serde_json::Value =
        serde_json::from_slice(&node.ask("GET", "/configs/k", None).body).expect("JSON");
    let id = &stored["id"];
    let body = format!(r#"{{"id":{id},"key":"k","category":"c","value":[1.0]}}"#);
    expect(&create(CREATE), 201, &body);
    expect(&create(CREATE), 400, exists);
    expect(&node.delete("d"), 200, "Configuration 'd' deleted successfully");
    expect(&node.delete("d"), 404, "Configuration with key 'd' not found");
    expect(&node.delete("n"), 200, "Configuration 'n' deleted successfully");
    expect(&node.ask("GET", "/configs/n?environment=e", None), 200, r#""value":1"#);
    expect(&node.delete("n"), 200, "Configuration 'n' deleted successfully");
    expect(&node.ask("GET", "/configs/n?environment=e", None), 404, "not found");
}

/// Another write of the name ends the record: the retry would not get the response of the first request.
#[test]
fn a_later_write_is_not_hidden_by_a_retry() {
    let cluster = cluster_with("all");
    let node = &cluster.nodes[0];
    cluster.set_links_of(0, Mode::Cut);
    assert_eq!(node.create("k", "1").status, 503);
    cluster.set_links_of(0, Mode::Open);
    cluster.wait_for("k", Some("1"));
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[1].update("k", "2").status, 200);
    assert_eq!(cluster.nodes[1].update("k", "1").status, 200);
    let retried = node.create("k", "1");
    assert_eq!(retried.status, 400, "the value is the same, the version is not: {retried:?}");
}
