//! Errors of certificate files, with texts that tell an operator what to do.

use std::fmt;

/// Role of a file or of a passphrase: the setting that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// `OSC_SSL_CERTFILE`
    Certificate,
    /// `OSC_SSL_KEYFILE`
    Key,
    /// `OSC_SSL_KEYFILE_PASSWORD`
    Password,
    /// `OSC_SSL_CA_CERTS`
    Clients,
    /// `OSC_CLUSTER_CA_CERTS`
    Peers,
}

impl FileRole {
    /// Returns the name of the setting.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Certificate => "OSC_SSL_CERTFILE",
            Self::Key => "OSC_SSL_KEYFILE",
            Self::Password => "OSC_SSL_KEYFILE_PASSWORD",
            Self::Clients => "OSC_SSL_CA_CERTS",
            Self::Peers => "OSC_CLUSTER_CA_CERTS",
        }
    }
}

/// Error of one certificate file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFileError {
    /// Role of the file.
    pub role: FileRole,
    /// Path of the file; `None` for an error that does not concern a file.
    pub path: Option<String>,
    /// Cause of the error.
    pub problem: FileProblem,
}

/// Cause of the error of a file. The text follows the path in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The path is that of a directory or a pipe, for example.
    #[error("is not a regular file")]
    NotAFile,
    /// The file is too large; the limit in bytes.
    #[error("exceeds the {0}-byte limit for certificate files")]
    TooLarge(u64),
    /// The file contains no certificate.
    #[error("contains no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// A certificate is malformed.
    #[error("contains a certificate that cannot be parsed (allowed: X.509, version 3)")]
    Malformed,
    /// A certificate is not valid yet by the clock of this machine.
    #[error("contains a certificate that is not valid before {0}")]
    NotYetValid(String),
    /// A certificate has expired by the clock of this machine.
    #[error("contains a certificate that expired at {0}")]
    Expired(String),
    /// The file contains no private key.
    #[error("contains no private key (allowed: PEM, in PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    /// The private key is malformed, or of an unsupported kind.
    #[error(
        "contains an invalid or unsupported private key (allowed: RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, \
         Ed25519)"
    )]
    UnusableKey,
    /// The private key is that of another certificate.
    #[error("contains a private key that does not match the first certificate in OSC_SSL_CERTFILE")]
    Mismatch,
    /// The private key is in the encrypted format that OpenSSL used before PKCS#8, or uses an obsolete algorithm.
    #[error(
        "contains a private key in an obsolete encrypted format; convert it with \
         `openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW`"
    )]
    OldEncryption,
    /// The private key is encrypted, and no passphrase is set.
    #[error("is empty, but the key in OSC_SSL_KEYFILE is encrypted")]
    NoPassword,
    /// The passphrase is wrong.
    #[error("does not decrypt the key in OSC_SSL_KEYFILE")]
    WrongPassword,
    /// There are no CA certificates for peers.
    #[error("is empty, and the system has no CA certificates to verify peers with")]
    NoRoots,
}

impl fmt::Display for CertificateFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "\"{path}\" {}", self.problem),
            None => self.problem.fmt(f),
        }
    }
}

/// All errors of the certificate files; at least one. Displayed on one line, with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFileErrors(pub Vec<CertificateFileError>);

impl fmt::Display for CertificateFileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{}: {error}", error.role.variable())?;
        }
        Ok(())
    }
}

impl std::error::Error for CertificateFileErrors {}
