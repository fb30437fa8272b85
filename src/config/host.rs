//! `OSC_HOST`: address or host name, and the addresses to listen on.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use super::number::integer;
use crate::limits::HOST_NAME_BYTES_MAX;

/// Resolver of host names; an argument, so that tests need no name server.
pub(super) type Resolve<'a> = &'a dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Host to listen on, with at least one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    text: String,
    addresses: Vec<SocketAddr>,
}

/// Invalid host. The message follows the quoted value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HostError {
    #[error("is neither an address nor a name (allowed: an IPv4 or IPv6 address, or a host name)")]
    Syntax,
    #[error("has a port, which belongs in OSC_HOST_PORT (allowed: an IPv4 or IPv6 address, or a host name)")]
    Port,
    #[error("cannot be resolved: {0}")]
    Unresolved(String),
    #[error("has no port (allowed: host:port, [v6]:port)")]
    NoPort,
}

impl Host {
    pub(super) fn parse(text: &str, port: u16, resolve: Resolve<'_>) -> Result<Self, HostError> {
        let addresses = match address(text) {
            Some(address) => vec![SocketAddr::new(address, port)],
            None if text.eq_ignore_ascii_case("localhost") => localhost(port, resolve),
            None => named(text, port, resolve)?,
        };
        Ok(Self { text: text.to_owned(), addresses })
    }

    /// Parses `host:port` or `[v6]:port`.
    pub(super) fn parse_with_port(text: &str, resolve: Resolve<'_>) -> Result<Self, HostError> {
        let (host, port) = match text.rsplit_once(':') {
            // Without brackets, the last group of an IPv6 address would be mistaken for the port.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
            _ => return Err(HostError::NoPort),
        };
        let port = integer(port).ok_or(HostError::NoPort)?;
        Ok(Self { text: text.to_owned(), ..Self::parse(host, port, resolve)? })
    }

    pub(super) fn loopback(port: u16) -> Self {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        Self { text: address.to_string(), addresses: vec![SocketAddr::new(address, port)] }
    }

    /// Returns the addresses to listen on, including the port. `[::]` stands for both families.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns whether both would listen on the same address and port. Port 0 never overlaps.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let covers = |one: &SocketAddr, other: &SocketAddr| {
            let is_dual_stack = one.is_ipv6() && one.ip().is_unspecified();
            let covers_all =
                one.ip().is_unspecified() && (is_dual_stack || other.ip().to_canonical().is_ipv4());
            covers_all || one.ip().to_canonical() == other.ip().to_canonical()
        };
        self.addresses.iter().any(|one| {
            other.addresses.iter().any(|other| {
                one.port() != 0 && one.port() == other.port() && (covers(one, other) || covers(other, one))
            })
        })
    }

    /// Returns whether all addresses are loopback addresses, so that only this machine can reach the server.
    pub fn is_loopback(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().to_canonical().is_loopback())
    }
}

/// Writes the host as it was configured.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Resolves a name with the system's resolver.
pub(super) fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (name, port).to_socket_addrs().map(Iterator::collect)
}

pub(super) fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => text.parse().ok(),
    }
}

/// Returns the addresses of `localhost`: always the IPv4 loopback address, because clients assume it independently of
/// the hosts file, and the IPv6 one if the resolver returns it.
fn localhost(port: u16, resolve: Resolve<'_>) -> Vec<SocketAddr> {
    let mut addresses = vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)];
    let six = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
    if resolve("localhost", port).is_ok_and(|found| found.contains(&six)) {
        addresses.push(six);
    }
    addresses
}

fn named(text: &str, port: u16, resolve: Resolve<'_>) -> Result<Vec<SocketAddr>, HostError> {
    if text.parse::<SocketAddr>().is_ok() || is_name_with_port(text) {
        return Err(HostError::Port);
    }
    // The resolver also parses IPv6 addresses with a zone (`fe80::1%eth0`).
    let is_zoned = text.split_once('%').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    if !is_zoned && !is_name(text) {
        return Err(HostError::Syntax);
    }
    let found = resolve(text, port).map_err(|error| HostError::Unresolved(error.to_string()))?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(HostError::Unresolved("no address".to_owned()));
    }
    Ok(addresses)
}

fn is_name_with_port(text: &str) -> bool {
    text.split_once(':').is_some_and(|(name, port)| is_name(name) && port.parse::<u16>().is_ok())
}

/// Returns whether a text is a host name. Names whose last label starts with a digit are not: the resolver would parse
/// `0`, `127.1` or `0x7f.1` as IPv4 addresses in obsolete notations, and a mistake such as `9000` as `0.0.35.40`.
pub(super) fn is_name(text: &str) -> bool {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let last = text.strip_suffix('.').unwrap_or(text).rsplit('.').next().unwrap_or_default();
    text.len() <= HOST_NAME_BYTES_MAX
        && text.bytes().all(is_name_byte)
        && last.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resolves one name, to three addresses, one of them twice, and another one to none.
    fn resolve_example(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match name {
            "conf.example.org" => Ok(["192.0.2.1", "2001:db8::1", "192.0.2.1", "127.0.0.1"]
                .map(|text| SocketAddr::new(text.parse().expect("an address"), port))
                .to_vec()),
            "nothing.example.org" => Ok(Vec::new()),
            _ => Err(io::Error::other("name not known")),
        }
    }

    #[test]
    fn addresses_and_names() {
        for (text, expected, is_loopback) in [
            ("127.0.0.1", &["127.0.0.1:9000"][..], true),
            ("0.0.0.0", &["0.0.0.0:9000"], false),
            ("192.0.2.7", &["192.0.2.7:9000"], false),
            ("::", &["[::]:9000"], false),
            ("[::]", &["[::]:9000"], false),
            ("::1", &["[::1]:9000"], true),
            ("[::1]", &["[::1]:9000"], true),
            ("::ffff:127.0.0.1", &["[::ffff:127.0.0.1]:9000"], true),
            ("LocalHost", &["127.0.0.1:9000"], true),
            ("conf.example.org", &["192.0.2.1:9000", "[2001:db8::1]:9000", "127.0.0.1:9000"], false),
        ] {
            let host = Host::parse(text, 9000, &resolve_example).expect(text);
            let found: Vec<String> = host.addresses().iter().map(SocketAddr::to_string).collect();
            assert_eq!(found, expected, "{text}");
            assert_eq!(host.is_loopback(), is_loopback, "{text}");
            assert_eq!(host.to_string(), text);
        }
    }

    #[test]
    fn hosts_with_a_port() {
        for (text, expected) in [
            ("127.0.0.1:9001", Ok("127.0.0.1:9001")),
            ("0.0.0.0:0", Ok("0.0.0.0:0")),
            ("[::]:9001", Ok("[::]:9001")),
            ("localhost:9001", Ok("127.0.0.1:9001")),
            ("conf.example.org:9001", Ok("192.0.2.1:9001")),
            ("127.0.0.1", Err(HostError::NoPort)),
            ("::1", Err(HostError::NoPort)),
            ("[::1]", Err(HostError::NoPort)),
            ("127.0.0.1:port", Err(HostError::NoPort)),
            ("127.0.0.1:65536", Err(HostError::NoPort)),
            ("127.0.0.1:+1", Err(HostError::NoPort)),
            (":9001", Err(HostError::Syntax)),
            ("http://a:9001", Err(HostError::NoPort)),
        ] {
            let host = Host::parse_with_port(text, &resolve_example);
            let found = host.map(|host| (host.to_string(), host.addresses()[0].to_string()));
            assert_eq!(found, expected.map(|first| (text.to_owned(), first.to_owned())), "{text}");
        }
    }

    #[test]
    fn overlapping_addresses() {
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
            ("conf.example.org:1", "192.0.2.1:1", true),
        ] {
            let [one_host, other_host] =
                [one, other].map(|text| Host::parse_with_port(text, &resolve_example).expect(text));
            assert_eq!(one_host.overlaps(&other_host), expected, "{one} {other}");
            assert_eq!(other_host.overlaps(&one_host), expected, "{other} {one}");
        }
    }

    #[test]
    fn invalid_hosts() {
        let unresolved = |reason: &str| HostError::Unresolved(reason.to_owned());
        for (text, expected) in [
            ("127.0.0.1:9000", HostError::Port),
            ("[::1]:9000", HostError::Port),
            ("localhost:9000", HostError::Port),
            ("tcp://10.0.0.7:9000", HostError::Syntax),
            ("http://localhost", HostError::Syntax),
            ("*", HostError::Syntax),
            ("9000", HostError::Syntax),
            ("127.1", HostError::Syntax),
            ("256.0.0.1", HostError::Syntax),
            ("0x7f.0x1", HostError::Syntax),
            ("[127.0.0.1]", HostError::Syntax),
            ("[::1", HostError::Syntax),
            (":::", HostError::Syntax),
            (".", HostError::Syntax),
            ("a b", HostError::Syntax),
            ("no.example.org", unresolved("name not known")),
            ("nothing.example.org", unresolved("no address")),
        ] {
            assert_eq!(Host::parse(text, 9000, &resolve_example), Err(expected), "{text}");
        }
    }

    #[test]
    fn localhost_includes_the_ipv4_loopback() {
        let host = Host::parse("localhost", 1, &resolve).expect("localhost");
        assert_eq!(host.addresses()[0], SocketAddr::from(([127, 0, 0, 1], 1)));
        assert!(host.is_loopback());
        let both = |_: &str, port| Ok(vec![SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)]);
        let host = Host::parse("localhost", 1, &both).expect("localhost");
        assert_eq!(host.addresses().len(), 2);
    }
}
