//! Server side of TLS: client authentication of a listener, and the recognition of node certificates.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, RootCertStore, ServerConfig};

use super::provider::{HTTP_1_1, provider};

/// CA certificates against which clients and peers of this node are verified, if any are.
#[derive(Clone, Default)]
pub(super) struct Trusted {
    /// `OSC_SSL_CA_CERTS`: every client must present a certificate.
    pub(super) clients: Option<Arc<RootCertStore>>,
    /// `OSC_CLUSTER_CA_CERTS`: every node must present a certificate.
    pub(super) nodes: Option<Arc<RootCertStore>>,
}

/// TLS parameters of one listener.
pub struct ServerContext {
    pub(super) config: Arc<ServerConfig>,
    nodes: Option<Arc<dyn ClientCertVerifier>>,
}

/// Client authentication of a listener: the certificates that it requests in the handshake.
enum ClientAuth {
    Disabled,
    Optional(Arc<RootCertStore>),
    Required(Arc<RootCertStore>),
}

impl ServerContext {
    /// Creates the context of the client listener. Peers connect to it, too, unless there is a cluster port.
    pub(super) fn of_clients(own: &Arc<CertifiedKey>, trusted: &Trusted, has_cluster_port: bool) -> Self {
        let client_auth = match (&trusted.clients, &trusted.nodes) {
            (None, None) => ClientAuth::Disabled,
            (None, Some(_)) if has_cluster_port => ClientAuth::Disabled,
            (None, Some(nodes)) => ClientAuth::Optional(Arc::clone(nodes)),
            (Some(clients), None) => ClientAuth::Required(Arc::clone(clients)),
            // Node certificates are accepted even with a cluster port: a node's health check of itself presents one.
            (Some(clients), Some(nodes)) => ClientAuth::Required(Arc::new(union(clients, nodes))),
        };
        Self::new(own, client_auth, trusted)
    }

    /// Creates the context of the cluster listener.
    pub(super) fn of_peers(own: &Arc<CertifiedKey>, trusted: &Trusted) -> Self {
        let roots = trusted.nodes.as_ref().or(trusted.clients.as_ref());
        let client_auth = roots.map_or(ClientAuth::Disabled, |roots| ClientAuth::Required(Arc::clone(roots)));
        Self::new(own, client_auth, trusted)
    }

    fn new(own: &Arc<CertifiedKey>, client_auth: ClientAuth, trusted: &Trusted) -> Self {
        let nodes = trusted.nodes.clone().map(|roots| verifier(roots, false));
        Self { config: Arc::new(config(Arc::clone(own), client_auth)), nodes }
    }

    /// Returns whether a client with this certificate chain may be a node. The chain of a resumed session comes from
    /// its ticket, and is verified again.
    pub(super) fn may_be_node(&self, chain: Option<&[CertificateDer<'_>]>) -> bool {
        let Some(nodes) = &self.nodes else { return true };
        chain.is_some_and(|chain| verify(&**nodes, chain).is_ok())
    }
}

/// Returns why peers that trust `roots` would refuse this certificate, if they would.
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
    builder.build().expect("there is at least one root, and there are no revocation lists")
}

fn config(own: Arc<CertifiedKey>, client_auth: ClientAuth) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for both versions");
    let builder = match client_auth {
        ClientAuth::Disabled => builder.with_no_client_auth(),
        ClientAuth::Optional(roots) => builder.with_client_cert_verifier(verifier(roots, true)),
        ClientAuth::Required(roots) => builder.with_client_cert_verifier(verifier(roots, false)),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    // Session tickets: clients keep the state, so executors share nothing and idle sessions cost nothing. New
    // certificates come with new ticket keys, so a client that a previous CA certified must present a certificate
    // again.
    if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
        config.ticketer = ticketer;
    }
    config
}
