//! Nodes in separate network namespaces, between which a router silently drops packets. A proxy cannot simulate that:
//! it completes handshakes on behalf of the peer, and its connections break immediately.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use opensecureconf::limits::BUCKETS_COUNT;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::chaos::{Network, Random, chaos, for_each_seed};
use crate::nodes::{CONVERGENCE, Cluster, Node, within};
use crate::stranger::Stranger;

const SEEDS_COUNT: u64 = 2;
const PORT: u16 = 9000;

/// A network namespace that forwards packets between the namespaces of the nodes, and between them and the test.
/// Dropping it removes all of them.
struct Router {
    /// Name of its namespace, and of the test's interface to it.
    name: String,
    nodes_count: usize,
    subnet: u8,
    /// Pairs of nodes between which packets are dropped: `(from, to)`.
    lost: Mutex<BTreeSet<(usize, usize)>>,
}

impl Router {
    /// Fails with a description of what the machine does not permit.
    fn new(nodes_count: usize) -> Result<Self, String> {
        static SERIAL: AtomicUsize = AtomicUsize::new(0);
        // Fits into the 15 characters of an interface name.
        let name = format!("osc{}x{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let mut router = Self { name, nodes_count, subnet: 0, lost: Mutex::default() };
        router.connect_test()?;
        (0..nodes_count).try_for_each(|node| router.connect_node(node))?;
        Ok(router)
    }

    fn connect_test(&mut self) -> Result<(), String> {
        let name = &self.name;
        ip(&format!("netns add {name}"))?;
        ip(&format!("netns exec {name} sysctl -qw net.ipv4.ip_forward=1"))?;
        ip(&format!("link add {name} type veth peer name test netns {name}"))?;
        ip(&format!("link set {name} up"))?;
        // The route claims the subnet: the same route cannot be added twice.
        let claim = |subnet: &u8| {
            ip(&format!("route add 10.213.{subnet}.0/24 via 10.213.{subnet}.2 dev {name} onlink"))
        };
        let is_free = |subnet: &u8| claim(subnet).is_ok();
        self.subnet = (0..=u8::MAX).find(is_free).ok_or("no subnet of 10.213.0.0/16 can be routed")?;
        let (own, router) = (self.address(1), self.address(2));
        ip(&format!("addr add {own} peer {router} dev {name}"))?;
        ip(&format!("-n {name} addr add {router} peer {own} dev test"))?;
        ip(&format!("-n {name} link set test up"))?;
        Ok(())
    }

    fn connect_node(&self, node: usize) -> Result<(), String> {
        let (name, namespace) = (&self.name, self.namespace(node));
        let (router, own) = (self.address(2), self.node_address(node));
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {name} link add node{node} type veth peer name router netns {namespace}"))?;
        ip(&format!("-n {name} addr add {router} peer {own} dev node{node}"))?;
        ip(&format!("-n {name} link set node{node} up"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {namespace} addr add {own} peer {router} dev router"))?;
        ip(&format!("-n {namespace} link set router up"))?;
        ip(&format!("-n {namespace} route add default via {router}"))?;
        Ok(())
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, host)
    }

    fn node_address(&self, node: usize) -> Ipv4Addr {
        self.address(10 + u8::try_from(node).expect("few nodes"))
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    /// Sets whether packets from one node to another are dropped.
    fn set_lost(&self, from: usize, to: usize, is_lost: bool) {
        let mut lost = self.lost.lock().expect("the lock is not poisoned");
        let has_changed = match is_lost {
            true => lost.insert((from, to)),
            false => lost.remove(&(from, to)),
        };
        if has_changed {
            let verb = if is_lost { "add" } else { "del" };
            let (from, to) = (self.node_address(from), self.node_address(to));
            ip(&format!("-n {} rule {verb} from {from} to {to} blackhole", self.name))
                .expect("a routing rule");
        }
    }

    /// Sets whether packets between a node and all other nodes are dropped, in both directions.
    fn set_isolated(&self, node: usize, is_isolated: bool) {
        for other in (0..self.nodes_count).filter(|other| *other != node) {
            self.set_lost(node, other, is_isolated);
            self.set_lost(other, node, is_isolated);
        }
    }

    /// Returns a listener on the address of a node, in its namespace.
    fn listener(&self, node: usize) -> TcpListener {
        let namespace =
            File::open(format!("/run/netns/{}", self.namespace(node))).expect("the namespace exists");
        let address = SocketAddr::from((self.node_address(node), PORT));
        let binding = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("permitted");
            let mut listener = None;
            // The kernel releases the socket of a killed node with a delay.
            within(CONVERGENCE, "the address is free", || {
                listener = TcpListener::bind(address).ok();
                listener.is_some()
            });
            listener.expect("bound above")
        });
        binding.join().expect("no panic")
    }

    /// Sets the contents of `/etc/hosts` of a node; `ip netns exec` mounts the file there.
    fn set_hosts(&self, node: usize, text: &str) {
        let directory = self.files(node);
        std::fs::create_dir_all(&directory).expect("the directory can be created");
        // Written in place, because a running process has this very file mounted.
        std::fs::write(directory.join("hosts"), text).expect("writable");
    }

    fn files(&self, node: usize) -> PathBuf {
        PathBuf::from("/etc/netns").join(self.namespace(node))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Parts may be missing if the setup failed halfway.
        ip(&format!("link del {}", self.name)).ok();
        for node in 0..self.nodes_count {
            ip(&format!("netns del {}", self.namespace(node))).ok();
            std::fs::remove_dir_all(self.files(node)).ok();
        }
        ip(&format!("netns del {}", self.name)).ok();
        // Only if it is empty.
        std::fs::remove_dir("/etc/netns").ok();
    }
}

impl Network for Router {
    /// Once packets pass again, TCP retransmits with exponential backoff, so a request may hang until it times out
    /// after 10 s; its changes may then wait for the next anti-entropy round. Two intervals must therefore be longer
    /// than 10 s plus one interval, which has a jitter of a tenth.
    const SYNC_INTERVAL: Duration = Duration::from_secs(12);
    /// Long enough for requests to time out and for peers to be considered down.
    const DURATION: Duration = Duration::from_secs(25);
    const PAUSE_MS: Range<u64> = 100..1500;

    fn disturb(&self, random: &mut Random) {
        let from = random.index(self.nodes_count);
        let to = (from + 1 + random.index(self.nodes_count - 1)) % self.nodes_count;
        match random.below(10) {
            0..=3 => self.set_lost(from, to, true),
            4..=6 => self.set_lost(from, to, false),
            7..=8 => self.set_isolated(from, true),
            _ => self.set_isolated(from, false),
        }
    }

    fn heal(&self) {
        (0..self.nodes_count).for_each(|node| self.set_isolated(node, false));
    }

    /// Nodes that differ send each other the digests of all buckets; the total traffic of equal nodes in an interval
    /// is smaller than that.
    fn exchanges(&self) -> usize {
        let links = ip(&format!("-n {} -s -j link show", self.name)).expect("its interfaces");
        let links: Vec<serde_json::Value> = serde_json::from_str(&links).expect("JSON");
        let is_node =
            |link: &&serde_json::Value| link["ifname"].as_str().unwrap_or_default().starts_with("node");
        let received = |link: &serde_json::Value| link["stats64"]["rx"]["bytes"].as_u64().expect("a number");
        let bytes: u64 = links.iter().filter(is_node).map(received).sum();
        usize::try_from(bytes).expect("fits in usize") / (16 * BUCKETS_COUNT)
    }
}

/// Creates nodes that list each other by address; `None` if network namespaces are unavailable.
fn routed(count: usize) -> Option<Cluster<Router>> {
    let links = match Router::new(count) {
        Ok(router) => router,
        Err(reason) => {
            // Bypasses the test harness, which captures the output of passing tests.
            writeln!(io::stderr(), "skipped: network namespaces are unavailable: {reason}").ok();
            return None;
        }
    };
    let nodes = (0..count).map(|index| {
        let mut node = Node::in_namespace(links.namespace(index));
        let others = (0..count).filter(|other| *other != index);
        let peers: Vec<String> =
            others.map(|other| format!("{}:{PORT}", links.node_address(other))).collect();
        node.join(&format!("node-{index}"), &peers.join(","));
        node.set("OSC_HOST", &links.node_address(index).to_string());
        node.set("OSC_HOST_PORT", &PORT.to_string());
        node
    });
    Some(Cluster { nodes: nodes.collect(), links })
}

fn ip(arguments: &str) -> Result<String, String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim_end())),
    }
}

#[test]
fn nodes_converge_after_packet_loss() {
    if routed(0).is_some() {
        for_each_seed(SEEDS_COUNT, |seed| chaos(routed(3).expect("namespaces"), seed));
    }
}

#[test]
fn moved_peer_is_found_by_its_name() {
    let Some(mut cluster) = routed(3) else { return };
    let (querying, before, after) = (0, 1, 2);
    let hosts = |cluster: &Cluster<Router>, node| format!("{} peer\n", cluster.links.node_address(node));
    cluster.links.set_hosts(querying, &hosts(&cluster, before));
    cluster.nodes[querying].set("OSC_CLUSTER_NODES", &format!("peer:{PORT}"));
    for node in [before, after] {
        // The peer lists only itself, so that all traffic is initiated by the querying node.
        let own = format!("{}:{PORT}", cluster.links.node_address(node));
        cluster.nodes[node].set("OSC_CLUSTER_NODES", &own);
    }
    cluster.nodes[after].directory = Arc::clone(&cluster.nodes[before].directory);
    for node in [querying, before] {
        std::fs::write(cluster.nodes[node].path("encryption.salt"), crate::support::proper_salt(7))
            .expect("writable");
        cluster.nodes[node].start();
    }
    let wait_for = |cluster: &Cluster<Router>, node: usize, value: &str| {
        within(CONVERGENCE, &format!("node {node} has {value}"), || {
            cluster.nodes[node].value("k").as_deref() == Some(value)
        });
    };
    within(CONVERGENCE, "the peer is healthy", || cluster.nodes[querying].states()[0].0 == "healthy");
    assert_eq!(cluster.nodes[querying].create("k", "1").status, 201);
    wait_for(&cluster, before, "1");

    // Isolated before the process exits, so that the querying node does not see the connections close.
    cluster.links.set_isolated(before, true);
    cluster.nodes[before].kill();
    assert_eq!(cluster.nodes[querying].update("k", "2").status, 200);
    cluster.nodes[after].start();
    cluster.links.set_hosts(querying, &hosts(&cluster, after));
    wait_for(&cluster, after, "2");
    assert_eq!(cluster.nodes[after].update("k", "3").status, 200);
    wait_for(&cluster, querying, "3");
}

/// The new owner of the old address keeps connections open and responds to every request.
#[test]
fn moved_peer_is_found_despite_a_stranger_at_its_old_address() {
    for mode in ["replica", "federated"] {
        let Some(mut cluster) = routed(3) else { return };
        let (querying, before, after) = (0, 1, 2);
        let hosts = |cluster: &Cluster<Router>, node| format!("{} peer\n", cluster.links.node_address(node));
        cluster.links.set_hosts(querying, &hosts(&cluster, before));
        for (node, nodes) in [(querying, "peer"), (before, "127.0.0.1"), (after, "127.0.0.1")] {
            cluster.nodes[node].set("OSC_CLUSTER_NODES", &format!("{nodes}:{PORT}"));
            cluster.nodes[node].set("OSC_CLUSTER_SECRET", "a-secret-of-nodes-0123456789abcdef");
            cluster.nodes[node].set("OSC_CLUSTER_MODE", mode);
        }
        cluster.nodes[after].directory = Arc::clone(&cluster.nodes[before].directory);
        for node in [querying, before] {
            std::fs::write(cluster.nodes[node].path("encryption.salt"), crate::support::proper_salt(7))
                .expect("writable");
            cluster.nodes[node].start();
        }
        within(CONVERGENCE, "the peer is healthy", || cluster.nodes[querying].states()[0].0 == "healthy");
        assert_eq!(cluster.nodes[before].create("k", "1").status, 201, "{mode}");
        within(CONVERGENCE, "the value is read", || {
            cluster.nodes[querying].value("k").as_deref() == Some("1")
        });

        cluster.nodes[before].kill();
        let stranger = Stranger::on(cluster.links.listener(before), "");
        within(CONVERGENCE, "the stranger is contacted", || !stranger.received().is_empty());
        within(CONVERGENCE, "the stranger is refused", || cluster.nodes[querying].states()[0].0 == "refused");
        cluster.nodes[after].start();
        cluster.links.set_hosts(querying, &hosts(&cluster, after));
        within(CONVERGENCE, "the moved peer is healthy", || {
            cluster.nodes[querying].states()[0].0 == "healthy"
        });
        assert_eq!(cluster.nodes[after].update("k", "2").status, 200, "{mode}");
        within(CONVERGENCE, "the value is read", || {
            cluster.nodes[querying].value("k").as_deref() == Some("2")
        });
        within(CONVERGENCE, "the connections to the stranger are closed", || stranger.open_count() == 0);
    }
}
