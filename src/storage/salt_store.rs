//! The salt and its file: read at startup, generated at the first use. It can be replaced by another node's salt until it has
//! encrypted anything, and is never replaced after that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::OpenError;
use super::paths::sibling;
use super::salt::{self, SaltProblem};
use super::sync::sync_directory;
use crate::limits::{SALT_BYTES, SALT_BYTES_MAX};

/// Salt of this node.
#[derive(Debug)]
pub struct SaltStore {
    /// File; `None` for a salt that lives in memory only.
    path: Option<PathBuf>,
    /// SHA-256 of a salt that the operator accepts although it would be refused.
    accepted: Option<[u8; 32]>,
    salt: RwLock<Option<Arc<[u8]>>>,
    /// Fingerprint of the file when its content was last verified.
    verified: Mutex<Option<Stat>>,
    /// Whether anything was encrypted with the salt. Locked while the file is created or replaced, and while this is
    /// decided.
    is_pinned: Mutex<bool>,
}

/// Fingerprint of a file that changes whenever the file does.
type Stat = (u64, u64, i64, i64, i64, i64);

/// Outcome of importing a salt from another node.
#[derive(Debug, PartialEq, Eq)]
pub enum ImportResult {
    /// This node had no salt, and now uses the imported one.
    Created,
    /// This node already has the same salt.
    Same,
    /// This node has a different salt, which it keeps.
    Differs,
    /// This node has no salt, and the imported one is refused.
    Refused(SaltProblem),
}

/// Outcome of replacing the local salt by a peer's.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplaceResult {
    /// This node now uses the peer's salt.
    Replaced,
    /// The local salt has encrypted something, and stays.
    Kept,
    /// The peer's salt is refused.
    Refused(SaltProblem),
}

impl SaltStore {
    /// Reads the file if it exists. `accepted` is the SHA-256 of a salt that is used although it is improper or does
    /// not match the database.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or is not a proper salt.
    pub fn open(path: &Path, accepted: Option<[u8; 32]>) -> Result<Self, OpenError> {
        let file = Self { path: Some(path.to_owned()), accepted, ..Self::in_memory() };
        file.load()?;
        Ok(file)
    }

    /// Creates a store without a file and without a salt.
    pub fn in_memory() -> Self {
        Self {
            path: None,
            accepted: None,
            salt: RwLock::new(None),
            verified: Mutex::default(),
            is_pinned: Mutex::new(false),
        }
    }

    /// Returns the salt, if this node has one yet.
    pub fn current(&self) -> Option<Arc<[u8]>> {
        self.salt.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pins the salt. Must return true before anything encrypted under a key from `salt` is stored: it is still this
    /// node's salt, and remains so permanently.
    pub fn pin(&self, salt: &[u8]) -> bool {
        let mut is_pinned = self.lock();
        let is_current = self.current().is_some_and(|current| *current == *salt);
        *is_pinned |= is_current;
        is_current
    }

    /// Returns whether the salt has encrypted anything, and can no longer be replaced.
    pub fn is_pinned(&self) -> bool {
        *self.lock()
    }

    /// Pins the salt because the database has entries.
    pub(super) fn set_pinned(&self) {
        *self.lock() = true;
    }

    /// Returns whether the file contains the salt in use. The file itself may be a different one: Kubernetes replaces
    /// the files of a Secret.
    pub(super) fn is_in_place(&self) -> bool {
        let (Some(current), Some(path)) = (self.current(), &self.path) else { return true };
        let found = fs::metadata(path).ok().map(|found| {
            (found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
        });
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_none() || *verified != found {
            let is_same = matches!(read(path), Ok(Some(bytes)) if *bytes == *current);
            *verified = found.filter(|_| is_same);
        }
        verified.is_some()
    }

    /// Returns the path of the file, for logs and errors.
    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("memory"))
    }

    /// Returns the tag of the salt for the database; `None` without a salt, or if the salt is too short for a tag.
    pub(super) fn tag(&self) -> Option<i64> {
        self.current().as_deref().and_then(salt::tag)
    }

    /// Returns whether the operator has named this salt in `OSC_ACCEPT_SALT`.
    pub(super) fn is_accepted(&self, salt: &[u8]) -> bool {
        self.accepted.is_some_and(|accepted| accepted == salt::digest(salt))
    }

    /// Returns the salt, and generates it if there is none.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn current_or_new(&self) -> Result<Arc<[u8]>, OpenError> {
        if let Some(salt) = self.current() {
            return Ok(salt);
        }
        let _guard = self.lock();
        if self.load()?.is_none() {
            let mut fresh = [0; SALT_BYTES];
            getrandom::fill(&mut fresh).expect("Linux has random bytes once it has booted");
            self.write(&fresh, false)?;
            if let Some(path) = &self.path {
                tracing::info!(
                    path = %path.display(),
                    "generated a new salt; back it up, entries cannot be decrypted without it"
                );
            }
        }
        Ok(self.current().expect("the salt is set by load or write"))
    }

    /// Adopts the salt of another node if this node has none.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn adopt(&self, imported: &[u8]) -> Result<ImportResult, OpenError> {
        let _guard = self.lock();
        match self.load()? {
            Some(local) if *local == *imported => Ok(ImportResult::Same),
            Some(_) => Ok(ImportResult::Differs),
            None => match self.problem(imported) {
                Some(problem) => Ok(ImportResult::Refused(problem)),
                None => {
                    self.write(imported, false)?;
                    Ok(ImportResult::Created)
                }
            },
        }
    }

    /// Replaces a local salt that has not encrypted anything by another node's.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn replace_unused(&self, other: &[u8]) -> Result<ReplaceResult, OpenError> {
        let is_pinned = self.lock();
        let local = self.load()?;
        if local.as_deref() == Some(other) {
            return Ok(ReplaceResult::Replaced);
        }
        if *is_pinned && local.is_some() {
            return Ok(ReplaceResult::Kept);
        }
        if let Some(problem) = self.problem(other) {
            return Ok(ReplaceResult::Refused(problem));
        }
        self.write(other, local.is_some())?;
        Ok(ReplaceResult::Replaced)
    }

    fn problem(&self, salt: &[u8]) -> Option<SaltProblem> {
        salt::problem(salt).filter(|_| salt.is_empty() || !self.is_accepted(salt))
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file unless the salt is loaded: an operator may have put the file in place since startup.
    fn load(&self) -> Result<Option<Arc<[u8]>>, OpenError> {
        if self.current().is_none()
            && let Some(path) = &self.path
            && let Some(bytes) = read(path)?
        {
            self.check(path, &bytes)?;
            self.set(&bytes);
        }
        Ok(self.current())
    }

    fn check(&self, path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
        let Some(problem) = salt::problem(bytes) else { return Ok(()) };
        if self.is_accepted(bytes) {
            tracing::warn!(
                path = %path.display(),
                %problem,
                "using an improper salt because OSC_ACCEPT_SALT names it: user keys are easier to guess, so move the \
                 entries to a server with a proper salt"
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
            path: path.to_owned(),
            what: format!("{problem}{origin}"),
            remedy: "restore the salt file from a backup or from another node; if no entry was ever stored, delete it; \
                     if the entries were encrypted with exactly this file, set OSC_ACCEPT_SALT to its SHA-256 \
                     (sha256sum FILE) to use it anyway",
        })
    }

    fn set(&self, salt: &[u8]) {
        *self.salt.write().unwrap_or_else(PoisonError::into_inner) = Some(salt.into());
    }

    /// Writes the file, completely or not at all. Replaces an existing file only if `replaces`.
    fn write(&self, salt: &[u8], replaces: bool) -> Result<(), OpenError> {
        if let Some(path) = &self.path {
            let unfinished = sibling(path, ".unfinished");
            let result = write_new(&unfinished, salt).and_then(|()| match replaces {
                true => fs::rename(&unfinished, path),
                false => rename_new(&unfinished, path),
            });
            if let Err(error) = result {
                fs::remove_file(&unfinished).ok();
                return Err(OpenError::access("write the salt file", path, error));
            }
            sync_directory(path)?;
        }
        self.set(salt);
        Ok(())
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A file left over from a crash: the data lock rules out a concurrent writer.
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
            // The file system does not support this flag; a hard link does not replace an existing file either.
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

    /// Returns a proper salt, different for each number.
    fn salt(number: u8) -> Vec<u8> {
        (0..64).map(|at: u8| at ^ number).collect()
    }

    fn open(path: &Path) -> SaltStore {
        SaltStore::open(path, None).expect("no file, or a proper one")
    }

    #[test]
    fn concurrent_first_uses_generate_one_salt() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("encryption.salt");
        let file = open(&path);
        assert!(file.current().is_none() && !path.exists());
        let salts: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let generate = || scope.spawn(|| file.current_or_new().expect("writable").to_vec());
            let threads: Vec<_> = (0..16).map(|_| generate()).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let written = fs::read(&path).expect("the file is there");
        assert!(written.len() == SALT_BYTES && salts.iter().all(|salt| *salt == written));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(!sibling(&path, ".unfinished").exists());
    }

    #[test]
    fn a_salt_is_adopted_only_by_a_node_without_one() {
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
    fn a_salt_is_replaceable_until_it_is_pinned() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let file = open(&path);
        let local = file.current_or_new().expect("writable");
        for (peers, problem) in
            [(vec![3; 64], SaltProblem::Degenerate { distinct: 1 }), (vec![3; 63], SaltProblem::Size(63))]
        {
            assert_eq!(
                file.replace_unused(&peers).expect("nothing is written"),
                ReplaceResult::Refused(problem)
            );
        }
        assert_eq!(file.replace_unused(&salt(1)).expect("writable"), ReplaceResult::Replaced);
        assert_eq!(fs::read(&path).expect("there"), salt(1));
        assert!(!file.pin(&local), "a key from the old salt must not be used");
        assert!(!file.is_pinned() && file.pin(&salt(1)) && file.is_pinned());
        assert_eq!(file.replace_unused(&salt(2)).expect("nothing is written"), ReplaceResult::Kept);
        assert_eq!(
            file.replace_unused(&salt(1)).expect("nothing is written"),
            ReplaceResult::Replaced,
            "the node already has this salt"
        );
        assert_eq!(fs::read(&path).expect("there"), salt(1));
    }

    #[test]
    fn a_salt_file_that_appears_later_is_loaded() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        let file = open(&path);
        fs::write(&path, [9; 64]).expect("writable");
        assert!(file.current_or_new().is_err() && file.current().is_none(), "an improper salt");
        fs::write(&path, salt(9)).expect("writable");
        assert_eq!(*file.current_or_new().expect("readable"), salt(9));
        assert_eq!(fs::read(&path).expect("there"), salt(9));
    }

    #[test]
    fn an_improper_salt_is_accepted_only_if_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("s");
        assert!(SaltStore::open(directory.path(), None).is_err());
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
                let refused = SaltStore::open(&path, accepted).expect_err("an improper salt").to_string();
                assert!(refused.contains(reason), "{refused}");
            }
            let can_be_accepted = (1..=SALT_BYTES_MAX).contains(&(bytes.len() as u64));
            assert_eq!(SaltStore::open(&path, Some(digest)).is_ok(), can_be_accepted, "{reason}");
        }
    }
}
