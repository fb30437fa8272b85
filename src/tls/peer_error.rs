//! TLS errors between nodes, classified by the error of the connection.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Reason why a TLS connection to a peer fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerTlsError {
    /// The peer's certificate has expired by the clock of this machine.
    #[error("its certificate has expired")]
    Expired,
    /// The peer's certificate is not valid yet by the clock of this machine.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// The peer's certificate was not issued by a CA in `OSC_CLUSTER_CA_CERTS`.
    #[error("its certificate was not issued by a CA that this node trusts")]
    UnknownCa,
    /// The peer's certificate is not valid for its name in `OSC_CLUSTER_NODES`.
    #[error("its certificate is not valid for its name in OSC_CLUSTER_NODES")]
    OtherName,
    /// The peer's certificate is malformed, or was issued for another purpose.
    #[error("its certificate is invalid or was issued for another purpose")]
    Unusable,
    /// The peer rejects this node's certificate.
    #[error("it does not accept this node's certificate")]
    OfThisNode,
    /// The peer accepts the connection, but takes this node for a client.
    #[error(
        "it requires a certificate issued by its OSC_CLUSTER_CA_CERTS, which this node has not presented"
    )]
    NotANode,
    /// The other side does not use TLS.
    #[error("it does not use TLS")]
    NoTls,
}

impl PeerTlsError {
    /// Classifies the error of a connection; `None` if it has another cause.
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            Error::InvalidCertificate(error) => Some(match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                // A CA that was recreated under its previous name causes `BadSignature`.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::OtherName
                }
                _ => Self::Unusable,
            }),
            Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => Some(Self::OfThisNode),
            Error::InvalidMessage(_) => Some(Self::NoTls),
            _ => None,
        }
    }
}
