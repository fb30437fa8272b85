//! The client's address behind proxies: `X-Forwarded-For` or `Forwarded` (RFC 7239), whichever the settings name,
//! trusted only as far as the configured proxies have written it.

use std::net::{IpAddr, SocketAddr};

use crate::config::{ForwardedHeader, Proxies};
use crate::http1::RequestHead;
use crate::limits::PROXY_HOPS_MAX;

/// Returns the nearest address that is not a trusted proxy. If an element is not an address, returns the last one
/// before it, so that a client cannot choose its address by sending garbage. `peer` is the remote end of the
/// connection.
pub(super) fn client_address(proxies: &Proxies, peer: IpAddr, head: &RequestHead<'_>) -> IpAddr {
    if !proxies.contain(peer) {
        return peer;
    }
    let name = match proxies.header() {
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => "forwarded",
    };
    let parse = |element| match proxies.header() {
        ForwardedHeader::XForwardedFor => address(element),
        ForwardedHeader::Forwarded => forwarded(element),
    };
    // Each proxy appends the address from which it received the request.
    let (mut last, mut count) = ([&b""[..]; PROXY_HOPS_MAX], 0);
    for element in head.fields(name).flat_map(|value| value.split(|&byte| byte == b',')) {
        last[count % PROXY_HOPS_MAX] = element;
        count += 1;
    }
    let mut nearest = peer;
    for hop in (0..count).rev().take(PROXY_HOPS_MAX) {
        let Some(reported) = parse(last[hop % PROXY_HOPS_MAX]) else { break };
        nearest = reported;
        if !proxies.contain(nearest) {
            break;
        }
    }
    nearest
}

/// Parses the address in the `for` parameter of one element.
fn forwarded(element: &[u8]) -> Option<IpAddr> {
    let mut pairs = element.split(|&byte| byte == b';');
    let value = pairs.find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        pair[..at].trim_ascii().eq_ignore_ascii_case(b"for").then(|| &pair[at + 1..])
    })?;
    let value = value.trim_ascii();
    address(value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value))
}

/// Parses an address with an optional port, in optional brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(IpAddr::to_canonical(&parsed))
}
