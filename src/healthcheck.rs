//! Health check of a running server, for container images without curl.
//!
//! Probes the server with the same settings, through its admin listener if it has one. The probe runs on a separate
//! thread, which is abandoned at the timeout: no single step, such as name resolution, needs its own timeout.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::config::{self, Host, SettingErrors};
use crate::http1::{ClientConnection, ClientFailure, ClientRequest, ClientStep, Method, PROXY_LOCAL};
use crate::limits::{HEALTHCHECK_BODY_BYTES_MAX, HEALTHCHECK_SHOWN_CHARS_MAX};
use crate::tls;

/// Kind of probe.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// Liveness: whether the server is serving.
    Serves,
    /// Readiness: whether clients should be sent to the server.
    IsReady,
}

/// Failure of a probe; displayed as a message for operators.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The settings are invalid.
    #[error("invalid configuration:\n{0}")]
    Settings(#[from] SettingErrors),
    /// The configured port is 0; only the server knows the port that the system has assigned.
    #[error("the configured port is 0, so the port of the server is unknown")]
    AnyPort,
    /// No connection could be opened.
    #[error("cannot connect to {address}: {source}")]
    Unreachable {
        /// Configured address of the server.
        address: SocketAddr,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The connection failed.
    #[error("no valid response: {0}")]
    Broken(#[from] io::Error),
    /// The server requires client certificates and rejects its own.
    #[error(
        "the server rejects its own certificate as a client certificate ({0}): set OSC_ADMIN_LISTEN, which serves \
         probes without TLS"
    )]
    CertificateRefused(#[source] io::Error),
    /// The response is not valid HTTP: another program may be listening on the port.
    #[error("no valid response: {0}")]
    NotHttp(#[from] ClientFailure),
    /// The response has another status than 200.
    #[error("{target} responded with {status}: {body}")]
    No {
        /// Path of the request.
        target: &'static str,
        /// Status of the response.
        status: u16,
        /// Start of the response body.
        body: String,
    },
    /// No response within the timeout: the server may be alive, but is unusable.
    #[error("timed out after {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Probes the server that the settings of this process describe.
///
/// # Errors
/// Fails if the response is anything but 200, or does not arrive within the timeout.
pub fn run(probe: Probe, timeout: Duration) -> Result<(), ProbeError> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || sender.send(run_probe(probe)))?;
    receiver.recv_timeout(timeout).unwrap_or(Err(ProbeError::TimedOut(timeout)))
}

fn run_probe(probe: Probe) -> Result<(), ProbeError> {
    let target = match probe {
        Probe::Serves => "/cluster/health",
        Probe::IsReady => "/ready",
    };
    if let Some(admin) = config::load_admin()? {
        return check_response(target, exchange(connect(&admin)?, target)?);
    }
    // The server has already logged the warnings.
    let (config, _warnings) = config::load()?;
    let mut stream = connect(&config.host)?;
    if config.clients.has_proxy_protocol {
        stream.write_all(&PROXY_LOCAL)?;
    }
    let tls_config = config.certificates.to_self();
    let response = match tls_config {
        Some(tls_config) => {
            exchange(tls::connect_to_self(stream, tls_config)?, target).map_err(|error| match error {
                ProbeError::Broken(error)
                    if tls::PeerTlsError::of(&error) == Some(tls::PeerTlsError::OfThisNode) =>
                {
                    ProbeError::CertificateRefused(error)
                }
                other => other,
            })?
        }
        None => exchange(stream, target)?,
    };
    check_response(target, response)
}

fn check_response(target: &'static str, (status, body): (u16, Vec<u8>)) -> Result<(), ProbeError> {
    if status == 200 { Ok(()) } else { Err(ProbeError::No { target, status, body: shown(&body) }) }
}

fn connect(host: &Host) -> Result<TcpStream, ProbeError> {
    let addresses = addresses(host);
    if addresses.iter().all(|address| address.port() == 0) {
        return Err(ProbeError::AnyPort);
    }
    TcpStream::connect(&addresses[..])
        .map_err(|source| ProbeError::Unreachable { address: addresses[0], source })
}

/// Returns the addresses to connect to. A server that listens on all interfaces is probed on the loopback interface.
fn addresses(host: &Host) -> Vec<SocketAddr> {
    let reachable = |address: &SocketAddr| {
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        // Keeps the zone, which a link-local address needs.
        if ip == address.ip() { *address } else { SocketAddr::new(ip, address.port()) }
    };
    host.addresses().iter().map(reachable).collect()
}

fn exchange(mut stream: impl Read + Write, target: &str) -> Result<(u16, Vec<u8>), ProbeError> {
    let mut connection = ClientConnection::new(HEALTHCHECK_BODY_BYTES_MAX);
    let request = ClientRequest { method: Method::Get, target, host: "localhost", headers: &[], body: b"" };
    // The clock stands still: the timeout is that of the caller.
    connection.call(&request, 0, u64::MAX);
    loop {
        match connection.step() {
            ClientStep::Response => return Ok((connection.status(), connection.take_body())),
            ClientStep::Failed(failure) => return Err(failure.into()),
            ClientStep::Read => {
                stream.write_all(connection.output())?;
                connection.wrote(connection.output().len());
                match stream.read(connection.read_space()) {
                    Ok(0) => connection.received_eof(),
                    Ok(count) => connection.received(count),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// Truncates to one printable line; the responder is untrusted.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.chars().filter(|character| !character.is_control()).take(HEALTHCHECK_SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn addresses_to_probe() {
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:9000"),
            ("0.0.0.0", "127.0.0.1:9000"),
            ("::", "[::1]:9000"),
            ("::ffff:0.0.0.0", "127.0.0.1:9000"),
            ("192.0.2.7", "192.0.2.7:9000"),
            ("2001:db8::1", "[2001:db8::1]:9000"),
        ] {
            let environment = BTreeMap::from([("OSC_HOST".to_owned(), OsString::from(host))]);
            let (config, _) = config::from_sources(&environment, None).expect(host);
            assert_eq!(addresses(&config.host), [expected.parse().expect("an address")], "{host}");
        }
    }
}
