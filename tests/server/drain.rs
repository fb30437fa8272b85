//! The stop of a server behind a load balancer: the drain, and connections that arrive at the last moment.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::admin::admin_address;
use crate::certificates::{Authority, over_tls};
use crate::support::{Client, Launch, PATIENCE, Response, Server, USER_KEY, eventually, request};
use crate::tls::launch_with_tls;

const DRAINING: &str = r#"{"ready":false,"detail":"this node is about to stop"}"#;

/// Environment for each way to accept connections.
const SOCKETS: [&[(&str, &str)]; 3] = [
    &[("OSC_ENGINE", "uring"), ("OSC_TEST_SOCKETS", "ring")],
    &[("OSC_ENGINE", "uring"), ("OSC_TEST_SOCKETS", "stream")],
    &[("OSC_ENGINE", "epoll")],
];

fn on(launch: Launch, sockets: &[(&str, &str)]) -> Launch {
    sockets.iter().fold(launch, |launch, (name, value)| launch.set(name, value))
}

fn read_request() -> Vec<u8> {
    request("GET", "/configs/k", &[("X-User-Key", USER_KEY)], None)
}

/// Sends one request on a new connection. Fails if there is no complete response.
fn try_get(address: SocketAddr) -> io::Result<Response> {
    let mut client = Client::try_connect(address, PATIENCE)?;
    client.write(&read_request());
    // Distinct from a refused connection.
    client.try_receive(false).map_err(|error| io::Error::other(format!("no response: {error}")))
}

#[test]
fn requests_are_served_until_a_second_signal_ends_the_drain() {
    for sockets in SOCKETS {
        let launch = on(Launch::new(), sockets).set("OSC_ADMIN_LISTEN", "0").set("OSC_DRAIN_SECONDS", "3600");
        let mut server = launch.start();
        let admin = admin_address(&server);
        assert_eq!(server.create("k", "1").status, 201);
        let mut kept = server.connect();
        assert!(!kept.send("GET", "/ready", &[], None).closes());
        server.signal("TERM");
        for address in [server.address, admin] {
            let ready = || Client::connect(address).send("GET", "/ready", &[], None);
            eventually("the drain has begun", || ready().status == 503);
            let response = ready();
            assert_eq!((response.text(), response.closes()), (DRAINING, true));
            assert!(response.header("retry-after").is_some());
            let health = Client::connect(address).send("GET", "/health", &[], None);
            assert_eq!((health.status, health.closes()), (200, true));
        }
        let metrics = Client::connect(admin).send("GET", "/metrics", &[], None);
        assert!(metrics.text().contains("\nosc_ready 0\n"), "{metrics:?}");
        kept.write(&read_request());
        let last = kept.receive(false);
        assert_eq!((last.status, last.closes(), kept.rest()), (200, true, Vec::new()));
        for response in [server.get("/configs/k"), server.get("/configs"), server.create("new", "2")] {
            assert!(matches!(response.status, 200 | 201) && response.closes(), "{response:?}");
        }
        let ended = Instant::now();
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(ended.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn the_drain_ends_by_itself() {
    let mut server = Launch::new().set("OSC_DRAIN_SECONDS", "1").start();
    let begun = Instant::now();
    assert!(server.stop().success(), "{}", server.log());
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(server.log().contains("draining seconds=1"), "{}", server.log());
}

#[test]
fn a_drain_over_tls() {
    let authority = Authority::new("of servers");
    let mut server = launch_with_tls(&authority).set("OSC_DRAIN_SECONDS", "3600").start();
    let tls = authority.client(None);
    let send = |target| over_tls(server.connect().stream, &tls).send("GET", target, &[], None);
    server.signal("TERM");
    eventually("the drain has begun", || send("/ready").status == 503);
    let root = send("/");
    assert_eq!((root.status, root.closes()), (200, true));
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

/// Clients that connect for each request, while the server stops without a drain.
#[test]
fn no_connection_is_accepted_and_dropped() {
    for sockets in SOCKETS {
        let mut server = on(Launch::new(), sockets).set("OSC_WORKERS", "3").start();
        assert_eq!(server.create("k", "1").status, 201);
        let (address, served) = (server.address, AtomicUsize::new(0));
        let client = || loop {
            match try_get(address) {
                Ok(response) => {
                    assert_eq!(response.status, 200, "{response:?}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
                Err(error) => panic!("{sockets:?}: after {served:?} responses: {error}"),
            }
        };
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(client);
            }
            eventually("all clients are busy", || served.load(Ordering::Relaxed) > 500);
            assert!(server.stop().success(), "{}", server.log());
        });
    }
}

#[test]
fn a_connection_without_a_request_does_not_delay_the_stop() {
    for sockets in SOCKETS {
        let mut server = on(Launch::new(), sockets).start();
        let mut silent = server.connect();
        // The connection is accepted before this one.
        assert_eq!(server.get("/health").status, 200);
        let begun = Instant::now();
        assert!(server.stop().success(), "{}", server.log());
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(silent.rest(), b"");
    }
}

/// Load balancer that tries each request once, at a server whose last `/ready` was 200.
struct Balancer {
    servers: Vec<(SocketAddr, AtomicBool)>,
    next: AtomicUsize,
    is_over: AtomicBool,
    served: AtomicUsize,
}

impl Balancer {
    fn probe(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            for (address, is_ready) in &self.servers {
                let ready = Client::try_connect(*address, PATIENCE).and_then(|mut client| {
                    client.write(&request("GET", "/ready", &[], None));
                    client.try_receive(false)
                });
                is_ready.store(ready.is_ok_and(|response| response.status == 200), Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn choose(&self) -> SocketAddr {
        loop {
            let next = self.next.fetch_add(1, Ordering::Relaxed) % self.servers.len();
            let (address, is_ready) = &self.servers[next];
            if is_ready.load(Ordering::Relaxed) {
                return *address;
            }
            thread::yield_now();
        }
    }

    /// Sends requests, each on a new connection, or as long as the server permits on the same one.
    fn send_requests(&self, keeps_connections: bool) {
        let mut kept: Option<Client> = None;
        while !self.is_over.load(Ordering::Relaxed) {
            let mut client = kept.take().unwrap_or_else(|| Client::connect(self.choose()));
            client.write(&read_request());
            let response = client.receive(false);
            assert_eq!(response.status, 200, "{response:?}");
            self.served.fetch_add(1, Ordering::Relaxed);
            kept = (keeps_connections && !response.closes()).then_some(client);
        }
    }
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let mut servers: Vec<Server> = (0..3).map(|_| drained(Launch::new())).collect();
    let balancer = Balancer {
        servers: servers.iter().map(|server| (server.address, AtomicBool::new(true))).collect(),
        next: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        served: AtomicUsize::new(0),
    };
    for server in &servers {
        assert_eq!(server.create("k", "1").status, 201);
    }
    /// Ends the other threads even if this one fails.
    struct Ender<'a>(&'a AtomicBool);
    impl Drop for Ender<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let _ender = Ender(&balancer.is_over);
        scope.spawn(|| balancer.probe());
        for number in 0..4 {
            let balancer = &balancer;
            scope.spawn(move || balancer.send_requests(number % 2 == 0));
        }
        for (server, (address, is_ready)) in servers.iter_mut().zip(&balancer.servers) {
            assert!(server.stop().success(), "{}", server.log());
            let port = address.port().to_string();
            let launch = Launch::at(Arc::clone(&server.directory)).set("OSC_HOST_PORT", &port);
            *server = drained(launch);
            let before = balancer.served.load(Ordering::Relaxed);
            eventually("the server gets requests", || {
                is_ready.load(Ordering::Relaxed) && balancer.served.load(Ordering::Relaxed) > before + 100
            });
        }
    });
}

fn drained(launch: Launch) -> Server {
    launch.set("OSC_DRAIN_SECONDS", "2").set("OSC_WORKERS", "2").start()
}
