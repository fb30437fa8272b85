//! Detection of open files that were removed or replaced. Such a file accepts every write, and loses it when the
//! process exits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::in_place::Content;
use super::lock::DataLock;
use crate::storage::paths::{resolved, sibling};
use crate::storage::salt_store::SaltStore;

/// Open files, identified by device and inode: a file may have many names, and a name may refer to many files in turn.
#[derive(Debug)]
pub(super) struct Identity {
    files: [OpenFile; 3],
    content: Content,
    salt: Arc<SaltStore>,
}

#[derive(Debug)]
struct OpenFile {
    name: &'static str,
    path: PathBuf,
    /// `None` if it could not be determined when the file was opened.
    inode: Option<Inode>,
}

/// Change of a file that rules out writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileChange {
    /// Description with a remedy.
    pub(super) text: String,
    /// Whether uncached reads may return a mixture of two files.
    pub(super) affects_reads: bool,
}

/// Device and inode.
pub(super) type Inode = (u64, u64);

impl Identity {
    /// Records the files of a database that was just opened by this path, and its lock file.
    pub(super) fn new(database: &Path, lock: &DataLock, salt: Arc<SaltStore>) -> Self {
        let wal = sibling(&resolved(database), "-wal");
        let file = |name, path: PathBuf| OpenFile { name, inode: inode(&path), path };
        let files = [
            file("the database file", database.to_owned()),
            file("the -wal file", wal.clone()),
            file("the lock file", lock.path().to_owned()),
        ];
        Self { files, content: Content::new(lock.database(), lock.index(), wal), salt }
    }

    /// Records the database file after a checkpoint of this server, complete or not.
    pub(super) fn note_checkpoint(&mut self) {
        self.content.note_checkpoint();
    }

    /// Returns the first file that was removed, replaced or overwritten since it was opened, with a description.
    pub(super) fn fault(&mut self) -> Option<FileChange> {
        let displaced =
            self.files.iter().find(|file| file.inode.is_some() && inode(&file.path) != file.inode);
        let name = match displaced {
            Some(file) => file.name,
            None if !self.salt.is_in_place() => "the salt file",
            None => {
                return self.content.fault().map(|name| FileChange {
                    text: format!(
                        "{name} was overwritten or truncated while the server runs: stop the server, and restore a \
                         backup by `opensecureconf restore`"
                    ),
                    affects_reads: true,
                });
            }
        };
        let text = format!(
            "{name} was removed or replaced while the server runs: put it back, or restart the server"
        );
        Some(FileChange { text, affects_reads: false })
    }
}

/// Returns the device and inode of the file at a path.
pub(super) fn inode(path: &Path) -> Option<Inode> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
