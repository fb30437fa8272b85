//! `OSC_ALLOWED_HOSTS`: the values of `Host` that the server accepts, as protection against DNS rebinding.

use std::fmt;
use std::net::IpAddr;

use super::Config;
use super::host::{address, is_name};
use super::number::integer;
use super::variables::{Variables, shown};

/// Allowed hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHosts {
    /// Whether loopback names and addresses and names without a dot are allowed. Public DNS does not contain them, so
    /// no page of another site can be loaded under one.
    local: bool,
    hosts: Vec<AllowedHost>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AllowedHost {
    name: Name,
    /// Allowed port; `None` allows any.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Exact(String),
    /// Suffix of the allowed names, with a leading dot.
    Below(String),
    Address(IpAddr),
}

impl AllowedHosts {
    /// Returns whether a request with `host` as the value of its `Host` field is accepted. A request without the field
    /// is accepted, because browsers always send it.
    pub fn allow(&self, host: &[u8]) -> bool {
        if host.is_empty() {
            return true;
        }
        let Some((name, port)) = split(host) else { return false };
        if self.local && is_local(name) {
            return true;
        }
        let has_port = |allowed| port.is_some_and(|port| parse_port(port) == Some(allowed));
        self.hosts.iter().any(|host| host.name.is(name) && host.port.is_none_or(has_port))
    }
}

impl Name {
    fn is_local(&self) -> bool {
        match self {
            Self::Exact(name) => is_local(name.as_bytes()),
            Self::Below(_) => false,
            Self::Address(address) => address.is_loopback(),
        }
    }

    fn is(&self, name: &[u8]) -> bool {
        match self {
            Self::Exact(allowed) => name.eq_ignore_ascii_case(allowed.as_bytes()),
            Self::Below(suffix) => ends_with(name, suffix.as_bytes()),
            Self::Address(allowed) => parse_address(name) == Some(*allowed),
        }
    }
}

/// Splits an authority into name and port, without a trailing dot of the name.
fn split(host: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let name_end = match host.first() {
        Some(b'[') => memchr::memchr(b']', host)? + 1,
        _ => memchr::memchr(b':', host).unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(name_end);
    let port = match rest {
        [] => None,
        [b':', port @ ..] => Some(port),
        _ => return None,
    };
    Some((name.strip_suffix(b".").unwrap_or(name), port))
}

fn parse_port(text: &[u8]) -> Option<u16> {
    integer(std::str::from_utf8(text).ok()?).filter(|port| *port > 0)
}

fn is_local(name: &[u8]) -> bool {
    name == b"127.0.0.1"
        || name.eq_ignore_ascii_case(b"localhost")
        || match parse_address(name) {
            Some(address) => address.is_loopback(),
            None => {
                ends_with(name, b".localhost")
                    || !(name.contains(&b'.') || name.contains(&b'[') || name.is_empty())
            }
        }
}

fn ends_with(name: &[u8], suffix: &[u8]) -> bool {
    name.len() > suffix.len() && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

/// Parses an address as in a URL, with an IPv6 address in brackets.
fn parse_address(name: &[u8]) -> Option<IpAddr> {
    match name {
        [b'0'..=b'9', ..] | [b'[', .., b']'] => {
            address(std::str::from_utf8(name).ok()?).map(|ip| ip.to_canonical())
        }
        _ => None,
    }
}

/// Writes the list separated by commas, as in the setting.
impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.local.then(|| "(local names)".to_owned());
        let texts: Vec<String> =
            local.into_iter().chain(self.hosts.iter().map(ToString::to_string)).collect();
        f.write_str(&texts.join(","))
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Exact(name) => f.write_str(name)?,
            Name::Below(suffix) => write!(f, "*{suffix}")?,
            Name::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Name::Address(address) => write!(f, "{address}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Reads the setting; `None` allows any host. The default is a restriction if only browsers on this machine can reach
/// the server and need no API key, otherwise `*`. Cluster nodes are always allowed.
pub(super) fn read(variables: &mut Variables<'_>, config: &Config) -> Option<AllowedHosts> {
    let text = variables.text("OSC_ALLOWED_HOSTS").unwrap_or_default();
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts == ["*"] {
        return None;
    }
    let mut hosts = Vec::new();
    for part in &parts {
        match parse(part) {
            Some(host) => hosts.push(host),
            None => variables.add_error(
                "OSC_ALLOWED_HOSTS",
                format!(
                    "{} is not a host (allowed: * or a list like conf.example.org,*.example.org,10.0.0.7:9000)",
                    shown(part)
                ),
            ),
        }
    }
    let local = parts.is_empty();
    if local {
        let listen = config.cluster.as_ref().and_then(|cluster| cluster.listen.as_ref());
        let is_loopback = config.host.is_loopback() && listen.is_none_or(super::Host::is_loopback);
        if !is_loopback || !config.api_keys.is_empty() {
            return None;
        }
        hosts.extend(parse(&config.host.to_string()).filter(|host| !host.name.is_local()));
    }
    let peers = config.cluster.iter().flat_map(|cluster| &cluster.peers);
    hosts.extend(peers.filter_map(|peer| parse(peer.host())));
    Some(AllowedHosts { local, hosts })
}

fn parse(part: &str) -> Option<AllowedHost> {
    // An IPv6 address may lack brackets, as in OSC_HOST.
    if let Ok(address) = part.parse::<IpAddr>() {
        return Some(AllowedHost { name: Name::Address(address.to_canonical()), port: None });
    }
    let (name, port) = split(part.as_bytes())?;
    let name = std::str::from_utf8(name).ok()?;
    let port = match port {
        None => None,
        Some(port) => Some(parse_port(port)?),
    };
    let suffix = name.strip_prefix('*').unwrap_or(name);
    let name = match (parse_address(name.as_bytes()), suffix.strip_prefix('.')) {
        (Some(address), _) => Name::Address(address),
        (None, Some(below)) if is_name(below) => Name::Below(suffix.to_owned()),
        (None, None) if is_name(name) => Name::Exact(name.to_owned()),
        _ => return None,
    };
    Some(AllowedHost { name, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(local: bool, list: &str) -> AllowedHosts {
        let hosts = list.split(',').filter(|part| !part.is_empty()).map(|part| parse(part).expect(part));
        AllowedHosts { local, hosts: hosts.collect() }
    }

    fn check(hosts: &AllowedHosts, allowed: &[&str], refused: &[&str]) {
        for host in allowed {
            assert!(hosts.allow(host.as_bytes()), "{host} is refused by {hosts}");
        }
        for host in refused {
            assert!(!hosts.allow(host.as_bytes()), "{host} is allowed by {hosts}");
        }
    }

    #[test]
    fn local_hosts() {
        check(
            &hosts(true, "node.example.org"),
            &[
                "",
                "localhost",
                "LocalHost:9000",
                "localhost.",
                "a.localhost:1",
                "127.0.0.1",
                "127.0.0.1:9000",
                "127.1.2.3",
                "[::1]",
                "[::1]:9000",
                "[::ffff:127.0.0.1]",
                "x",
                "config:9000",
                "NODE.example.org:80",
            ],
            &[
                "evil.example",
                "127.0.0.1.evil.example",
                "localhost.evil.example",
                "evil.example:9000",
                "10.0.0.7",
                "128.0.0.1",
                "[::2]",
                "[::1",
                "[::1]x",
                "xlocalhost.example",
                "a.node.example.org",
                ".",
                "..",
                "[evil]",
                "2130706433.example",
            ],
        );
    }

    #[test]
    fn listed_hosts() {
        check(
            &hosts(
                false,
                "conf.example.org,*.a.example,.b.example,10.0.0.7:9000,[2001:db8::1],::ffff:10.0.0.8",
            ),
            &[
                "conf.example.org",
                "CONF.example.org:1",
                "conf.example.org.",
                "x.a.example",
                "y.x.a.example:9",
                "x.b.example",
                "10.0.0.7:9000",
                "[2001:DB8:0::1]:9000",
                "10.0.0.8",
                "",
            ],
            &[
                "localhost",
                "127.0.0.1",
                "x",
                "example.org",
                "a.example",
                "xa.example",
                "b.example",
                ".a.example.",
                "10.0.0.7",
                "10.0.0.7:9001",
                "10.0.0.9",
            ],
        );
    }

    #[test]
    fn invalid_hosts() {
        for text in [
            "a b",
            "http://a",
            "a/b",
            "*a.example",
            "a.*",
            "**",
            "a:",
            "a:0",
            "a:x",
            "[::1",
            "1.2.3",
            "@",
            ".",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in ["a.example", "*.a.example", "10.0.0.7:9000", "[::1]:80", "a:1"] {
            assert_eq!(parse(text).expect(text).to_string(), text);
        }
    }
}
