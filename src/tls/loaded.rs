//! From files to what connections are made with.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

use super::fault::{Fault, Faults, Problem, Role};
use super::files::{Files, Own, Roots, fault, read};
use super::key;

const HTTP_1_1: &[u8] = b"http/1.1";

/// One reading of all files.
pub(super) struct Loaded {
    /// For connections of clients, if there is TLS for them.
    pub(super) server: Option<Arc<ServerConfig>>,
    /// For connections to peers, if one of them has TLS.
    pub(super) client: Option<Arc<ClientConfig>>,
    /// What this node shows.
    pub(super) own: Option<Arc<CertifiedKey>>,
    /// When that expires.
    pub(super) expires: Option<Timestamp>,
    /// Of the bytes of all files, in this process.
    pub(super) digest: u64,
}

/// Collects what is wrong, and the bytes.
#[derive(Default)]
struct Reading {
    faults: Vec<Fault>,
    digests: Vec<u64>,
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}

impl Loaded {
    pub(super) fn read(files: &Files) -> Result<Self, Faults> {
        let mut reading = Reading::default();
        let own = files.own.as_ref().and_then(|own| reading.own(own));
        let clients = files.clients.as_ref().and_then(|path| reading.roots(Role::Clients, path));
        let peers = files.peers.as_ref().and_then(|roots| match roots {
            // The same file needs to be complained about once.
            Roots::File(path) if files.clients.as_ref() == Some(path) => clients.clone(),
            Roots::File(path) => reading.roots(Role::Peers, path),
            Roots::System => reading.system_roots(),
        });
        if !reading.faults.is_empty() {
            return Err(Faults(reading.faults));
        }
        let (own, expires) = own.unzip();
        let shown = own.clone().filter(|_| clients.is_some());
        Ok(Self {
            server: own.clone().map(|own| Arc::new(server(own, clients))),
            client: peers.map(|roots| Arc::new(client(roots, shown))),
            own,
            expires,
            // One file may serve for two.
            digest: hash((
                &reading.digests,
                files.own.is_some(),
                files.clients.is_some(),
                files.peers.is_some(),
            )),
        })
    }
}

/// Secrets are hashed too, so the hash has a secret of its own.
fn hash(value: impl std::hash::Hash) -> u64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    STATE.hash_one(value)
}

impl Reading {
    fn bytes(&mut self, role: Role, path: &Path) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        match read(role, path) {
            Ok(bytes) => {
                self.digests.push(hash(&*bytes));
                Some(bytes)
            }
            Err(fault) => {
                self.faults.push(fault);
                None
            }
        }
    }

    fn take<T>(&mut self, role: Role, path: &Path, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.faults.push(fault(role, path, problem))).ok()
    }

    fn own(&mut self, own: &Own) -> Option<(Arc<CertifiedKey>, Timestamp)> {
        let chain = self.bytes(Role::Certificate, &own.certificate).and_then(|pem| {
            let chain = certificates(&pem).and_then(|chain| {
                let expires = valid_until(&chain[0])?;
                Ok((chain, expires))
            });
            self.take(Role::Certificate, &own.certificate, chain)
        });
        let key = self.bytes(Role::Key, &own.key).and_then(|pem| {
            let key = key::parse(&pem, own.password.as_ref());
            if let Err(problem @ (Problem::NoPassword | Problem::WrongPassword)) = key {
                self.faults.push(Fault { role: Role::Password, path: None, problem });
                return None;
            }
            self.take(Role::Key, &own.key, key)
        });
        let (chain, expires) = chain?;
        match certified(chain, key?) {
            Ok(certified) => Some((Arc::new(certified), expires)),
            Err(problem @ Problem::Malformed) => self.take(Role::Certificate, &own.certificate, Err(problem)),
            Err(problem) => self.take(Role::Key, &own.key, Err(problem)),
        }
    }

    fn roots(&mut self, role: Role, path: &Path) -> Option<Arc<RootCertStore>> {
        let pem = self.bytes(role, path)?;
        let roots = certificates(&pem).and_then(|found| {
            let mut roots = RootCertStore::empty();
            for certificate in &found {
                roots.add(certificate.clone()).map_err(|_| Problem::Malformed)?;
            }
            // Others may have expired: bundles hold old ones, too.
            if !found.iter().any(|certificate| valid_until(certificate).is_ok()) {
                valid_until(&found[0])?;
            }
            Ok(Arc::new(roots))
        });
        self.take(role, path, roots)
    }

    fn system_roots(&mut self) -> Option<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs().certs;
        self.digests.push(hash(&found));
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            self.faults.push(Fault { role: Role::Peers, path: None, problem: Problem::NoRoots });
            return None;
        }
        Some(Arc::new(roots))
    }
}

/// All certificates in PEM; at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Problem::NoCertificate),
        Ok(found) => Ok(found),
        Err(_) => Err(Problem::Malformed),
    }
}

fn valid_until(certificate: &CertificateDer<'static>) -> Result<Timestamp, Problem> {
    // The profile that is not strict about what only authorities get wrong.
    let parsed = CertificateInner::<Raw>::from_der(certificate).map_err(|_| Problem::Malformed)?;
    let validity = parsed.tbs_certificate().validity();
    let time = |since_epoch: Duration| {
        // The last second of the year 9999 means that there is no end (RFC 5280, 4.1.2.5), and is the last one here.
        let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    };
    let [begins, ends] = [validity.not_before, validity.not_after].map(|at| time(at.to_unix_duration()));
    let now = Timestamp::now();
    if now < begins {
        return Err(Problem::NotYetValid(begins.to_string()));
    }
    if now > ends {
        return Err(Problem::Expired(ends.to_string()));
    }
    Ok(ends)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Problem> {
    let key = provider().key_provider.load_private_key(key).map_err(|_| Problem::UnusableKey)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(Problem::Mismatch),
        Err(Error::InconsistentKeys(_)) => Err(Problem::UnusableKey),
        Err(_) => Err(Problem::Malformed),
    }
}

fn server(own: Arc<CertifiedKey>, clients: Option<Arc<RootCertStore>>) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .expect("there is a root, and there are no lists of revoked certificates to be wrong"),
        ),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    // Sessions are kept by clients, so executors share nothing and idle ones cost nothing. A new certificate brings
    // new keys for them, so whom another authority had vouched for must show a certificate again.
    if let Ok(ticketer) = ring::Ticketer::new() {
        config.ticketer = ticketer;
    }
    config
}

fn client(roots: Arc<RootCertStore>, shown: Option<Arc<CertifiedKey>>) -> ClientConfig {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .expect("there is a root, and there are no lists of revoked certificates to be wrong");
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both versions")
        .with_webpki_verifier(verifier);
    shown_by(builder, shown)
}

/// With this certificate, if the other side asks for one.
pub(super) fn shown_by(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    shown: Option<Arc<CertifiedKey>>,
) -> ClientConfig {
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown))),
    };
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config
}
