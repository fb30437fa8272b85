//! The PROXY protocol, version 2 (<https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>): a header, sent before
//! anything else, in which a proxy reports the client's address.

use std::io;
use std::net::IpAddr;

use futures_lite::{AsyncRead, AsyncReadExt};
use ppp::v2;

use super::access_log::Client;
use super::timers::Timers;
use crate::config::Proxies;
use crate::limits::{HEAD_DEADLINE, PROXY_HEADER_BYTES_MAX};

/// Length of the fixed part: the signature, the version, the command, the family, and the length of the rest.
const FIXED_BYTES: usize = 16;

/// Reads the header, and nothing after it. `client` is the sender; the client address that it reports is accepted only
/// from a trusted proxy. Any sender may declare the connection its own (command LOCAL).
///
/// # Errors
/// Fails if the header is missing, malformed or late, or (`PermissionDenied`) if its sender is not a trusted proxy.
pub async fn read_proxy_header<S>(
    stream: &mut S,
    clock: &Timers,
    client: Client,
    proxies: &Proxies,
) -> io::Result<Client>
where
    S: AsyncRead + Unpin,
{
    let read = async {
        let mut header = vec![0; FIXED_BYTES];
        stream.read_exact(&mut header).await?;
        let rest = usize::from(u16::from_be_bytes([header[FIXED_BYTES - 2], header[FIXED_BYTES - 1]]));
        if !header.starts_with(v2::PROTOCOL_PREFIX) || rest > PROXY_HEADER_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        header.resize(FIXED_BYTES + rest, 0);
        stream.read_exact(&mut header[FIXED_BYTES..]).await?;
        Ok::<_, io::Error>(header)
    };
    let header = clock.with_timeout(HEAD_DEADLINE, read).await?;
    let header =
        v2::Header::try_from(&*header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let address = match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => Some(IpAddr::from(addresses.source_address)),
        (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => Some(IpAddr::from(addresses.source_address)),
        // A health check by the proxy itself, or a client without a network address.
        _ => client.address,
    };
    if header.command == v2::Command::Proxy && !client.address.is_some_and(|sender| proxies.contain(sender)) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(Client { address: address.map(|address| address.to_canonical()), ..client })
}
