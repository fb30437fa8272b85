//! The origin of a request, as far as fairness between clients is concerned.

use std::net::{IpAddr, Ipv6Addr};

/// Client network and API key. Requests of one requester share what is divided among requesters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requester {
    /// Network of the client, unless the connection has no address.
    pub network: Option<IpAddr>,
    /// Number of the API key, where one is required.
    pub api_key: Option<usize>,
}

impl Requester {
    /// The requester at this address with this API key.
    pub fn new(address: Option<IpAddr>, api_key: Option<usize>) -> Self {
        Self { network: address.map(network), api_key }
    }
}

/// First address of the client's network: one IPv6 client has a whole /64 to choose addresses from.
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
    fn a_network_is_one_ipv4_address_or_an_ipv6_64() {
        let of = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
