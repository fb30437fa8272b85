//! Who the client is, when proxies stand between: `Forwarded` (RFC 7239) or `X-Forwarded-For`, believed only as far
//! as the proxies in the settings have written them.

use std::net::{IpAddr, SocketAddr};

use crate::config::Proxies;
use crate::http1::HeadView;

/// The nearest address that is no proxy of ours. `peer` is at the other end of the connection.
pub(super) fn client_address(proxies: &Proxies, peer: IpAddr, head: &HeadView<'_>) -> IpAddr {
    if !proxies.contain(peer) {
        return peer;
    }
    let told: Vec<Option<IpAddr>> = match head.fields("forwarded").next() {
        Some(_) => head
            .fields("forwarded")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(forwarded)
            .collect(),
        None => {
            let values = head.fields("x-forwarded-for");
            values.flat_map(|value| value.split(|&byte| byte == b',')).map(address).collect()
        }
    };
    let mut nearest = peer;
    // Each proxy adds whom it has its request from; the one before our own is the last that can be believed.
    for told in told.into_iter().rev() {
        let Some(told) = told else { break };
        nearest = told;
        if !proxies.contain(nearest) {
            break;
        }
    }
    nearest
}

/// The address in the `for` of one element.
fn forwarded(element: &[u8]) -> Option<IpAddr> {
    let mut pairs = element.split(|&byte| byte == b';');
    let value = pairs.find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        pair[..at].trim_ascii().eq_ignore_ascii_case(b"for").then(|| &pair[at + 1..])
    })?;
    let value = value.trim_ascii();
    address(value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value))
}

/// An address, perhaps with a port, perhaps in brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let found = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(IpAddr::to_canonical(&found))
}
