//! Manifest of a backup: its files and their checksums.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::MaintenanceError;
use crate::limits::{BACKUP_BUFFER_BYTES, MANIFEST_BYTES_MAX};
use crate::storage::sync::sync_directory;

/// Name of the manifest in a backup.
pub(super) const MANIFEST: &str = "manifest.json";
/// Name of the database in a backup.
pub(super) const DATABASE: &str = "configurations.db";
/// Name of the salt file in a backup.
pub(super) const SALT: &str = "encryption.salt";

/// Version of the manifest format; a larger one was written by a later release.
const FORMAT: u32 = 1;

/// Manifest of a backup. It is written last, so a directory without a manifest is not a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// Version of the server that wrote the backup.
    pub server_version: String,
    /// Start of the backup, RFC 3339. The backup contains all writes acknowledged by then.
    pub started_at: String,
    /// End of the backup, RFC 3339.
    pub finished_at: String,
    /// Whether a server had the database open.
    pub online: bool,
    /// Replica ID of the node, if it is or was in a cluster.
    pub node: Option<String>,
    /// Database.
    pub database: DatabaseRecord,
    /// Salt; absent if the node had none, and therefore no entries.
    pub salt: Option<SaltRecord>,
}

/// Database in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Generation of the schema: `current`, or that of the Python server (`2.0`, `2.3`, `3.x`).
    pub generation: String,
    /// Number of entries.
    pub entries: u64,
    /// Largest id of an entry; 0 without entries.
    pub last_id: i64,
}

/// Salt in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaltRecord {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Tag by which the database recognises its salt, in hexadecimal; absent for a salt too short to have one.
    pub tag: Option<String>,
}

impl Manifest {
    pub(super) fn new(server_version: &str, started_at: String, database: DatabaseRecord) -> Self {
        Self {
            format: FORMAT,
            server_version: server_version.to_owned(),
            finished_at: started_at.clone(),
            started_at,
            online: false,
            node: None,
            database,
            salt: None,
        }
    }

    /// Reads the manifest of a backup.
    ///
    /// # Errors
    /// Fails if the directory is not a backup, or was written by a later release.
    pub(super) fn read(directory: &Path) -> Result<Self, MaintenanceError> {
        let path = directory.join(MANIFEST);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let remedy = "name the directory of a backup that `opensecureconf backup` has finished";
                return Err(MaintenanceError::Missing { path, remedy });
            }
            Err(error) => return Err(MaintenanceError::access("read", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| MaintenanceError::access("read", &path, error))?;
        let invalid = |what| MaintenanceError::Invalid {
            path: path.clone(),
            what,
            remedy: "use another backup, or a release that supports this one",
        };
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|error| invalid(format!("is not the manifest of a backup ({error})")))?;
        if manifest.format > FORMAT {
            return Err(invalid(format!(
                "was written by a later release (format {}, supported: {FORMAT})",
                manifest.format
            )));
        }
        Ok(manifest)
    }

    /// Writes the manifest, completely or not at all.
    pub(super) fn write(&self, directory: &Path) -> Result<(), MaintenanceError> {
        let (path, unfinished) = (directory.join(MANIFEST), directory.join(".manifest.json.unfinished"));
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest is always serialisable");
        bytes.push(b'\n');
        let written = write_new(&unfinished, &bytes).and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|error| MaintenanceError::access("write", &path, error))?;
        Ok(sync_directory(&path)?)
    }
}

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checksum {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Checksum {
    pub(super) fn of(path: &Path) -> Result<Self, MaintenanceError> {
        let missing = |remedy| MaintenanceError::Missing { path: PathBuf::from(path), remedy };
        match File::open(path) {
            Ok(file) => Self::copy(file, &mut io::sink()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(missing("the backup is incomplete; use another one"));
            }
            Err(error) => Err(error),
        }
        .map_err(|error| MaintenanceError::access("read", path, error))
    }

    /// Copies a file and returns the checksum of the copied bytes.
    pub(super) fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<Self> {
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; BACKUP_BUFFER_BYTES]);
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hash.update(&buffer[..count]);
            to.write_all(&buffer[..count])?;
            bytes += count as u64;
        }
        Ok(Self { bytes, sha256: hex(&hash.finalize()) })
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
