//! What was acknowledged stays, whatever happens; what was not is there whole or not at all.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Launch, Server, USER_KEY, eventually};

const KEY_HEADER: (&str, &str) = ("X-User-Key", USER_KEY);

/// Reads the environment, or takes the default: more rounds for a long run, a seed to replay one.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Small and good enough to spread kill times (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % limit
    }
}

/// What one writer knows: the last acknowledged version of each of its keys, and the one after it
/// that was sent but not answered.
#[derive(Default)]
struct Ledger {
    acknowledged: HashMap<String, u64>,
    in_flight: Option<(String, u64)>,
}

fn write_until_it_breaks(
    address: std::net::SocketAddr,
    writer: usize,
    ledger: &mut Ledger,
    count: &AtomicU64,
) {
    let mut client = Client::connect(address);
    for step in 0.. {
        let key = format!("w{writer}-{}", step % 7);
        let known = ledger.acknowledged.get(&key).copied();
        let version = known.unwrap_or(0) + 1;
        let value = format!(
            r#"{{"version":{version},"filler":"{}"}}"#,
            "x".repeat(usize::try_from(version % 900).expect("small"))
        );
        let (method, target, body) = match known {
            None => ("POST", "/configs".to_owned(), format!(r#"{{"key":"{key}","value":{value}}}"#)),
            Some(_) => ("PUT", format!("/configs/{key}"), format!(r#"{{"value":{value}}}"#)),
        };
        ledger.in_flight = Some((key.clone(), version));
        let bytes = crate::support::request(method, &target, &[KEY_HEADER], Some(body.as_bytes()));
        if std::io::Write::write_all(&mut client.stream, &bytes).is_err() {
            return;
        }
        let Ok(response) = client.try_receive(false) else { return };
        // A create that was in flight when the last process died may have been made.
        let is_repeat = response.status == 400 && known.is_none();
        assert!(matches!(response.status, 200 | 201) || is_repeat, "{response:?}");
        ledger.in_flight = None;
        if is_repeat {
            ledger.acknowledged.insert(key, 0);
        } else {
            ledger.acknowledged.insert(key, version);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    const WRITERS: usize = 4;
    let seed = number("OSC_TEST_SEED", u64::from(std::process::id()) | 1);
    println!("OSC_TEST_SEED={seed}");
    let mut random = Random(seed);
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let mut ledgers: Vec<Ledger> = (0..WRITERS).map(|_| Ledger::default()).collect();
    let mut total = 0;
    for round in 0..number("OSC_TEST_KILL_ROUNDS", 20) {
        let mut server = Launch::at(Arc::clone(&directory)).set("OSC_WORKERS", "2").start();
        for ledger in &mut ledgers {
            check(&server, ledger, seed, round);
        }
        let count = AtomicU64::new(0);
        let target = 1 + random.below(400);
        thread::scope(|scope| {
            for (writer, ledger) in ledgers.iter_mut().enumerate() {
                let (address, count) = (server.address, &count);
                scope.spawn(move || write_until_it_breaks(address, writer, ledger, count));
            }
            eventually("writes are acknowledged", || count.load(Ordering::Relaxed) >= target);
            server.kill();
        });
        total += count.load(Ordering::Relaxed);
    }
    let server = Launch::at(directory).start();
    for ledger in &mut ledgers {
        check(&server, ledger, seed, u64::MAX);
    }
    assert!(total > 200, "only {total} writes were acknowledged");
}

fn check(server: &Server, ledger: &mut Ledger, seed: u64, round: u64) {
    let mut client = server.connect();
    let in_flight = ledger.in_flight.take();
    for (key, version) in &mut ledger.acknowledged {
        let response = client.send("GET", &format!("/configs/{key}"), &[KEY_HEADER], None);
        assert_eq!(response.status, 200, "seed {seed}, round {round}: {key} is lost: {response:?}");
        let json: serde_json::Value = serde_json::from_slice(&response.body).expect("whole");
        let found = json["value"]["version"].as_u64().expect("a number");
        let expected_filler = usize::try_from(found % 900).expect("small");
        assert_eq!(json["value"]["filler"].as_str().map(str::len), Some(expected_filler), "whole: {key}");
        let may_be_newer = in_flight.as_ref().is_some_and(|(sent, newer)| sent == key && *newer == found);
        // Version 0 stands for a create that was in flight twice: any first version is right.
        assert!(
            found == *version || may_be_newer || (*version == 0 && found == 1),
            "seed {seed}, round {round}: {key} has version {found}, acknowledged was {version}"
        );
        *version = found;
    }
}

/// A write that was answered is seen at once through every executor.
#[test]
fn executors_see_each_others_writes() {
    const EXECUTORS: usize = 4;
    let server = Launch::new().set("OSC_WORKERS", &EXECUTORS.to_string()).start();
    server.create("shared", "0");
    // Many connections, so that each executor has some.
    let mut readers: Vec<Client> = (0..16).map(|_| server.connect()).collect();
    let mut writers: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut version = 0_u64;
    while Instant::now() < deadline {
        version += 1;
        let count = writers.len();
        let writer = &mut writers[usize::try_from(version).expect("small") % count];
        let body = format!(r#"{{"value":{version}}}"#);
        assert_eq!(writer.send("PUT", "/configs/shared", &[KEY_HEADER], Some(body.as_bytes())).status, 200);
        for reader in &mut readers {
            let response = reader.send("GET", "/configs/shared", &[KEY_HEADER], None);
            assert_eq!(response.value(), version.to_string());
        }
    }
    assert!(version > 20, "only {version} rounds");
}

/// While writers change one entry, no reader ever sees an older version after a newer one.
#[test]
fn reads_never_go_back_in_time() {
    let server = Launch::new().set("OSC_WORKERS", "3").start();
    server.create("shared", "0");
    let acknowledged = AtomicU64::new(0);
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut client = server.connect();
                let mut last = 0;
                while !finished.load(Ordering::Relaxed) {
                    let floor = acknowledged.load(Ordering::SeqCst);
                    let value: u64 = client
                        .send("GET", "/configs/shared", &[KEY_HEADER], None)
                        .value()
                        .parse()
                        .expect("a number");
                    assert!(value >= floor && value >= last, "{value} after {last}, acknowledged {floor}");
                    last = value;
                }
            });
        }
        let mut client = server.connect();
        let deadline = Instant::now() + Duration::from_secs(3);
        for version in 1.. {
            let body = format!(r#"{{"value":{version}}}"#);
            assert_eq!(
                client.send("PUT", "/configs/shared", &[KEY_HEADER], Some(body.as_bytes())).status,
                200
            );
            acknowledged.store(version, Ordering::SeqCst);
            if Instant::now() > deadline {
                break;
            }
        }
        finished.store(true, Ordering::Relaxed);
    });
}

/// Of many creates and updates of one key at a time each gets a right answer, none a wrong one.
#[test]
fn writers_of_one_key_do_not_disturb_each_other() {
    let server = Launch::new().set("OSC_WORKERS", "2").start();
    server.create("warm", "0");
    let statuses: Vec<u16> = thread::scope(|scope| {
        let create = |writer: usize| {
            let server = &server;
            scope.spawn(move || server.create("one", &format!("{{\"writer\":{writer}}}")).status)
        };
        let threads: Vec<_> = (0..32).map(create).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 201 | 400)), "{statuses:?}");
    thread::scope(|scope| {
        for writer in 0..32 {
            let server = &server;
            scope.spawn(move || {
                for step in 0..20 {
                    let response = server.update("one", &format!("[{writer},{step}]"));
                    assert_eq!(response.status, 200, "{response:?}");
                }
            });
        }
    });
    assert!(server.value("one").ends_with(",19]"));
}

/// A small file system of its own, unmounted when the test ends.
struct SmallDisk(Arc<tempfile::TempDir>);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let option = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(directory.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(Arc::new(directory)))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_full_disk_refuses_writes_and_recovers() {
    let Some(disk) = SmallDisk::mount("3m") else {
        println!("skipped: mounting a tmpfs is not permitted here");
        return;
    };
    let server = Launch::at(Arc::clone(&disk.0)).start();
    assert_eq!(server.create("first", "\"kept\"").status, 201);
    let filler = disk.0.path().join("filler");
    // Takes all that is left.
    let mut content = vec![0_u8; 4 << 20];
    while fs::write(&filler, &content).is_err() {
        let half = content.len() / 2;
        content.truncate(half);
        assert!(half > 0, "not even one byte fits");
    }
    let large = format!("\"{}\"", "x".repeat(200_000));
    let mut refused = None;
    for number in 0..50 {
        let response = server.create(&format!("k{number}"), &large);
        if response.status != 201 {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("the disk is full at last");
    assert_eq!(refused.status, 507, "{refused:?}");
    let health = server.get("/health");
    assert_eq!(health.status, 503, "{health:?}");
    assert!(health.text().contains("no space is left to write"), "{health:?}");
    assert_eq!(server.value("first"), "\"kept\"");
    assert_eq!(server.get("/configs?prefix=first").status, 200);
    fs::remove_file(&filler).expect("there");
    assert_eq!(server.create("after", "1").status, 201);
    assert_eq!(server.get("/health").status, 200);
    let server = server.restart();
    assert_eq!((server.value("first").as_str(), server.value("after").as_str()), ("\"kept\"", "1"));
    drop(server);
}

/// After a failed write or fsync nobody knows what is on the disk: the server ends, and the next
/// start recovers. A limit on the size of files stands in for the failing disk.
#[test]
fn a_failing_disk_ends_the_server_and_loses_nothing() {
    let launch = Launch::new();
    let inner = launch.command();
    let mut limited = Command::new("sh");
    // The signal is ignored, so that the write fails instead; the unit is 512 bytes.
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$0\""])
        .arg(inner.get_program())
        .current_dir(launch.directory.path());
    limited.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    let mut server = Server::spawn(&mut limited, Arc::clone(&launch.directory)).expect("it starts");
    let value = format!("\"{}\"", "x".repeat(100_000));
    let mut acknowledged = Vec::new();
    let mut last = 201;
    for number in 0..30 {
        let key = format!("k{number}");
        last = server.create(&key, &value).status;
        if last != 201 {
            break;
        }
        acknowledged.push(key);
    }
    assert_eq!(last, 503, "after {} writes", acknowledged.len());
    assert!(acknowledged.len() > 2, "{acknowledged:?}");
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(server.log().contains("the database failed"), "{}", server.log());
    let server = Launch::at(launch.directory).start();
    for key in acknowledged {
        assert_eq!(server.value(&key), value, "{key}");
    }
}
