//! Who the client is, when proxies stand between: `X-Forwarded-For` or `Forwarded` (RFC 7239), whichever the settings name,
//! believed only as far as the proxies in the settings have written it.

use std::net::{IpAddr, SocketAddr};

use crate::config::{ForwardedHeader, Proxies};
use crate::http1::RequestHead;

/// Proxies in a row that are believed; a longer chain ends at the farthest one of these.
const HOPS_MAX: usize = 32;

/// The nearest address that is no proxy of ours; where an element is no address, the last one before it, so that a client
/// cannot choose by sending nonsense. `peer` is at the other end of the connection.
pub(super) fn client_address(proxies: &Proxies, peer: IpAddr, head: &RequestHead<'_>) -> IpAddr {
    if !proxies.contain(peer) {
        return peer;
    }
    let name = match proxies.header() {
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => "forwarded",
    };
    let read = |element| match proxies.header() {
        ForwardedHeader::XForwardedFor => address(element),
        ForwardedHeader::Forwarded => forwarded(element),
    };
    // Each proxy adds at the end the address that it has its request from.
    let (mut last, mut count) = ([&b""[..]; HOPS_MAX], 0);
    for element in head.fields(name).flat_map(|value| value.split(|&byte| byte == b',')) {
        last[count % HOPS_MAX] = element;
        count += 1;
    }
    let mut nearest = peer;
    for hop in (0..count).rev().take(HOPS_MAX) {
        let Some(told) = read(last[hop % HOPS_MAX]) else { break };
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
