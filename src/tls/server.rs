//! TLS accept: which clients a listener asks for a certificate, and which certificates are those of nodes.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, RootCertStore, ServerConfig};

use super::loaded::{HTTP_1_1, provider};

/// The CA certificates that peers and clients of this node are verified by, as far as any are.
#[derive(Clone, Default)]
pub(super) struct Trusted {
    /// `OSC_SSL_CA_CERTS`: every client must present a certificate.
    pub(super) clients: Option<Arc<RootCertStore>>,
    /// `OSC_CLUSTER_CA_CERTS`: every node must present a certificate.
    pub(super) nodes: Option<Arc<RootCertStore>>,
}

/// The parameters of one listener.
pub struct ServerContext {
    pub(super) config: Arc<ServerConfig>,
    nodes: Option<Arc<dyn ClientCertVerifier>>,
}

/// Certificates that a listener asks for in the handshake.
enum Asked {
    Nothing,
    Optional(Arc<RootCertStore>),
    Required(Arc<RootCertStore>),
}

impl ServerContext {
    /// For the listener of clients. Peers connect to it, too, unless there is a cluster port.
    pub(super) fn of_clients(own: &Arc<CertifiedKey>, trusted: &Trusted, has_cluster_port: bool) -> Self {
        let asked = match (&trusted.clients, &trusted.nodes) {
            (None, None) => Asked::Nothing,
            (None, Some(_)) if has_cluster_port => Asked::Nothing,
            (None, Some(nodes)) => Asked::Optional(Arc::clone(nodes)),
            (Some(clients), None) => Asked::Required(Arc::clone(clients)),
            // Nodes are accepted with a cluster port as well: by its own certificate a node checks its own health.
            (Some(clients), Some(nodes)) => Asked::Required(Arc::new(union(clients, nodes))),
        };
        Self::new(own, asked, trusted)
    }

    /// For the listener of peers.
    pub(super) fn of_peers(own: &Arc<CertifiedKey>, trusted: &Trusted) -> Self {
        let roots = trusted.nodes.as_ref().or(trusted.clients.as_ref());
        let asked = roots.map_or(Asked::Nothing, |roots| Asked::Required(Arc::clone(roots)));
        Self::new(own, asked, trusted)
    }

    fn new(own: &Arc<CertifiedKey>, asked: Asked, trusted: &Trusted) -> Self {
        let nodes = trusted.nodes.clone().map(|roots| verifier(roots, false));
        Self { config: Arc::new(config(Arc::clone(own), asked)), nodes }
    }

    /// Whether a connection with this chain of certificates may be one of a node. The chain of a resumed session
    /// comes from its ticket, and is verified again.
    pub(super) fn may_be_node(&self, chain: Option<&[CertificateDer<'_>]>) -> bool {
        let Some(nodes) = &self.nodes else { return true };
        chain.is_some_and(|chain| verify(&**nodes, chain).is_ok())
    }
}

/// Why peers that trust `roots` would refuse this certificate.
pub(super) fn refusal_as_node(own: &CertifiedKey, roots: &Arc<RootCertStore>) -> Option<String> {
    let verified = verify(&*verifier(Arc::clone(roots), false), &own.cert);
    verified.err().map(|error| error.to_string())
}

fn verify(verifier: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
    let (end_entity, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    verifier.verify_client_cert(end_entity, intermediates, UnixTime::now()).map(|_| ())
}

fn union(one: &RootCertStore, other: &RootCertStore) -> RootCertStore {
    let mut roots = one.clone();
    roots.extend(other.roots.iter().filter(|root| !one.roots.contains(root)).cloned());
    roots
}

fn verifier(roots: Arc<RootCertStore>, is_optional: bool) -> Arc<dyn ClientCertVerifier> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if is_optional { builder.allow_unauthenticated() } else { builder };
    builder.build().expect("there is a root, and there are no lists of revoked certificates to be wrong")
}

fn config(own: Arc<CertifiedKey>, asked: Asked) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has suites for both versions");
    let builder = match asked {
        Asked::Nothing => builder.with_no_client_auth(),
        Asked::Optional(roots) => builder.with_client_cert_verifier(verifier(roots, true)),
        Asked::Required(roots) => builder.with_client_cert_verifier(verifier(roots, false)),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    // Sessions are kept by clients, so executors share nothing and idle ones cost nothing. A new certificate brings
    // new keys for them, so whom another authority had vouched for must show a certificate again.
    if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
        config.ticketer = ticketer;
    }
    config
}
