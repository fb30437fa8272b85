//! `OSC_CLUSTER_*`: whether this node is one of several, and where the others are.

use std::fmt;
use std::time::Duration;

use super::error::Warning;
use super::host::{Host, Resolve, address, is_name};
use super::variables::{Variables, shown};

/// Peers in `OSC_CLUSTER_NODES`.
const PEERS_COUNT_MAX: usize = 128;
const SYNC_INTERVAL_DEFAULT_SECONDS: u64 = 30;
const FEDERATED_TIMEOUT_DEFAULT_MS: u64 = 2000;
const PORT_DEFAULT: u16 = 9000;

/// How this node works together with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `OSC_CLUSTER_NODES`. May name this node itself, under whatever name.
    pub peers: Vec<PeerAddress>,
    /// `OSC_CLUSTER_LISTEN`: the dedicated listener for peers, port included; without one, peers connect to the
    /// client port.
    pub listen: Option<Host>,
    /// `OSC_CLUSTER_SYNC_INTERVAL`.
    pub sync_interval: Duration,
    /// `OSC_CLUSTER_WRITE_ACKS`.
    pub write_acks: WriteAcks,
    /// What counts when `OSC_CLUSTER_MODE` is `federated`; `None` in replica mode.
    pub federation: Option<FederationConfig>,
    /// `OSC_TEST_CLOCK_OFFSET_MS`: how wrong the clock of a node under test is.
    pub clock_offset_ms: i64,
}

/// How a node asks the others for what it does not have itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationConfig {
    /// `OSC_FEDERATED_TIMEOUT_MS`: how long the others are waited for.
    pub timeout: Duration,
    /// `OSC_FEDERATED_STRICT`: an entry that was found nowhere is not said to be missing as long as a
    /// node has not answered.
    pub is_strict: bool,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAcks {
    /// When it is durable here.
    Local,
    /// When more than half of all nodes have it.
    Quorum,
    /// When all nodes have it.
    All,
}

/// Where a peer is: a name or an address, and a port. Names are resolved when they are used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress {
    host: String,
    port: u16,
    has_tls: bool,
}

impl PeerAddress {
    /// Reads `host:port`, `[v6]:port`, `host`, each also behind `http://` or `https://`. Without these it is as this
    /// node is.
    pub(super) fn parse(text: &str, has_tls_here: bool) -> Option<Self> {
        let (has_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => (has_tls_here, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, parse_port(port)?),
            _ => (rest, PORT_DEFAULT),
        };
        if let Some(address) = address(host) {
            return Some(Self { host: address.to_string(), port, has_tls });
        }
        is_name(host).then(|| Self { host: host.to_owned(), port, has_tls })
    }

    /// The name or the address, an IPv6 one without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is spoken to over TLS, as the node that [`Self::host`] names.
    pub fn has_tls(&self) -> bool {
        self.has_tls
    }
}

fn parse_port(text: &str) -> Option<u16> {
    super::variables::integer(text).filter(|port| *port > 0)
}

/// `host:port`, an IPv6 address in brackets.
impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for WriteAcks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Quorum => "quorum",
            Self::All => "all",
        })
    }
}

#[derive(Clone, Copy)]
enum Mode {
    Replica,
    Federated,
}

/// `None` when this node stands alone; the other variables have no effect then.
pub(super) fn read(
    variables: &mut Variables<'_>,
    warnings: &mut Vec<Warning>,
    has_tls: bool,
    resolve: Resolve<'_>,
) -> Option<ClusterConfig> {
    let listen = variables.word("OSC_CLUSTER_LISTEN");
    if !variables.switch("OSC_CLUSTER_ENABLED") {
        if listen.is_some() {
            warnings.push(Warning::ClusterUnused("OSC_CLUSTER_LISTEN"));
        }
        return None;
    }
    let modes = [("replica", Mode::Replica), ("federated", Mode::Federated)];
    let mode = variables.choice("OSC_CLUSTER_MODE", &modes).unwrap_or(Mode::Replica);
    let acks = [("local", WriteAcks::Local), ("quorum", WriteAcks::Quorum), ("all", WriteAcks::All)];
    let seconds = variables.number("OSC_CLUSTER_SYNC_INTERVAL", "a number of seconds", &(1..=86_400));
    let offset =
        variables.number("OSC_TEST_CLOCK_OFFSET_MS", "a number of milliseconds", &(i64::MIN..=i64::MAX));
    let write_acks = variables.choice("OSC_CLUSTER_WRITE_ACKS", &acks).unwrap_or(WriteAcks::Local);
    let federation = match mode {
        Mode::Replica => None,
        Mode::Federated => Some(federation(variables)),
    };
    if federation.is_some() && write_acks != WriteAcks::Local {
        let message =
            format!("\"{write_acks}\" needs OSC_CLUSTER_MODE=replica (allowed in federated mode: local)");
        variables.fault("OSC_CLUSTER_WRITE_ACKS", message);
    }
    Some(ClusterConfig {
        peers: peers(variables, has_tls),
        listen: listen.and_then(|text| listener(variables, &text, resolve)),
        sync_interval: Duration::from_secs(seconds.unwrap_or(SYNC_INTERVAL_DEFAULT_SECONDS)),
        write_acks,
        federation,
        clock_offset_ms: offset.unwrap_or(0),
    })
}

fn listener(variables: &mut Variables<'_>, text: &str, resolve: Resolve<'_>) -> Option<Host> {
    Host::parse_with_port(text, resolve)
        .map_err(|error| variables.host_fault("OSC_CLUSTER_LISTEN", text, &error))
        .ok()
}

fn federation(variables: &mut Variables<'_>) -> FederationConfig {
    let milliseconds =
        variables.number("OSC_FEDERATED_TIMEOUT_MS", "a number of milliseconds", &(50..=60_000));
    FederationConfig {
        timeout: Duration::from_millis(milliseconds.unwrap_or(FEDERATED_TIMEOUT_DEFAULT_MS)),
        is_strict: variables.switch("OSC_FEDERATED_STRICT"),
    }
}

/// Items are separated by commas; spaces around them and empty ones do not count.
fn peers(variables: &mut Variables<'_>, has_tls: bool) -> Vec<PeerAddress> {
    let text = variables.text("OSC_CLUSTER_NODES").unwrap_or_default();
    let mut peers: Vec<PeerAddress> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match PeerAddress::parse(item, has_tls) {
            Some(peer) if peers.contains(&peer) => {}
            Some(peer) => peers.push(peer),
            None => {
                let allowed = "allowed: host:port, [v6]:port, http://host:port, https://host:port";
                variables.fault("OSC_CLUSTER_NODES", format!("{} is not a peer ({allowed})", shown(item)));
            }
        }
    }
    if peers.len() > PEERS_COUNT_MAX {
        let message = format!("names {} peers (allowed: at most {PEERS_COUNT_MAX})", peers.len());
        variables.fault("OSC_CLUSTER_NODES", message);
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_in_all_their_forms() {
        for (text, expected) in [
            ("node1:9000", Some("node1:9000")),
            ("127.0.0.1:9001", Some("127.0.0.1:9001")),
            ("[::1]:9001", Some("[::1]:9001")),
            ("::1", Some("[::1]:9000")),
            ("node1", Some("node1:9000")),
            ("http://node1:9000/", Some("node1:9000")),
            ("osc-0.osc.default.svc.cluster.local:9000", Some("osc-0.osc.default.svc.cluster.local:9000")),
            ("node1:0", None),
            ("node1:port", None),
            ("node1:99999", None),
            ("https://node1:9001", Some("node1:9001")),
            ("https://https://node1:9000", None),
            ("node1:9000/path", None),
            ("user@node1:9000", None),
            ("two words:9000", None),
            (":9000", None),
        ] {
            assert_eq!(
                PeerAddress::parse(text, false).map(|peer| peer.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_says_nothing_of_tls_is_as_this_node() {
        for (text, elsewhere, here) in
            [("a:1", false, true), ("http://a:1", false, false), ("https://a:1", true, true)]
        {
            let has_tls = |here| PeerAddress::parse(text, here).expect(text).has_tls();
            assert_eq!((has_tls(false), has_tls(true)), (elsewhere, here), "{text}");
        }
    }
}
