//! Origin of a request, for fairness between clients.

use std::net::{IpAddr, Ipv6Addr};

/// Client network and API key. Shared resources are divided among requesters, not among their requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requester {
    /// Network of the client; `None` if the connection has no address.
    pub network: Option<IpAddr>,
    /// Index of the API key, if one is required.
    pub api_key: Option<usize>,
}

impl Requester {
    /// Creates the requester at this address with this API key.
    pub fn new(address: Option<IpAddr>, api_key: Option<usize>) -> Self {
        Self { network: address.map(network), api_key }
    }
}

/// Returns the first address of the client's network: one IPv6 client can use every address of its /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_an_ipv4_address_or_an_ipv6_64() {
        let of = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
