//! Restore of a backup: the new files are staged beside the present ones, which are then renamed.
//!
//! A marker file exists during the renames. While it exists, no server starts, and the next restore first undoes the
//! interrupted one. A crash therefore never leads to a mixture of two states being served.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::process::geteuid;

use super::DataFiles;
use super::error::MaintenanceError;
use super::inspect::{Examined, Inspection};
use super::manifest::{Checksum, DATABASE, Manifest, SALT, write_new};
use super::source::{self, Source};
use super::unfinished::MARKER;
use crate::limits::RESTORE_MARKER_BYTES_MAX;
use crate::model::Timestamp;
use crate::storage::paths::{directory_of, resolved, sibling};
use crate::storage::sqlite::lock::DataLock;
use crate::storage::sqlite::open;
use crate::storage::sqlite::schema::Generation;
use crate::storage::sqlite::{check, make_directory};
use crate::storage::sync::sync_directory;

/// Suffix of staged files.
const STAGED: &str = ".restored-unfinished";

/// Outcome of a restore or of a trial.
#[derive(Debug)]
pub struct Restored {
    /// Manifest of the backup.
    pub manifest: Manifest,
    /// Findings about the entries of the backup.
    pub examined: Examined,
    /// Path of the restored database.
    pub database: PathBuf,
    /// Path of the restored salt file; `None` for a backup without a salt.
    pub salt: Option<PathBuf>,
    /// New paths of the previous files.
    pub kept: Vec<PathBuf>,
}

/// Replaces the database and the salt by those of a verified backup. The present files are kept under other names. With
/// `is_trial`, only the checks are made.
///
/// # Errors
/// Fails if a server is running, the backup fails verification, or a file cannot be written. The files are then
/// unchanged.
pub fn restore(
    files: &DataFiles<'_>,
    directory: &Path,
    is_trial: bool,
) -> Result<Restored, MaintenanceError> {
    let verified = Inspection::of_backup(directory, files.accepted_salt)?.run(&mut |_| {})?;
    let (Some(examined), Some(manifest)) = (verified.examined, verified.manifest) else {
        return Err(MaintenanceError::unverified(directory, &verified.problems));
    };
    if !verified.problems.is_empty() {
        return Err(MaintenanceError::unverified(directory, &verified.problems));
    }
    // Links are followed, so that the file is replaced and not the link.
    let target = |path| std::path::absolute(resolved(path)).unwrap_or_else(|_| resolved(path));
    let (database, salt) = (target(files.database), target(files.salt));
    let has_directory = directory_of(&database).exists();
    if !is_trial {
        make_directory(&database)?;
        make_directory(&salt)?;
    }
    let _lock = match has_directory || !is_trial {
        true => Some(DataLock::acquire(&database)?),
        false => None,
    };
    let mut plan = Plan::new(&database, &salt);
    plan.is_salt_replaced = match &manifest.salt {
        Some(record) => !is_same(&salt, &record.sha256),
        None => false,
    };
    let restored_salt = manifest.salt.is_some().then(|| salt.clone());
    if is_trial {
        let kept = plan.to_keep().map(|(_, kept)| kept).collect();
        return Ok(Restored { manifest, examined, database, salt: restored_salt, kept });
    }
    undo_unfinished(&database, &salt)?;
    plan.choose_suffix();
    let kept = plan.carry_out(directory, &manifest)?;
    source::leave_to_owner(&database)?;
    check::clear_mark(&database)?;
    Ok(Restored { manifest, examined, database, salt: restored_salt, kept })
}

fn is_same(path: &Path, sha256: &str) -> bool {
    Checksum::of(path).is_ok_and(|found| found.sha256 == sha256)
}

/// Plan of a restore: the files to rename, and their new names.
struct Plan<'a> {
    database: &'a Path,
    salt: &'a Path,
    is_salt_replaced: bool,
    suffix: String,
}

impl<'a> Plan<'a> {
    fn new(database: &'a Path, salt: &'a Path) -> Self {
        let mut plan = Self { database, salt, is_salt_replaced: true, suffix: String::new() };
        plan.choose_suffix();
        plan
    }

    /// Chooses a suffix that no kept file has yet.
    fn choose_suffix(&mut self) {
        let now = Timestamp::now().to_string();
        let digits: String = now.chars().filter(char::is_ascii_digit).take(14).collect();
        let base = format!(".before-restore-{digits}");
        self.suffix = (1..)
            .map(|number| if number == 1 { base.clone() } else { format!("{base}.{number}") })
            .find(|suffix| self.pairs_with(suffix).iter().all(|(_, kept)| !kept.exists()))
            .expect("one of infinitely many names is free");
    }

    /// Returns the present and the kept paths for a suffix. The names of the database and its log keep matching, so
    /// that SQLite finds the log of the kept database.
    fn pairs_with(&self, suffix: &str) -> Vec<(PathBuf, PathBuf)> {
        let kept = sibling(self.database, suffix);
        let mut pairs = vec![(self.database.to_owned(), kept.clone())];
        for log in ["-wal", "-journal"] {
            pairs.push((sibling(self.database, log), sibling(&kept, log)));
        }
        if self.is_salt_replaced {
            pairs.push((self.salt.to_owned(), sibling(self.salt, suffix)));
        }
        pairs
    }

    /// Returns the files to keep, which have content. An empty database or log is replaced or removed.
    fn to_keep(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        self.pairs_with(&self.suffix).into_iter().filter(|(present, _)| open::has_content(present))
    }

    fn carry_out(&self, backup: &Path, manifest: &Manifest) -> Result<Vec<PathBuf>, MaintenanceError> {
        let staged = self.stage(backup, manifest);
        let renamed = staged.and_then(|()| self.rename_all());
        if renamed.is_err() {
            for path in [self.database, self.salt] {
                fs::remove_file(sibling(path, STAGED)).ok();
            }
        }
        renamed
    }

    fn stage(&self, backup: &Path, manifest: &Manifest) -> Result<(), MaintenanceError> {
        let record = &manifest.database;
        stage(&backup.join(DATABASE), self.database, self.database, &record.sha256)?;
        if record.generation == Generation::Ours.name() {
            retire_ids(self.database)?;
        }
        if let Some(record) = manifest.salt.as_ref().filter(|_| self.is_salt_replaced) {
            stage(&backup.join(SALT), self.salt, self.database, &record.sha256)?;
        }
        Ok(())
    }

    fn rename_all(&self) -> Result<Vec<PathBuf>, MaintenanceError> {
        let marker = sibling(self.database, MARKER);
        let marked = write_new(&marker, self.suffix.as_bytes())
            .map_err(|error| MaintenanceError::access("write", &marker, error))
            .and_then(|()| Ok(sync_directory(&marker)?));
        let renamed = match marked {
            Ok(()) => self.swap(),
            Err(error) => {
                remove(&marker)?;
                return Err(error);
            }
        };
        match renamed {
            Ok(kept) => {
                remove(&marker)?;
                sync_directory(&marker)?;
                Ok(kept)
            }
            Err(error) => {
                undo_unfinished(self.database, self.salt)?;
                Err(error)
            }
        }
    }

    fn swap(&self) -> Result<Vec<PathBuf>, MaintenanceError> {
        let mut all_kept = Vec::new();
        for (present, kept) in self.to_keep() {
            rename(&present, &kept)?;
            all_kept.push(kept);
        }
        // Empty logs, and the wal-index, which SQLite recreates when needed.
        for log in ["-wal", "-journal", "-shm"] {
            remove(&sibling(self.database, log))?;
        }
        rename(&sibling(self.database, STAGED), self.database)?;
        if self.is_salt_replaced {
            rename(&sibling(self.salt, STAGED), self.salt)?;
        }
        sync_directory(self.database)?;
        sync_directory(self.salt)?;
        Ok(all_kept)
    }
}

/// Undoes an interrupted restore, by renaming the previous files back.
fn undo_unfinished(database: &Path, salt: &Path) -> Result<(), MaintenanceError> {
    let marker = sibling(database, MARKER);
    let suffix = match fs::read_to_string(&marker) {
        Ok(suffix) => suffix,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(MaintenanceError::access("read", &marker, error)),
    };
    // A truncated marker means that nothing was renamed yet.
    let is_whole = suffix.starts_with(".before-restore-") && suffix.len() <= RESTORE_MARKER_BYTES_MAX;
    let plan = Plan { database, salt, is_salt_replaced: true, suffix };
    if is_whole {
        for (present, kept) in plan.pairs_with(&plan.suffix) {
            if fs::symlink_metadata(&kept).is_ok() {
                rename(&kept, &present)?;
            }
        }
    }
    for path in [database, salt] {
        remove(&sibling(path, STAGED))?;
        sync_directory(path)?;
    }
    remove(&marker)?;
    Ok(sync_directory(&marker)?)
}

/// Records the greatest id of the present database in the staged one, so that no id is reused. A present database that
/// cannot be read, perhaps the reason for the restore, is skipped.
fn retire_ids(database: &Path) -> Result<(), MaintenanceError> {
    let present = Source::open_locked(database).ok().and_then(|present| present.last_id().ok());
    let Some(last_id) = present else { return Ok(()) };
    let staged = sibling(database, STAGED);
    Connection::open(&staged)
        .and_then(|connection| source::retire_ids(&connection, last_id))
        .map_err(|error| MaintenanceError::sqlite(&staged, error))?;
    File::open(&staged)
        .and_then(|file| file.sync_all())
        .map_err(|error| MaintenanceError::access("sync", &staged, error))
}

/// Copies a file of a backup to the staged name of `target`, with the permissions of the replaced file, or mode 0600 if
/// there is none.
fn stage(from: &Path, target: &Path, database: &Path, sha256: &str) -> Result<(), MaintenanceError> {
    let staged = sibling(target, STAGED);
    remove(&staged)?;
    let access = |error| MaintenanceError::access("write", &staged, error);
    let source = File::open(from).map_err(|error| MaintenanceError::access("read", from, error))?;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged).map_err(access)?;
    let copied = Checksum::copy(source, &mut file).map_err(access)?;
    if copied.sha256 != sha256 {
        return Err(MaintenanceError::unverified(from, &["it changed during the restore".to_owned()]));
    }
    let replaced = fs::metadata(target).ok();
    let mode = replaced.as_ref().map_or(0o600, |found| found.permissions().mode() & 0o777);
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(access)?;
    if let Some(owner) = owner_of(replaced, database) {
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid())).map_err(access)?;
    }
    file.sync_all().map_err(access)
}

/// Returns the metadata whose owner a staged file gets, if root restores: the files must belong to the server's user.
fn owner_of(replaced: Option<Metadata>, database: &Path) -> Option<Metadata> {
    if !geteuid().is_root() {
        return None;
    }
    replaced.or_else(|| fs::metadata(database).ok()).or_else(|| fs::metadata(directory_of(database)).ok())
}

fn rename(from: &Path, to: &Path) -> Result<(), MaintenanceError> {
    fs::rename(from, to).map_err(|error| MaintenanceError::access("rename", from, error))
}

fn remove(path: &Path) -> Result<(), MaintenanceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(MaintenanceError::access("remove", path, error))
        }
        _ => Ok(()),
    }
}
