//! Why one side does not trust the other, read from how a connection failed.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Why there is no connection to a node that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerTlsError {
    /// By the clock of this machine.
    #[error("its certificate has expired")]
    Expired,
    /// By the clock of this machine.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// None of those in `OSC_CLUSTER_CA_CERTS`.
    #[error("its certificate is of an authority that is not trusted here")]
    UnknownAuthority,
    /// Not that in `OSC_CLUSTER_NODES`.
    #[error("its certificate is for another name than the one it is known by here")]
    OtherName,
    /// For another purpose, or wrong in itself.
    #[error("its certificate cannot be used")]
    Unusable,
    /// The other way round.
    #[error("it does not accept this node's certificate")]
    OfThisNode,
    /// The other way round, on a connection that is there: it takes this node for a client.
    #[error(
        "it requires a certificate issued by its OSC_CLUSTER_CA_CERTS, which this node has not presented"
    )]
    NotANode,
    /// What answers is no TLS.
    #[error("it does not speak TLS")]
    NoTls,
}

impl PeerTlsError {
    /// `None` when the connection failed for another reason.
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            Error::InvalidCertificate(error) => Some(match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                // The latter is an authority that was made anew under its old name.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
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
