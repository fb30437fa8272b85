//! Per-client limits and trusted proxies. All but the limit of failed keys are off by default.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::{IpNet, Ipv4Net};

use super::variables::{Variables, shown};

const RATE_MAX: u32 = 1_000_000;
/// Failed keys per minute without any consequence: more than people and clients with an old key make, and
/// too few for guessing.
const FAILED_KEYS_DEFAULT: u32 = 30;
/// One in a millisecond.
const FAILED_KEYS_MAX: u32 = 60_000;

/// Bounds for each client, and the proxies that tell who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// `OSC_RATE_LIMIT_PER_ADDRESS`: requests a second.
    pub rate_per_address: Option<NonZeroU32>,
    /// `OSC_RATE_LIMIT_PER_API_KEY`: requests a second.
    pub rate_per_api_key: Option<NonZeroU32>,
    /// `OSC_FAILED_KEYS_PER_ADDRESS`: failed keys per minute.
    pub failed_keys_per_address: Option<NonZeroU32>,
    /// `OSC_CONNECTIONS_PER_ADDRESS`: open at a time; `None` is the default, a part of those of the process.
    pub connections_per_address: Option<NonZeroU32>,
    /// `OSC_TRUSTED_PROXIES`.
    pub proxies: Proxies,
    /// `OSC_PROXY_PROTOCOL`: each connection begins with a header of the PROXY protocol, version 2. There are proxies
    /// to believe then.
    pub has_proxy_protocol: bool,
}

/// Proxies whose word about the client's address is taken, and the header that has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    networks: Vec<IpNet>,
    header: ForwardedHeader,
}

/// The header in which proxies name the client. A proxy writes one of the two and passes the other one on as the client
/// has sent it, so only one of them can be believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl Proxies {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Whether this is one of them. An IPv4 address that is mapped into IPv6 is the IPv4 address.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The header that they write.
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
        let least = NonZeroU32::MIN;
        let most = NonZeroU32::new(RATE_MAX).expect("more than nothing");
        variables.number(variable, what, &(least..=most))
    };
    let rate_per_address = number("OSC_RATE_LIMIT_PER_ADDRESS", "a number of requests a second");
    let rate_per_api_key = number("OSC_RATE_LIMIT_PER_API_KEY", "a number of requests a second");
    let connections_per_address = number("OSC_CONNECTIONS_PER_ADDRESS", "a number of connections");
    let failed_keys = "OSC_FAILED_KEYS_PER_ADDRESS";
    let failed_keys =
        variables.number(failed_keys, "a number of failed keys a minute", &(0..=FAILED_KEYS_MAX));
    let failed_keys_per_address = NonZeroU32::new(failed_keys.unwrap_or(FAILED_KEYS_DEFAULT));
    let proxies = proxies(variables);
    let has_proxy_protocol = variables.switch("OSC_PROXY_PROTOCOL");
    if has_proxy_protocol && proxies.is_empty() {
        variables.fault(
            "OSC_TRUSTED_PROXIES",
            "is empty, but OSC_PROXY_PROTOCOL is true: name the addresses or networks of the proxies",
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
            Err(_) => variables.fault(
                "OSC_TRUSTED_PROXIES",
                format!(
                    "{} is no address and no network (allowed: a list like 10.0.0.7,192.168.0.0/16)",
                    shown(part)
                ),
            ),
        }
    }
    let header = variables.choice("OSC_FORWARDED_HEADER", &ForwardedHeader::NAMES).unwrap_or_default();
    Proxies { networks, header }
}

/// A network of IPv4 addresses that are mapped into IPv6 is the IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(network) => network.addr().to_ipv4_mapped().zip(network.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(network, IpNet::V4)
}
