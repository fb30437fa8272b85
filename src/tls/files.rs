//! Which files there are, their bytes, and how to see that they have changed.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{CertificateFileError, FileProblem, FileRole};
use crate::limits::TLS_FILE_BYTES_MAX;

/// What TLS is made of.
#[derive(Clone, Debug)]
pub struct Files {
    /// What this node shows; `None` when it serves without TLS.
    pub own: Option<Own>,
    /// Authorities whose certificates clients must have; `None` asks them for none.
    pub clients: Option<PathBuf>,
    /// CAs of the nodes' certificates, one of which each peer must present; `None` asks peers for none.
    pub nodes: Option<PathBuf>,
    /// By what peers are verified; `None` when none has TLS.
    pub peers: Option<Roots>,
    /// Whether peers have a dedicated listener.
    pub has_cluster_port: bool,
}

impl Files {
    /// Those of a node without any TLS.
    pub fn none() -> Self {
        Self { own: None, clients: None, nodes: None, peers: None, has_cluster_port: false }
    }
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Own {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// What opens the key, if it is encrypted.
    pub password: Option<Password>,
}

/// Authorities that are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// Those in a file.
    File(PathBuf),
}

/// A password, which is never shown.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes it over.
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

/// Differs when a file is another one than before, or was written. Behind symbolic links, which is how
/// Kubernetes and certbot change files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<Option<[i64; 4]>>);

impl Files {
    pub(super) fn stamp(&self) -> Fingerprint {
        let own = self.own.iter().flat_map(|own| [&own.certificate, &own.key]);
        let peers = self.peers.iter().filter_map(|roots| match roots {
            Roots::File(path) => Some(path),
            Roots::System => None,
        });
        Fingerprint(
            own.chain(&self.clients).chain(&self.nodes).chain(peers).map(|path| stamp(path)).collect(),
        )
    }
}

#[expect(clippy::cast_possible_wrap, reason = "only compared")]
fn stamp(path: &Path) -> Option<[i64; 4]> {
    let found = path.metadata().ok()?;
    // The time of the last change of the inode cannot be set back, as `cp -p` does with the other one.
    Some([found.ino() as i64, found.size() as i64, found.ctime(), found.ctime_nsec()])
}

/// The bytes of a file, which are wiped: it may hold a key.
pub(super) fn read(role: FileRole, path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFileError> {
    let unreadable = |error: std::io::Error| fault(role, path, FileProblem::Unreadable(error.to_string()));
    let found = fs::metadata(path).map_err(unreadable)?;
    if !found.is_file() {
        return Err(fault(role, path, FileProblem::NoFile));
    }
    if found.len() > TLS_FILE_BYTES_MAX {
        return Err(fault(role, path, FileProblem::TooLong(TLS_FILE_BYTES_MAX)));
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

pub(super) fn fault(role: FileRole, path: &Path, problem: FileProblem) -> CertificateFileError {
    CertificateFileError { role, path: Some(path.display().to_string()), problem }
}
