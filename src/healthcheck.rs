//! Asks a running server how it is, as a container engine does whose image has no curl.
//!
//! Which server: the one that the same settings describe, by its admin listener if it has one. Asking is one thread's work, which is given up
//! when the time is over: no part of it, the resolving of a name above all, needs a time limit of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::config::{self, Host, SettingErrors};
use crate::http1::{ClientConnection, ClientFailure, ClientRequest, ClientStep, Method, PROXY_LOCAL};
use crate::tls;

/// Both answers are some dozen bytes.
const BODY_BYTES_MAX: usize = 4 * 1024;
const SHOWN_CHARS_MAX: usize = 200;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// Whether it serves.
    Serves,
    /// Whether clients should be sent to it.
    IsReady,
}

/// Why the answer is not yes; a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// They describe no server.
    #[error("these settings cannot be used:\n{0}")]
    Settings(#[from] SettingErrors),
    /// Only the server knows which port it got.
    #[error("the port is set to 0, so it is not known where the server listens")]
    AnyPort,
    /// Nobody accepts a connection.
    #[error("nobody listens on {address}: {source}")]
    Unreachable {
        /// Where the server should be.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection brings no answer: {0}")]
    Broken(#[from] io::Error),
    /// The server requires client certificates, and its own is not one.
    #[error(
        "the server does not accept its own certificate as that of a client ({0}): set OSC_ADMIN_LISTEN, which serves \
         probes without TLS"
    )]
    CertificateRefused(#[source] io::Error),
    /// Something listens that does not answer as a server does.
    #[error("the connection brings no answer: {0}")]
    NotHttp(#[from] ClientFailure),
    /// It says no.
    #[error("{target} is answered with {status}: {body}")]
    No {
        /// What was asked for.
        target: &'static str,
        /// The answer's status.
        status: u16,
        /// The beginning of the answer.
        body: String,
    },
    /// It may be alive, and is of no use.
    #[error("there is no answer after {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Asks the server that the settings of this process describe.
///
/// # Errors
/// When the answer is anything but 200, or does not come in time.
pub fn ask(question: Probe, timeout: Duration) -> Result<(), ProbeError> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().spawn(move || tell.send(run_probe(question)))?;
    told.recv_timeout(timeout).unwrap_or(Err(ProbeError::TimedOut(timeout)))
}

fn run_probe(question: Probe) -> Result<(), ProbeError> {
    let target = match question {
        Probe::Serves => "/cluster/health",
        Probe::IsReady => "/ready",
    };
    if let Some(admin) = config::load_admin()? {
        return verdict(target, exchange(connect(&admin)?, target)?);
    }
    // What the settings are warned about is in the log of the server.
    let (config, _warnings) = config::load()?;
    let mut stream = connect(&config.host)?;
    if config.clients.has_proxy_protocol {
        stream.write_all(&PROXY_LOCAL)?;
    }
    let secured = config.certificates.to_self();
    let answer = match secured {
        Some(secured) => {
            exchange(tls::connect_to_self(stream, secured)?, target).map_err(|failure| match failure {
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
    verdict(target, answer)
}

fn verdict(target: &'static str, (status, body): (u16, Vec<u8>)) -> Result<(), ProbeError> {
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

/// Where to find a server that listens there. One that listens everywhere is found on the loopback interface.
fn addresses(host: &Host) -> Vec<SocketAddr> {
    let reached = |address: &SocketAddr| {
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        // A link-local address needs its zone.
        if ip == address.ip() { *address } else { SocketAddr::new(ip, address.port()) }
    };
    host.addresses().iter().map(reached).collect()
}

fn exchange(mut stream: impl Read + Write, target: &str) -> Result<(u16, Vec<u8>), ProbeError> {
    let mut connection = ClientConnection::new(BODY_BYTES_MAX);
    let call = ClientRequest { method: Method::Get, target, host: "localhost", headers: &[], body: b"" };
    // The clock stands still: who waits for this has the time limit.
    connection.call(&call, 0, u64::MAX);
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

/// On one line, as far as it goes: who answers may be anybody.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.chars().filter(|character| !character.is_control()).take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn where_the_server_is() {
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
