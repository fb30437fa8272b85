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
    let by_field = |name: &'static str, read: fn(&[u8]) -> Option<IpAddr>| {
        head.fields(name).next()?;
        let elements = head.fields(name).flat_map(|value| value.split(|&byte| byte == b','));
        Some(nearest(proxies, peer, elements.map(read).collect()))
    };
    match (by_field("forwarded", forwarded), by_field("x-forwarded-for", address)) {
        (Some(told), None) | (None, Some(told)) => told,
        // A proxy writes one of the two, and passes the other one on as the client has sent it.
        (Some(one), Some(other)) if one != other => peer,
        (Some(told), Some(_)) => told,
        (None, None) => peer,
    }
}

fn nearest(proxies: &Proxies, peer: IpAddr, told: Vec<Option<IpAddr>>) -> IpAddr {
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
