//! Reserve of disk space for deletions.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FallocateFlags, fallocate};

use crate::limits::{RESERVE_BYTES, RESERVE_FREE_PART, RESERVE_RETRY_INTERVAL};
use crate::storage::disk_space::available_bytes;
use crate::storage::paths::sibling;

/// File that reserves disk space beside the database, and releases it for a deletion when the disk is full.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    was_released: bool,
    /// Time when creating the file last failed although there seemed to be space. It is not retried every second.
    failed: Option<Instant>,
}

impl Reserve {
    /// Returns the reserve of a database. Its file may not exist yet.
    pub(super) fn of(database: &Path) -> Self {
        Self { path: sibling(database, "-reserve"), was_released: false, failed: None }
    }

    /// Creates the file if there is space for it, and returns whether it exists.
    pub(super) fn keep(&mut self) -> bool {
        if fs::metadata(&self.path).is_ok_and(|found| found.len() >= RESERVE_BYTES) {
            return true;
        }
        // The reserve must not fill up a small disk.
        let parts = if self.was_released { 1 } else { RESERVE_FREE_PART };
        let has_just_failed = self.failed.is_some_and(|failed| failed.elapsed() < RESERVE_RETRY_INTERVAL);
        if has_just_failed || available_bytes(&self.path) / parts < RESERVE_BYTES {
            return false;
        }
        let created = create(&self.path);
        if created.is_err() {
            // A partial file would take the space of the next write.
            fs::remove_file(&self.path).ok();
            self.failed = Some(Instant::now());
        }
        created.is_ok()
    }

    /// Deletes the file.
    pub(super) fn give_up(&mut self) {
        self.was_released |= fs::remove_file(&self.path).is_ok();
    }
}

fn create(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
}
