//! How much one client may take, and whom to believe about who the client is. All off by default.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::IpNet;

use super::variables::{Variables, shown};

const RATE_MAX: u32 = 1_000_000;

/// Bounds for each client, and the proxies that tell who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// `OSC_RATE_LIMIT_PER_ADDRESS`: requests a second.
    pub rate_per_address: Option<NonZeroU32>,
    /// `OSC_RATE_LIMIT_PER_API_KEY`: requests a second.
    pub rate_per_api_key: Option<NonZeroU32>,
    /// `OSC_CONNECTIONS_PER_ADDRESS`: open at a time.
    pub connections_per_address: Option<NonZeroU32>,
    /// `OSC_TRUSTED_PROXIES`.
    pub proxies: Proxies,
    /// `OSC_PROXY_PROTOCOL`: each connection begins with a header of the PROXY protocol, version 2.
    pub has_proxy_protocol: bool,
}

/// Proxies whose word about the client's address is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl Proxies {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl std::fmt::Display for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
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
    let proxies = proxies(variables);
    let has_proxy_protocol = variables.switch("OSC_PROXY_PROTOCOL");
    ClientLimits { rate_per_address, rate_per_api_key, connections_per_address, proxies, has_proxy_protocol }
}

fn proxies(variables: &mut Variables<'_>) -> Proxies {
    let text = variables.text("OSC_TRUSTED_PROXIES").unwrap_or_default();
    let mut networks = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network),
            Err(_) => variables.fault(
                "OSC_TRUSTED_PROXIES",
                format!(
                    "{} is no address and no network (allowed: a list like 10.0.0.7,192.168.0.0/16)",
                    shown(part)
                ),
            ),
        }
    }
    Proxies(networks)
}
