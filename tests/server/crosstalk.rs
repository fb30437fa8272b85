//! Isolation of connections: none receives bytes of another. Many short concurrent connections end in every way that
//! lets the server reuse a file descriptor, a slot or a buffer early. Each client has its own user key and marker.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::support::{Client, Response, Server, request};

const CLIENTS: usize = 8;
/// Connections per client.
const ROUNDS: usize = 400;
/// Repetitions of the marker in a large value, which exceeds all buffers on the response path.
const LARGE_REPEATS: usize = 20_000;
const MARKER: &str = "marker-";

/// One client: what it stores and sends, and what it may receive.
struct Tenant {
    name: char,
    user_key: String,
    large: String,
}

impl Tenant {
    fn new(number: usize) -> Self {
        let name = char::from(b'a' + u8::try_from(number).expect("few clients"));
        let large = format!("{MARKER}{name};").repeat(LARGE_REPEATS);
        Self { name, user_key: format!("user-key-{MARKER}{name}"), large }
    }

    fn request(&self, method: &str, target: &str, id: &str, body: Option<&str>) -> Vec<u8> {
        let headers = [("X-User-Key", &*self.user_key), ("X-Request-ID", id)];
        request(method, target, &headers, body.map(str::as_bytes))
    }

    fn path(&self, kind: &str) -> String {
        format!("/configs/{kind}-{}", self.name)
    }

    fn small(&self, round: usize) -> String {
        format!("{MARKER}{};round {round}", self.name)
    }

    fn store(&self, server: &Server) {
        for (kind, value) in [("small", &self.small(0)), ("large", &self.large)] {
            let body = format!(r#"{{"key":"{kind}-{}","value":"{value}"}}"#, self.name);
            let mut client = server.connect();
            client.write(&self.request("POST", "/configs", "store", Some(&body)));
            self.check(&client.receive(false), 201, "store");
        }
    }

    /// Checks that the response belongs to the request with this id and does not contain another client's marker.
    fn check(&self, response: &Response, status: u16, id: &str) {
        let context = format!("{} {id}: {:?} {:.200}", self.name, response.headers, response.text());
        assert_eq!((response.status, response.header("x-request-id")), (status, Some(id)), "{context}");
        self.check_bytes(&response.body);
    }

    fn check_bytes(&self, bytes: &[u8]) {
        let own = self.name as u8;
        for at in memchr::memmem::find_iter(bytes, MARKER) {
            // The last marker may be cut off.
            let found = bytes.get(at + MARKER.len()).copied().unwrap_or(own);
            let around = &bytes[at..bytes.len().min(at + 64)];
            assert_eq!(found, own, "client {} got {}", self.name, around.escape_ascii());
        }
    }

    fn get(&self, client: &mut Client, kind: &str, id: &str, value: &str) {
        client.write(&self.request("GET", &self.path(kind), id, None));
        let response = client.receive(false);
        self.check(&response, 200, id);
        assert!(response.value() == format!("\"{value}\""), "{} {id}: wrong value", self.name);
    }

    /// Opens one connection and ends it in the way that its round selects.
    fn connect(&self, server: &Server, round: usize, small: &mut String) {
        let id = format!("{}-{round}", self.name);
        let mut client = server.connect();
        match round % 8 {
            0 => self.get(&mut client, "small", &id, small),
            1 => {
                let whole = self.request("GET", &self.path("small"), &id, None);
                client.write(&whole[..whole.len() - 1 - round % 60]);
                reset(client);
            }
            2 => {
                client.write(&self.request("GET", &self.path("large"), &id, None));
                let mut some = vec![0; 1 + round * 97 % 30_000];
                client.stream.read_exact(&mut some).expect("more bytes follow");
                self.check_bytes(&some);
                reset(client);
            }
            3 => self.pipeline(&mut client, &id, small),
            4 => {
                let body = format!(r#"{{"value":"{}"}}"#, self.large);
                let whole = self.request("PUT", &self.path("large"), &id, Some(&body));
                // The server may already have refused the request.
                client.stream.write_all(&whole[..whole.len() - 1 - round * 331 % 100_000]).ok();
                reset(client);
            }
            5 => self.get(&mut client, "large", &id, &self.large),
            6 => {
                let next = self.small(round);
                let body = format!(r#"{{"value":"{next}"}}"#);
                client.write(&self.request("PUT", &self.path("small"), &id, Some(&body)));
                let response = client.receive(false);
                self.check(&response, 200, &id);
                *small = next;
                assert_eq!(response.value(), format!("\"{small}\""));
                self.get(&mut client, "small", &format!("{id}-again"), small);
            }
            _ => {
                client.write(&self.request("GET", &self.path("small"), &id, None));
                client.write(&self.request("GET", &self.path("large"), &id, None));
                reset(client);
            }
        }
    }

    /// Checks that pipelined responses arrive in request order, each with its request id.
    fn pipeline(&self, client: &mut Client, id: &str, small: &str) {
        let names: Vec<String> = (0..6).map(|number| format!("{id}-{number}")).collect();
        let kind = |number: usize| ["small", "none", "large"][number % 3];
        let all =
            names.iter().enumerate().map(|(at, name)| self.request("GET", &self.path(kind(at)), name, None));
        client.write(&all.collect::<Vec<_>>().concat());
        for (at, name) in names.iter().enumerate() {
            let response = client.receive(false);
            self.check(&response, if kind(at) == "none" { 404 } else { 200 }, name);
            match kind(at) {
                "small" => assert_eq!(response.value(), format!("\"{small}\"")),
                "large" => assert!(response.value() == format!("\"{}\"", self.large), "{name}: wrong value"),
                _ => assert!(
                    response.detail().contains(&format!("'none-{}'", self.name)),
                    "{}",
                    response.text()
                ),
            }
        }
    }
}

/// Closes the connection immediately, with a reset instead of a FIN.
fn reset(client: Client) {
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("a socket");
}

#[test]
fn no_client_gets_bytes_of_another() {
    let server = Server::start();
    let tenants: Vec<Tenant> = (0..CLIENTS).map(Tenant::new).collect();
    tenants.iter().for_each(|tenant| tenant.store(&server));
    thread::scope(|scope| {
        for tenant in &tenants {
            let server = &server;
            scope.spawn(move || {
                let mut small = tenant.small(0);
                (0..ROUNDS).for_each(|round| tenant.connect(server, round, &mut small));
            });
        }
    });
    for tenant in &tenants {
        let mut client = server.connect();
        tenant.get(&mut client, "large", "last", &tenant.large);
    }
    assert!(!server.log().contains("panic"), "{}", server.log());
}
