//! `OSC_CLUSTER_SECRET`: endpoints for nodes only, mutual authentication of nodes, and the effects of a wrong secret.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::link::{Link, Place};
use crate::nodes::{API_KEY, CONVERGENCE, Cluster, Node, within};
use crate::stranger::Stranger;
use crate::support::{Client, PATIENCE, Response};
use crate::wire::{contains, forms};

const SECRET: &str = "a-secret-of-nodes-0123456789abcdef";
const OTHER_SECRET: &str = "another-secret-of-nodes-0123456789";
const SECOND_KEY: &str = "an-api-key-of-a-client-only-0123";
const UNPROVEN: &str = "it does not prove that it is a node of this cluster";

/// All endpoints between nodes.
const BETWEEN_NODES: [(&str, &str); 9] = [
    ("GET", "/cluster/salt"),
    ("POST", "/cluster/salt"),
    ("POST", "/cluster/changes"),
    ("POST", "/cluster/digests"),
    ("POST", "/cluster/versions"),
    ("POST", "/cluster/entries"),
    ("POST", "/cluster/find"),
    ("POST", "/cluster/page"),
    ("POST", "/cluster/write"),
];

fn send(node: &Node, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let body = if method == "POST" { Some(&b"{}"[..]) } else { None };
    let mut client = Client::try_connect(node.place.get().expect("the node is running"), PATIENCE)
        .expect("the node accepts connections");
    client.send(method, target, headers, body)
}

/// Stops the writers even if the test fails: the scope of their threads waits for them.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Gives all nodes the same salt before they start, so that each of them becomes ready without its peers.
fn with_salt(cluster: Cluster) -> Cluster {
    for node in &cluster.nodes {
        fs::write(node.path("encryption.salt"), (0..64).collect::<Vec<u8>>()).expect("writable");
    }
    cluster
}

fn with_secrets(secrets: &[Option<&str>]) -> Cluster {
    let mut cluster = Cluster::of(secrets.len());
    for (node, secret) in cluster.nodes.iter_mut().zip(secrets) {
        if let Some(secret) = secret {
            node.set("OSC_CLUSTER_SECRET", secret);
        }
    }
    cluster
}

fn metric(node: &Node, name: &str) -> f64 {
    let text = node.ask("GET", "/metrics", None).text().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().expect("a number")
}

#[test]
fn secret_closes_the_endpoints_between_nodes_to_clients() {
    for mode in ["replica", "federated"] {
        let mut cluster = with_secrets(&[Some(SECRET); 2]);
        fs::write(cluster.nodes[0].path("keys"), SECOND_KEY).expect("writable");
        cluster.nodes[0].set("OSC_API_KEY_FILE", "keys");
        cluster.nodes.iter_mut().for_each(|node| node.set("OSC_CLUSTER_MODE", mode));
        cluster.start();
        cluster.wait_until_whole();
        assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
        cluster.wait_for("k", Some("1"));
        let node = &cluster.nodes[0];
        let token = "0".repeat(64);
        for (method, target) in BETWEEN_NODES {
            for (headers, detail) in [
                (&[][..], "This endpoint is for nodes that have the cluster secret"),
                (&[("X-API-Key", API_KEY)], "This endpoint is for nodes that have the cluster secret"),
                (
                    &[("X-API-Key", SECOND_KEY), ("X-User-Key", "some-user-key")],
                    "This endpoint is for nodes that have the cluster secret",
                ),
                (&[("X-API-Key", API_KEY), ("X-OSC-Token", &token)], "Invalid cluster secret"),
                (&[("X-OSC-Token", SECRET)], "Invalid cluster secret"),
            ] {
                let response = send(node, method, target, headers);
                assert_eq!(response.status, 403, "{method} {target} {headers:?}: {response:?}");
                assert_eq!(response.detail(), detail, "{method} {target} {headers:?}");
            }
        }
        // Both API keys keep working for clients.
        assert_eq!(send(node, "GET", "/cluster/status", &[("X-API-Key", SECOND_KEY)]).status, 200);
        assert!(metric(node, "osc_cluster_credentials_refused_total") >= 45.0);
        let lines = node.log().matches("node credentials refused").count();
        assert!((1..10).contains(&lines), "{lines}: {}", node.log());
        assert!(!node.log().contains("OSC_CLUSTER_SECRET"), "{}", node.log());
        assert!(!node.log().contains(SECRET));
    }
}

#[test]
fn health_shows_strangers_no_more_than_the_python_server_did() {
    let mut cluster = with_secrets(&[Some(SECRET), None]);
    cluster.start();
    let challenge = "c".repeat(64);
    let names = |response: &Response| {
        let mut names: Vec<String> =
            response.headers.keys().filter(|name| name.starts_with("x-osc")).cloned().collect();
        names.sort();
        names
    };
    for (index, node) in cluster.nodes.iter().enumerate() {
        let body = format!(r#"{{"status":"healthy","node_id":"node-{index}"}}"#);
        // The response does not reveal whether an API key is valid.
        for headers in
            [&[][..], &[("X-API-Key", API_KEY)], &[("X-API-Key", "wrong")], &[("X-OSC-Challenge", "c")]]
        {
            let response = send(node, "GET", "/cluster/health", headers);
            assert_eq!((response.status, response.text()), (200, &*body), "{headers:?}");
            assert_eq!(names(&response), [""; 0], "{headers:?}");
        }
        let response = send(node, "GET", "/cluster/health", &[("X-OSC-Challenge", &challenge)]);
        assert_eq!((response.status, response.text()), (200, &*body));
        // A MAC with an API key would allow an offline guessing attack on that key.
        let expected = ["x-osc-auth", "x-osc-challenge", "x-osc-proof"];
        assert_eq!(names(&response), expected[..if index == 0 { 3 } else { 2 }]);
        let refused = send(node, "GET", "/cluster/health", &[("X-OSC-Token", &challenge)]);
        let detail = if index == 0 { "Invalid cluster secret" } else { "Invalid API key" };
        assert_eq!((refused.status, &*refused.detail()), (403, detail));
    }
}

#[test]
fn without_a_secret_nodes_authenticate_by_the_first_api_key_and_log_a_warning() {
    for has_api_key in [true, false] {
        let mut cluster = Cluster::of(1);
        let node = &mut cluster.nodes[0];
        fs::write(node.path("keys"), format!("{SECOND_KEY}\n{API_KEY}\n")).expect("writable");
        node.set("OSC_API_KEY_FILE", "keys");
        if !has_api_key {
            node.set("OSC_API_KEY_REQUIRED", "false");
        }
        node.forget("OSC_CLUSTER_NODES");
        node.start();
        within(CONVERGENCE, "the node is ready", || node.is_ready());
        let warned = node.log().matches("OSC_CLUSTER_SECRET: not set").count();
        assert_eq!(warned, 1, "{}", node.log());
        let warning =
            if has_api_key { "every holder of the first API key" } else { "no API key is required" };
        assert!(node.log().contains(warning), "{}", node.log());
        if !has_api_key {
            assert_ne!(send(node, "GET", "/cluster/salt", &[]).status, 403);
            continue;
        }
        for (method, target) in BETWEEN_NODES {
            let refused = send(node, method, target, &[("X-API-Key", SECOND_KEY)]);
            assert_eq!(refused.status, 403, "{method} {target}: {refused:?}");
            assert!(refused.detail().contains("only the first API key"), "{}", refused.detail());
            let missing = send(node, method, target, &[]);
            assert!(missing.detail().starts_with("API key required"), "{}", missing.detail());
            let first = send(node, method, target, &[("X-API-Key", API_KEY)]);
            assert_ne!(first.status, 403, "{method} {target}: {first:?}");
        }
    }
}

#[test]
fn rotating_the_secret_under_load_fails_no_write() {
    let mut cluster = Cluster::of(3);
    for node in &mut cluster.nodes {
        fs::write(node.path("secrets"), format!("# the first\n{SECRET}\n")).expect("writable");
        node.set("OSC_CLUSTER_SECRET_FILE", "secrets");
        node.set("OSC_CLUSTER_WRITE_ACKS", "all");
    }
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("k", "0").status, 201);
    let set = |node: &Node, secrets: &[&str]| {
        let before = node.log().matches("configuration reloaded").count();
        fs::write(node.path("secrets"), secrets.join("\n")).expect("writable");
        node.signal("HUP");
        within(CONVERGENCE, "the settings are reloaded", || {
            node.log().matches("configuration reloaded").count() > before
        });
    };
    let is_stopped = AtomicBool::new(false);
    let written = [AtomicUsize::new(0), AtomicUsize::new(0)];
    thread::scope(|scope| {
        let (nodes, is_stopped, written) = (&cluster.nodes, &is_stopped, &written);
        let writers = [0, 1].map(|writer| {
            scope.spawn(move || {
                while !is_stopped.load(Ordering::Relaxed) {
                    let number = written[writer].fetch_add(1, Ordering::Relaxed);
                    let response = nodes[writer].update("k", &format!("[{writer},{number}]"));
                    assert_eq!(response.status, 200, "{response:?}\n{}", nodes[writer].log());
                    assert!(nodes[2].is_ready());
                }
            })
        });
        let stop = StopOnDrop(is_stopped);
        for secrets in [&[SECRET, OTHER_SECRET][..], &[OTHER_SECRET, SECRET], &[OTHER_SECRET]] {
            nodes.iter().for_each(|node| set(node, secrets));
            let count = || written.each_ref().map(|count| count.load(Ordering::Relaxed));
            let before = count();
            within(CONVERGENCE, "writes continue", || {
                writers.iter().any(|writer| writer.is_finished())
                    || count().iter().zip(before).all(|(now, before)| *now >= before + 10)
            });
        }
        drop(stop);
        for writer in writers {
            writer.join().expect("every write is acknowledged");
        }
    });
    for node in &cluster.nodes {
        let log = node.log();
        for problem in [
            "no replication with this peer",
            "peer is down",
            "peer sends malformed replies",
            "credentials refused",
        ] {
            assert!(!log.contains(problem), "{log}");
        }
    }
    cluster.wait_until_equal();
    // The removed secret is no longer accepted.
    set(&cluster.nodes[2], &[SECRET]);
    within(CONVERGENCE, "peers with another secret are refused", || {
        cluster.nodes[2].states().iter().all(|(state, _)| state == "refused")
    });
    assert!(cluster.nodes.iter().all(Node::is_ready));
    // Removing the file does not lift the protection.
    fs::remove_file(cluster.nodes[2].path("secrets")).expect("removable");
    cluster.nodes[2].signal("HUP");
    within(CONVERGENCE, "the reload fails", || {
        cluster.nodes[2].log().contains("keeping the previous settings")
    });
    assert_eq!(send(&cluster.nodes[2], "GET", "/cluster/salt", &[("X-API-Key", API_KEY)]).status, 403);
}

/// Starts three nodes of which the last one differs, and asserts that only that node is refused.
fn assert_odd_node_refused(what: &str, mut cluster: Cluster, here: &str, there: &str) {
    cluster.start();
    let refused = |reason: &str| ("refused".to_owned(), reason.to_owned());
    within(CONVERGENCE, what, || {
        cluster.nodes[..2].iter().all(|node| {
            node.states() == [("healthy".to_owned(), String::new()), refused(here)] && node.is_ready()
        }) && cluster.nodes[2].states() == [refused(there), refused(there)]
    });
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201, "{what}");
    within(CONVERGENCE, "the other nodes replicate", || cluster.nodes[1].value("k").as_deref() == Some("1"));
    assert!(cluster.nodes.iter().all(Node::is_ready), "{what}");
    assert_eq!(cluster.nodes[2].value("k"), None, "{what}");
    assert_eq!(metric(&cluster.nodes[0], "osc_cluster_peers_refused"), 1.0, "{what}");
    assert_eq!(metric(&cluster.nodes[2], "osc_cluster_peers_refused"), 2.0, "{what}");
    for (node, times) in cluster.nodes.iter().zip([1, 1, 2]) {
        let log = node.log();
        assert_eq!(log.matches("no replication with this peer").count(), times, "{what}: {log}");
        assert!(log.contains(here) || log.contains(there), "{what}: {log}");
    }
}

#[test]
fn node_with_wrong_credentials_does_not_affect_the_other_two() {
    let mut cluster = with_salt(Cluster::of(3));
    // As a client, the test uses the API key that all nodes accept.
    fs::write(cluster.nodes[2].path("keys"), API_KEY).expect("writable");
    cluster.nodes[2].set("OSC_API_KEY_FILE", "keys");
    cluster.nodes[2].set("OSC_API_KEY", SECOND_KEY);
    let text = "it does not accept the API key";
    assert_odd_node_refused("another API key", cluster, text, text);

    let cluster = with_salt(with_secrets(&[Some(SECRET), Some(SECRET), Some(OTHER_SECRET)]));
    let text = "its cluster secret is not one that this node accepts";
    assert_odd_node_refused("another secret", cluster, text, text);

    let (has, has_not) =
        ("it has a cluster secret and this node has none", "it has no cluster secret and this node has one");
    assert_odd_node_refused(
        "no secret",
        with_salt(with_secrets(&[Some(SECRET), Some(SECRET), None])),
        has_not,
        has,
    );
    assert_odd_node_refused(
        "the only secret",
        with_salt(with_secrets(&[None, None, Some(SECRET)])),
        has,
        has_not,
    );

    let mut cluster = with_salt(Cluster::of(3));
    cluster.nodes[2].set("OSC_API_KEY_REQUIRED", "false");
    let text = "it requires an API key and this node does not, or the reverse";
    assert_odd_node_refused("no API key", cluster, text, text);
}

/// A node whose first secret is unknown to its peer, as during a rotation in the wrong order.
#[test]
fn mismatched_secrets_are_reported_by_both_nodes() {
    let mut cluster = with_salt(with_secrets(&[Some(OTHER_SECRET), Some(SECRET)]));
    fs::write(cluster.nodes[0].path("secrets"), SECRET).expect("writable");
    cluster.nodes[0].set("OSC_CLUSTER_SECRET_FILE", "secrets");
    cluster.start();
    within(CONVERGENCE, "both nodes report the cause", || {
        cluster.nodes[0].states()[0].1 == "it does not accept this node's cluster secret"
            && cluster.nodes[1].states()[0].1 == "its cluster secret is not one that this node accepts"
    });
    assert!(cluster.nodes.iter().all(Node::is_ready));
}

/// An empty node with a wrong secret must not serve with a salt that no other node has.
#[test]
fn node_that_the_majority_refuses_generates_no_salt() {
    let mut cluster = with_secrets(&[Some(SECRET), Some(SECRET), Some(OTHER_SECRET)]);
    cluster.start();
    within(CONVERGENCE, "two nodes agree on a salt", || cluster.nodes[..2].iter().all(Node::is_ready));
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    let odd = &cluster.nodes[2];
    // The request itself waits for the salt, longer than a node waits for unresponsive peers.
    let response = odd.create("k", "2");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(!odd.is_ready() && odd.salt().is_none());
}

#[test]
fn responses_of_a_stranger_at_the_address_of_a_peer_are_ignored() {
    let challenge = concat!(
        "x-osc-challenge: 0000000000000000000000000000000000000000000000000000000000000000\r\n",
        "x-osc-proof: 0000000000000000000000000000000000000000000000000000000000000000\r\n",
        "x-osc-instance: 0000000000000001\r\nx-osc-node: 0000000000000001\r\nx-osc-mode: replica\r\n",
        "x-osc-horizon: 0000000000000000-0000000000000000\r\nx-osc-entries: false\r\n",
    );
    let with = |kind: &str| &*format!("{challenge}x-osc-auth: {kind}\r\n").leak();
    let secret_differs = "its cluster secret is not one that this node accepts";
    for (secret, fields, reason) in [
        (Some(SECRET), "", UNPROVEN),
        (Some(SECRET), with("secret"), secret_differs),
        (Some(SECRET), with("none"), "it has no cluster secret and this node has one"),
        (None, "", UNPROVEN),
        (None, with("api-key"), UNPROVEN),
    ] {
        let what = format!("{secret:?} {fields}");
        let stranger = Stranger::start(fields);
        let mut cluster = with_salt(with_secrets(&[secret, secret]));
        // The address stays the same, and the server behind it changes.
        let place = Place::default();
        place.set(Some(stranger.address));
        let moving = Link::to(place.clone());
        cluster.nodes[0].set("OSC_CLUSTER_NODES", &moving.address.to_string());
        cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
        cluster.nodes[0].start();
        within(CONVERGENCE, &what, || {
            cluster.nodes[0].states() == [("refused".to_owned(), reason.to_owned())]
        });
        let response = cluster.nodes[0].create("k", "1");
        assert_eq!(response.status, 503, "{what}: {response:?}");
        assert!(response.detail().contains("only 0 of 1 other nodes"), "{what}: {}", response.detail());
        // A new node waits for its peer only for a limited time.
        within(CONVERGENCE, "the node is ready", || cluster.nodes[0].is_ready());
        within(CONVERGENCE, "the connections to the stranger are closed", || stranger.open_count() == 0);
        let received = stranger.received();
        assert!(contains(&received, b"GET /cluster/health "), "{what}");
        for canary in [SECRET, API_KEY] {
            assert!(forms(canary).iter().all(|form| !contains(&received, form)), "{what}");
        }
        assert!(!contains(&received, b"POST "), "{what}: {}", String::from_utf8_lossy(&received));
        // A token is sent only if the peer could be a node that authenticates by an API key.
        let has_token = contains(&received, b"x-osc-token");
        assert_eq!(has_token, fields.contains("api-key"), "{what}");

        cluster.nodes[1].start();
        place.set(cluster.nodes[1].place.get());
        within(CONVERGENCE, "the peer is healthy", || cluster.nodes[0].states()[0].0 == "healthy");
        within(CONVERGENCE, "the peer has the missed write", || {
            cluster.nodes[1].value("k").as_deref() == Some("1")
        });
        assert_eq!(cluster.nodes[0].create("l", "2").status, 201, "{what}");
    }
}

#[test]
fn federated_node_ignores_responses_of_a_stranger() {
    let stranger = Stranger::start("");
    let mut cluster = with_salt(with_secrets(&[Some(SECRET), Some(SECRET)]));
    let place = Place::default();
    place.set(Some(stranger.address));
    let moving = Link::to(place.clone());
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_MODE", "federated");
        node.set("OSC_FEDERATED_STRICT", "true");
    }
    cluster.nodes[0].set("OSC_CLUSTER_NODES", &moving.address.to_string());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    assert_eq!(cluster.nodes[1].create("k", "1").status, 201);
    let response = cluster.nodes[0].ask("GET", "/configs/k", None);
    assert_eq!(response.status, 503, "{response:?}");
    within(CONVERGENCE, "the stranger is refused", || cluster.nodes[0].states()[0].1 == UNPROVEN);
    place.set(cluster.nodes[1].place.get());
    within(CONVERGENCE, "the peer is healthy", || cluster.nodes[0].states()[0].0 == "healthy");
    assert_eq!(cluster.nodes[0].value("k").as_deref(), Some("1"));
    assert!(!contains(&stranger.received(), b"POST "));
}

/// Another node takes over the address of a peer: its acknowledgements do not count as those of the first node.
#[test]
fn node_that_replaces_another_at_its_address_is_recognised() {
    let mut cluster = with_salt(with_secrets(&[Some(SECRET); 3]));
    let place = Place::default();
    let moving = Link::to(place.clone());
    cluster.nodes[0].set("OSC_CLUSTER_NODES", &moving.address.to_string());
    cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
    for node in &mut cluster.nodes[1..] {
        node.forget("OSC_CLUSTER_NODES");
    }
    cluster.start();
    place.set(cluster.nodes[1].place.get());
    within(CONVERGENCE, "the first peer is healthy", || cluster.nodes[0].states()[0].0 == "healthy");
    assert_eq!(cluster.nodes[0].create("k", "1").status, 201);
    assert_eq!(cluster.nodes[1].value("k").as_deref(), Some("1"));
    place.set(cluster.nodes[2].place.get());
    cluster.nodes[1].kill();
    let response = cluster.nodes[0].create("l", "2");
    if response.status == 201 {
        assert_eq!(
            cluster.nodes[2].value("l").as_deref(),
            Some("2"),
            "an acknowledged write is on the second node"
        );
    }
    for (key, value) in [("k", "1"), ("l", "2")] {
        within(CONVERGENCE, "the second node has all entries", || {
            cluster.nodes[2].value(key).as_deref() == Some(value)
        });
    }
    assert_eq!(cluster.nodes[0].report()["members"][0]["node"], cluster.nodes[2].report()["node"]);
    assert_eq!(cluster.nodes[0].update("l", "3").status, 200);
    assert_eq!(cluster.nodes[2].value("l").as_deref(), Some("3"));
}

#[test]
fn weak_secrets_are_startup_errors_and_unused_ones_log_a_warning() {
    let weak = "x".repeat(40);
    for (name, value, cause) in [
        ("OSC_CLUSTER_SECRET", "short", "shorter than 32 characters"),
        ("OSC_CLUSTER_SECRET", &*weak, "one repeated character"),
        ("OSC_CLUSTER_SECRET_FILE", "nowhere", "cannot be read"),
    ] {
        let launch = crate::support::Launch::new().set("OSC_CLUSTER_ENABLED", "true").set(name, value);
        let refused = launch.try_start().err().expect("the start fails");
        assert_eq!(refused.status.code(), Some(2), "{}", refused.log);
        assert!(refused.log.contains(name) && refused.log.contains(cause), "{}", refused.log);
        assert!(!refused.log.contains(&weak), "{}", refused.log);
    }
    let server = crate::support::Launch::new().set("OSC_CLUSTER_SECRET", SECRET).start();
    assert!(server.log().contains("OSC_CLUSTER_SECRET: set but not used"), "{}", server.log());
    assert!(!server.log().contains(SECRET));
    assert_ne!(server.get("/cluster/salt").status, 403);
}
