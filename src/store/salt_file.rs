//! The salt file: read at start, made at the first use. It may yield to another node's salt as long
//! as nothing was sealed with it, and is never replaced after that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::OpenError;
use super::open::{sibling, sync_directory};
use super::salt::{self, SaltProblem};
use crate::limits::{SALT_BYTES, SALT_BYTES_MAX};

/// The salt of this node.
#[derive(Debug)]
pub struct SaltFile {
    path: PathBuf,
    /// The SHA-256 of a salt that the operator accepts although it would be refused.
    accepted: Option<[u8; 32]>,
    salt: RwLock<Option<Arc<[u8]>>>,
    /// The file as it was when its content was last compared.
    compared: Mutex<Option<Stat>>,
    /// Held while the file is made or replaced, and while its use is decided; true once anything was
    /// sealed with the salt.
    is_sealed_with: Mutex<bool>,
}

/// What changes with every change of a file.
type Stat = (u64, u64, i64, i64, i64, i64);

/// What became of a salt that another node sent.
#[derive(Debug, PartialEq, Eq)]
pub enum ImportResult {
    /// There was none; it is this node's salt now.
    Created,
    /// It is the one that this node has.
    Same,
    /// This node has another one, which stays.
    Differs,
    /// There is none here, and the one that was sent is refused.
    Refused(SaltProblem),
}

/// Outcome of giving up the own salt for a peer's.
#[derive(Debug, PartialEq, Eq)]
pub enum Yielded {
    /// The peer's salt is this node's salt now.
    Taken,
    /// Something was sealed with the own salt, which stays.
    Kept,
    /// The peer's salt is refused.
    Refused(SaltProblem),
}

impl SaltFile {
    /// Reads the file if it is there. `accepted` is the SHA-256 of a salt that is used although it is not proper,
    /// or not the one of the database.
    ///
    /// # Errors
    /// When it cannot be read, or is no proper salt.
    pub fn open(path: &Path, accepted: Option<[u8; 32]>) -> Result<Self, OpenError> {
        let file = Self {
            path: path.to_owned(),
            accepted,
            salt: RwLock::new(None),
            compared: Mutex::default(),
            is_sealed_with: Mutex::new(false),
        };
        file.load()?;
        Ok(file)
    }

    /// The salt, if this node has one yet.
    pub fn current(&self) -> Option<Arc<[u8]>> {
        self.salt.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Must be true before anything sealed under a key from `salt` is stored: it still is this node's
    /// salt, and will be for ever after.
    pub fn pin(&self, salt: &[u8]) -> bool {
        let mut is_sealed_with = self.lock();
        let is_current = self.current().is_some_and(|current| *current == *salt);
        *is_sealed_with |= is_current;
        is_current
    }

    /// Whether anything was sealed with the salt, so that it can no longer yield.
    pub fn is_pinned(&self) -> bool {
        *self.lock()
    }

    /// Says that the database has entries.
    pub(super) fn set_pinned(&self) {
        *self.lock() = true;
    }

    /// Whether the file holds the salt that is in use. It may be another file: Kubernetes replaces those of a Secret.
    pub(super) fn is_in_place(&self) -> bool {
        let Some(current) = self.current() else { return true };
        let found = fs::metadata(&self.path).ok().map(|found| {
            (found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
        });
        let mut compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_none() || *compared != found {
            let is_same = matches!(read(&self.path), Ok(Some(bytes)) if *bytes == *current);
            *compared = found.filter(|_| is_same);
        }
        compared.is_some()
    }

    /// The path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tag of the salt, for the database; `None` without a salt, and for one too short to have a tag.
    pub(super) fn tag(&self) -> Option<i64> {
        self.current().as_deref().and_then(salt::tag)
    }

    /// Whether the operator has named this salt in `OSC_ACCEPT_SALT`.
    pub(super) fn is_accepted(&self, salt: &[u8]) -> bool {
        self.accepted.is_some_and(|accepted| accepted == salt::digest(salt))
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
    pub fn adopt(&self, sent: &[u8]) -> Result<ImportResult, OpenError> {
        let _making = self.lock();
        match self.load()? {
            Some(own) if *own == *sent => Ok(ImportResult::Same),
            Some(_) => Ok(ImportResult::Differs),
            None => match self.problem(sent) {
                Some(problem) => Ok(ImportResult::Refused(problem)),
                None => {
                    self.write(sent, false)?;
                    Ok(ImportResult::Created)
                }
            },
        }
    }

    /// Gives up the own salt, with which nothing was sealed yet, for another node's.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn replace_unused(&self, other: &[u8]) -> Result<Yielded, OpenError> {
        let is_sealed_with = self.lock();
        let own = self.load()?;
        if own.as_deref() == Some(other) {
            return Ok(Yielded::Taken);
        }
        if *is_sealed_with && own.is_some() {
            return Ok(Yielded::Kept);
        }
        if let Some(problem) = self.problem(other) {
            return Ok(Yielded::Refused(problem));
        }
        self.write(other, own.is_some())?;
        Ok(Yielded::Taken)
    }

    fn problem(&self, salt: &[u8]) -> Option<SaltProblem> {
        salt::problem(salt).filter(|_| salt.is_empty() || !self.is_accepted(salt))
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_sealed_with.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operator may have put the file there since the start, so the disk is asked again while there is none.
    fn load(&self) -> Result<Option<Arc<[u8]>>, OpenError> {
        if self.current().is_none()
            && let Some(bytes) = read(&self.path)?
        {
            self.check(&bytes)?;
            self.set(&bytes);
        }
        Ok(self.current())
    }

    fn check(&self, bytes: &[u8]) -> Result<(), OpenError> {
        let Some(problem) = salt::problem(bytes) else { return Ok(()) };
        if self.is_accepted(bytes) {
            tracing::warn!(
                path = %self.path.display(),
                "the salt file {problem}; it is used because OSC_ACCEPT_SALT names it: user keys are easier to guess \
                 than with a proper salt, so move the entries to a server that has one"
            );
            return Ok(());
        }
        let origin = match problem {
            SaltProblem::Size(size) if size < SALT_BYTES => {
                ", as OpenSecureConf 2.0 leaves it when it is interrupted while writing it"
            }
            _ => "",
        };
        Err(OpenError::Unusable {
            path: self.path.clone(),
            what: format!("{problem}{origin}"),
            remedy: "restore the salt file from a backup or from another node; if no entry was ever stored, delete it; \
                     if the entries were sealed with this very file, set OSC_ACCEPT_SALT to its SHA-256 (sha256sum \
                     FILE) to use it all the same",
        })
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
    Ok(Some(bytes))
}

fn unusable(path: &Path, what: &str, remedy: &'static str) -> OpenError {
    OpenError::Unusable { path: path.to_owned(), what: what.to_owned(), remedy }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A proper salt, another one for each number.
    fn salt(number: u8) -> Vec<u8> {
        (0..64).map(|at: u8| at ^ number).collect()
    }

    fn open(path: &Path) -> SaltFile {
        SaltFile::open(path, None).expect("no file, or a proper one")
    }

    #[test]
    fn first_uses_at_once_make_one_salt() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("encryption.salt");
        let file = open(&path);
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
        let file = open(&directory.path().join("s"));
        for size in [0, 1, 63, 65, 4096] {
            let refused = ImportResult::Refused(SaltProblem::Size(size));
            assert_eq!(file.adopt(&vec![b's'; size]).expect("writable"), refused);
        }
        let refused = ImportResult::Refused(SaltProblem::Degenerate { distinct: 1 });
        assert_eq!(file.adopt(&[0; 64]).expect("writable"), refused);
        assert_eq!(file.adopt(&salt(7)).expect("writable"), ImportResult::Created);
        assert_eq!(file.adopt(&salt(7)).expect("writable"), ImportResult::Same);
        assert_eq!(file.adopt(&salt(8)).expect("writable"), ImportResult::Differs);
        assert_eq!(file.adopt(b"").expect("writable"), ImportResult::Differs);
        assert_eq!(fs::read(directory.path().join("s")).expect("there"), salt(7));
    }

    #[test]
    fn a_salt_yields_until_something_was_sealed_with_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let file = open(&path);
        let own = file.current_or_new().expect("writable");
        for (peers, problem) in
            [(vec![3; 64], SaltProblem::Degenerate { distinct: 1 }), (vec![3; 63], SaltProblem::Size(63))]
        {
            assert_eq!(file.replace_unused(&peers).expect("nothing is written"), Yielded::Refused(problem));
        }
        assert_eq!(file.replace_unused(&salt(1)).expect("writable"), Yielded::Taken);
        assert_eq!(fs::read(&path).expect("there"), salt(1));
        assert!(!file.pin(&own), "a key from the old salt must not be used");
        assert!(!file.is_pinned() && file.pin(&salt(1)) && file.is_pinned());
        assert_eq!(file.replace_unused(&salt(2)).expect("nothing is written"), Yielded::Kept);
        assert_eq!(
            file.replace_unused(&salt(1)).expect("nothing is written"),
            Yielded::Taken,
            "it has that one"
        );
        assert_eq!(fs::read(&path).expect("there"), salt(1));
    }

    #[test]
    fn a_salt_that_appears_is_found_and_kept() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let file = open(&path);
        fs::write(&path, [9; 64]).expect("writable");
        assert!(file.current_or_new().is_err() && file.current().is_none(), "no proper salt");
        fs::write(&path, salt(9)).expect("writable");
        assert_eq!(*file.current_or_new().expect("readable"), salt(9));
        assert_eq!(fs::read(&path).expect("there"), salt(9));
    }

    #[test]
    fn only_the_salt_that_is_named_is_accepted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        assert!(SaltFile::open(directory.path(), None).is_err());
        for (bytes, reason) in [
            (&b""[..], "is empty"),
            (b"sixteen byte slt", "has 16 bytes instead of 64, as OpenSecureConf 2.0 leaves it"),
            (&[1; 65], "has 65 bytes instead of 64: "),
            (&[0; 64], "is not random (distinct byte values: 1): "),
            (&vec![1; usize::try_from(SALT_BYTES_MAX).expect("it fits") + 1], "is too large"),
        ] {
            fs::write(&path, bytes).expect("writable");
            let digest = salt::digest(bytes);
            for accepted in [None, Some(salt::digest(b"another"))] {
                let refused = SaltFile::open(&path, accepted).expect_err("no proper salt").to_string();
                assert!(refused.contains(reason), "{refused}");
            }
            let can_be_accepted = (1..=SALT_BYTES_MAX).contains(&(bytes.len() as u64));
            assert_eq!(SaltFile::open(&path, Some(digest)).is_ok(), can_be_accepted, "{reason}");
        }
    }
}
