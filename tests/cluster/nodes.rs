//! Test harness: the nodes of one cluster, and requests to them.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::certificates::over_tls;
use crate::link::{Link, Mode, Place};
use crate::support::{Client, Launch, PATIENCE, Response, Server, USER_KEY, listening_at, request};

pub(crate) const API_KEY: &str = "an-api-key-that-all-nodes-of-the-cluster-share";
pub(crate) const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Time within which everything has replicated: a peer that was down is checked every ten seconds, and a request
/// without a response times out after ten.
pub(crate) const CONVERGENCE: Duration = Duration::from_secs(30);

/// One node: its files and settings, and its process while it runs.
pub(crate) struct Node {
    pub(crate) directory: Arc<tempfile::TempDir>,
    pub(crate) place: Place,
    /// Address for peers; the same as `place` unless the node has a dedicated listener for them.
    pub(crate) place_for_peers: Place,
    /// Network namespace of the node, if it is not that of the test.
    namespace: Option<String>,
    /// Binary of the node, if it is not the one under test.
    pub(crate) binary: Option<PathBuf>,
    variables: Vec<(String, String)>,
    /// API key of requests to the node.
    pub(crate) api_key: String,
    /// Client configuration, if the node serves TLS.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    server: Option<Server>,
}

/// Nodes and the network between them. No node runs until it is started.
pub(crate) struct Cluster<L = Links> {
    // Dropped first: the links are removed only after all nodes are gone.
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: L,
}

/// A link from each node to every other node: `(from, to, link)`.
pub(crate) type Links = Vec<(usize, usize, Link)>;

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            directory: Arc::new(tempfile::tempdir().expect("temporary directory")),
            place: Place::default(),
            place_for_peers: Place::default(),
            namespace: None,
            binary: None,
            variables: Vec::new(),
            api_key: API_KEY.to_owned(),
            tls: None,
            server: None,
        }
    }

    /// Suspends the process and waits until all its threads are stopped, which takes a moment on a busy machine.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.server.as_ref().expect("the node is running").pid());
        within(CONVERGENCE, "all threads are stopped", || {
            std::fs::read_dir(&tasks).expect("the process exists").flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        });
    }

    /// Resident memory of the process, in KiB.
    pub(crate) fn resident_kib(&self) -> usize {
        let server = self.server.as_ref().expect("the node is running");
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the node is running");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a VmRSS line");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }

    /// A node in a network namespace.
    pub(crate) fn in_namespace(name: String) -> Self {
        Self { namespace: Some(name), ..Self::new() }
    }

    /// Sets an environment variable; a later call overrides an earlier one.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Returns the last value that was set.
    pub(crate) fn setting(&self, name: &str) -> String {
        let found = self.variables.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).expect("the variable is set")
    }

    /// Removes a variable.
    pub(crate) fn forget(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// Applies the settings of a cluster node.
    pub(crate) fn join(&mut self, name: &str, peers: &str) {
        for (name, value) in [
            ("OSC_CLUSTER_ENABLED", "true"),
            ("OSC_CLUSTER_NODES", peers),
            ("OSC_CLUSTER_SYNC_INTERVAL", &SYNC_INTERVAL.as_secs().to_string()),
            ("OSC_CLUSTER_NODE_ID", name),
            ("OSC_API_KEY_REQUIRED", "true"),
            ("OSC_API_KEY", API_KEY),
        ] {
            self.set(name, value);
        }
    }

    fn launch(&self) -> Launch {
        let mut launch = Launch::at(Arc::clone(&self.directory));
        if let Some(binary) = &self.binary {
            launch.binary.clone_from(binary);
        }
        self.variables.iter().fold(launch, |launch, (name, value)| launch.set(name, value))
    }

    /// Runs `opensecureconf repair --versions`; returns whether it succeeded, and its output.
    pub(crate) fn repair(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.launch().command();
        let output =
            command.args(["repair", "--versions"]).args(arguments).output().expect("the command starts");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    }

    pub(crate) fn start(&mut self) {
        let launch = self.launch();
        let mut command = launch.command();
        if let Some(name) = &self.namespace {
            command = in_namespace(name, &command);
        }
        let server = Server::spawn(&mut command, launch.directory)
            .unwrap_or_else(|refused| panic!("{}: {}", refused.status, refused.log));
        self.place.set(Some(server.address));
        let has_listener = self.variables.iter().any(|(name, _)| name == "OSC_CLUSTER_LISTEN");
        let for_peers = if has_listener { address_for_peers(&server) } else { server.address };
        self.place_for_peers.set(Some(for_peers));
        self.server = Some(server);
    }

    /// Sends SIGTERM, and waits for a successful exit.
    pub(crate) fn stop(&mut self) {
        let mut server = self.server.take().expect("the node is running");
        let status = server.stop();
        assert!(status.success(), "{status}: {}", server.log());
        self.place.set(None);
        self.place_for_peers.set(None);
    }

    /// Sends SIGKILL: to the process the same as a power failure.
    pub(crate) fn kill(&mut self) {
        self.server.take().expect("the node is running").kill();
        self.place.set(None);
        self.place_for_peers.set(None);
    }

    pub(crate) fn signal(&self, name: &str) {
        self.server.as_ref().expect("the node is running").signal(name);
    }

    pub(crate) fn log(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    pub(crate) fn salt(&self) -> Option<Vec<u8>> {
        std::fs::read(self.path("encryption.salt")).ok()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn ask(&self, method: &str, target: &str, body: Option<&str>) -> Response {
        let address = self.place.get().expect("the node is running");
        let request = encode_request(method, target, &self.api_key, USER_KEY, body);
        let client = Client::try_connect(address, PATIENCE).expect("the node accepts connections");
        match &self.tls {
            None => round_trip(client, &request, method),
            Some(config) => round_trip(over_tls(client.stream, config), &request, method),
        }
        .expect("the node responds")
    }

    /// Sends a message as a peer would. All tests that act as a node use this function.
    pub(crate) fn as_peer(&self, target: &str, message: &str) -> Response {
        self.ask("POST", target, Some(message))
    }

    pub(crate) fn create(&self, key: &str, value: &str) -> Response {
        self.ask("POST", "/configs", Some(&format!(r#"{{"key":"{key}","value":{value}}}"#)))
    }

    pub(crate) fn update(&self, key: &str, value: &str) -> Response {
        self.ask("PUT", &format!("/configs/{key}"), Some(&format!(r#"{{"value":{value}}}"#)))
    }

    pub(crate) fn delete(&self, key: &str) -> Response {
        self.ask("DELETE", &format!("/configs/{key}"), None)
    }

    /// Returns the value of an entry; `None` if the entry does not exist.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let response = self.ask("GET", &format!("/configs/{key}"), None);
        match response.status {
            200 => Some(response.value()),
            404 => None,
            status => panic!("{status} for {key}: {response:?}\n{}", self.log()),
        }
    }

    /// `GET /v1/cluster/members`
    pub(crate) fn report(&self) -> serde_json::Value {
        let response = self.ask("GET", "/v1/cluster/members", None);
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_slice(&response.body).expect("JSON")
    }

    /// Returns the digest of the node; a text that is unique to the node as long as its digest is unknown.
    pub(crate) fn digest(&self) -> String {
        let unknown = || format!("unknown in {}", self.directory.path().display());
        self.report()["digest"].as_str().map_or_else(unknown, str::to_owned)
    }

    /// Returns state and reason of each peer, in the order of the configuration.
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let report = self.report();
        let members = report["members"].as_array().expect("an array");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        members.iter().map(|member| (text(&member["state"]), text(&member["reason"]))).collect()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ask("GET", "/ready", None).status == 200
    }
}

impl Cluster {
    pub(crate) fn of(count: usize) -> Self {
        let mut nodes: Vec<Node> = (0..count).map(|_| Node::new()).collect();
        let mut links = Vec::new();
        for from in 0..count {
            let others = (0..count).filter(|to| *to != from);
            links.extend(others.map(|to| (from, to, Link::to(nodes[to].place_for_peers.clone()))));
        }
        for (from, node) in nodes.iter_mut().enumerate() {
            let own = links.iter().filter(|(start, ..)| *start == from);
            let peers: Vec<String> = own.map(|(.., link)| link.address.to_string()).collect();
            node.join(&format!("node-{from}"), &peers.join(","));
        }
        Self { nodes, links }
    }

    pub(crate) fn started(count: usize) -> Self {
        let mut cluster = Self::of(count);
        cluster.start();
        cluster
    }

    pub(crate) fn link(&self, from: usize, to: usize) -> &Link {
        let found = self.links.iter().find(|(start, end, _)| (*start, *end) == (from, to));
        &found.expect("every pair of nodes has a link").2
    }

    /// Sets the mode of all links from and to a node.
    pub(crate) fn set_links_of(&self, node: usize, mode: Mode) {
        for (from, to, link) in &self.links {
            if [*from, *to].contains(&node) {
                link.set(mode);
            }
        }
    }

    pub(crate) fn requests(&self, target: &str) -> usize {
        self.links.iter().map(|(.., link)| link.requests(target)).sum()
    }
}

impl<L> Cluster<L> {
    pub(crate) fn start(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
    }

    /// Waits until every node is ready and every other node is healthy to it.
    pub(crate) fn wait_until_whole(&self) {
        within(CONVERGENCE, "all nodes are ready and all peers are healthy", || {
            self.nodes
                .iter()
                .all(|node| node.is_ready() && node.states().iter().all(|(state, _)| state == "healthy"))
        });
    }

    /// Expects that two federated nodes read and write each other's entries.
    pub(crate) fn expect_federation(&self) {
        assert_eq!(self.nodes[0].create("k", "[1.0]").status, 201);
        assert_eq!(self.nodes[1].value("k").as_deref(), Some("[1.0]"));
        assert_eq!(self.nodes[1].update("k", "2").status, 200);
        assert_eq!(self.nodes[0].value("k").as_deref(), Some("2"));
    }

    pub(crate) fn digests(&self) -> Vec<String> {
        self.nodes.iter().map(Node::digest).collect()
    }

    pub(crate) fn wait_until_equal(&self) {
        self.wait_until_equal_within(CONVERGENCE);
    }

    pub(crate) fn wait_until_equal_within(&self, timeout: Duration) {
        let are_equal = happens_within(timeout, || {
            let digests = self.digests();
            digests.iter().all(|digest| *digest == digests[0])
        });
        assert!(are_equal, "digests differ after {timeout:?}: {}", self.reports());
    }

    /// Returns report and log of each node, for failure messages.
    pub(crate) fn reports(&self) -> String {
        let reports = self.nodes.iter().map(|node| format!("{:#}\n{}", node.report(), node.log()));
        reports.collect::<Vec<_>>().join("\n")
    }

    /// Waits until every node returns this value.
    pub(crate) fn wait_for(&self, key: &str, value: Option<&str>) {
        within(CONVERGENCE, &format!("{key} is {value:?} on all nodes"), || {
            self.nodes.iter().all(|node| node.value(key).as_deref() == value)
        });
    }
}

/// Returns the address of the dedicated listener for peers.
fn address_for_peers(server: &Server) -> SocketAddr {
    let found =
        || server.log().lines().filter(|line| line.contains("serves=\"peers\"")).find_map(listening_at);
    within(PATIENCE, "the node listens for peers", || found().is_some());
    found().expect("found above")
}

/// Wraps a command so that it runs in a network namespace, under the process id that the caller sees.
fn in_namespace(name: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", name]).arg(command.get_program()).args(command.get_args());
    inside.current_dir(command.get_current_dir().expect("a data directory")).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// Sends one request on a new connection.
pub(crate) fn ask(
    address: SocketAddr,
    timeout: Duration,
    method: &str,
    target: &str,
    user_key: &str,
    body: Option<&str>,
) -> io::Result<Response> {
    round_trip(
        Client::try_connect(address, timeout)?,
        &encode_request(method, target, API_KEY, user_key, body),
        method,
    )
}

fn encode_request(method: &str, target: &str, api_key: &str, user_key: &str, body: Option<&str>) -> Vec<u8> {
    let headers = [("X-API-Key", api_key), ("X-User-Key", user_key)];
    request(method, target, &headers, body.map(str::as_bytes))
}

fn round_trip(mut client: Client<impl Read + Write>, request: &[u8], method: &str) -> io::Result<Response> {
    client.stream.write_all(request)?;
    client.try_receive(method == "HEAD")
}

/// Polls a condition until it holds, or fails after the timeout.
pub(crate) fn within(timeout: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(happens_within(timeout, condition), "timed out after {timeout:?}: {what}");
}

pub(crate) fn happens_within(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(30));
    }
    true
}
