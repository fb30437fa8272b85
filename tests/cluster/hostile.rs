//! Invalid and malicious messages from an authenticated peer: a node accepts none of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opensecureconf::service::salt_fingerprint;
use serde_json::{Value, json};

use crate::link::Mode;
use crate::nodes::{CONVERGENCE, Cluster, Node, within};

/// A well-formed Fernet token that no key decrypts.
const TOKEN: &str =
    "gAAAAABnnKuQbjQLnP-zepicpUTmu3gKLHiQHT-zNzh2hRGjBhevoB1L9RIvNEVUxTveLruM0rfj0WAK1jHDhaXXzOI8d4VFmg==";
/// Maximum duration of an immediate refusal, on a busy machine.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(3);

/// Starts one node that has a salt and whose peer is not running.
fn single_node(mode: &str) -> Cluster {
    let mut cluster = Cluster::of(2);
    std::fs::write(cluster.nodes[0].path("encryption.salt"), crate::support::proper_salt(7))
        .expect("writable");
    cluster.nodes[0].set("OSC_CLUSTER_MODE", mode);
    cluster.nodes[0].start();
    within(CONVERGENCE, "the node is ready", || cluster.nodes[0].is_ready());
    cluster
}

fn now_ms() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("fits in i64")
}

fn change(key: &str) -> Value {
    json!({ "k": key, "s": now_ms() << 16, "n": 5, "t": TOKEN })
}

fn with(mut change: Value, field: &str, value: Value) -> Value {
    change[field] = value;
    change
}

fn changes_message(changes: &[Value]) -> String {
    let salt = format!("{:016x}", salt_fingerprint(&crate::support::proper_salt(7)));
    json!({ "salt": salt, "changes": changes }).to_string()
}

/// Returns the keys of all entries of the node, regardless of the user key.
fn keys_on(node: &Node) -> Vec<String> {
    let all: Vec<usize> = (0..1024).collect();
    let response = node.as_peer("/cluster/versions", &json!(all).to_string());
    assert_eq!(response.status, 200, "{response:?}");
    let page: Value = serde_json::from_slice(&response.body).expect("JSON");
    let known = page["known"].as_array().expect("an array");
    let mut keys: Vec<String> =
        known.iter().map(|known| known["k"].as_str().expect("a key").to_owned()).collect();
    keys.sort();
    keys
}

#[test]
fn message_with_an_invalid_change_is_refused_as_a_whole() {
    let cluster = single_node("replica");
    let node = &cluster.nodes[0];
    let accepted = node.as_peer("/cluster/changes", &changes_message(&[change("taken"), change("a\0b")]));
    assert_eq!((accepted.status, accepted.text()), (200, r#"{"applied":2,"refused":0,"ahead_ms":0}"#));
    let before = node.digest();
    let many = (0..513).map(|number| change(&format!("many-{number}"))).collect::<Vec<_>>();
    let messages: Vec<(&str, Vec<Value>)> = [
        ("a key of 2 MB", with(change("k"), "k", json!("k".repeat(2_000_000)))),
        ("an empty key", with(change("k"), "k", json!(""))),
        ("an environment of 1 MB", with(change("k"), "e", json!("e".repeat(1_000_000)))),
        ("an empty environment", with(change("k"), "e", json!(""))),
        ("a long category", with(change("k"), "c", json!("c".repeat(101)))),
        ("before 1970", with(change("k"), "a", json!(-1))),
        ("the earliest time", with(change("k"), "a", json!(i64::MIN))),
        ("the latest time", with(change("k"), "u", json!(i64::MAX))),
        ("a negative timestamp", with(change("k"), "s", json!(-1))),
        ("a timestamp out of range", with(change("k"), "s", json!(u64::MAX))),
        ("a negative node number", with(change("k"), "n", json!(-5))),
        ("a truncated token", with(change("k"), "t", json!("gAAA"))),
        ("a token of another version", with(change("k"), "t", json!(TOKEN.replacen("gA", "gQ", 1)))),
        ("a duplicate entry", change("good")),
    ]
    .into_iter()
    .map(|(what, wrong)| (what, vec![change("good"), wrong]))
    .chain([("513 changes", many)])
    .collect();
    for (what, changes) in messages {
        let response = node.as_peer("/cluster/changes", &changes_message(&changes));
        assert_eq!(response.status, 422, "{what}: {response:?}");
        assert!(response.body.len() < 300, "{what}: the error quotes no input");
    }
    for (target, what, message) in [
        ("/cluster/changes", "not JSON", "ok".to_owned()),
        ("/cluster/digests", "not a digest", "0".to_owned()),
        ("/cluster/versions", "a duplicate bucket", "[1,1]".to_owned()),
        ("/cluster/versions", "a bucket out of range", "[1024]".to_owned()),
        ("/cluster/entries", "a duplicate name", r#"[{"k":"taken"},{"k":"taken"}]"#.to_owned()),
        ("/cluster/entries", "a long name", json!([{ "k": "k".repeat(256) }]).to_string()),
        (
            "/cluster/entries",
            "513 names",
            Value::from_iter((0..513).map(|number| json!({ "k": number.to_string() }))).to_string(),
        ),
    ] {
        let response = node.as_peer(target, &message);
        assert_eq!(response.status, 422, "{target}, {what}: {response:?}");
    }
    assert_eq!(node.digest(), before);
    assert_eq!(keys_on(node), ["a\0b", "taken"]);
    // Clients can address any key, even one with a NUL byte.
    assert_eq!(node.ask("GET", "/configs/a%00b", None).status, 401);
}

#[test]
fn oversized_requests_are_refused_immediately() {
    let cluster = single_node("replica");
    let node = &cluster.nodes[0];
    let buckets = format!("[{}7]", "7,".repeat(1_000_000));
    let ids = format!("[{}]", vec![r#"{"k":"k"}"#; 1_000_000].join(","));
    for (target, message) in [("/cluster/versions", &buckets), ("/cluster/entries", &ids)] {
        let started = Instant::now();
        let response = node.as_peer(target, message);
        assert_eq!(response.status, 422, "{target}: {response:?}");
        assert!(started.elapsed() < REFUSAL_TIME_MAX, "{target}: {:?}", started.elapsed());
    }
    let too_large = format!("[{}]", " ".repeat(16 * 1024 * 1024));
    assert_eq!(node.as_peer("/cluster/entries", &too_large).status, 413);
}

#[test]
fn federated_nodes_validate_each_field() {
    let cluster = single_node("federated");
    let node = &cluster.nodes[0];
    let long = || json!("k".repeat(256));
    let salt = salt_fingerprint(&crate::support::proper_salt(7));
    let write_request =
        |update: Value| json!({ "salt": salt, "id": { "k": "k" }, "seen": "0".repeat(32), "update": update });
    for (target, message) in [
        ("/cluster/find", json!({ "k": "" })),
        ("/cluster/find", json!({ "k": long() })),
        ("/cluster/find", json!({ "k": "k", "e": "" })),
        ("/cluster/find", json!({ "k": "k", "e": long() })),
        ("/cluster/page", json!({ "after": { "k": long() }, "bytes": 1, "names": false })),
        ("/cluster/page", json!({ "prefix": "p".repeat(1_000_000), "bytes": 1, "names": false })),
        ("/cluster/page", json!({ "bytes": -1, "names": false })),
        ("/cluster/write", write_request(json!({ "t": "gAAA" }))),
        ("/cluster/write", write_request(json!({ "t": TOKEN, "c": long() }))),
        ("/cluster/write", write_request(json!({ "t": TOKEN, "e": long() }))),
        ("/cluster/write", write_request(json!({ "t": TOKEN, "e": "" }))),
    ] {
        let response = node.as_peer(target, &message.to_string());
        assert_eq!(response.status, 422, "{target} {message}: {response:?}");
    }
    let valid =
        node.as_peer("/cluster/write", &write_request(json!({ "t": TOKEN, "c": "c", "e": "e" })).to_string());
    assert_eq!((valid.status, valid.text()), (200, r#"{"changed":null}"#));
}

/// One such change would supersede every later write, and the value that it replaced would be lost for good.
#[test]
fn timestamps_that_no_write_can_supersede_are_refused() {
    let cluster = single_node("replica");
    let node = &cluster.nodes[0];
    assert_eq!(node.create("mine", "1").status, 201);
    let changes = [
        with(with(change("mine"), "s", json!(i64::MAX)), "n", json!(i64::MAX)),
        json!({ "k": "mine-too", "s": i64::MAX, "n": i64::MAX }),
        with(change("an-hour"), "s", json!((now_ms() + 3_600_000) << 16)),
        change("good"),
    ];
    let response = node.as_peer("/cluster/changes", &changes_message(&changes));
    assert_eq!(response.status, 200, "{response:?}");
    let reply: Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!((&reply["applied"], &reply["refused"]), (&json!(1), &json!(3)));
    assert!(reply["ahead_ms"].as_u64().is_some_and(|ahead_ms| ahead_ms > 1 << 46), "{reply}");
    assert_eq!(keys_on(node), ["good", "mine"]);
    assert_eq!(node.update("mine", "2").status, 200);
    assert_eq!(node.value("mine").as_deref(), Some("2"));
    assert_eq!(node.delete("mine").status, 200);
    assert_eq!(node.create("new", "3").status, 201);
    assert!(node.ask("GET", "/metrics", None).text().contains("osc_cluster_changes_refused_total 3"));
    assert!(node.log().contains("changes refused: their versions are ahead"), "{}", node.log());
}

fn reason(node: &Node) -> String {
    node.states()[0].1.clone()
}

/// The writes of a node whose clock is an hour ahead are refused; both nodes report it, and everything else works.
#[test]
fn large_clock_skew_is_reported_and_affects_nothing_else() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_TEST_CLOCK_OFFSET_MS", &(62 * 60 * 1000 + 5000).to_string());
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("ahead", "1").status, 201);
    within(CONVERGENCE, "both nodes report the skew", || {
        reason(&cluster.nodes[0]) == "it refuses versions of this node, which are 62 min ahead of its clock"
            && reason(&cluster.nodes[1])
                == "it has versions 62 min ahead of this node's clock, which are refused"
    });
    assert_eq!(cluster.nodes[1].create("right", "2").status, 201);
    cluster.wait_for("right", Some("2"));
    assert_eq!(cluster.nodes[1].value("ahead"), None);
    assert!(cluster.nodes.iter().all(|node| node.is_ready() && node.states()[0].0 == "healthy"));
    let metrics = cluster.nodes[1].ask("GET", "/metrics", None);
    assert!(!metrics.text().contains("osc_cluster_changes_refused_total 0\n"), "{}", metrics.text());
    // No retry loop: one push, then the differences that anti-entropy rounds find.
    let before = cluster.requests("/cluster/changes");
    thread::sleep(2 * crate::nodes::SYNC_INTERVAL);
    let count = cluster.requests("/cluster/changes") - before;
    assert!(count <= 12, "{count} times in two intervals");
    // The clock is corrected: new writes replicate immediately.
    cluster.nodes[0].stop();
    cluster.nodes[0].forget("OSC_TEST_CLOCK_OFFSET_MS");
    cluster.nodes[0].start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("after", "3").status, 201);
    cluster.wait_for("after", Some("3"));
    let refused = cluster.nodes[0].update("ahead", "4");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.detail().contains("repair --versions"), "{}", refused.detail());
    assert_eq!(cluster.nodes[0].value("ahead").as_deref(), Some("1"));
    assert!(cluster.nodes[0].log().contains("more than 5 min ahead of this machine's clock"));
    repair_restores_the_entry(&mut cluster);
}

fn repair_restores_the_entry(cluster: &mut Cluster) {
    let (succeeded, printed) = cluster.nodes[0].repair(&[]);
    assert!(!succeeded && printed.contains("in use"), "a server is running: {printed}");
    cluster.nodes[0].stop();
    for _ in 0..2 {
        let (succeeded, printed) = cluster.nodes[0].repair(&["--dry-run"]);
        assert!(succeeded && printed.contains("1 of entries, 0 of tombstones"), "{printed}");
        assert!(printed.contains("nothing was changed"), "{printed}");
    }
    let (succeeded, printed) = cluster.nodes[0].repair(&[]);
    assert!(
        succeeded && printed.contains("1 of entries") && printed.contains("replaced by current versions"),
        "{printed}"
    );
    let (succeeded, printed) = cluster.nodes[0].repair(&[]);
    assert!(succeeded && printed.contains("nothing to repair"), "{printed}");
    cluster.nodes[0].start();
    cluster.wait_for("ahead", Some("1"));
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[0].update("ahead", "4").status, 200);
    cluster.wait_for("ahead", Some("4"));
    within(CONVERGENCE, "no node reports a problem", || {
        cluster.nodes.iter().all(|node| reason(node).is_empty())
    });
}

/// A single message to an older release could cause this.
#[test]
fn database_with_timestamps_that_no_write_can_supersede_is_repaired() {
    let mut cluster = Cluster::of(2);
    cluster.start();
    cluster.wait_until_whole();
    for key in ["kept", "replaced", "removed", "deleted"] {
        assert_eq!(cluster.nodes[0].create(key, "1").status, 201);
    }
    assert_eq!(cluster.nodes[0].delete("deleted").status, 200);
    cluster.wait_for("removed", Some("1"));
    cluster.wait_for("deleted", None);
    cluster.wait_until_equal();
    for node in &mut cluster.nodes {
        node.stop();
        let database =
            rusqlite::Connection::open(node.path("configurations.db")).expect("the database opens");
        database
            .execute_batch(&format!(
                "UPDATE osc_versions SET stamp = {0}; UPDATE osc_peers SET synced = {0};
                 UPDATE osc_meta SET value = {0} WHERE name IN ('clock', 'synced', 'forgotten');",
                i64::MAX
            ))
            .expect("valid");
    }
    cluster.start();
    for method in ["PUT", "DELETE"] {
        let body = (method == "PUT").then_some(r#"{"value":2}"#);
        let response = cluster.nodes[0].ask(method, "/configs/replaced", body);
        assert_eq!(response.status, 503, "the write would be undone: {response:?}");
    }
    assert_eq!(cluster.nodes[0].create("deleted", "2").status, 503, "no version can supersede the tombstone");
    assert_eq!(cluster.nodes[0].create("new", "1").status, 201, "other entries get normal timestamps");
    for node in &mut cluster.nodes {
        node.stop();
        let (succeeded, printed) = node.repair(&[]);
        assert!(succeeded && printed.contains("3 of entries, 1 of tombstones"), "{printed}");
        assert!(printed.contains("stored times of the last sync"), "{printed}");
    }
    cluster.start();
    cluster.wait_until_whole();
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[0].update("replaced", "2").status, 200);
    assert_eq!(cluster.nodes[1].delete("removed").status, 200);
    assert_eq!(cluster.nodes[1].create("deleted", "3").status, 201);
    for (key, value) in [
        ("replaced", Some("2")),
        ("removed", None),
        ("deleted", Some("3")),
        ("kept", Some("1")),
        ("new", Some("1")),
    ] {
        cluster.wait_for(key, value);
    }
    cluster.wait_until_equal();
}

/// A proxy between two nodes that forwards health checks, by which they authenticate each other, and sends a fixed
/// body in reply to everything else.
struct TamperingProxy {
    address: SocketAddr,
    connections_count: Arc<AtomicUsize>,
}

impl TamperingProxy {
    fn start(upstream: SocketAddr, reply: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let connections_count = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections_count);
        let lie = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{reply}", reply.len());
        // The thread ends with the process.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let lie = lie.clone();
                thread::spawn(move || {
                    let Ok(far) = TcpStream::connect(upstream) else { return };
                    let (mut responses, mut back) =
                        (far.try_clone().expect("open"), near.try_clone().expect("open"));
                    thread::spawn(move || std::io::copy(&mut responses, &mut back));
                    relay(near, far, lie.as_bytes());
                });
            }
        });
        Self { address, connections_count }
    }
}

fn relay(mut near: TcpStream, mut far: TcpStream, lie: &[u8]) {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
            let length: Option<usize> =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if received.len() < whole {
                break;
            }
            let request: Vec<u8> = received.drain(..whole).collect();
            let is_health = head.starts_with("get /cluster/health ");
            let passed = if is_health { far.write_all(&request) } else { near.write_all(lie) };
            if passed.is_err() {
                return;
            }
        }
        match near.read(&mut buffer) {
            Ok(count) if count > 0 => received.extend_from_slice(&buffer[..count]),
            _ => return far.shutdown(std::net::Shutdown::Both).unwrap_or_default(),
        }
    }
}

/// Such replies acknowledge nothing, and the peer is found again once it is reachable.
#[test]
fn invalid_replies_acknowledge_no_write() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("whole", "0").status, 201);
    let real = cluster.nodes[1].place_for_peers.get().expect("the node is running");
    let lies = [
        ("not JSON", "ok"),
        ("empty", ""),
        ("unrelated JSON", r#"{"detail":"Not Found"}"#),
        ("more changes than were sent", r#"{"applied":2}"#),
    ];
    for (number, (lie, reply)) in lies.into_iter().enumerate() {
        let proxy = TamperingProxy::start(real, reply);
        let link = cluster.link(0, 1);
        link.set(Mode::Cut);
        within(CONVERGENCE, "the peer is down", || cluster.nodes[0].states()[0].0 == "down");
        cluster.nodes[1].place_for_peers.set(Some(proxy.address));
        link.set(Mode::Open);
        let node = &cluster.nodes[0];
        within(CONVERGENCE, lie, || reason(node) == "it sends malformed replies");
        let key = format!("with-{number}");
        let response = node.create(&key, "1");
        assert_eq!(response.status, 503, "{lie}: {response:?}");
        assert!(response.detail().contains("only 0 of 1"), "{lie}: {}", response.detail());
        assert!(proxy.connections_count.load(Ordering::Relaxed) > 1, "{lie}: each connection is closed");
        // The peer is found again by its name, without cutting the link.
        cluster.nodes[1].place_for_peers.set(Some(real));
        cluster.wait_for(&key, Some("1"));
        within(CONVERGENCE, "the node reports no problem", || reason(&cluster.nodes[0]).is_empty());
        assert_eq!(cluster.nodes[0].update(&key, "2").status, 200, "{lie}");
        assert_eq!(cluster.nodes[1].value(&key).as_deref(), Some("2"), "{lie}");
    }
}
