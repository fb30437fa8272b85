//! `OSC_HTTPS_ENABLED`, `OSC_SSL_*` and `OSC_CLUSTER_CA_CERTS`: certificate and key files, which are loaded as well.
//!
//! No message reveals anything about a key or a password.

use std::path::PathBuf;

use super::cluster::ClusterConfig;
use super::error::Warning;
use super::variables::Variables;
use crate::tls::{Certificates, Files, Own, Password, Roots};

const CERTIFICATE: &str = "OSC_SSL_CERTFILE";
const KEY: &str = "OSC_SSL_KEYFILE";
const PASSWORD: &str = "OSC_SSL_KEYFILE_PASSWORD";

/// Loads the certificates; none if neither this node nor a peer uses TLS.
pub(super) fn read(
    variables: &mut Variables<'_>,
    warnings: &mut Vec<Warning>,
    is_enabled: bool,
    cluster: Option<&ClusterConfig>,
) -> Certificates {
    let own = own(variables, warnings, is_enabled);
    let clients = variables.text("OSC_SSL_CA_CERTS").map(PathBuf::from);
    let peers = variables.text("OSC_CLUSTER_CA_CERTS").map(PathBuf::from);
    let has_peers = cluster.is_some_and(|cluster| cluster.peers.iter().any(super::PeerAddress::has_tls));
    let nodes = peers.clone().filter(|_| is_enabled && cluster.is_some());
    let roots = peers.or_else(|| clients.clone()).map_or(Roots::System, Roots::File);
    let files = Files {
        own,
        clients: clients.filter(|_| is_enabled),
        nodes,
        peers: has_peers.then_some(roots),
        has_cluster_port: cluster.is_some_and(|cluster| cluster.listen.is_some()),
    };
    let loaded = Certificates::load(files).inspect(|certificates| {
        warnings.extend(certificates.not_yet_valid().map(|errors| Warning::NotYetValid(errors.to_string())));
    });
    loaded.unwrap_or_else(|errors| {
        for error in errors.0 {
            variables.add_error(error.role.variable(), error.to_string());
        }
        Certificates::none()
    })
}

fn own(variables: &mut Variables<'_>, warnings: &mut Vec<Warning>, is_enabled: bool) -> Option<Own> {
    let errors_before = variables.errors.len();
    let [certificate, key] = [CERTIFICATE, KEY].map(|variable| variables.text(variable).map(PathBuf::from));
    let password = variables.secret(PASSWORD).map(Password::new);
    if !is_enabled {
        if certificate.is_some() || key.is_some() {
            warnings.push(Warning::CertificateUnused);
        }
        return None;
    }
    if variables.errors.len() == errors_before {
        for (variable, path) in [(CERTIFICATE, &certificate), (KEY, &key)] {
            if path.is_none() {
                variables.add_error(variable, "is empty, but OSC_HTTPS_ENABLED is true");
            }
        }
    }
    Some(Own { certificate: certificate?, key: key?, password })
}
