//! Backup, restore, verification and migration of the data files, each in a separate process.
//!
//! A backup is a directory with a database, its salt and a manifest. See `docs/decisions/0025-backups.md`.

mod backup;
mod error;
mod inspect;
mod manifest;
mod migrate;
mod restore;
mod source;
mod unfinished;

use std::path::Path;

pub use backup::{Backup, back_up};
pub use error::{MaintenanceError, MaintenanceErrorKind};
pub use inspect::{Examined, Inspection, Verified};
pub use manifest::{DatabaseRecord, Manifest, SaltRecord};
pub use migrate::{Migration, migrate};
pub use restore::{Restored, restore};
pub(super) use unfinished::refuse_unfinished;

/// The data files of a node.
#[derive(Clone, Copy, Debug)]
pub struct DataFiles<'a> {
    /// Database.
    pub database: &'a Path,
    /// Salt file.
    pub salt: &'a Path,
    /// SHA-256 of a salt that the operator accepts although it would be refused.
    pub accepted_salt: Option<[u8; 32]>,
}
