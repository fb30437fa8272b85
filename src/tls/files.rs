//! Certificate files: their paths, their contents, and the fingerprints that detect changes.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{CertificateFileError, FileProblem, FileRole};
use crate::limits::TLS_FILE_BYTES_MAX;

/// Files of the TLS configuration.
#[derive(Clone, Debug)]
pub struct Files {
    /// Certificate of this node and its key; `None` if it serves without TLS.
    pub own: Option<Own>,
    /// CA certificates for clients, one of which must have issued each client's certificate; `None` if clients need
    /// no certificate.
    pub clients: Option<PathBuf>,
    /// CA certificates for nodes, one of which must have issued each peer's certificate; `None` if peers need no
    /// node certificate.
    pub nodes: Option<PathBuf>,
    /// CA certificates for connections to peers; `None` if no peer uses TLS.
    pub peers: Option<Roots>,
    /// Whether peers have a dedicated listener.
    pub has_cluster_port: bool,
}

impl Files {
    /// Returns the configuration of a node without TLS.
    pub fn none() -> Self {
        Self { own: None, clients: None, nodes: None, peers: None, has_cluster_port: false }
    }
}

/// Certificate and its private key.
#[derive(Clone, Debug)]
pub struct Own {
    /// File of the certificate, followed by the intermediate certificates.
    pub certificate: PathBuf,
    /// File of the private key.
    pub key: PathBuf,
    /// Passphrase of the private key, if it is encrypted.
    pub password: Option<Password>,
}

/// Trusted CA certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// CA certificates that the system trusts.
    System,
    /// CA certificates in a file.
    File(PathBuf),
}

/// Passphrase, which is never shown.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Wraps a passphrase, which is wiped when it is dropped.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Fingerprint that changes when a file is replaced or modified. Symbolic links are followed: Kubernetes and certbot
/// replace files by changing links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<Option<[i64; 4]>>);

impl Files {
    /// Returns the fingerprint of all files.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let own = self.own.iter().flat_map(|own| [&own.certificate, &own.key]);
        let peers = self.peers.iter().filter_map(|roots| match roots {
            Roots::File(path) => Some(path),
            Roots::System => None,
        });
        let paths = own.chain(&self.clients).chain(&self.nodes).chain(peers);
        Fingerprint(paths.map(|path| file_fingerprint(path)).collect())
    }
}

#[expect(clippy::cast_possible_wrap, reason = "only compared")]
fn file_fingerprint(path: &Path) -> Option<[i64; 4]> {
    let metadata = path.metadata().ok()?;
    // The ctime cannot be set back, while `cp -p` does so with the mtime.
    Some([metadata.ino() as i64, metadata.size() as i64, metadata.ctime(), metadata.ctime_nsec()])
}

/// Reads a file into a buffer that is wiped when it is dropped: the file may contain a key.
pub(super) fn read(role: FileRole, path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFileError> {
    let unreadable = |error: std::io::Error| fault(role, path, FileProblem::Unreadable(error.to_string()));
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(fault(role, path, FileProblem::NotAFile));
    }
    if metadata.len() > TLS_FILE_BYTES_MAX {
        return Err(fault(role, path, FileProblem::TooLarge(TLS_FILE_BYTES_MAX)));
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

/// Returns the error of a file.
pub(super) fn fault(role: FileRole, path: &Path, problem: FileProblem) -> CertificateFileError {
    CertificateFileError { role, path: Some(path.display().to_string()), problem }
}
