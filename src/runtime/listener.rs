//! Listening sockets, one per executor on the same address; the kernel balances the connections.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::limits::{ADDRESS_IN_USE_INTERVAL, ADDRESS_IN_USE_TIMEOUT, LISTEN_BACKLOG, UNSENT_BYTES_MAX};

/// Failure to listen on an address.
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
            io::ErrorKind::AddrInUse => f.write_str("another process is listening on this port"),
            io::ErrorKind::AddrNotAvailable => f.write_str("no interface of this machine has this address"),
            io::ErrorKind::PermissionDenied if address.port() < 1024 => f.write_str(
                "permission denied: ports below 1024 require CAP_NET_BIND_SERVICE, or a lower \
                 net.ipv4.ip_unprivileged_port_start",
            ),
            _ => write!(f, "{source}"),
        }
    }
}

/// Opens one socket per executor and address. With port 0, the first address determines the port. A name such as
/// `localhost` may have several addresses; those after the first are skipped if the machine lacks their family.
///
/// # Errors
/// Fails if an address cannot be used, or another process is listening on it. `SO_REUSEPORT` alone would let both
/// processes of the same user listen, and each would get part of the connections.
pub(super) fn bind(addresses: &[SocketAddr], executors: usize) -> Result<Vec<Vec<TcpListener>>, BindError> {
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
    (0..executors).map(|_| chosen.iter().map(listen).collect()).collect()
}

/// Checks that no process is listening on the address: binds a socket without SO_REUSEPORT, and closes it.
///
/// Retries for a while: the kernel closes the listeners of a process that used io_uring some milliseconds after its
/// exit, so a server that is restarted immediately would find its own address in use.
fn probe(address: SocketAddr) -> io::Result<SocketAddr> {
    let started = Instant::now();
    loop {
        let probe = socket(address)?;
        match probe.bind(&address.into()) {
            Ok(()) => return Ok(probe.local_addr()?.as_socket().unwrap_or(address)),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < ADDRESS_IN_USE_TIMEOUT =>
            {
                thread::sleep(ADDRESS_IN_USE_INTERVAL);
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
    // Small responses must not wait for the client's acknowledgement. Accepted connections inherit the option.
    socket.set_tcp_nodelay(true)?;
    // Otherwise the kernel buffers up to 4 MiB for a client that does not read (tcp_wmem). Inherited as well.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Listeners of an executor that is about to close them. Closing one resets the connections in its backlog.
pub(super) struct Backlog(Vec<TcpListener>);

impl Backlog {
    /// Duplicates the listeners, which stay open until the backlog is dropped, too.
    ///
    /// # Errors
    /// Fails if no file descriptor is left.
    pub(super) fn of<'a>(listeners: impl Iterator<Item = &'a TcpListener>) -> io::Result<Self> {
        listeners.map(TcpListener::try_clone).collect::<io::Result<_>>().map(Self)
    }

    /// Makes the kernel ignore attempts to connect, while handshakes in flight still complete. The client repeats its
    /// attempt after a second, and finds another listener of this port or is refused.
    pub(super) fn stop_growing(&self) {
        /// Drops a TCP segment that has SYN, but not ACK (classic BPF; see `linux/filter.h`).
        const FILTER: [SockFilter; 5] = [
            // Load the byte of the flags, and keep these two.
            SockFilter::new(0x30, 0, 0, 13),
            SockFilter::new(0x54, 0, 0, SYN | ACK),
            SockFilter::new(0x15, 0, 1, SYN),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        const SYN: u32 = 0x02;
        const ACK: u32 = 0x10;
        for listener in &self.0 {
            if let Err(error) = SockRef::from(listener).attach_filter(&FILTER) {
                tracing::debug!(%error, "connections may be reset while the listener closes");
            }
        }
    }

    /// Returns whether no connection waits to be accepted.
    pub(super) fn is_empty(&self) -> bool {
        let mut waiting: Vec<_> =
            self.0.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        // A failure must not delay the stop.
        poll(&mut waiting, Some(&Timespec::default())).map_or(true, |ready| ready == 0)
    }
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server can bind its port again while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // `::` listens on both families, independently of the system default.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn accepted_connections_have_no_delay() {
        let listeners = bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], 1).expect("a free port");
        let listener = &listeners[0][0];
        let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (accepted, _) = listener.accept().expect("a connection");
        assert!(accepted.nodelay().expect("a connection"));
    }
}
