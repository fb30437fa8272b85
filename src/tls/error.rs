//! What may be wrong with the files, told so that an operator knows what to do.

use std::fmt;

/// What a file or a text is for.
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
    /// The setting.
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

/// One file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFileError {
    /// What it is for.
    pub role: FileRole,
    /// The file, unless the fault is that of no file.
    pub path: Option<String>,
    /// What is wrong with it.
    pub problem: FileProblem,
}

/// What is wrong. Follows the file in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// The system refuses it.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A directory, a pipe.
    #[error("is no file")]
    NoFile,
    /// Not what it should be.
    #[error("is longer than {0} bytes, so it is another file")]
    TooLong(u64),
    /// There is none in it.
    #[error("holds no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// It is damaged.
    #[error("holds a certificate that cannot be read (allowed: X.509, version 3)")]
    Malformed,
    /// By the clock of this machine.
    #[error("holds a certificate that is valid only from {0} on")]
    NotYetValid(String),
    /// By the clock of this machine.
    #[error("holds a certificate that expired at {0}")]
    Expired(String),
    /// There is none in it.
    #[error("holds no private key (allowed: PEM, in PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    /// It is damaged, or of another kind.
    #[error(
        "holds a key that cannot be used (allowed: RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, Ed25519)"
    )]
    UnusableKey,
    /// It belongs to another certificate.
    #[error("holds a key that does not belong to the first certificate in OSC_SSL_CERTFILE")]
    Mismatch,
    /// The form of OpenSSL before PKCS#8, or an algorithm of long ago.
    #[error(
        "holds a key that is encrypted in an old form; `openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW` makes \
         one that is read"
    )]
    OldEncryption,
    /// No password is set.
    #[error("is empty, but the key in OSC_SSL_KEYFILE is encrypted")]
    NoPassword,
    /// The key is not opened by it.
    #[error("does not open the key in OSC_SSL_KEYFILE")]
    WrongPassword,
    /// Nothing to verify peers by.
    #[error(
        "is empty, and this system has no certificates of authorities either, by which peers could be verified"
    )]
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

/// Everything that is wrong; at least one. Displayed on one line, with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFileErrors(pub Vec<CertificateFileError>);

impl fmt::Display for CertificateFileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{}: {fault}", fault.role.variable())?;
        }
        Ok(())
    }
}

impl std::error::Error for CertificateFileErrors {}
