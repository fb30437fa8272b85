//! PROXY protocol headers: the address is that of a reference parser, and no byte after the header is read.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use futures_lite::future::block_on;
use opensecureconf::config::{self, Proxies};
use opensecureconf::http::{Client, Timers, read_proxy_header};
use opensecureconf::http1::PROXY_LOCAL;
use opensecureconf::limits::PROXY_HEADER_BYTES_MAX;

use super::pieces::{Pieces, Stream};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

static TRUSTED: LazyLock<Proxies> = LazyLock::new(|| {
    let environment = BTreeMap::from([("OSC_TRUSTED_PROXIES".to_owned(), PROXY.to_string().into())]);
    config::from_sources(&environment, None).expect("valid settings").0.clients.proxies
});

/// Checks the client address that `data` names.
pub fn run(data: &[u8]) {
    let expected = reference(data);
    // From an untrusted sender, only a LOCAL header is accepted.
    let from_stranger = expected.filter(|_| data[12] == 0x20);
    let untrusted = Proxies::default();
    let senders = [(&*TRUSTED, expected), (&untrusted, from_stranger)];
    let pieces = || Pieces::of(data).into_iter().chain([Pieces::Whole]);
    for (pieces, (proxies, expected)) in
        senders.into_iter().flat_map(|sender| pieces().map(move |pieces| (pieces, sender)))
    {
        let text = format!("{pieces:?}");
        let mut stream = Stream::new(data, pieces);
        // The clock does not advance: the end of the stream ends the wait.
        let clock = Timers::new();
        let proxy = Client { address: Some(PROXY), ..Client::default() };
        let found = block_on(read_proxy_header(&mut stream, &clock, proxy, proxies));
        match &expected {
            None => assert!(found.is_err(), "{text}: {found:?}"),
            Some((address, len)) => {
                assert_eq!(found.expect(&text).address, Some(*address), "{text}");
                assert_eq!(stream.rest, &data[*len..], "{text}: bytes after the header were read");
            }
        }
    }
}

/// Reference parser after section 2.2 of the specification: returns the client address and the length of the header.
fn reference(data: &[u8]) -> Option<(IpAddr, usize)> {
    let (fixed, rest) = data.split_first_chunk::<16>()?;
    let [signature @ .., version_and_command, family, high, low] = fixed;
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    let (known_signature, is_complete) = (&PROXY_LOCAL[..12], rest.len() >= len);
    if signature != known_signature || len > PROXY_HEADER_BYTES_MAX || !is_complete {
        return None;
    }
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return None,
    };
    let addresses = &rest[..len];
    let (address, addresses_len) = match family >> 4 {
        0 => (None, 0),
        1 => (addresses.first_chunk::<4>().map(|bytes| IpAddr::from(Ipv4Addr::from(*bytes))), 12),
        2 => (addresses.first_chunk::<16>().map(|bytes| IpAddr::from(Ipv6Addr::from(*bytes))), 36),
        3 => (None, 216),
        _ => return None,
    };
    if addresses.len() < addresses_len || family & 0xF > 2 {
        return None;
    }
    let address = if is_local { None } else { address };
    Some((address.unwrap_or(PROXY).to_canonical(), 16 + len))
}
