//! Verification of a database and its salt, in place or in a backup.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::DataFiles;
use super::error::MaintenanceError;
use super::manifest::{Checksum, DATABASE, Manifest, SALT};
use super::source::{self, Source};
use crate::limits::MALFORMED_TOKENS_NAMED_COUNT_MAX;
use crate::model::EntryId;
use crate::model::SealedEntry;
use crate::storage::error::OpenError;
use crate::storage::salt_store::SaltStore;
use crate::storage::sqlite::lock::DataLock;
use crate::storage::sqlite::schema::Generation;
use crate::storage::sqlite::{check, immutable, open, reader};

/// Database and salt, opened for verification.
pub struct Inspection {
    // Closed before the lock is released.
    connection: Connection,
    generation: Generation,
    _lock: Option<DataLock>,
    is_online: bool,
    database: PathBuf,
    salt_path: PathBuf,
    salt: Option<SaltStore>,
    manifest: Option<Manifest>,
    problems: Vec<String>,
}

/// Findings about the entries of a database.
#[derive(Debug, Default)]
pub struct Examined {
    /// Number of entries.
    pub entries_count: u64,
    /// Entries whose key is not text, so that no client can name them.
    pub unnamed_count: u64,
    /// Entries whose value is not a Fernet token, so that no user key opens them.
    pub malformed_count: u64,
    /// Names of the first malformed entries.
    pub malformed: Vec<EntryId>,
    /// Largest id; 0 without entries.
    pub last_id: i64,
}

/// Outcome of a verification.
#[derive(Debug)]
pub struct Verified {
    /// Database.
    pub database: PathBuf,
    /// Salt file.
    pub salt: PathBuf,
    /// Whether there is a salt.
    pub has_salt: bool,
    /// Generation of the schema, as in [`super::DatabaseRecord`].
    pub generation: &'static str,
    /// Whether a server has the database open.
    pub is_online: bool,
    /// Manifest; present for a backup.
    pub manifest: Option<Manifest>,
    /// Damage and contradictions, one sentence each. Empty for files that a server can use.
    pub problems: Vec<String>,
    /// Findings about the entries; `None` for a damaged database.
    pub examined: Option<Examined>,
}

impl Inspection {
    /// Opens the data files of a node, also while a server is running.
    ///
    /// # Errors
    /// Fails if the database cannot be read, or does not belong to this server.
    pub fn of_files(files: &DataFiles<'_>) -> Result<Self, MaintenanceError> {
        let source = Source::open(files.database)?;
        let is_online = source.is_online();
        let Source { connection, generation, lock } = source;
        let mut inspection = Self {
            connection,
            generation,
            _lock: lock,
            is_online,
            database: files.database.to_owned(),
            salt_path: files.salt.to_owned(),
            salt: None,
            manifest: None,
            problems: Vec::new(),
        };
        inspection.open_salt(files.accepted_salt);
        Ok(inspection)
    }

    /// Opens a backup and compares its files with the manifest.
    ///
    /// # Errors
    /// Fails if the directory is not a backup, or its files cannot be read or differ from the manifest.
    pub fn of_backup(directory: &Path, accepted_salt: Option<[u8; 32]>) -> Result<Self, MaintenanceError> {
        let manifest = Manifest::read(directory)?;
        let (database, salt_path) = (directory.join(DATABASE), directory.join(SALT));
        let mut differing = Vec::new();
        let mut compare = |path: &Path, bytes: u64, sha256: &str| {
            let found = Checksum::of(path)?;
            if (found.bytes, found.sha256.as_str()) != (bytes, sha256) {
                differing.push(format!(
                    "{} is not the file of the manifest: it has {} bytes and SHA-256 {} instead of {bytes} and {sha256}",
                    path.display(),
                    found.bytes,
                    found.sha256
                ));
            }
            Ok::<_, MaintenanceError>(())
        };
        compare(&database, manifest.database.bytes, &manifest.database.sha256)?;
        if let Some(record) = &manifest.salt {
            compare(&salt_path, record.bytes, &record.sha256)?;
        }
        if !differing.is_empty() {
            return Err(MaintenanceError::unverified(directory, &differing));
        }
        let has_salt = manifest.salt.is_some();
        let mut inspection = Self::of_copy(&database, &salt_path, has_salt, accepted_salt)?;
        inspection.manifest = Some(manifest);
        Ok(inspection)
    }

    /// Opens the files of a backup, which need not have a manifest yet.
    pub(super) fn of_copy(
        database: &Path,
        salt_path: &Path,
        has_salt: bool,
        accepted_salt: Option<[u8; 32]>,
    ) -> Result<Self, MaintenanceError> {
        open::read_header(database)?;
        let connection =
            immutable::connect(database).map_err(|error| MaintenanceError::sqlite(database, error))?;
        let generation = source::detect(&connection, database)?;
        let mut inspection = Self {
            connection,
            generation,
            _lock: None,
            is_online: false,
            database: database.to_owned(),
            salt_path: salt_path.to_owned(),
            salt: None,
            manifest: None,
            problems: Vec::new(),
        };
        if has_salt {
            inspection.open_salt(accepted_salt);
        }
        Ok(inspection)
    }

    fn open_salt(&mut self, accepted: Option<[u8; 32]>) {
        match SaltStore::open(&self.salt_path, accepted) {
            Ok(salt) => self.salt = Some(salt),
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    /// Returns the salt, if there is a proper one.
    pub fn salt(&self) -> Option<Arc<[u8]>> {
        self.salt.as_ref().and_then(SaltStore::current)
    }

    pub(super) fn salt_tag(&self) -> Option<i64> {
        self.salt.as_ref().and_then(SaltStore::tag)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    pub(super) fn is_current(&self) -> bool {
        self.generation == Generation::Ours
    }

    /// Checks the whole database, the salt and each token. Calls `visit` with each entry that has a key.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn run(mut self, visit: &mut dyn FnMut(&SealedEntry)) -> Result<Verified, MaintenanceError> {
        let examined = self.examine(visit)?;
        Ok(Verified {
            has_salt: self.salt().is_some(),
            database: self.database,
            salt: self.salt_path,
            generation: self.generation.name(),
            is_online: self.is_online,
            manifest: self.manifest,
            problems: self.problems,
            examined,
        })
    }

    pub(super) fn examine(
        &mut self,
        visit: &mut dyn FnMut(&SealedEntry),
    ) -> Result<Option<Examined>, MaintenanceError> {
        let path = self.database.clone();
        let sql = |source| MaintenanceError::sqlite(&path, source);
        if let Some(what) = check::whole(&self.connection).map_err(sql)? {
            self.problems.push(format!("{} is damaged ({what})", path.display()));
            return Ok(None);
        }
        if let Some(salt) = &self.salt
            && open::has_entries(&self.connection).map_err(sql)?
            && let Err(error) = open::check_salt(&self.connection, &path, salt, self.generation)
        {
            match error {
                OpenError::Unusable { .. } => self.problems.push(error.to_string()),
                other => return Err(other.into()),
            }
        }
        let examined = examine(&self.connection, self.generation, visit).map_err(sql)?;
        if let Some(manifest) = &self.manifest
            && manifest.database.entries != examined.entries_count
        {
            self.problems.push(format!(
                "{} has {} entries, the manifest says {}",
                path.display(),
                examined.entries_count,
                manifest.database.entries
            ));
        }
        if self.salt.is_none()
            && self.manifest.as_ref().is_some_and(|manifest| manifest.salt.is_none())
            && examined.entries_count > 0
        {
            self.problems.push(format!("{} has entries, but the backup has no salt", path.display()));
        }
        Ok(Some(examined))
    }
}

fn examine(
    connection: &Connection,
    generation: Generation,
    visit: &mut dyn FnMut(&SealedEntry),
) -> rusqlite::Result<Examined> {
    let columns = match generation {
        Generation::V20 => r#"id, "key", encrypted_value, category, NULL, NULL, NULL"#,
        _ => reader::COLUMNS,
    };
    let mut statement = connection.prepare(&format!("SELECT {columns} FROM configurations ORDER BY id"))?;
    let mut rows = statement.query([])?;
    let mut examined = Examined::default();
    while let Some(row) = rows.next()? {
        examined.entries_count += 1;
        examined.last_id = examined.last_id.max(row.get(0)?);
        let Some(row) = reader::parse_row(row).map_err(crate::storage::sqlite::error::into_rusqlite)? else {
            examined.unnamed_count += 1;
            continue;
        };
        if !row.ciphertext.as_ref().is_some_and(crate::model::Ciphertext::is_token) {
            examined.malformed_count += 1;
            if examined.malformed.len() < MALFORMED_TOKENS_NAMED_COUNT_MAX {
                examined.malformed.push(row.entry_id());
            }
        }
        visit(&row);
    }
    Ok(examined)
}
