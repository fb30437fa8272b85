//! Per-client limits and trusted proxies. All except the limits of failed keys and connections are off by default.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::{IpNet, Ipv4Net};

use super::variables::{Variables, shown};
use crate::limits::{FAILED_KEYS_DEFAULT, FAILED_KEYS_MAX, RATE_MAX};

/// Limits per client, and the proxies that identify clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// `OSC_RATE_LIMIT_PER_ADDRESS`: requests per second.
    pub rate_per_address: Option<NonZeroU32>,
    /// `OSC_RATE_LIMIT_PER_API_KEY`: requests per second.
    pub rate_per_api_key: Option<NonZeroU32>,
    /// `OSC_FAILED_KEYS_PER_ADDRESS`: failed keys per minute.
    pub failed_keys_per_address: Option<NonZeroU32>,
    /// `OSC_CONNECTIONS_PER_ADDRESS`: concurrent connections; `None` is the default, a fraction of the process limit.
    pub connections_per_address: Option<NonZeroU32>,
    /// `OSC_TRUSTED_PROXIES` and `OSC_FORWARDED_HEADER`.
    pub proxies: Proxies,
    /// `OSC_PROXY_PROTOCOL`: each connection begins with a PROXY protocol header, version 2. The list of trusted
    /// proxies is not empty then.
    pub has_proxy_protocol: bool,
}

/// Proxies that are trusted to report the client's address, and the header that contains it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    networks: Vec<IpNet>,
    header: ForwardedHeader,
}

/// Header in which proxies report the client's address. A proxy writes one of the two and forwards the other one as the
/// client has sent it, so only one can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl Proxies {
    /// Returns whether no proxy is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Returns whether the address is that of a trusted proxy. An IPv4-mapped IPv6 address equals the IPv4 address.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Returns the header that the proxies write.
    pub fn header(&self) -> ForwardedHeader {
        self.header
    }
}

impl ForwardedHeader {
    const NAMES: [(&'static str, Self); 2] =
        [("x-forwarded-for", Self::XForwardedFor), ("forwarded", Self::Forwarded)];
}

impl std::fmt::Display for ForwardedHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::log::show(self, &Self::NAMES, f)
    }
}

impl std::fmt::Display for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<String> = self.networks.iter().map(ToString::to_string).collect();
        f.write_str(if texts.is_empty() { "(none)" } else { "" })?;
        f.write_str(&texts.join(","))
    }
}

pub(super) fn read(variables: &mut Variables<'_>) -> ClientLimits {
    let mut number = |variable, what| {
        let max = NonZeroU32::new(RATE_MAX).expect("not zero");
        variables.number(variable, what, &(NonZeroU32::MIN..=max))
    };
    let rate_per_address = number("OSC_RATE_LIMIT_PER_ADDRESS", "a number of requests per second");
    let rate_per_api_key = number("OSC_RATE_LIMIT_PER_API_KEY", "a number of requests per second");
    let connections_per_address = number("OSC_CONNECTIONS_PER_ADDRESS", "a number of connections");
    let failed_keys = "OSC_FAILED_KEYS_PER_ADDRESS";
    let failed_keys =
        variables.number(failed_keys, "a number of failed keys per minute", &(0..=FAILED_KEYS_MAX));
    let failed_keys_per_address = NonZeroU32::new(failed_keys.unwrap_or(FAILED_KEYS_DEFAULT));
    let proxies = proxies(variables);
    let has_proxy_protocol = variables.switch("OSC_PROXY_PROTOCOL");
    if has_proxy_protocol && proxies.is_empty() {
        variables.add_error(
            "OSC_TRUSTED_PROXIES",
            "is empty, but OSC_PROXY_PROTOCOL is true: list the addresses or networks of the proxies",
        );
    }
    ClientLimits {
        rate_per_address,
        rate_per_api_key,
        failed_keys_per_address,
        connections_per_address,
        proxies,
        has_proxy_protocol,
    }
}

fn proxies(variables: &mut Variables<'_>) -> Proxies {
    let text = variables.text("OSC_TRUSTED_PROXIES").unwrap_or_default();
    let mut networks = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(canonical(network)),
            Err(_) => variables.add_error(
                "OSC_TRUSTED_PROXIES",
                format!(
                    "{} is neither an address nor a network (allowed: a list like 10.0.0.7,192.168.0.0/16)",
                    shown(part)
                ),
            ),
        }
    }
    let header = variables.choice("OSC_FORWARDED_HEADER", &ForwardedHeader::NAMES).unwrap_or_default();
    Proxies { networks, header }
}

/// Converts a network of IPv4-mapped IPv6 addresses to the IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(network) => network.addr().to_ipv4_mapped().zip(network.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4)
}
