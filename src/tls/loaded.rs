//! Loading of the certificate files into the TLS configurations of listeners and connections.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

use super::error::{CertificateFileError, CertificateFileErrors, FileProblem, FileRole};
use super::files::{Files, Own, Roots, fault, read};
use super::key;
use super::provider::{HTTP_1_1, provider};
use super::server::{ServerContext, Trusted, refusal_as_node};

/// Result of loading all files.
pub(super) struct Loaded {
    /// Context of the client listener, if this node serves TLS.
    pub(super) server: Option<Arc<ServerContext>>,
    /// Context of the cluster listener, if there is one and this node serves TLS.
    pub(super) cluster_server: Option<Arc<ServerContext>>,
    /// Configuration of connections to peers, if one of them uses TLS.
    pub(super) client: Option<Arc<ClientConfig>>,
    /// Certificate of this node and its key.
    pub(super) own: Option<Arc<CertifiedKey>>,
    /// Expiry time of that certificate, or of an intermediate one if that is earlier.
    pub(super) expires: Option<Timestamp>,
    /// Expiry time of the last valid CA certificate of each file.
    pub(super) authorities_expire: Vec<(FileRole, Timestamp)>,
    /// Why peers with the same CA certificates for nodes would refuse this node's certificate.
    pub(super) refusal_as_node: Option<String>,
    /// Certificates that are not valid yet by the clock of this machine, which may be wrong at boot.
    pub(super) not_yet_valid: Vec<CertificateFileError>,
    /// Hash of the contents of all files, comparable within this process only.
    pub(super) digest: u64,
}

/// Loader that collects errors, expiry times and the hashes of file contents.
#[derive(Default)]
struct Loader {
    errors: Vec<CertificateFileError>,
    not_yet_valid: Vec<CertificateFileError>,
    authorities_expire: Vec<(FileRole, Timestamp)>,
    digests: Vec<u64>,
}

impl Loaded {
    pub(super) fn read(files: &Files) -> Result<Self, CertificateFileErrors> {
        let mut loader = Loader::default();
        let own = files.own.as_ref().and_then(|own| loader.own(own));
        let clients = files.clients.as_ref().and_then(|path| loader.roots(FileRole::Clients, path));
        // A file with several roles is read once, so that its errors are reported once.
        let nodes = files.nodes.as_ref().and_then(|path| match files.clients.as_ref() == Some(path) {
            true => clients.clone(),
            false => loader.roots(FileRole::Peers, path),
        });
        let peers = files.peers.as_ref().and_then(|roots| match roots {
            Roots::File(path) if files.clients.as_ref() == Some(path) => clients.clone(),
            Roots::File(path) if files.nodes.as_ref() == Some(path) => nodes.clone(),
            Roots::File(path) => loader.roots(FileRole::Peers, path),
            Roots::System => loader.system_roots(),
        });
        if !loader.errors.is_empty() {
            return Err(CertificateFileErrors(loader.errors));
        }
        let (own, expires) = own.unzip();
        let trusted = Trusted { clients, nodes };
        let server = |own| Arc::new(ServerContext::of_clients(own, &trusted, files.has_cluster_port));
        let cluster_server = |own| Arc::new(ServerContext::of_peers(own, &trusted));
        let refusal = own.as_ref().zip(trusted.nodes.as_ref());
        Ok(Self {
            server: own.as_ref().map(server),
            cluster_server: own.as_ref().filter(|_| files.has_cluster_port).map(cluster_server),
            client: peers.map(|roots| Arc::new(client(roots, own.clone()))),
            refusal_as_node: refusal.and_then(|(own, roots)| refusal_as_node(own, roots)),
            own,
            expires,
            authorities_expire: loader.authorities_expire,
            not_yet_valid: loader.not_yet_valid,
            // The flags distinguish configurations that use the same files in different roles.
            digest: hash((
                &loader.digests,
                files.own.is_some(),
                files.clients.is_some(),
                files.nodes.is_some(),
                files.peers.is_some(),
            )),
        })
    }
}

/// Hashes with a random key of this process, because secrets are hashed, too.
fn hash(value: impl std::hash::Hash) -> u64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    STATE.hash_one(value)
}

impl Loader {
    fn bytes(&mut self, role: FileRole, path: &Path) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        match read(role, path) {
            Ok(bytes) => {
                self.digests.push(hash(&*bytes));
                Some(bytes)
            }
            Err(error) => {
                self.errors.push(error);
                None
            }
        }
    }

    /// Returns the value of `result`, or collects its error.
    fn accept<T>(&mut self, role: FileRole, path: &Path, result: Result<T, FileProblem>) -> Option<T> {
        result.map_err(|problem| self.errors.push(fault(role, path, problem))).ok()
    }

    fn own(&mut self, own: &Own) -> Option<(Arc<CertifiedKey>, Timestamp)> {
        let chain = self.bytes(FileRole::Certificate, &own.certificate).and_then(|pem| {
            let chain = certificates(&pem).and_then(|chain| {
                let validity = Validity::of(&chain[0])?;
                let ends = chain.iter().map(|one| Ok(Validity::of(one)?.ends));
                let ends = ends.collect::<Result<Vec<_>, FileProblem>>()?.into_iter().min();
                Ok((chain, validity, ends))
            });
            self.accept(FileRole::Certificate, &own.certificate, chain)
        });
        let key = self.bytes(FileRole::Key, &own.key).and_then(|pem| {
            let key = key::parse(&pem, own.password.as_ref());
            if let Err(problem @ (FileProblem::NoPassword | FileProblem::WrongPassword)) = key {
                self.errors.push(CertificateFileError { role: FileRole::Password, path: None, problem });
                return None;
            }
            self.accept(FileRole::Key, &own.key, key)
        });
        let (chain, validity, ends) = chain?;
        let expires = self.expiry(FileRole::Certificate, &own.certificate, validity)?.min(ends?);
        match certified(chain, key?) {
            Ok(certified) => Some((Arc::new(certified), expires)),
            Err(problem @ FileProblem::Malformed) => {
                self.accept(FileRole::Certificate, &own.certificate, Err(problem))
            }
            Err(problem) => self.accept(FileRole::Key, &own.key, Err(problem)),
        }
    }

    /// Returns the end of the validity. A certificate that has expired is an error; one that is not valid yet is only
    /// collected, because a clock that is behind will be corrected soon.
    fn expiry(&mut self, role: FileRole, path: &Path, validity: Validity) -> Option<Timestamp> {
        match validity.check() {
            Ok(()) => Some(validity.ends),
            Err(problem @ FileProblem::NotYetValid(_)) => {
                self.not_yet_valid.push(fault(role, path, problem));
                Some(validity.ends)
            }
            Err(problem) => self.accept(role, path, Err(problem)),
        }
    }

    fn roots(&mut self, role: FileRole, path: &Path) -> Option<Arc<RootCertStore>> {
        let pem = self.bytes(role, path)?;
        let roots = certificates(&pem).and_then(|found| {
            let mut roots = RootCertStore::empty();
            for certificate in &found {
                roots.add(certificate.clone()).map_err(|_| FileProblem::Malformed)?;
            }
            // One valid certificate is enough: bundles also contain expired ones.
            let is_valid =
                |certificate| Validity::of(certificate).is_ok_and(|validity| validity.check().is_ok());
            let invalid = if found.iter().any(is_valid) { None } else { Some(Validity::of(&found[0])?) };
            let ends = found.iter().filter_map(|one| Some(Validity::of(one).ok()?.ends)).max();
            Ok((Arc::new(roots), invalid, ends))
        });
        let (roots, invalid, ends) = self.accept(role, path, roots)?;
        self.authorities_expire.extend(ends.map(|ends| (role, ends)));
        if let Some(validity) = invalid {
            self.expiry(role, path, validity)?;
        }
        Some(roots)
    }

    fn system_roots(&mut self) -> Option<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs().certs;
        self.digests.push(hash(&found));
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            self.errors.push(CertificateFileError {
                role: FileRole::Peers,
                path: None,
                problem: FileProblem::NoRoots,
            });
            return None;
        }
        Some(Arc::new(roots))
    }
}

/// Returns all certificates of a PEM file; at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileProblem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(FileProblem::NoCertificate),
        Ok(found) => Ok(found),
        Err(_) => Err(FileProblem::Malformed),
    }
}

/// Validity period of a certificate.
struct Validity {
    begins: Timestamp,
    ends: Timestamp,
}

impl Validity {
    fn of(certificate: &CertificateDer<'static>) -> Result<Self, FileProblem> {
        // The `Raw` profile tolerates errors that only CAs make.
        let parsed = CertificateInner::<Raw>::from_der(certificate).map_err(|_| FileProblem::Malformed)?;
        let validity = parsed.tbs_certificate().validity();
        let time = |since_epoch: Duration| {
            // The last second of the year 9999 means that there is no expiry (RFC 5280, 4.1.2.5); it becomes
            // `Timestamp::MAX`.
            let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
            Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
        };
        let [begins, ends] = [validity.not_before, validity.not_after].map(|at| time(at.to_unix_duration()));
        Ok(Self { begins, ends })
    }

    fn check(&self) -> Result<(), FileProblem> {
        let now = Timestamp::now();
        if now < self.begins {
            return Err(FileProblem::NotYetValid(self.begins.to_string()));
        }
        if now > self.ends {
            return Err(FileProblem::Expired(self.ends.to_string()));
        }
        Ok(())
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, FileProblem> {
    let key = provider().key_provider.load_private_key(key).map_err(|_| FileProblem::UnusableKey)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(FileProblem::Mismatch),
        Err(Error::InconsistentKeys(_)) => Err(FileProblem::UnusableKey),
        Err(_) => Err(FileProblem::Malformed),
    }
}

fn client(roots: Arc<RootCertStore>, own: Option<Arc<CertifiedKey>>) -> ClientConfig {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .expect("there is at least one root, and there are no revocation lists");
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for both versions")
        .with_webpki_verifier(verifier);
    with_certificate(builder, own)
}

/// Completes a client configuration with the certificate to present if the server requests one.
pub(super) fn with_certificate(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    own: Option<Arc<CertifiedKey>>,
) -> ClientConfig {
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
    };
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config
}
