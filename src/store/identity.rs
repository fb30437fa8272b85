//! Whether the paths of the open files still lead to them. A file that was removed or replaced takes every write, and
//! loses it with the process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::in_place::Content;
use super::lock::DataLock;
use super::open::{resolved, sibling};
use super::salt_file::SaltFile;

/// The open files, by device and inode: a path may have many names, and a name many files.
#[derive(Debug)]
pub(super) struct Identity {
    files: [OpenFile; 3],
    content: Content,
    salt: Arc<SaltFile>,
}

#[derive(Debug)]
struct OpenFile {
    name: &'static str,
    path: PathBuf,
    /// `None` if it could not be looked at when it was opened.
    inode: Option<Inode>,
}

/// Why nothing must be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileChange {
    /// With a remedy.
    pub(super) text: String,
    /// What is not in a cache may be read from a mixture of two files.
    pub(super) spoils_reads: bool,
}

/// Device and inode.
pub(super) type Inode = (u64, u64);

impl Identity {
    /// Of a database that has just been opened by this path, and the lock on it.
    pub(super) fn new(database: &Path, lock: &DataLock, salt: Arc<SaltFile>) -> Self {
        let wal = sibling(&resolved(database), "-wal");
        let file = |name, path: PathBuf| OpenFile { name, inode: inode(&path), path };
        let files = [
            file("the database file", database.to_owned()),
            file("the -wal file", wal.clone()),
            file("the lock file", lock.path().to_owned()),
        ];
        Self { files, content: Content::new(lock.database(), lock.index(), wal), salt }
    }

    /// After a checkpoint of this server, complete or not.
    pub(super) fn note_checkpoint(&mut self) {
        self.content.note_checkpoint();
    }

    /// The first file that is another one than it was opened as, or has other content, in words.
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
                    spoils_reads: true,
                });
            }
        };
        let text = format!(
            "{name} was removed or replaced while the server runs: put it back, or restart the server"
        );
        Some(FileChange { text, spoils_reads: false })
    }
}

/// Of the file that a path leads to.
pub(super) fn inode(path: &Path) -> Option<Inode> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
