//! Limits on clients that guess names and keys: no cheap oracle, and no starvation of other clients.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Launch, OTHER_KEY, Response, Server, USER_KEY, eventually, request};

const ATTACKER: [u8; 4] = [127, 0, 0, 2];

/// The value of one time series.
fn metric(server: &Server, series: &str) -> u64 {
    let response = server.connect().send("GET", "/metrics", &[], None);
    let line = response.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is missing")).parse().expect("a whole number")
}

/// A stranger learns that a name is taken only after paying for a derivation.
#[test]
fn a_taken_name_is_reported_after_the_derivation() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let derivations = || metric(&server, "osc_key_derivations_completed_total");
    let before = derivations();
    let body = Some(r#"{"key":"k","value":2}"#);
    assert_eq!(server.send("POST", "/configs", OTHER_KEY, body).status, 400);
    assert_eq!(derivations(), before + 1);
    // A missing name costs no derivation: 404 is part of the contract, and does not count as a failure.
    assert_eq!(server.send("GET", "/configs/none", "a-key-that-was-never-used", None).status, 404);
    assert_eq!(derivations(), before + 1);
    assert_eq!(server.send("GET", "/configs/k", USER_KEY, None).value(), "1");
}

/// Filtered lists do not depend on names that the caller's key does not decrypt.
#[test]
fn parts_of_lists_are_equal_with_and_without_foreign_names() {
    let parts =
        ["prefix=secret/", "category=c", "environment=e", "limit=1", "limit=2", "after=0", "after=1&limit=1"];
    let responses = |has_foreign: bool| {
        let server = Server::start();
        let create = |user_key: &str, key: &str| {
            let body = format!(r#"{{"key":"{key}","value":1,"category":"c","environment":"e"}}"#);
            assert_eq!(server.send("POST", "/configs", user_key, Some(&body)).status, 201);
        };
        create(USER_KEY, "secret/mine");
        if has_foreign {
            ["secret/theirs", "a", "z"].iter().for_each(|key| create(OTHER_KEY, key));
        }
        let lists = ["/configs", "/cluster/configs"].map(|path| parts.map(|part| format!("{path}?{part}")));
        let lists = lists.as_flattened().iter().map(|target| {
            let mut response = server.get(target);
            assert_eq!(response.status, 200, "{target}: {response:?}");
            for changing in ["date", "x-request-id"] {
                assert!(response.headers.remove(changing).is_some());
            }
            let mut headers: Vec<(String, String)> = response.headers.into_iter().collect();
            headers.sort_unstable();
            (target.clone(), headers, response.body)
        });
        lists.collect::<Vec<_>>()
    };
    assert_eq!(responses(true), responses(false));
}

/// Responses to a flood of user keys that were never used before, by kind.
#[derive(Default)]
struct Flood {
    is_over: AtomicBool,
    derived: AtomicU64,
    refused: AtomicU64,
}

impl Flood {
    /// Keeps a request of each connection in flight until the flood is over.
    fn run(&self, address: SocketAddr, connections: std::ops::Range<usize>) {
        let mut clients: Vec<(usize, Client)> =
            connections.map(|number| (number, Client::connect_from(ATTACKER, address))).collect();
        for round in 0.. {
            for (number, client) in &mut clients {
                let user_key = format!("made-up-key-{number}-{round}");
                client.write(&request("GET", "/configs", &[("X-User-Key", &user_key)], None));
            }
            for (_, client) in &mut clients {
                match client.receive(false).status {
                    200 => self.derived.fetch_add(1, Relaxed),
                    503 => self.refused.fetch_add(1, Relaxed),
                    status => panic!("{status}"),
                };
            }
            if self.is_over.load(Relaxed) {
                break;
            }
        }
    }
}

/// Such a flood once starved every new key of other clients.
#[test]
fn new_keys_of_others_are_served_during_a_flood() {
    const CONNECTIONS: usize = 100;
    const THREADS: usize = 4;
    const HONEST: usize = 20;
    let server = Launch::new().set("OSC_FAILED_KEYS_PER_ADDRESS", "0").start();
    let flood = Flood::default();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (flood, address) = (&flood, server.address);
            let share = CONNECTIONS / THREADS;
            scope.spawn(move || flood.run(address, thread * share..(thread + 1) * share));
        }
        eventually("the queue is full", || flood.refused.load(Relaxed) > 0);
        let statuses: Vec<u16> = (0..HONEST)
            .map(|number| {
                let (user_key, body) =
                    (format!("honest-key-{number}"), format!(r#"{{"key":"{number}","value":1}}"#));
                server.send("POST", "/configs", &user_key, Some(&body)).status
            })
            .collect();
        flood.is_over.store(true, Relaxed);
        assert_eq!(statuses, [201; HONEST]);
    });
    assert!(flood.derived.load(Relaxed) > 0, "the flood gets its share, too");
}

/// Sends a request of the attacker, on a dedicated connection.
fn attack(server: &Server, method: &str, target: &str, user_key: &str, body: Option<&str>) -> Response {
    let mut client = Client::connect_from(ATTACKER, server.address);
    client.send(method, target, &[("X-User-Key", user_key)], body.map(str::as_bytes))
}

/// Failures that are free; as many more are delayed.
const PER_MINUTE: usize = 10;

fn guarded() -> Server {
    let server = Launch::new().set("OSC_FAILED_KEYS_PER_ADDRESS", &PER_MINUTE.to_string()).start();
    assert_eq!(server.create("k", "1").status, 201);
    server
}

fn is_refusal(response: &Response) -> bool {
    if response.status != 429 {
        return false;
    }
    assert_eq!(response.detail(), "Too many failed keys, try again later");
    let wait: u64 = response.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=7).contains(&wait), "{wait}");
    true
}

/// Guesses until an attempt is refused, which must be after as many as are allowed. Attempts that have decayed in the
/// meantime are allowed again.
fn exhaust(what: &str, mut guess: impl FnMut(usize) -> Response, status: u16) {
    let begun = Instant::now();
    let mut count = 0;
    loop {
        let response = guess(count);
        if is_refusal(&response) {
            break;
        }
        assert_eq!(response.status, status, "{what}, {count}: {response:?}");
        count += 1;
        let decayed = usize::try_from(begun.elapsed().as_secs()).expect("a few seconds") * PER_MINUTE / 60;
        assert!(count <= 2 * PER_MINUTE + 1 + decayed, "{what}: {count}");
    }
    assert!(count >= 2 * PER_MINUTE, "{what}: {count}");
}

#[test]
fn guessed_user_keys_are_delayed_then_refused_and_forgotten() {
    let server = guarded();
    let guess = |number: usize| attack(&server, "GET", "/configs/k", &format!("guess-number-{number}"), None);
    let mut longest = Duration::ZERO;
    let timed = |number| {
        let begun = Instant::now();
        let response = guess(number);
        longest = longest.max(begun.elapsed());
        response
    };
    exhaust("user keys", timed, 401);
    assert!(longest >= Duration::from_millis(500), "the last ones are delayed: {longest:?}");
    // Neither the name nor the method makes a difference, and nothing is derived.
    let derivations = || metric(&server, "osc_key_derivations_started_total");
    let mut number = 1000;
    for (method, target, body) in [
        ("GET", "/configs/none", None),
        ("DELETE", "/configs/k", None),
        ("PUT", "/configs/none", Some(r#"{"value":1}"#)),
        ("POST", "/configs", Some(r#"{"key":"k","value":1}"#)),
        ("POST", "/configs", Some(r#"{"key":"new","value":1}"#)),
        ("GET", "/configs", None),
        ("GET", "/cluster/configs?prefix=k", None),
    ] {
        eventually("it is refused", || {
            // An attempt that has decayed is used up first.
            number += 1;
            while !is_refusal(&guess(number)) {
                number += 1;
            }
            let before = derivations();
            let user_key = format!("another-guess-{number}");
            is_refusal(&attack(&server, method, target, &user_key, body)) && derivations() == before
        });
    }
    // The owner is served from the same address, and every client from other addresses.
    for (method, target, body, status) in [
        ("GET", "/configs/k", None, 200),
        ("PUT", "/configs/k", Some(r#"{"value":2}"#), 200),
        ("GET", "/configs/none", None, 404),
        ("POST", "/configs", Some(r#"{"key":"mine","value":1}"#), 201),
        ("GET", "/configs", None, 200),
    ] {
        assert_eq!(attack(&server, method, target, USER_KEY, body).status, status, "{method} {target}");
    }
    assert_eq!(server.send("GET", "/configs/k", OTHER_KEY, None).status, 401);
    assert_eq!(server.send("GET", "/configs/none", "a-new-key-elsewhere", None).status, 404);

    let of = |name: &str| metric(&server, &format!("{name}{{kind=\"user_key\"}}"));
    assert!(of("osc_auth_failures_total") > 2 * PER_MINUTE as u64);
    assert!(of("osc_auth_refusals_total") >= 14);
    let log = server.log();
    let warning = log.lines().find(|line| line.contains("too many failed keys")).expect("a warning");
    assert!(warning.contains("127.0.0.2"), "{warning}");
    assert!(!log.contains("guess-number"), "no key is logged");
    eventually("an attempt is allowed again", || guess(5000).status == 401);
}

/// A tenant scans for the names of another tenant, with a key that decrypts its own entries.
#[test]
fn names_cannot_be_scanned_with_a_proven_key() {
    let server = guarded();
    let foreign = |number: usize| format!("foreign-{}", number % 40);
    for number in 0..40 {
        assert_eq!(server.create(&foreign(number), "1").status, 201);
    }
    let body = Some(r#"{"key":"own","value":1}"#);
    assert_eq!(attack(&server, "POST", "/configs", OTHER_KEY, body).status, 201);
    let read = |name: &str| attack(&server, "GET", &format!("/configs/{name}"), OTHER_KEY, None);
    exhaust("names", |number| read(&foreign(number)), 401);
    let mut number = 0;
    for name in ["foreign-39", "there-is-none"] {
        eventually("existing and missing names are alike", || {
            number += 1;
            while !is_refusal(&read(&foreign(number))) {
                number += 1;
            }
            is_refusal(&read(name))
        });
    }
    assert_eq!(read("own").status, 200);
    let update = attack(&server, "PUT", "/configs/own", OTHER_KEY, Some(r#"{"value":2}"#));
    assert_eq!((update.status, server.value("k")), (200, "1".to_owned()));
}

/// Every way to learn whether a new key decrypts anything, or whether a name is taken, counts as an attempt.
#[test]
fn lists_and_taken_names_count_as_attempts() {
    for (method, target, body, status) in
        [("GET", "/configs", None, 200), ("POST", "/configs", Some(r#"{"key":"k","value":2}"#), 400)]
    {
        let server = guarded();
        let guess = |number: usize| attack(&server, method, target, &format!("guess-number-{number}"), body);
        exhaust(method, guess, status);
        assert_eq!(server.value("k"), "1");
    }
    // A client that polls for what it does not have yet is not an attacker, and neither is one that creates an entry of
    // its own again.
    let server = guarded();
    for _ in 0..5 * PER_MINUTE {
        assert_eq!(attack(&server, "GET", "/configs", OTHER_KEY, None).text(), "[]");
        assert_eq!(
            attack(&server, "POST", "/configs", USER_KEY, Some(r#"{"key":"k","value":2}"#)).status,
            400
        );
    }
    let body = Some(r#"{"key":"new","value":1}"#);
    assert_eq!(attack(&server, "POST", "/configs", OTHER_KEY, body).status, 201);
}

#[test]
fn guessed_api_keys_are_refused_everywhere_and_keys_in_use_are_not() {
    let launch = Launch::new().set("OSC_FAILED_KEYS_PER_ADDRESS", &PER_MINUTE.to_string());
    let server = launch.set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "the-right-api-key").start();
    let send = |method: &str, target: &str, api_key: &str| {
        let mut client = Client::connect_from(ATTACKER, server.address);
        client.send(method, target, &[("X-API-Key", api_key)], None)
    };
    // The inter-node endpoints are exempt from the rate limits, but not from this one.
    let targets = ["/", "/cluster/salt", "/cluster/status"];
    exhaust("API keys", |number| send("GET", targets[number % targets.len()], "a-guess"), 403);
    for target in targets {
        // Otherwise the difference would reveal which guess is correct.
        eventually("the right key is refused", || {
            while !is_refusal(&send("GET", target, "a-guess")) {}
            is_refusal(&send("GET", target, "the-right-api-key"))
        });
    }
    for target in ["/health", "/ready", "/cluster/health", "/metrics"] {
        assert_eq!(send("GET", target, "a-guess").status, 200, "{target}");
    }
    // A client whose key has been correct since the first failure keeps using it.
    let elsewhere = |api_key| server.connect().send("GET", "/", &[("X-API-Key", api_key)], None);
    let guess_beside_it = |_| {
        assert_eq!(elsewhere("the-right-api-key").status, 200);
        elsewhere("a-guess")
    };
    exhaust("API keys elsewhere", guess_beside_it, 403);
    assert_eq!(elsewhere("the-right-api-key").status, 200);
    assert!(metric(&server, "osc_auth_failures_total{kind=\"api_key\"}") >= 4 * PER_MINUTE as u64);
}
