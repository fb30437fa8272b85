//! Creation of a backup: a snapshot of the database, its salt, and a manifest.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::DataFiles;
use super::error::MaintenanceError;
use super::inspect::{Examined, Inspection};
use super::manifest::{
    Checksum, DATABASE, DatabaseRecord, MANIFEST, Manifest, SALT, SaltRecord, hex, write_new,
};
use super::source::Source;
use crate::model::{ReplicaId, Timestamp};
use crate::storage::salt_store::SaltStore;
use crate::storage::sqlite::open;
use crate::storage::sqlite::schema::{self, Generation};

/// A finished and verified backup.
#[derive(Debug)]
pub struct Backup {
    /// Manifest.
    pub manifest: Manifest,
    /// Findings about the entries.
    pub examined: Examined,
}

/// Backs up the data files into `directory`, also while a server is running. The directory must be empty or not exist;
/// a failed backup leaves nothing in it.
///
/// # Errors
/// Fails if the data files cannot be used, or the copy cannot be written or fails verification.
pub fn back_up(
    files: &DataFiles<'_>,
    directory: &Path,
    server_version: &str,
) -> Result<Backup, MaintenanceError> {
    let started_at = Timestamp::now().to_string();
    require_empty(directory)?;
    let source = Source::open(files.database)?;
    let is_new = !directory.exists();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| MaintenanceError::access("create the directory", directory, error))?;
    let result = fill(files, &source, directory, server_version, started_at);
    if result.is_err() {
        for name in [MANIFEST, DATABASE, SALT] {
            fs::remove_file(directory.join(name)).ok();
        }
        if is_new {
            fs::remove_dir(directory).ok();
        }
    }
    result
}

fn require_empty(directory: &Path) -> Result<(), MaintenanceError> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(MaintenanceError::Exists(directory.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(MaintenanceError::Exists(directory.to_owned()))
        }
        Err(error) => Err(MaintenanceError::access("read", directory, error)),
    }
}

fn fill(
    files: &DataFiles<'_>,
    source: &Source,
    directory: &Path,
    server_version: &str,
    started_at: String,
) -> Result<Backup, MaintenanceError> {
    let (database, salt_copy) = (directory.join(DATABASE), directory.join(SALT));
    open::copy_to(&source.connection, &database)?;
    if source.generation == Generation::Ours {
        detach(&database)?;
    }
    // The salt is read after the snapshot, because the salt of a database with entries no longer changes.
    let salt = SaltStore::open(files.salt, files.accepted_salt)?;
    if let Some(bytes) = salt.current() {
        write_new(&salt_copy, &bytes)
            .map_err(|error| MaintenanceError::access("write", &salt_copy, error))?;
    }
    let has_salt = salt.current().is_some();
    let mut inspection = Inspection::of_copy(&database, &salt_copy, has_salt, files.accepted_salt)?;
    let examined = inspection.examine(&mut |_| {})?;
    let problems = inspection.take_problems();
    let checksum = Checksum::of(&database)?;
    let record = DatabaseRecord {
        bytes: checksum.bytes,
        sha256: checksum.sha256,
        generation: source.generation.name().to_owned(),
        entries: examined.as_ref().map_or(0, |examined| examined.entries_count),
        last_id: examined.as_ref().map_or(0, |examined| examined.last_id),
    };
    let examined = match (problems.into_iter().next(), examined) {
        (None, Some(examined)) if has_salt || examined.entries_count == 0 => examined,
        (None, _) => {
            return Err(MaintenanceError::Invalid {
                path: files.salt.to_owned(),
                what: format!("is missing, but {} has entries", files.database.display()),
                remedy: "restore the salt file from another backup or from another node, or set OSC_SALT_FILE_PATH to \
                         its path; no backup was made",
            });
        }
        (Some(problem), _) => {
            return Err(MaintenanceError::Invalid {
                path: files.database.to_owned(),
                what: format!("was copied, and its copy failed verification: {problem}"),
                remedy: "see `opensecureconf verify`; no backup was made",
            });
        }
    };
    let mut manifest = Manifest::new(server_version, started_at, record);
    manifest.online = source.is_online();
    manifest.node = node(&inspection).map_err(|error| MaintenanceError::sqlite(&database, error))?;
    if has_salt {
        let checksum = Checksum::of(&salt_copy)?;
        let tag = inspection.salt_tag().map(|tag| hex(&tag.to_be_bytes()));
        manifest.salt = Some(SaltRecord { bytes: checksum.bytes, sha256: checksum.sha256, tag });
    }
    manifest.finished_at = Timestamp::now().to_string();
    manifest.write(directory)?;
    Ok(Backup { manifest, examined })
}

fn node(inspection: &Inspection) -> rusqlite::Result<Option<String>> {
    if !inspection.is_current() {
        return Ok(None);
    }
    let number = schema::meta(inspection.connection(), "node")?;
    Ok(number.map(|number| ReplicaId::from_database(number).to_string()))
}

/// Gives the copy a random cycle number that matches no WAL: a server refuses the copy beside the WAL of another
/// database instead of replaying it.
fn detach(copy: &Path) -> Result<(), MaintenanceError> {
    let mut random = [0; 4];
    getrandom::fill(&mut random)
        .map_err(|error| MaintenanceError::access("get random bytes for", copy, io::Error::other(error)))?;
    // Above the numbers that counting reaches, and low enough that counting can continue.
    let cycle = i32::from_le_bytes(random) & 0x3FFF_FFFF | 0x0100_0000;
    let write = || {
        let mut connection = Connection::open(copy)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.pragma_update(None, "user_version", cycle)?;
        // The base is the previous cycle, as after a checkpoint.
        schema::set_meta(&transaction, "wal_base", i64::from(cycle) - 1)?;
        transaction.commit()
    };
    write().map_err(|error| MaintenanceError::sqlite(copy, error))?;
    fs::File::open(copy)
        .and_then(|file| file.sync_all())
        .map_err(|error| MaintenanceError::access("sync", copy, error))
}
