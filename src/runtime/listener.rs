//! One listening socket for each executor, all on one address; the kernel spreads the connections.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::{LISTEN_BACKLOG, UNSENT_BYTES_MAX};

/// How long an address may be in use, and how often it is tried.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(1);
const ADDRESS_INTERVAL: Duration = Duration::from_millis(10);

/// An address that cannot be listened on.
#[derive(Debug)]
pub(super) struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, source } = self;
        write!(f, "{address}: ")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => f.write_str("another process listens on this port"),
            io::ErrorKind::AddrNotAvailable => f.write_str("no interface of this machine has this address"),
            io::ErrorKind::PermissionDenied if address.port() < 1024 => f.write_str(
                "permission denied: ports below 1024 need CAP_NET_BIND_SERVICE, or a lower \
                 net.ipv4.ip_unprivileged_port_start",
            ),
            _ => write!(f, "{source}"),
        }
    }
}

/// Sockets for `shards` executors on each address. With port 0 the first one chooses the port. A
/// name such as `localhost` may stand for several addresses; those after the first may be of a
/// family that this machine does not have.
///
/// # Errors
/// When the address cannot be used; also when another process listens there, which `SO_REUSEPORT`
/// alone would not show if it has the same user: it would get half of the connections.
pub(super) fn bind(addresses: &[SocketAddr], shards: usize) -> Result<Vec<Vec<TcpListener>>, BindError> {
    let mut chosen = Vec::with_capacity(addresses.len());
    let mut port = None;
    for &address in addresses {
        let mut address = address;
        if let (0, Some(port)) = (address.port(), port) {
            address.set_port(port);
        }
        match probe(address) {
            Ok(bound) => {
                port = port.or(Some(bound.port()));
                chosen.push(bound);
            }
            Err(error) if !chosen.is_empty() && is_absent_family(&error) => {}
            Err(source) => return Err(BindError { address, source }),
        }
    }
    let listen = |&address| listen(address).map_err(|source| BindError { address, source });
    (0..shards).map(|_| chosen.iter().map(listen).collect()).collect()
}

/// Without SO_REUSEPORT this fails if anybody listens there. It is closed again at once.
///
/// The kernel closes the listeners of a process that used io_uring some milliseconds after the process has
/// gone, so a server that is started again at once would find its own address in use.
fn probe(address: SocketAddr) -> io::Result<SocketAddr> {
    let begun = Instant::now();
    loop {
        let probe = socket(address)?;
        match probe.bind(&address.into()) {
            Ok(()) => return Ok(probe.local_addr()?.as_socket().unwrap_or(address)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < ADDRESS_PATIENCE => {
                thread::sleep(ADDRESS_INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_absent_family(error: &io::Error) -> bool {
    let absent = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL];
    absent.iter().any(|absent| error.raw_os_error() == Some(absent.raw_os_error()))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    // Small answers must not wait for the client's acknowledgement. Linux hands this down to connections.
    socket.set_tcp_nodelay(true)?;
    // Otherwise the kernel takes up to 4 MiB for a client that does not read (tcp_wmem). Handed down as well.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A port is free again at once after a restart, connections in TIME_WAIT or not.
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // `::` answers on both families, whatever the system's default is.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Hands a listening socket to the executor of this thread.
#[expect(unsafe_code, reason = "glommio has no safe way to take a socket with options of its own")]
pub(super) fn adopt(listener: TcpListener) -> glommio::net::TcpListener {
    // SAFETY: `into_raw_fd` gives up the only owner of the descriptor, which is open and a listening
    // TCP socket, and glommio's listener becomes its only owner.
    unsafe { glommio::net::TcpListener::from_raw_fd(listener.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_is_accepted_sends_at_once() {
        let listeners = bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], 1).expect("a free port");
        let listener = &listeners[0][0];
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (accepted, _) = listener.accept().expect("a connection");
        assert!(accepted.nodelay().expect("a connection"));
    }
}
