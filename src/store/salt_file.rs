//! The salt file: read at start, made at the first use. It may yield to another node's salt as long
//! as nothing was sealed with it, and is never replaced after that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::OpenError;
use super::open::{sibling, sync_directory};
use crate::limits::{SALT_BYTES, SALT_BYTES_MAX};

/// The salt of this node.
#[derive(Debug)]
pub struct SaltFile {
    path: PathBuf,
    salt: RwLock<Option<Arc<[u8]>>>,
    /// Held while the file is made or replaced, and while its use is decided; true once anything was
    /// sealed with the salt.
    is_sealed_with: Mutex<bool>,
}

/// What became of a salt that another node sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Adopted {
    /// There was none; it is this node's salt now.
    Created,
    /// It is the one that this node has.
    Same,
    /// This node has another one, which stays.
    Differs,
    /// There is none here, and what was sent cannot be one.
    WrongSize,
}

impl SaltFile {
    /// Reads the file if it is there.
    ///
    /// # Errors
    /// When it cannot be read, is empty, or is too large to be a salt.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = Self { path: path.to_owned(), salt: RwLock::new(None), is_sealed_with: Mutex::new(false) };
        file.load()?;
        Ok(file)
    }

    /// The salt, if this node has one yet.
    pub fn current(&self) -> Option<Arc<[u8]>> {
        self.salt.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Must be true before anything sealed under a key from `salt` is stored: it still is this node's
    /// salt, and will be for ever after.
    pub fn seal_with(&self, salt: &[u8]) -> bool {
        let mut is_sealed_with = self.lock();
        let is_current = self.current().is_some_and(|current| *current == *salt);
        *is_sealed_with |= is_current;
        is_current
    }

    /// Whether anything was sealed with the salt, so that it can no longer yield.
    pub fn is_sealed_with(&self) -> bool {
        *self.lock()
    }

    /// Says that the database has entries.
    pub(super) fn set_sealed_with(&self) {
        *self.lock() = true;
    }

    /// The salt, made now if there is none.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn current_or_new(&self) -> Result<Arc<[u8]>, OpenError> {
        if let Some(salt) = self.current() {
            return Ok(salt);
        }
        let _making = self.lock();
        if self.load()?.is_none() {
            let mut fresh = [0; SALT_BYTES];
            getrandom::fill(&mut fresh).map_err(|error| {
                OpenError::access("get random bytes for", &self.path, io::Error::other(error))
            })?;
            self.write(&fresh, false)?;
            tracing::info!(path = %self.path.display(), "made a new salt; keep a copy of it, no entry opens without it");
        }
        Ok(self.current().expect("load or write has set it"))
    }

    /// Takes the salt of another node if this one has none.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn adopt(&self, sent: &[u8]) -> Result<Adopted, OpenError> {
        let _making = self.lock();
        match self.load()? {
            Some(own) if *own == *sent => Ok(Adopted::Same),
            Some(_) => Ok(Adopted::Differs),
            None if sent.len() != SALT_BYTES => Ok(Adopted::WrongSize),
            None => {
                self.write(sent, false)?;
                Ok(Adopted::Created)
            }
        }
    }

    /// Gives up the own salt, with which nothing was sealed yet, for another node's. False when it is
    /// too late for that.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn yield_to(&self, other: &[u8]) -> Result<bool, OpenError> {
        let is_sealed_with = self.lock();
        let own = self.load()?;
        if own.as_deref() == Some(other) {
            return Ok(true);
        }
        if (*is_sealed_with && own.is_some()) || other.is_empty() {
            return Ok(false);
        }
        self.write(other, own.is_some())?;
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_sealed_with.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operator may have put the file there since the start, so the disk is asked again while there is none.
    fn load(&self) -> Result<Option<Arc<[u8]>>, OpenError> {
        if self.current().is_none()
            && let Some(bytes) = read(&self.path)?
        {
            self.set(&bytes);
        }
        Ok(self.current())
    }

    fn set(&self, salt: &[u8]) {
        *self.salt.write().unwrap_or_else(PoisonError::into_inner) = Some(salt.into());
    }

    /// Whole or not at all; over an existing file only if told so.
    fn write(&self, salt: &[u8], replaces: bool) -> Result<(), OpenError> {
        let unfinished = sibling(&self.path, ".unfinished");
        let result = write_new(&unfinished, salt).and_then(|()| match replaces {
            true => fs::rename(&unfinished, &self.path),
            false => rename_new(&unfinished, &self.path),
        });
        if let Err(error) = result {
            fs::remove_file(&unfinished).ok();
            return Err(OpenError::access("write the salt file", &self.path, error));
        }
        sync_directory(&self.path)?;
        self.set(salt);
        Ok(())
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Left over from a crash; the lock on the data files says that nobody else is writing it.
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            // The file system has no such rename; a link does not replace either.
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    let access = |error| OpenError::access("read the salt file", path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(access(error)),
    };
    if !file.metadata().map_err(access)?.is_file() {
        return Err(unusable(path, "is not a regular file", "set OSC_SALT_FILE_PATH to the salt file"));
    }
    let mut bytes = Vec::new();
    file.take(SALT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(access)?;
    if bytes.is_empty() {
        return Err(unusable(
            path,
            "is empty: keys derived from it would have no salt at all",
            "restore the salt file from a backup or from another node; only if no entry was ever stored, delete it",
        ));
    }
    if bytes.len() as u64 > SALT_BYTES_MAX {
        return Err(unusable(path, "is too large for a salt", "set OSC_SALT_FILE_PATH to the salt file"));
    }
    if bytes.len() != SALT_BYTES {
        tracing::warn!(
            path = %path.display(),
            bytes = bytes.len(),
            expected = SALT_BYTES,
            "the salt file has an unusual size; it is used as it is, as the original does"
        );
    }
    Ok(Some(bytes))
}

fn unusable(path: &Path, what: &str, remedy: &'static str) -> OpenError {
    OpenError::Unusable { path: path.to_owned(), what: what.to_owned(), remedy }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn first_uses_at_once_make_one_salt() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("encryption.salt");
        let file = SaltFile::open(&path).expect("no file is fine");
        assert!(file.current().is_none() && !path.exists());
        let salts: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let make = || scope.spawn(|| file.current_or_new().expect("writable").to_vec());
            let threads: Vec<_> = (0..16).map(|_| make()).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let written = fs::read(&path).expect("the file is there");
        assert!(written.len() == SALT_BYTES && salts.iter().all(|salt| *salt == written));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(!sibling(&path, ".unfinished").exists());
    }

    #[test]
    fn adopting() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = SaltFile::open(&directory.path().join("s")).expect("no file is fine");
        for size in [0, 1, 63, 65, 4096] {
            assert_eq!(file.adopt(&vec![b's'; size]).expect("writable"), Adopted::WrongSize);
        }
        assert_eq!(file.adopt(&[7; 64]).expect("writable"), Adopted::Created);
        assert_eq!(file.adopt(&[7; 64]).expect("writable"), Adopted::Same);
        assert_eq!(file.adopt(&[8; 64]).expect("writable"), Adopted::Differs);
        assert_eq!(file.adopt(b"").expect("writable"), Adopted::Differs);
        assert_eq!(fs::read(directory.path().join("s")).expect("there"), [7; 64]);
    }

    #[test]
    fn a_salt_yields_until_something_was_sealed_with_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let file = SaltFile::open(&path).expect("no file is fine");
        let own = file.current_or_new().expect("writable");
        assert!(file.yield_to(&[1; 64]).expect("writable"));
        assert_eq!(fs::read(&path).expect("there"), [1; 64]);
        assert!(!file.seal_with(&own), "a key from the old salt must not be used");
        assert!(!file.is_sealed_with() && file.seal_with(&[1; 64]) && file.is_sealed_with());
        assert!(!file.yield_to(&[2; 64]).expect("nothing is written"));
        assert!(file.yield_to(&[1; 64]).expect("nothing is written"), "it has that one");
        assert_eq!(fs::read(&path).expect("there"), [1; 64]);
    }

    #[test]
    fn a_salt_that_appears_is_found_and_kept() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let file = SaltFile::open(&path).expect("no file is fine");
        fs::write(&path, [9; 64]).expect("writable");
        assert_eq!(*file.current_or_new().expect("readable"), [9; 64]);
        assert_eq!(fs::read(&path).expect("there"), [9; 64]);
    }

    #[test]
    fn what_cannot_be_a_salt_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        fs::write(&path, b"").expect("writable");
        assert!(SaltFile::open(&path).expect_err("empty").to_string().contains("is empty"));
        assert!(SaltFile::open(directory.path()).is_err());
        fs::write(&path, b"sixteen byte slt").expect("writable");
        let odd = SaltFile::open(&path).expect("other sizes are used as they are");
        assert_eq!(odd.current().expect("loaded").len(), 16);
    }
}
