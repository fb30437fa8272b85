//! Test certificates as an operator would issue them, and TLS clients that verify them.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::Client;

pub(crate) type TlsClient = Client<StreamOwned<ClientConnection, TcpStream>>;

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: String,
}

/// A certificate and its private key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::of(name, |params, key| params.self_signed(key).expect("signed").pem())
    }

    /// Creates a CA whose certificate expires at `ends`.
    pub(crate) fn until(name: &str, ends: std::time::SystemTime) -> Self {
        Self::of(name, |params, key| {
            let mut params = params.clone();
            params.not_after = ends.into();
            params.self_signed(key).expect("signed").pem()
        })
    }

    /// Creates an intermediate CA. Its `certificate` does not include the rest of the chain.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        Self::of(name, |params, key| params.signed_by(key, &self.issuer).expect("signed").pem())
    }

    fn of(name: &str, sign: impl FnOnce(&CertificateParams, &KeyPair) -> String) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("an empty list of names is valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = sign(&params, &key);
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Issues a certificate for this machine that does not expire in practice.
    pub(crate) fn issue(&self) -> Issued {
        self.issue_with(|_| {})
    }

    pub(crate) fn issue_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("valid host names");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    /// Returns a client configuration that trusts this CA and presents `shown` if the server requests a certificate.
    pub(crate) fn client(&self, shown: Option<&Issued>) -> Arc<ClientConfig> {
        client(&self.certificate, shown)
    }
}

impl Issued {
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM")
    }

    /// Writes both to the files that the settings of these tests name.
    pub(crate) fn write(&self, directory: &Path) {
        put(directory, "cert.pem", &self.certificate);
        put(directory, "key.pem", &self.key);
    }
}

/// Replaces a file atomically, with a rename.
pub(crate) fn put(directory: &Path, name: &str, text: &str) {
    let new = directory.join(format!("{name}.new"));
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, directory.join(name)).expect("renamed");
}

/// Returns a client configuration that trusts the certificates in `roots`.
pub(crate) fn client(roots: &str, shown: Option<&Issued>) -> Arc<ClientConfig> {
    let mut trusted = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        trusted.add(root.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_root_certificates(trusted);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => builder
            .with_client_auth_cert(
                vec![shown.der()],
                PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).expect("PEM"),
            )
            .expect("the key matches the certificate"),
    })
}

pub(crate) fn over_tls(stream: TcpStream, config: &Arc<ClientConfig>) -> TlsClient {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a connection");
    Client::over(StreamOwned::new(connection, stream))
}
