//! The nodes of one cluster, and what the tests ask of them.

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
/// Everything has replicated after this time: a peer that was away is asked for every ten seconds,
/// and a request that got no answer is given up after ten.
pub(crate) const CONVERGENCE: Duration = Duration::from_secs(30);

/// One node: its files and settings, and the process while there is one.
pub(crate) struct Node {
    pub(crate) directory: Arc<tempfile::TempDir>,
    pub(crate) place: Place,
    /// Where peers connect; the same place unless there is a listener for them alone.
    pub(crate) place_for_peers: Place,
    /// The network namespace that it runs in, if it is not the test's.
    namespace: Option<String>,
    variables: Vec<(String, String)>,
    /// With which it is asked.
    pub(crate) api_key: String,
    /// How it is spoken to, if it speaks TLS.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    server: Option<Server>,
}

/// Some nodes, and what lies between them. None runs before it is started.
pub(crate) struct Cluster<L = Links> {
    // Dropped first: what lies between the nodes is taken away when no node is there any more.
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: L,
}

/// A link from each node to each other one: `(from, to, link)`.
pub(crate) type Links = Vec<(usize, usize, Link)>;

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            directory: Arc::new(tempfile::tempdir().expect("temporary directory")),
            place: Place::default(),
            place_for_peers: Place::default(),
            namespace: None,
            variables: Vec::new(),
            api_key: API_KEY.to_owned(),
            tls: None,
            server: None,
        }
    }

    /// Stops all its threads, which takes a moment on a busy machine.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.server.as_ref().expect("it runs").pid());
        within(CONVERGENCE, "all threads are stopped", || {
            std::fs::read_dir(&tasks).expect("it runs").flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        });
    }

    /// Memory that the process holds.
    pub(crate) fn resident_kib(&self) -> usize {
        let server = self.server.as_ref().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("every process has it");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }

    /// A node in a network namespace.
    pub(crate) fn in_namespace(name: String) -> Self {
        Self { namespace: Some(name), ..Self::new() }
    }

    /// What is set later wins.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// What was set last.
    pub(crate) fn setting(&self, name: &str) -> String {
        let found = self.variables.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).expect("it is set")
    }

    /// As if it had never been set.
    pub(crate) fn forget(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    /// Makes it one of a cluster.
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
        let launch = Launch::at(Arc::clone(&self.directory));
        self.variables.iter().fold(launch, |launch, (name, value)| launch.set(name, value))
    }

    /// `opensecureconf repair --versions`, with what it says.
    pub(crate) fn repair(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.launch().command();
        let output =
            command.args(["repair", "--versions"]).args(arguments).output().expect("it can be started");
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&told).into_owned())
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

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        let status = server.stop();
        assert!(status.success(), "{status}: {}", server.log());
        self.place.set(None);
        self.place_for_peers.set(None);
    }

    /// As a power failure would, as far as the process is concerned.
    pub(crate) fn kill(&mut self) {
        self.server.take().expect("it runs").kill();
        self.place.set(None);
        self.place_for_peers.set(None);
    }

    pub(crate) fn signal(&self, name: &str) {
        self.server.as_ref().expect("it runs").signal(name);
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
        let address = self.place.get().expect("it runs");
        let request = inquiry(method, target, &self.api_key, USER_KEY, body);
        let client = Client::try_connect(address, PATIENCE).expect("it listens");
        match &self.tls {
            None => exchange(client, &request, method),
            Some(config) => exchange(over_tls(client.stream, config), &request, method),
        }
        .expect("it answers")
    }

    /// A message as another node sends it. All tests that speak as a node do it here.
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

    /// The value of a key; `None` when there is no such entry.
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

    /// Another text for each node as long as it does not know its digest.
    pub(crate) fn digest(&self) -> String {
        let unknown = || format!("unknown in {}", self.directory.path().display());
        self.report()["digest"].as_str().map_or_else(unknown, str::to_owned)
    }

    /// State and reason of each peer, in the order of the configuration.
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
        &found.expect("there is a link between each two").2
    }

    /// All links that begin or end at a node.
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

    /// Waits until every node is ready and has reached every other one.
    pub(crate) fn wait_until_whole(&self) {
        within(CONVERGENCE, "all nodes see all others", || {
            self.nodes
                .iter()
                .all(|node| node.is_ready() && node.states().iter().all(|(state, _)| state == "healthy"))
        });
    }

    pub(crate) fn digests(&self) -> Vec<String> {
        self.nodes.iter().map(Node::digest).collect()
    }

    pub(crate) fn wait_until_equal(&self) {
        self.wait_until_equal_within(CONVERGENCE);
    }

    pub(crate) fn wait_until_equal_within(&self, patience: Duration) {
        let are_equal = happens_within(patience, || {
            let digests = self.digests();
            digests.iter().all(|digest| *digest == digests[0])
        });
        assert!(are_equal, "not equal after {patience:?}: {}", self.reports());
    }

    /// Report and log of each node, for a test that fails.
    pub(crate) fn reports(&self) -> String {
        let reports = self.nodes.iter().map(|node| format!("{:#}\n{}", node.report(), node.log()));
        reports.collect::<Vec<_>>().join("\n")
    }

    /// Waits until every node gives this value.
    pub(crate) fn wait_for(&self, key: &str, value: Option<&str>) {
        within(CONVERGENCE, &format!("{key} is {value:?} everywhere"), || {
            self.nodes.iter().all(|node| node.value(key).as_deref() == value)
        });
    }
}

/// Where it listens for peers alone.
fn address_for_peers(server: &Server) -> SocketAddr {
    let found =
        || server.log().lines().filter(|line| line.contains("serves=\"peers\"")).find_map(listening_at);
    within(PATIENCE, "it listens for peers", || found().is_some());
    found().expect("it was there")
}

/// The same command in a network namespace, with the same process id for whoever starts it.
fn in_namespace(name: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", name]).arg(command.get_program()).args(command.get_args());
    inside.current_dir(command.get_current_dir().expect("the data directory")).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// One request on a connection of its own.
pub(crate) fn ask(
    address: SocketAddr,
    patience: Duration,
    method: &str,
    target: &str,
    user_key: &str,
    body: Option<&str>,
) -> io::Result<Response> {
    exchange(
        Client::try_connect(address, patience)?,
        &inquiry(method, target, API_KEY, user_key, body),
        method,
    )
}

fn inquiry(method: &str, target: &str, api_key: &str, user_key: &str, body: Option<&str>) -> Vec<u8> {
    let headers = [("X-API-Key", api_key), ("X-User-Key", user_key)];
    request(method, target, &headers, body.map(str::as_bytes))
}

fn exchange(mut client: Client<impl Read + Write>, request: &[u8], method: &str) -> io::Result<Response> {
    client.stream.write_all(request)?;
    client.try_receive(method == "HEAD")
}

/// Asks until it is so.
pub(crate) fn within(patience: Duration, what: &str, is_so: impl FnMut() -> bool) {
    assert!(happens_within(patience, is_so), "not so after {patience:?}: {what}");
}

pub(crate) fn happens_within(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(30));
    }
    true
}
