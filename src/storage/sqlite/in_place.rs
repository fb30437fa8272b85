//! Detection of open files that another program has overwritten or truncated, as by `cp backup.db configurations.db`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use crate::limits::WAL_COMPARISON_ATTEMPTS_COUNT;
use crate::storage::paths::{HEADER_BYTES, MAGIC};

/// Offsets of header fields: <https://sqlite.org/fileformat2.html#the_database_header>
const PAGE_BYTES_AT: usize = 16;
const WRITE_VERSION_AT: usize = 18;
const WAL_MODE: u8 = 2;
const PAGES_COUNT_AT: usize = 28;
const CYCLE_AT: usize = 60;
/// Size of one of the two copies of the wal-index header: <https://sqlite.org/walformat.html>
const INDEX_HEADER_BYTES: usize = 48;
const WAL_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// Detector of content that neither this process nor SQLite has written to the files.
///
/// Only a checkpoint changes the database file. A checkpoint by another program is allowed: it keeps the number of the
/// checkpoint cycle that this server is in. A copy from another cycle has another number; a copy from the same cycle
/// holds the pages that the WAL is based on. The WAL must contain the frames that its index names.
#[derive(Debug)]
pub(super) struct Content {
    /// Closing any file descriptor of the database or the index would drop the locks of SQLite, so both live as long as
    /// the store.
    database: Arc<File>,
    index: Option<Arc<File>>,
    wal: PathBuf,
    seen: Option<DatabaseSeen>,
}

/// Header and size of the database file at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DatabaseSeen {
    header: [u8; HEADER_BYTES],
    bytes: u64,
}

/// Frames of the WAL according to its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frames {
    count: u32,
    page_bytes: u32,
    salt: [u8; 8],
}

impl DatabaseSeen {
    fn read(file: &File) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        Ok(Self { header, bytes: file.metadata()?.size() })
    }

    fn field(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.header[at], self.header[at + 1], self.header[at + 2], self.header[at + 3]])
    }

    fn cycle(&self) -> u32 {
        self.field(CYCLE_AT)
    }

    /// Returns whether the file is in WAL mode. Copies made by SQLite (`VACUUM INTO`, `.backup`) are not.
    fn is_in_wal_mode(&self) -> bool {
        self.header.starts_with(MAGIC) && self.header[WRITE_VERSION_AT] == WAL_MODE
    }

    /// Returns whether the file holds all pages that its header counts. It may not while it grows.
    fn is_whole(&self) -> bool {
        let page_bytes = u16::from_be_bytes([self.header[PAGE_BYTES_AT], self.header[PAGE_BYTES_AT + 1]]);
        let page_bytes = u64::from(whole_page_bytes(page_bytes));
        self.bytes >= u64::from(self.field(PAGES_COUNT_AT)) * page_bytes
    }
}

impl Frames {
    /// Reads the frames from the index. Returns `None` while they change, and if the WAL has no frames.
    fn read(index: &File) -> io::Result<Option<Self>> {
        let mut copies = [0; 2 * INDEX_HEADER_BYTES];
        index.read_exact_at(&mut copies, 0)?;
        let (header, copy) = copies.split_at(INDEX_HEADER_BYTES);
        let field =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (count, page_bytes) = (field(16), u16::from_ne_bytes([header[14], header[15]]));
        if header != copy || count == 0 {
            return Ok(None);
        }
        let mut salt = [0; 8];
        salt.copy_from_slice(&header[32..40]);
        Ok(Some(Self { count, page_bytes: whole_page_bytes(page_bytes), salt }))
    }

    /// Returns whether the WAL contains these frames.
    fn are_in(self, wal: &File) -> io::Result<bool> {
        let mut salt = [0; 8];
        wal.read_exact_at(&mut salt, 16)?;
        let frame_bytes = FRAME_HEADER_BYTES + u64::from(self.page_bytes);
        let bytes = WAL_HEADER_BYTES + u64::from(self.count) * frame_bytes;
        Ok(salt == self.salt && wal.metadata()?.size() >= bytes)
    }
}

/// Decodes a page size. 65536 does not fit 16 bits and is stored as 1.
fn whole_page_bytes(field: u16) -> u32 {
    if field == 1 { 65536 } else { u32::from(field) }
}

impl Content {
    pub(super) fn new(database: Arc<File>, index: Option<Arc<File>>, wal: PathBuf) -> Self {
        let seen = DatabaseSeen::read(&database).ok();
        Self { database, index, wal, seen }
    }

    /// Records the database file after a checkpoint of this server, complete or not.
    pub(super) fn note_checkpoint(&mut self) {
        self.seen = DatabaseSeen::read(&self.database).ok().or(self.seen.take());
    }

    /// Returns the name of a file that was overwritten or truncated, if there is one.
    pub(super) fn fault(&mut self) -> Option<&'static str> {
        if self.is_database_overwritten() {
            return Some("the database file");
        }
        (0..WAL_COMPARISON_ATTEMPTS_COUNT).all(|_| self.is_wal_overwritten()).then_some("the -wal file")
    }

    fn is_database_overwritten(&mut self) -> bool {
        let Some(seen) = &self.seen else { return false };
        let now = match DatabaseSeen::read(&self.database) {
            Ok(now) => now,
            // SQLite reports a failing disk.
            Err(error) => return error.kind() == io::ErrorKind::UnexpectedEof,
        };
        if now == *seen {
            return false;
        }
        let is_of_this_cycle = (seen.cycle()..=seen.cycle().saturating_add(1)).contains(&now.cycle());
        let is_truncated = now.bytes < seen.bytes && !now.is_whole();
        if !now.is_in_wal_mode() || !is_of_this_cycle || is_truncated {
            return true;
        }
        // A checkpoint by another program.
        self.seen = Some(now);
        false
    }

    fn is_wal_overwritten(&self) -> bool {
        let Some(Ok(Some(frames))) = self.index.as_deref().map(Frames::read) else { return false };
        // A missing WAL is detected by `Identity`.
        let Ok(wal) = File::open(&self.wal) else { return false };
        frames
            .are_in(&wal)
            .map_or_else(|error| error.kind() == io::ErrorKind::UnexpectedEof, |are_in| !are_in)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn header(cycle: u32, pages_count: u32) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[PAGE_BYTES_AT..PAGE_BYTES_AT + 2].copy_from_slice(&4096_u16.to_be_bytes());
        bytes[WRITE_VERSION_AT] = WAL_MODE;
        bytes[PAGES_COUNT_AT..PAGES_COUNT_AT + 4].copy_from_slice(&pages_count.to_be_bytes());
        bytes[CYCLE_AT..CYCLE_AT + 4].copy_from_slice(&cycle.to_be_bytes());
        bytes
    }

    #[test]
    fn checkpoints_are_distinguished_from_overwritten_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let database = directory.path().join("db");
        let two_pages = |cycle| [header(cycle, 2), vec![0; 4096]].concat();
        fs::write(&database, two_pages(7)).expect("written");
        let file = Arc::new(File::open(&database).expect("there"));
        let mut content = Content::new(file, None, directory.path().join("db-wal"));
        assert_eq!(content.fault(), None);
        for (bytes, is_overwritten) in [
            (two_pages(6), true),
            (two_pages(7), false),
            (two_pages(9), true),
            (header(7, 2), true),
            (Vec::new(), true),
            (vec![b'x'; 8192], true),
            (header(7, 1), false),
            (two_pages(8), false),
        ] {
            fs::write(&database, &bytes).expect("written");
            assert_eq!(content.fault().is_some(), is_overwritten, "{} bytes", bytes.len());
        }
    }
}
