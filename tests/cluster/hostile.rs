//! What a node takes from something that speaks as a node and is wrong: nothing.

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

/// What is shaped like a token, and opens nowhere.
const TOKEN: &str =
    "gAAAAABnnKuQbjQLnP-zepicpUTmu3gKLHiQHT-zNzh2hRGjBhevoB1L9RIvNEVUxTveLruM0rfj0WAK1jHDhaXXzOI8d4VFmg==";
/// Longer than any of these refusals takes, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// One node that has its salt, and peers that are not there.
fn lonely_node(mode: &str) -> Cluster {
    let mut cluster = Cluster::of(2);
    std::fs::write(cluster.nodes[0].path("encryption.salt"), crate::support::proper_salt(7))
        .expect("it can be written");
    cluster.nodes[0].set("OSC_CLUSTER_MODE", mode);
    cluster.nodes[0].start();
    within(CONVERGENCE, "it serves", || cluster.nodes[0].is_ready());
    cluster
}

fn now_ms() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("not so late")
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

/// The keys that the node lists, whoever can open their entries.
fn names_on(node: &Node) -> Vec<String> {
    let all: Vec<usize> = (0..1024).collect();
    let response = node.as_peer("/cluster/versions", &json!(all).to_string());
    assert_eq!(response.status, 200, "{response:?}");
    let page: Value = serde_json::from_slice(&response.body).expect("JSON");
    let known = page["known"].as_array().expect("an array");
    let mut names: Vec<String> =
        known.iter().map(|known| known["k"].as_str().expect("a key").to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_message_with_a_fault_is_refused_as_a_whole() {
    let cluster = lonely_node("replica");
    let node = &cluster.nodes[0];
    let taken = node.as_peer("/cluster/changes", &changes_message(&[change("taken"), change("a\0b")]));
    assert_eq!((taken.status, taken.text()), (200, r#"{"applied":2,"refused":0,"ahead_ms":0}"#));
    let before = node.digest();
    let many = (0..513).map(|number| change(&format!("many-{number}"))).collect::<Vec<_>>();
    let messages: Vec<(&str, Vec<Value>)> = [
        ("a key of 2 MB", with(change("k"), "k", json!("k".repeat(2_000_000)))),
        ("no key", with(change("k"), "k", json!(""))),
        ("an environment of 1 MB", with(change("k"), "e", json!("e".repeat(1_000_000)))),
        ("an empty environment", with(change("k"), "e", json!(""))),
        ("a long category", with(change("k"), "c", json!("c".repeat(101)))),
        ("before 1970", with(change("k"), "a", json!(-1))),
        ("the first time there is", with(change("k"), "a", json!(i64::MIN))),
        ("the last time there is", with(change("k"), "u", json!(i64::MAX))),
        ("a negative stamp", with(change("k"), "s", json!(-1))),
        ("a stamp that does not fit", with(change("k"), "s", json!(u64::MAX))),
        ("a negative node", with(change("k"), "n", json!(-5))),
        ("no token", with(change("k"), "t", json!("gAAA"))),
        ("a token of another version", with(change("k"), "t", json!(TOKEN.replacen("gA", "gQ", 1)))),
        ("an entry twice", change("good")),
    ]
    .into_iter()
    .map(|(what, wrong)| (what, vec![change("good"), wrong]))
    .chain([("513 changes", many)])
    .collect();
    for (what, changes) in messages {
        let response = node.as_peer("/cluster/changes", &changes_message(&changes));
        assert_eq!(response.status, 422, "{what}: {response:?}");
        assert!(response.body.len() < 300, "{what}: the text quotes nothing");
    }
    for (target, what, message) in [
        ("/cluster/changes", "no JSON", "ok".to_owned()),
        ("/cluster/digests", "no digest", "0".to_owned()),
        ("/cluster/versions", "a bucket twice", "[1,1]".to_owned()),
        ("/cluster/versions", "no such bucket", "[1024]".to_owned()),
        ("/cluster/entries", "a name twice", r#"[{"k":"taken"},{"k":"taken"}]"#.to_owned()),
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
    assert_eq!(names_on(node), ["a\0b", "taken"]);
    // What a client can name is there for it, whatever it is called.
    assert_eq!(node.ask("GET", "/configs/a%00b", None).status, 401);
}

#[test]
fn questions_that_are_too_large_are_refused_at_once() {
    let cluster = lonely_node("replica");
    let node = &cluster.nodes[0];
    let buckets = format!("[{}7]", "7,".repeat(1_000_000));
    let names = format!("[{}]", vec![r#"{"k":"k"}"#; 1_000_000].join(","));
    for (target, message) in [("/cluster/versions", &buckets), ("/cluster/entries", &names)] {
        let began = Instant::now();
        let response = node.as_peer(target, message);
        assert_eq!(response.status, 422, "{target}: {response:?}");
        assert!(began.elapsed() < AT_ONCE, "{target}: {:?}", began.elapsed());
    }
    let too_large = format!("[{}]", " ".repeat(16 * 1024 * 1024));
    assert_eq!(node.as_peer("/cluster/entries", &too_large).status, 413);
}

#[test]
fn nodes_of_a_federation_check_each_field_too() {
    let cluster = lonely_node("federated");
    let node = &cluster.nodes[0];
    let long = || json!("k".repeat(256));
    let order = |update: Value| json!({ "salt": salt_fingerprint(&crate::support::proper_salt(7)), "id": { "k": "k" }, "seen": "0".repeat(32), "update": update });
    for (target, message) in [
        ("/cluster/find", json!({ "k": "" })),
        ("/cluster/find", json!({ "k": long() })),
        ("/cluster/find", json!({ "k": "k", "e": "" })),
        ("/cluster/find", json!({ "k": "k", "e": long() })),
        ("/cluster/page", json!({ "after": { "k": long() }, "bytes": 1, "names": false })),
        ("/cluster/page", json!({ "prefix": "p".repeat(1_000_000), "bytes": 1, "names": false })),
        ("/cluster/page", json!({ "bytes": -1, "names": false })),
        ("/cluster/write", order(json!({ "t": "gAAA" }))),
        ("/cluster/write", order(json!({ "t": TOKEN, "c": long() }))),
        ("/cluster/write", order(json!({ "t": TOKEN, "e": long() }))),
        ("/cluster/write", order(json!({ "t": TOKEN, "e": "" }))),
    ] {
        let response = node.as_peer(target, &message.to_string());
        assert_eq!(response.status, 422, "{target} {message}: {response:?}");
    }
    let right = node.as_peer("/cluster/write", &order(json!({ "t": TOKEN, "c": "c", "e": "e" })).to_string());
    assert_eq!((right.status, right.text()), (200, r#"{"changed":null}"#));
}

/// One such change would win over every later write, and what it replaced would never come back.
#[test]
fn a_stamp_that_nothing_can_follow_is_refused() {
    let cluster = lonely_node("replica");
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
    let answer: Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!((&answer["applied"], &answer["refused"]), (&json!(1), &json!(3)));
    assert!(answer["ahead_ms"].as_u64().is_some_and(|ahead_ms| ahead_ms > 1 << 46), "{answer}");
    assert_eq!(names_on(node), ["good", "mine"]);
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

/// An hour ahead: what it writes is refused and shown on both nodes, everything else goes on.
#[test]
fn clocks_that_are_far_off_are_shown_and_stop_nothing_else() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_TEST_CLOCK_OFFSET_MS", &(62 * 60 * 1000 + 5000).to_string());
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("ahead", "1").status, 201);
    within(CONVERGENCE, "both say why", || {
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
    // Nothing is sent again and again: a push, and then what comparisons find.
    let before = cluster.requests("/cluster/changes");
    thread::sleep(2 * crate::nodes::SYNC_INTERVAL);
    let count = cluster.requests("/cluster/changes") - before;
    assert!(count <= 12, "{count} times in two intervals");
    // The clock is set right: new writes pass at once.
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
    repair_brings_it_back(&mut cluster);
}

fn repair_brings_it_back(cluster: &mut Cluster) {
    let (is_done, told) = cluster.nodes[0].repair(&[]);
    assert!(!is_done && told.contains("in use"), "a server runs: {told}");
    cluster.nodes[0].stop();
    for _ in 0..2 {
        let (is_done, told) = cluster.nodes[0].repair(&["--dry-run"]);
        assert!(is_done && told.contains("1 of entries, 0 of tombstones"), "{told}");
        assert!(told.contains("nothing was changed"), "{told}");
    }
    let (is_done, told) = cluster.nodes[0].repair(&[]);
    assert!(
        is_done && told.contains("1 of entries") && told.contains("replaced by current versions"),
        "{told}"
    );
    let (is_done, told) = cluster.nodes[0].repair(&[]);
    assert!(is_done && told.contains("nothing to repair"), "{told}");
    cluster.nodes[0].start();
    cluster.wait_for("ahead", Some("1"));
    cluster.wait_until_equal();
    assert_eq!(cluster.nodes[0].update("ahead", "4").status, 200);
    cluster.wait_for("ahead", Some("4"));
    within(CONVERGENCE, "nothing is wrong any more", || {
        cluster.nodes.iter().all(|node| reason(node).is_empty())
    });
}

/// One message to an older release was enough for this.
#[test]
fn a_database_with_stamps_that_nothing_can_follow_is_repaired() {
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
        let database = rusqlite::Connection::open(node.path("configurations.db")).expect("it can be opened");
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
        assert_eq!(response.status, 503, "it would be undone: {response:?}");
    }
    assert_eq!(cluster.nodes[0].create("deleted", "2").status, 503, "its deletion cannot be outdone");
    assert_eq!(cluster.nodes[0].create("new", "1").status, 201, "other entries are stamped as ever");
    for node in &mut cluster.nodes {
        node.stop();
        let (is_done, told) = node.repair(&[]);
        assert!(is_done && told.contains("3 of entries, 1 of tombstones"), "{told}");
        assert!(told.contains("times of comparisons"), "{told}");
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

/// Something between two nodes that passes health checks on, by which they know each other, and answers everything
/// else as it likes.
struct Liar {
    address: SocketAddr,
    connections_count: Arc<AtomicUsize>,
}

impl Liar {
    fn start(behind: SocketAddr, answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let connections_count = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections_count);
        let lie = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        // It ends with the process.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let lie = lie.clone();
                thread::spawn(move || {
                    let Ok(far) = TcpStream::connect(behind) else { return };
                    let (mut answers, mut back) =
                        (far.try_clone().expect("open"), near.try_clone().expect("open"));
                    thread::spawn(move || std::io::copy(&mut answers, &mut back));
                    serve(near, far, lie.as_bytes());
                });
            }
        });
        Self { address, connections_count }
    }
}

fn serve(mut near: TcpStream, mut far: TcpStream, lie: &[u8]) {
    let mut received = Vec::new();
    let mut piece = [0; 4096];
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
        match near.read(&mut piece) {
            Ok(count) if count > 0 => received.extend_from_slice(&piece[..count]),
            _ => return far.shutdown(std::net::Shutdown::Both).unwrap_or_default(),
        }
    }
}

/// It confirms nothing, and the peer is found when it is there again.
#[test]
fn what_does_not_answer_as_a_node_confirms_no_write() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[0].set("OSC_CLUSTER_WRITE_ACKS", "all");
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[0].create("whole", "0").status, 201);
    let real = cluster.nodes[1].place_for_peers.get().expect("it runs");
    let lies = [
        ("no JSON", "ok"),
        ("nothing", ""),
        ("JSON of something else", r#"{"detail":"Not Found"}"#),
        ("more than was sent", r#"{"applied":2}"#),
    ];
    for (number, (lie, answer)) in lies.into_iter().enumerate() {
        let liar = Liar::start(real, answer);
        let link = cluster.link(0, 1);
        link.set(Mode::Cut);
        within(CONVERGENCE, "its connection is gone", || cluster.nodes[0].states()[0].0 == "down");
        cluster.nodes[1].place_for_peers.set(Some(liar.address));
        link.set(Mode::Open);
        let node = &cluster.nodes[0];
        within(CONVERGENCE, lie, || reason(node) == "it sends malformed replies");
        let key = format!("with-{number}");
        let response = node.create(&key, "1");
        assert_eq!(response.status, 503, "{lie}: {response:?}");
        assert!(response.detail().contains("only 0 of 1"), "{lie}: {}", response.detail());
        assert!(liar.connections_count.load(Ordering::Relaxed) > 1, "{lie}: each is given up");
        // By its name it is found again, and nothing had to be cut for that.
        cluster.nodes[1].place_for_peers.set(Some(real));
        cluster.wait_for(&key, Some("1"));
        within(CONVERGENCE, "nothing is wrong with it any more", || reason(&cluster.nodes[0]).is_empty());
        assert_eq!(cluster.nodes[0].update(&key, "2").status, 200, "{lie}");
        assert_eq!(cluster.nodes[1].value(&key).as_deref(), Some("2"), "{lie}");
    }
}
