//! Federated mode: each node stores its own entries and queries every peer at most once, with a timeout.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opensecureconf::model::{ApiKey, ApiKeys};
use opensecureconf::service::NodeAuth;
use opensecureconf::service::node_auth::{Challenge, signed_response};

use crate::link::{Link, Mode};
use crate::nodes::{API_KEY, CONVERGENCE, Cluster, Node, ask, within};
use crate::support::{OTHER_KEY, PATIENCE, Response, USER_KEY};

/// Default timeout of a peer request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum duration of a request that waits for an unresponsive peer until the timeout, on a busy machine.
const IN_TIME: Duration = Duration::from_millis(3500);

fn federation(count: usize) -> Cluster {
    let mut cluster = Cluster::of(count);
    for node in &mut cluster.nodes {
        node.set("OSC_CLUSTER_MODE", "federated");
    }
    cluster
}

fn started(count: usize) -> Cluster {
    let mut cluster = federation(count);
    cluster.start();
    cluster.wait_until_whole();
    cluster
}

fn cut_all_links(cluster: &Cluster) {
    (0..cluster.nodes.len()).for_each(|node| cluster.set_links_of(node, Mode::Cut));
}

fn open_all_links(cluster: &Cluster) {
    (0..cluster.nodes.len()).for_each(|node| cluster.set_links_of(node, Mode::Open));
    cluster.wait_until_whole();
}

/// Creates an entry on each node that no other node has. Afterwards the user key is derived on all nodes.
fn with_one_entry_per_node(count: usize) -> Cluster {
    let cluster = started(count);
    for (index, node) in cluster.nodes.iter().enumerate() {
        assert_eq!(node.create(&format!("of-{index}"), &index.to_string()).status, 201);
    }
    cluster
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started_at = Instant::now();
    let done = work();
    (done, started_at.elapsed())
}

/// Returns the keys of a list with their values, in the order of the list.
fn listed(response: &Response) -> Vec<(String, String)> {
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&response.body).expect("an array");
    let text = |entry: &serde_json::Value| entry["key"].as_str().expect("a string").to_owned();
    entries.iter().map(|entry| (text(entry), entry["value"].to_string())).collect()
}

fn keys(response: &Response) -> Vec<String> {
    listed(response).into_iter().map(|(key, _)| key).collect()
}

/// Returns a field from the head, where a short response has it, or from the trailer of a streamed response.
fn field<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers.get(name).or(response.trailers.get(name)).map(String::as_str)
}

fn partial(response: &Response) -> Option<&str> {
    field(response, "x-partial-result")
}

fn peer_requests(cluster: &Cluster) -> usize {
    ["/cluster/find", "/cluster/page", "/cluster/write"].map(|target| cluster.requests(target)).iter().sum()
}

#[test]
fn any_node_reads_updates_and_deletes_an_entry() {
    let cluster = with_one_entry_per_node(3);
    for node in &cluster.nodes {
        for index in 0..3 {
            assert_eq!(node.value(&format!("of-{index}")).as_deref(), Some(index.to_string().as_str()));
        }
    }
    // Nothing was copied.
    let local = |node: &Node| keys(&node.ask("GET", "/cluster/configs", None));
    assert_eq!(cluster.nodes.iter().map(local).collect::<Vec<_>>(), [["of-0"], ["of-1"], ["of-2"]]);

    let response = cluster.nodes[0].ask("PUT", "/configs/of-2", Some(r#"{"value":[1.0],"category":"c"}"#));
    assert_eq!(
        (response.status, response.text()),
        (200, r#"{"id":1,"key":"of-2","category":"c","value":[1.0]}"#)
    );
    let owner = cluster.nodes[2].ask("GET", "/configs/of-2", None);
    assert_eq!(owner.text(), r#"{"id":1,"key":"of-2","category":"c","value":[1.0]}"#);
    assert_eq!(cluster.nodes[1].delete("of-2").status, 200);
    for node in &cluster.nodes {
        assert_eq!(node.value("of-2"), None);
        assert_eq!(node.update("of-2", "1").status, 404);
        assert_eq!(node.delete("of-2").status, 404);
    }
    // A client whose key does not decrypt the entry cannot change it either, through any node.
    for node in &cluster.nodes {
        let address = node.place.get().expect("the node is running");
        for (method, body) in [("GET", None), ("PUT", Some(r#"{"value":0}"#)), ("DELETE", None)] {
            let response =
                ask(address, PATIENCE, method, "/configs/of-0", OTHER_KEY, body).expect("the node responds");
            assert_eq!(response.status, 401, "{method}: {response:?}");
        }
    }
    assert_eq!(cluster.nodes[0].value("of-0").as_deref(), Some("0"));
}

#[test]
fn remote_environments_are_found_and_moved() {
    let cluster = started(2);
    let [near, far] = [&cluster.nodes[0], &cluster.nodes[1]];
    for environment in ["prod", "test"] {
        let body = format!(r#"{{"key":"k","value":"{environment}","environment":"{environment}"}}"#);
        assert_eq!(far.ask("POST", "/configs", Some(&body)).status, 201);
    }
    let response = near.ask("GET", "/configs/k?environment=prod", None);
    assert_eq!((response.status, response.value().as_str()), (200, "\"prod\""));
    assert_eq!(near.ask("GET", "/configs/k?environment=none", None).status, 404);
    let response = near.ask("GET", "/configs/k", None);
    assert_eq!(response.status, 400, "{response:?}");
    assert!(response.detail().contains("prod, test"), "{}", response.detail());
    assert_eq!(near.ask("DELETE", "/configs/k?environment=test", None).status, 200);
    // One entry is left, so a request without an environment selects it, and the body can move it.
    let response = near.ask("PUT", "/configs/k", Some(r#"{"value":1,"environment":"live"}"#));
    assert_eq!(response.status, 200, "{response:?}");
    assert!(response.text().contains(r#""environment":"live""#), "{}", response.text());
    assert_eq!(far.ask("GET", "/configs/k?environment=live", None).value(), "1");
    assert_eq!(far.ask("GET", "/configs/k?environment=prod", None).status, 404);
    assert_eq!(keys(&near.ask("GET", "/configs?environment=live", None)), ["k"]);
    assert_eq!(keys(&near.ask("GET", "/configs?environment=prod", None)), [""; 0]);
}

#[test]
fn lookup_queries_each_peer_once_and_then_only_the_owner() {
    let cluster = with_one_entry_per_node(4);
    let node = &cluster.nodes[0];
    let requests_of = |work: &dyn Fn()| {
        let before = peer_requests(&cluster);
        work();
        peer_requests(&cluster) - before
    };
    let count = requests_of(&|| assert_eq!(node.value("nowhere"), None));
    assert_eq!(count, 3, "one request to each peer");
    assert!(requests_of(&|| assert_eq!(node.value("of-3").as_deref(), Some("3"))) <= 3);
    let once_more = || requests_of(&|| assert_eq!(node.value("of-3").as_deref(), Some("3")));
    // The first read did not wait for the replies of the other peers, so a request to one of them may arrive late.
    within(CONVERGENCE, "the owner is known", || (0..3).all(|_| once_more() == 1));
    for _ in 0..5 {
        assert_eq!(once_more(), 1, "the owner is known");
    }
    // The owner hint becomes wrong.
    assert_eq!(cluster.nodes[3].delete("of-3").status, 200);
    assert_eq!(cluster.nodes[1].create("of-3", "33").status, 201);
    let once_more = || requests_of(&|| assert_eq!(node.value("of-3").as_deref(), Some("33")));
    assert!((2..=3).contains(&once_more()), "the former owner, then the other peers until one has the entry");
    within(CONVERGENCE, "the new owner is known", || (0..3).all(|_| once_more() == 1));
    // The first update has to rule out owners that are configured earlier.
    assert!(requests_of(&|| assert_eq!(node.update("of-2", "22").status, 200)) <= 4);
    assert_eq!(requests_of(&|| assert_eq!(node.update("of-2", "222").status, 200)), 2, "lookup and write");
    assert_eq!(requests_of(&|| assert_eq!(keys(&node.ask("GET", "/configs", None)).len(), 4)), 3);
}

#[test]
fn list_contains_each_entry_once_for_any_page_size() {
    let cluster = started(3);
    // Local entries come first, ordered by id, then remote entries, ordered by key.
    let mut expected = Vec::new();
    for number in [5, 3, 4] {
        expected.push((format!("own-{number}"), number));
    }
    for number in 0..40 {
        expected.push((format!("far-{number:02}"), number));
    }
    for (index, (key, value)) in expected.iter().enumerate() {
        let node = if key.starts_with("own") { 0 } else { 1 + index % 2 };
        let category = if value % 3 == 0 { "third" } else { "other" };
        let body = format!(r#"{{"key":"{key}","value":{value},"category":"{category}"}}"#);
        assert_eq!(cluster.nodes[node].ask("POST", "/configs", Some(&body)).status, 201);
    }
    // If several nodes have an entry, the local one wins, otherwise that of the peer that is configured first.
    cut_all_links(&cluster);
    for (node, key) in
        [(1, "own-3"), (2, "own-3"), (2, "far-07"), (1, "far-07"), (2, "far-08"), (1, "far-08")]
    {
        let status = cluster.nodes[node].create(key, "\"shadowed\"").status;
        assert!([201, 400].contains(&status), "{status}");
    }
    open_all_links(&cluster);
    let node = &cluster.nodes[0];
    let all = node.ask("GET", "/configs", None);
    let wanted: Vec<(String, String)> =
        expected.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
    let nearest: Vec<(String, String)> = listed(&all);
    assert_eq!(
        nearest.iter().map(|(key, _)| key).collect::<Vec<_>>(),
        wanted.iter().map(|(key, _)| key).collect::<Vec<_>>()
    );
    assert_eq!(partial(&all), None);
    let thirds = keys(&node.ask("GET", "/configs?category=third", None));
    let expected_thirds: Vec<&String> =
        expected.iter().filter(|(_, value)| value % 3 == 0).map(|(key, _)| key).collect();
    assert_eq!(thirds.iter().collect::<Vec<_>>(), expected_thirds);
    assert_eq!(keys(&node.ask("GET", "/configs?prefix=far-1", None)).len(), 10);

    for limit in [1, 2, 3, 7, 43, 100] {
        let (mut pages, mut after) = (Vec::new(), String::new());
        loop {
            let response = node.ask("GET", &format!("/configs?limit={limit}&after={after}"), None);
            assert_eq!(response.status, 200, "{response:?}");
            let page = listed(&response);
            assert!(page.len() <= limit);
            let is_full = page.len() == limit;
            pages.extend(page);
            match field(&response, "x-next-after") {
                Some(next) => next.clone_into(&mut after),
                None => break assert!(!is_full || pages.len() == nearest.len(), "a page is missing"),
            }
        }
        assert_eq!(pages, nearest, "limit {limit}");
    }
    let duplicates = node.ask("GET", "/v1/federation/duplicates", None);
    assert_eq!(duplicates.status, 200, "{duplicates:?}");
    let report: serde_json::Value = serde_json::from_slice(&duplicates.body).expect("JSON");
    let addresses: Vec<String> = [1, 2].map(|to| cluster.link(0, to).address.to_string()).into();
    let found: BTreeMap<&str, Vec<&str>> = report["duplicates"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|entry| {
            let owners = entry["owners"].as_array().expect("an array").iter();
            (
                entry["key"].as_str().expect("a string"),
                owners.map(|owner| owner.as_str().expect("a string")).collect(),
            )
        })
        .collect();
    let both = vec![addresses[0].as_str(), addresses[1].as_str()];
    let three = vec!["node-0", addresses[0].as_str(), addresses[1].as_str()];
    assert_eq!(found, BTreeMap::from([("far-07", both.clone()), ("far-08", both), ("own-3", three)]));
    // An update goes to the first configured owner.
    for key in ["far-07", "far-08"] {
        assert_eq!(node.update(key, "\"changed\"").status, 200);
        assert_eq!(cluster.nodes[1].value(key).as_deref(), Some("\"changed\""));
        assert_ne!(cluster.nodes[2].value(key).as_deref(), Some("\"changed\""));
    }
}

/// The list exceeds the buffer of a response, so it is streamed, and the trailer names the unreachable peers.
#[test]
fn streamed_list_names_unreachable_peers_in_its_trailer() {
    let mut cluster = started(3);
    let filler = "x".repeat(20_000);
    for node in &cluster.nodes {
        let name = node.report()["node_id"].as_str().expect("a string").to_owned();
        for number in 0..40 {
            assert_eq!(node.create(&format!("{name}-{number:02}"), &format!("\"{filler}\"")).status, 201);
        }
    }
    let all = cluster.nodes[0].ask("GET", "/configs", None);
    let mut listed = keys(&all);
    assert_eq!(listed.len(), 120);
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 120);
    assert_eq!(partial(&all), None);
    cluster.nodes[1].kill();
    let rest = cluster.nodes[0].ask("GET", "/configs", None);
    assert_eq!(keys(&rest).len(), 80);
    assert_eq!(partial(&rest), Some(cluster.link(0, 1).address.to_string().as_str()), "{:?}", rest.headers);
}

/// Ways in which a peer does not reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    Dead,
    Stalled,
    Slow,
    Stopped,
}

#[test]
fn unresponsive_peers_do_not_delay_requests_beyond_the_timeout() {
    for outage in [Outage::Dead, Outage::Stalled, Outage::Slow, Outage::Stopped] {
        let mut cluster = with_one_entry_per_node(3);
        let name = cluster.link(0, 1).address.to_string();
        match outage {
            Outage::Dead => cluster.nodes[1].kill(),
            Outage::Stalled => cluster.set_links_of(1, Mode::Stalled),
            Outage::Slow => cluster.set_links_of(1, Mode::Delayed(TIMEOUT * 2)),
            Outage::Stopped => cluster.nodes[1].pause(),
        }
        let node = &cluster.nodes[0];
        let (found, took) = timed(|| node.value("of-2"));
        assert_eq!(found.as_deref(), Some("2"), "{outage:?}");
        assert!(took < TIMEOUT / 2, "{outage:?}: the first hit is used, {took:?}");
        let (missing, took) = timed(|| node.ask("GET", "/configs/nowhere", None));
        assert_eq!(missing.status, 404, "{outage:?}: {missing:?}");
        assert_eq!(partial(&missing), Some(name.as_str()), "{outage:?}: {missing:?}");
        assert!(took < IN_TIME, "{outage:?}: {took:?}");
        let (lost, took) = timed(|| node.ask("GET", "/configs/of-1", None));
        assert_eq!((lost.status, partial(&lost)), (404, Some(name.as_str())), "{outage:?}: {lost:?}");
        assert!(took < IN_TIME, "{outage:?}: {took:?}");
        let (list, took) = timed(|| node.ask("GET", "/configs", None));
        assert_eq!(
            (keys(&list), partial(&list)),
            (vec!["of-0".into(), "of-2".into()], Some(name.as_str())),
            "{outage:?}"
        );
        assert!(took < IN_TIME, "{outage:?}: {took:?}");
        assert_eq!(node.update("of-2", "22").status, 200, "{outage:?}");
        // Once the peer is known to be down, requests no longer wait for it.
        within(CONVERGENCE, "the peer is down", || node.states()[0].0 == "down");
        let (missing, took) = timed(|| node.ask("GET", "/configs/nowhere", None));
        assert_eq!((missing.status, partial(&missing)), (404, Some(name.as_str())), "{outage:?}");
        assert!(took < TIMEOUT / 2, "{outage:?}: {took:?}");
        match outage {
            Outage::Dead => cluster.nodes[1].start(),
            Outage::Stalled | Outage::Slow => cluster.set_links_of(1, Mode::Open),
            Outage::Stopped => cluster.nodes[1].signal("CONT"),
        }
        within(CONVERGENCE, "it is queried again", || cluster.nodes[0].value("of-1").as_deref() == Some("1"));
    }
}

#[test]
fn strict_mode_returns_503_instead_of_404_while_a_peer_is_unreachable() {
    let mut cluster = federation(3);
    cluster.nodes[0].set("OSC_FEDERATED_STRICT", "true");
    cluster.nodes[0].set("OSC_FEDERATED_TIMEOUT_MS", "300");
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[2].create("k", "1").status, 201);
    assert_eq!(cluster.nodes[0].ask("GET", "/configs/nowhere", None).status, 404);
    cluster.nodes[1].kill();
    let name = cluster.link(0, 1).address.to_string();
    for method in ["GET", "PUT", "DELETE"] {
        let body = (method == "PUT").then_some(r#"{"value":1}"#);
        let response = cluster.nodes[0].ask(method, "/configs/nowhere", body);
        assert_eq!(response.status, 503, "{method}: {response:?}");
        assert!(response.headers.contains_key("retry-after"), "{method}: {response:?}");
        assert_eq!(partial(&response), Some(name.as_str()), "{method}");
        assert!(response.detail().contains(&name), "{method}: {}", response.detail());
    }
    assert_eq!(cluster.nodes[0].value("k").as_deref(), Some("1"), "an entry that is found is returned");
}

/// A well-formed Fernet token that no key decrypts.
const TOKEN: &str =
    "gAAAAABnnKuQbjQLnP-zepicpUTmu3gKLHiQHT-zNzh2hRGjBhevoB1L9RIvNEVUxTveLruM0rfj0WAK1jHDhaXXzOI8d4VFmg==";

/// A peer that has valid credentials and sends a fixed body in reply to everything but health checks.
struct Impostor {
    address: SocketAddr,
    requests_count: Arc<AtomicUsize>,
}

impl Impostor {
    /// Starts an impostor; `reply` is the body of all its responses except those to health checks.
    fn start(reply: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let requests_count = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests_count);
        let auth = Arc::new(NodeAuth::new(&[], &ApiKeys::new(vec![ApiKey::new(API_KEY)])));
        // The thread ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let (auth, reply, count) = (Arc::clone(&auth), reply.clone(), Arc::clone(&count));
                thread::spawn(move || {
                    let mut request = Vec::new();
                    let mut buffer = [0; 4096];
                    loop {
                        match stream.read(&mut buffer) {
                            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                            _ => return,
                        }
                        if !request.windows(4).any(|window| window == b"\r\n\r\n") {
                            continue;
                        }
                        let text = String::from_utf8_lossy(&request).into_owned();
                        let is_health = text.starts_with("GET /cluster/health ");
                        count.fetch_add(usize::from(!is_health), Ordering::Relaxed);
                        let (fields, body) = match is_health {
                            true => health_response(&auth, &text),
                            false => ("connection: close\r\n".to_owned(), reply.clone()),
                        };
                        let length = body.len();
                        let head = format!("HTTP/1.1 200 OK\r\n{fields}content-length: {length}\r\n\r\n");
                        if stream.write_all(&[head.into_bytes(), body].concat()).is_err() || !is_health {
                            return;
                        }
                        request.clear();
                    }
                });
            }
        });
        Self { address, requests_count }
    }
}

/// Returns header fields and body of the response to a health check.
fn health_response(auth: &NodeAuth, request: &str) -> (String, Vec<u8>) {
    let body = br#"{"status":"healthy","node_id":"impostor"}"#.to_vec();
    let field = |name: &str| {
        let lines = request.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
    };
    let identity = [
        ("x-osc-instance", "00000000000000aa"),
        ("x-osc-mode", "federated"),
        ("x-osc-horizon", "0000000000000000-0000000000000000"),
        ("x-osc-entries", "false"),
    ];
    let has_token = field("x-osc-token").is_some_and(|token| auth.accepts(token.as_bytes()));
    let challenge = field("x-osc-challenge").and_then(|text| Challenge::parse(text.as_bytes()));
    let mut fields = format!("x-osc-auth: api-key\r\nx-osc-challenge: {}\r\n", auth.challenge());
    if let Some(challenge) = challenge.filter(|_| has_token) {
        let header = |name: &str| identity.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let signed = signed_response(header, &body);
        let proof = auth.credentials().proof(challenge, auth.challenge(), &signed);
        let all = identity.iter().copied().chain([("x-osc-proof", &*proof)]);
        fields.extend(all.map(|(name, value)| format!("{name}: {value}\r\n")));
    }
    (fields, body)
}

#[test]
fn invalid_replies_are_treated_like_a_missing_reply() {
    let row = |salt: &str, key: &str| {
        format!(r#"{{"row":{{"salt":{salt},"row":{{"i":1,"k":"{key}","t":"{TOKEN}"}}}}}}"#).into_bytes()
    };
    let page = |rows: &str| format!(r#"{{"salt":1,"rows":[{rows}],"more":true}}"#).into_bytes();
    let lies: [(&str, Vec<u8>); 9] = [
        ("no JSON", b"<html>".to_vec()),
        ("nothing", Vec::new()),
        ("JSON of something else", br#"{"detail":"Not Found"}"#.to_vec()),
        ("sealed with another salt", row("1", "wanted")),
        ("without a salt", row("null", "wanted")),
        ("another entry", row("1", "other")),
        ("more, but nothing", page("")),
        ("never anything new", page(&format!(r#"{{"i":1,"k":"a","t":"{TOKEN}"}}"#))),
        ("larger than any reply", vec![b'['; 17 * 1024 * 1024]),
    ];
    let mut cluster = federation(2);
    cluster.start();
    cluster.wait_until_whole();
    assert_eq!(cluster.nodes[1].create("real", "1").status, 201);
    for (lie, reply) in lies {
        let impostor = Impostor::start(reply);
        cluster.nodes[0].stop();
        let peers = format!("{},{}", impostor.address, cluster.link(0, 1).address);
        cluster.nodes[0].set("OSC_CLUSTER_NODES", &peers);
        cluster.nodes[0].start();
        cluster.wait_until_whole();
        let node = &cluster.nodes[0];
        let name = impostor.address.to_string();
        let (missing, took) = timed(|| node.ask("GET", "/configs/wanted", None));
        assert_eq!((missing.status, partial(&missing)), (404, Some(name.as_str())), "{lie}: {missing:?}");
        assert!(took < IN_TIME, "{lie}: {took:?}");
        assert_eq!(node.value("real").as_deref(), Some("1"), "{lie}");
        let (list, took) = timed(|| node.ask("GET", "/configs", None));
        assert_eq!((keys(&list), partial(&list)), (vec!["real".to_owned()], Some(name.as_str())), "{lie}");
        assert!(took < IN_TIME, "{lie}: {took:?}");
        assert_eq!(node.update("real", "1").status, 200, "{lie}");
        assert!(impostor.requests_count.load(Ordering::Relaxed) >= 2, "{lie}: the impostor was queried");
        // A reply that is too large is abandoned before it is parsed.
        let is_shown = lie != "larger than any reply";
        let reason = "it sends malformed replies";
        within(CONVERGENCE, lie, || (node.states()[0].1 == reason) == is_shown);
    }
}

#[test]
fn circular_peer_lists_cause_no_forwarding() {
    let mut cluster = federation(3);
    let links_to_self: Vec<Link> = cluster.nodes.iter().map(|node| Link::to(node.place.clone())).collect();
    for (index, own) in links_to_self.iter().enumerate() {
        let others = cluster.links.iter().filter(|(from, ..)| *from == index);
        let mut peers: Vec<String> = others.map(|(.., link)| link.address.to_string()).collect();
        peers.insert(0, own.address.to_string());
        cluster.nodes[index].set("OSC_CLUSTER_NODES", &peers.join(","));
    }
    cluster.start();
    within(CONVERGENCE, "all peers are healthy, and each node recognises itself", || {
        cluster.nodes.iter().all(|node| {
            let mut states: Vec<String> = node.states().into_iter().map(|(state, _)| state).collect();
            states.sort();
            states == ["healthy", "healthy", "self"]
        })
    });
    let before = peer_requests(&cluster);
    let (missing, took) = timed(|| cluster.nodes[0].ask("GET", "/configs/nowhere", None));
    assert_eq!((missing.status, partial(&missing)), (404, None), "{missing:?}");
    assert!(took < TIMEOUT / 2, "{took:?}");
    assert_eq!(peer_requests(&cluster) - before, 2);
    assert!(links_to_self.iter().all(|link| link.requests("/cluster/find") == 0));
}

/// A replica and a federated node cannot work together.
#[test]
fn nodes_of_different_modes_refuse_each_other() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[1].set("OSC_CLUSTER_MODE", "federated");
    cluster.start();
    for node in &cluster.nodes {
        within(CONVERGENCE, "the peer is refused", || node.states()[0].0 == "refused");
        assert!(node.states()[0].1.contains("another cluster mode"), "{:?}", node.states());
    }
}

#[test]
fn concurrent_updates_through_all_nodes_succeed() {
    let cluster = with_one_entry_per_node(3);
    thread::scope(|scope| {
        for (index, node) in cluster.nodes.iter().enumerate() {
            scope.spawn(move || {
                for step in 0..30 {
                    let response = node.update("of-1", &format!("\"{index}-{step}\""));
                    assert_eq!(response.status, 200, "{index}, {step}: {response:?}");
                }
            });
        }
    });
    let values: Vec<_> = cluster.nodes.iter().map(|node| node.value("of-1")).collect();
    assert!(values[0].is_some() && values.iter().all(|value| *value == values[0]), "{values:?}");
}

#[test]
fn fifty_nodes_respond_in_time_and_keep_serving_without_ten_of_them() {
    const COUNT: usize = 50;
    let mut nodes: Vec<Node> = (0..COUNT).map(|_| Node::new()).collect();
    let ports = free_ports(COUNT);
    let peers: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    for (index, node) in nodes.iter_mut().enumerate() {
        for (name, value) in [
            ("OSC_CLUSTER_ENABLED", "true"),
            ("OSC_CLUSTER_MODE", "federated"),
            ("OSC_CLUSTER_NODE_ID", &format!("node-{index:02}")),
            ("OSC_CLUSTER_NODES", &peers.join(",")),
            ("OSC_HOST_PORT", &ports[index].to_string()),
        ] {
            node.set(name, value);
        }
        // A common salt, so that the nodes need not agree on one.
        std::fs::write(node.path("encryption.salt"), crate::support::proper_salt(7)).expect("writable");
        node.start();
    }
    let healthy = |node: &Node| node.states().iter().filter(|(state, _)| state == "healthy").count();
    within(CONVERGENCE * 2, "all peers are healthy to the first node", || healthy(&nodes[0]) == COUNT - 1);
    for (index, node) in nodes.iter().enumerate().step_by(7) {
        assert_eq!(node.create(&format!("of-{index:02}"), &index.to_string()).status, 201);
    }
    let expected: Vec<String> = (0..COUNT).step_by(7).map(|index| format!("of-{index:02}")).collect();
    let node = &nodes[0];
    let (list, took) = timed(|| node.ask("GET", "/configs", None));
    assert_eq!((keys(&list), partial(&list)), (expected.clone(), None));
    assert!(took < IN_TIME, "{took:?}");
    for key in &expected {
        let (value, took) = timed(|| node.value(key));
        assert!(value.is_some() && took < IN_TIME, "{key}: {value:?} {took:?}");
    }
    let resident = node.resident_kib();
    assert!(resident < 64 * 1024, "{resident} KiB");
    nodes[40..].iter_mut().for_each(Node::kill);
    let node = &nodes[0];
    for round in 0..3 {
        let (missing, took) = timed(|| node.ask("GET", "/configs/nowhere", None));
        assert_eq!(missing.status, 404, "{missing:?}");
        assert_eq!(partial(&missing).map(|names| names.split(", ").count()), Some(10), "round {round}");
        assert!(took < IN_TIME, "round {round}: {took:?}");
        let (list, took) = timed(|| node.ask("GET", "/configs", None));
        assert_eq!(keys(&list), expected[..6], "round {round}");
        assert!(took < IN_TIME, "round {round}: {took:?}");
    }
    assert_eq!(node.value(&expected[5]).as_deref(), Some("35"));
}

/// Returns ports that were free a moment ago.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("bound").port()).collect()
}

/// As in replica mode, user keys and plaintext values never pass between nodes.
#[test]
fn user_keys_and_values_do_not_pass_between_nodes() {
    let cluster = with_one_entry_per_node(3);
    let canary = "canary-of-a-federated-value";
    assert_eq!(cluster.nodes[0].update("of-1", &format!("\"{canary}\"")).status, 200);
    for node in &cluster.nodes {
        assert_eq!(node.value("of-1"), Some(format!("\"{canary}\"")));
        assert!(node.ask("GET", "/configs", None).text().contains(canary));
    }
    let passed: Vec<u8> = cluster.links.iter().flat_map(|(.., link)| link.passed()).collect();
    assert!(crate::wire::contains(&passed, b"of-1"), "the recording works");
    for canary in [canary, USER_KEY] {
        for form in crate::wire::forms(canary) {
            assert!(
                !crate::wire::contains(&passed, &form),
                "{canary} passes as {}",
                String::from_utf8_lossy(&form)
            );
        }
    }
}

#[test]
fn entries_of_a_dead_owner_are_503_and_found_as_soon_as_it_is_back() {
    let mut cluster = federation(2);
    // The regular check of a peer that is down is as late as possible.
    cluster.nodes[0].set("OSC_CLUSTER_SYNC_INTERVAL", "3600");
    cluster.start();
    cluster.wait_until_whole();
    for key in ["read", "listed", "unknown"] {
        assert_eq!(cluster.nodes[1].create(key, "1").status, 201);
        let response = match key {
            "read" => cluster.nodes[0].ask("GET", "/configs/read", None),
            _ => cluster.nodes[0].ask("GET", "/configs?prefix=listed", None),
        };
        assert_eq!(response.status, 200, "{key}: {response:?}");
    }
    let name = cluster.link(0, 1).address.to_string();
    for is_known_to_be_down in [false, true] {
        cluster.nodes[1].kill();
        let node = &cluster.nodes[0];
        if is_known_to_be_down {
            // This request makes the node check the peer.
            assert_eq!(node.ask("GET", "/configs/nowhere", None).status, 404);
            within(CONVERGENCE, "the peer is down", || node.states()[0].0 == "down");
        }
        for key in ["read", "listed"] {
            let target = format!("/configs/{key}");
            let new = format!(r#"{{"key":"{key}","value":2}}"#);
            for (method, target, body) in [
                ("GET", target.as_str(), None),
                ("PUT", &target, Some(r#"{"value":2}"#)),
                ("DELETE", &target, None),
                ("POST", "/configs", Some(new.as_str())),
            ] {
                let (response, took) = timed(|| node.ask(method, target, body));
                assert_eq!(
                    (response.status, partial(&response)),
                    (503, Some(name.as_str())),
                    "{method} {key}"
                );
                assert!(response.headers.contains_key("retry-after"), "{method} {key}: {response:?}");
                assert!(took < IN_TIME, "{method} {key}: {took:?}");
            }
        }
        let unknown = node.ask("GET", "/configs/unknown", None);
        assert_eq!((unknown.status, partial(&unknown)), (404, Some(name.as_str())));
        cluster.nodes[1].start();
        // On a busy machine the first request may not wait long enough. The regular check is 9 s away.
        let node = &cluster.nodes[0];
        within(Duration::from_secs(5), "the owner is used", || {
            node.ask("GET", "/configs/read", None).status == 200
        });
        assert_eq!(node.value("listed").as_deref(), Some("1"));
        assert_eq!(node.value("unknown").as_deref(), Some("1"));
        // Now this node knows the owner; the next round needs an entry that it does not.
        assert_eq!(node.delete("unknown").status, 200);
        assert_eq!(cluster.nodes[1].create("unknown", "1").status, 201);
    }
    assert_eq!(cluster.nodes[0].update("read", "2").status, 200);
    assert_eq!(cluster.nodes[0].delete("listed").status, 200);
    assert_eq!(cluster.nodes[0].create("listed", "3").status, 201);
}

#[test]
fn a_key_that_a_reachable_peer_has_is_not_created() {
    let cluster = started(3);
    let post = |node: usize, body: &str| cluster.nodes[node].ask("POST", "/configs", Some(body));
    assert_eq!(post(0, r#"{"key":"k","value":1,"environment":"e"}"#).status, 201);
    // Another environment is another entry.
    assert_eq!(post(1, r#"{"key":"k","value":1}"#).status, 201);
    for node in 0..3 {
        let response = post(node, r#"{"key":"k","value":1}"#);
        assert_eq!(
            (response.status, response.detail().as_str()),
            (400, "Configuration with key 'k' already exists")
        );
        let response = post(node, r#"{"key":"k","value":1,"environment":"e"}"#);
        assert_eq!(
            (response.status, response.detail().as_str()),
            (400, "Configuration with key 'k' already exists in environment 'e'")
        );
        let address = cluster.nodes[node].place.get().expect("the node is running");
        let body = Some(r#"{"key":"k","value":1}"#);
        let response =
            ask(address, PATIENCE, "POST", "/configs", OTHER_KEY, body).expect("the node responds");
        assert_eq!(response.status, 400, "{response:?}");
    }
    // Nodes that cannot communicate create duplicates, which are counted and logged once.
    cut_all_links(&cluster);
    assert_eq!([0, 1].map(|node| cluster.nodes[node].create("twice", "1").status), [201; 2]);
    open_all_links(&cluster);
    let duplicates = |node: &Node| {
        let metrics = node.ask("GET", "/metrics", None).text().to_owned();
        metrics.lines().find_map(|line| line.strip_prefix("osc_cluster_duplicate_names ").map(str::to_owned))
    };
    // One that owns a copy, and one that owns none.
    for node in [&cluster.nodes[0], &cluster.nodes[2]] {
        assert_eq!(duplicates(node).as_deref(), Some("0"));
        for _ in 0..2 {
            assert_eq!(node.ask("GET", "/configs", None).status, 200);
            assert_eq!(duplicates(node).as_deref(), Some("1"));
        }
        let lines = node.log().matches("several nodes have an entry of this name").count();
        assert_eq!(lines, 1, "{}", node.log());
    }
}
