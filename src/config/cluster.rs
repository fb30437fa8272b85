//! `OSC_CLUSTER_*`: cluster membership and peers.

use std::fmt;
use std::time::Duration;

use super::error::Warning;
use super::host::{Host, Resolve, address, is_name};
use super::variables::{Variables, shown};
use crate::limits::{FEDERATED_TIMEOUT_DEFAULT_MS, PEERS_COUNT_MAX, SYNC_INTERVAL_DEFAULT_SECONDS};

const PORT_DEFAULT: u16 = 9000;

/// Cluster settings of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// `OSC_CLUSTER_NODES`. May include this node itself, under any of its names.
    pub peers: Vec<PeerAddress>,
    /// `OSC_CLUSTER_LISTEN`: dedicated listener for peers, including the port; without one, peers connect to the client
    /// port.
    pub listen: Option<Host>,
    /// `OSC_CLUSTER_SYNC_INTERVAL`.
    pub sync_interval: Duration,
    /// `OSC_CLUSTER_WRITE_ACKS`.
    pub write_acks: WriteAcks,
    /// Settings of federated mode (`OSC_CLUSTER_MODE`); `None` in replica mode.
    pub federation: Option<FederationConfig>,
    /// `OSC_TEST_CLOCK_OFFSET_MS`: clock offset of a node under test, in milliseconds.
    pub clock_offset_ms: i64,
}

/// Settings for requests to peers in federated mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationConfig {
    /// `OSC_FEDERATED_TIMEOUT_MS`: timeout of peer requests.
    pub timeout: Duration,
    /// `OSC_FEDERATED_STRICT`: whether "not found" requires a reply from every peer.
    pub is_strict: bool,
}

/// Condition for acknowledging a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAcks {
    /// The write is durable on this node.
    Local,
    /// A majority of all nodes has the write.
    Quorum,
    /// All nodes have the write.
    All,
}

/// Address of a peer: a host name or an IP address, and a port. Names are resolved for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress {
    host: String,
    port: u16,
    has_tls: bool,
}

impl PeerAddress {
    /// Parses `host:port`, `[v6]:port` or `host`, each optionally after `http://` or `https://`. Without a scheme, the
    /// peer uses TLS if this node does.
    pub(super) fn parse(text: &str, default_has_tls: bool) -> Option<Self> {
        let (has_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => (default_has_tls, text),
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

    /// Returns the name or address; an IPv6 address has no brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns whether connections to the peer use TLS, for which its certificate must match [`Self::host`].
    pub fn has_tls(&self) -> bool {
        self.has_tls
    }
}

fn parse_port(text: &str) -> Option<u16> {
    super::number::integer(text).filter(|port| *port > 0)
}

/// Writes `host:port`, with an IPv6 address in brackets.
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

/// Reads the settings; `None` for a standalone node, on which the other variables have no effect.
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
        variables.add_error("OSC_CLUSTER_WRITE_ACKS", message);
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
        .map_err(|error| variables.add_host_error("OSC_CLUSTER_LISTEN", text, &error))
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

/// Reads the comma-separated list of peers. White space around items, empty items and duplicates are ignored.
fn peers(variables: &mut Variables<'_>, has_tls: bool) -> Vec<PeerAddress> {
    let text = variables.text("OSC_CLUSTER_NODES").unwrap_or_default();
    let mut peers: Vec<PeerAddress> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match PeerAddress::parse(item, has_tls) {
            Some(peer) if peers.contains(&peer) => {}
            Some(peer) => peers.push(peer),
            None => {
                let allowed = "allowed: host:port, [v6]:port, http://host:port, https://host:port";
                variables
                    .add_error("OSC_CLUSTER_NODES", format!("{} is not a peer ({allowed})", shown(item)));
            }
        }
    }
    if peers.len() > PEERS_COUNT_MAX {
        let message = format!("lists {} peers (allowed: at most {PEERS_COUNT_MAX})", peers.len());
        variables.add_error("OSC_CLUSTER_NODES", message);
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_addresses() {
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
    fn peers_without_a_scheme_use_tls_like_this_node() {
        for (text, without, with) in
            [("a:1", false, true), ("http://a:1", false, false), ("https://a:1", true, true)]
        {
            let has_tls = |default| PeerAddress::parse(text, default).expect(text).has_tls();
            assert_eq!((has_tls(false), has_tls(true)), (without, with), "{text}");
        }
    }
}
