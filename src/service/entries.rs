//! Use cases on a single entry: create, read, update and delete.

use std::sync::Arc;

use super::context::Context;
use super::decryptor::{DecryptError, Decryptor};
use super::federation::OwnerPolicy;
use super::guarded::Purpose;
use super::retries::{Made, Receipt};
use super::value::{SealedValue, Value};
use super::{Credentials, Error};
use crate::crypto::DerivedKey;
use crate::limits::{LARGE_VALUE_BYTES, WRITE_ATTEMPTS_MAX};
use crate::model::{
    Category, Ciphertext, EntryId, EntryKey, Environment, KeyEntries, OwnerTag, Plaintext, SealedEntry,
    Timestamp,
};
use crate::storage::{self, Write, WriteError};

/// Entry that the caller's user key has decrypted.
#[derive(Debug)]
pub struct DecryptedEntry {
    /// Row of the entry.
    pub row: Arc<SealedEntry>,
    /// Decrypted value.
    pub value: Value,
}

/// Entry to be created.
#[derive(Debug)]
pub struct NewEntry {
    /// Entry key.
    pub key: EntryKey,
    /// Environment, if any.
    pub environment: Option<Environment>,
    /// Category, if any.
    pub category: Option<Category>,
    /// Value as canonical JSON.
    pub value: Plaintext,
}

/// Changes to an existing entry.
#[derive(Debug)]
pub struct Update {
    /// Environment to move the entry to; `None` keeps it. Ignored if the request names the entry with its environment.
    pub environment: Option<Environment>,
    /// New category; `None` keeps it.
    pub category: Option<Category>,
    /// New value as canonical JSON.
    pub value: Plaintext,
}

/// Entry whose row and derived key are both in memory.
#[derive(Debug)]
pub struct CachedEntry {
    row: Arc<SealedEntry>,
    derived: Arc<DerivedKey>,
}

impl CachedEntry {
    /// Returns the row.
    pub fn row(&self) -> &SealedEntry {
        &self.row
    }

    /// Returns an upper bound of the length of the value.
    pub fn value_bytes_max(&self) -> usize {
        self.row.ciphertext.as_ref().map_or(0, |sealed| sealed.as_bytes().len())
    }

    /// Appends the value as canonical JSON to `out`, which its owner wipes. Returns `None` if the key does not decrypt
    /// the row, or if the row is not known to be canonical; [`Entries::read`] handles both.
    pub fn open_into(&self, out: &mut Vec<u8>) -> Option<()> {
        let sealed = self.row.ciphertext.as_ref().filter(|_| self.row.is_canonical())?;
        self.derived.fernet().open_raw(sealed.as_bytes(), out).ok()?;
        self.derived.mark_proven();
        Some(())
    }
}

/// Use cases on entries.
#[derive(Debug)]
pub struct Entries {
    pub(super) context: Arc<Context>,
}

impl Entries {
    /// Returns the entry that [`Self::read`] would read, if its row and the derived key are cached. `user_key` is the
    /// value of the header.
    pub fn try_read_cached(
        &self,
        user_key: &[u8],
        key: &str,
        environment: Option<&str>,
    ) -> Option<CachedEntry> {
        let group = self.context.storage.cached(key)?;
        let row = match environment {
            Some(_) => Arc::clone(group.exact(environment)?),
            None => select(&group, key).ok()?,
        };
        let derived = self.context.keys.cached(user_key, self.context.now_seconds())?;
        Some(CachedEntry { row, derived })
    }

    /// Reads one entry. Without an environment, this is the entry that has none, otherwise the only entry with that
    /// key.
    ///
    /// # Errors
    /// Fails if there is no such entry, if the key is ambiguous, or if the user key does not decrypt the entry.
    pub async fn read(
        &self,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
    ) -> Result<DecryptedEntry, Error> {
        let use_case = self.read_unguarded(credentials, key, environment);
        self.context.guarded(credentials, key, Purpose::Open, use_case).await
    }

    async fn read_unguarded(
        &self,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
    ) -> Result<DecryptedEntry, Error> {
        // The row comes first: a missing entry costs no derivation.
        let row = match (self.context.resolve(key, environment).await, &self.context.federation) {
            (Err(Error::NotFound { .. }), Some(federation)) => {
                self.context.find_remote(federation, key, environment, OwnerPolicy::FirstReply).await?.row
            }
            (row, _) => row?,
        };
        let derived = self.context.derived_key(credentials).await?;
        let value = read_value(&derived, &row)?;
        Ok(DecryptedEntry { row, value })
    }

    /// Creates an entry; it is durable when this returns. The key is derived before the name is looked up:
    /// [`Error::AlreadyExists`] confirms that a name is taken, and must not cost less than a derivation.
    /// The retry of an unconfirmed creation returns the entry that the first request has created.
    ///
    /// # Errors
    /// Fails if an entry of this name exists, whichever user key decrypts it.
    pub async fn create(
        &self,
        credentials: &Credentials<'_>,
        new: NewEntry,
    ) -> Result<(DecryptedEntry, Receipt), Error> {
        let name = new.key.as_str().to_owned();
        self.context
            .guarded(credentials, &name, Purpose::Create, self.create_unguarded(credentials, new))
            .await
    }

    async fn create_unguarded(
        &self,
        credentials: &Credentials<'_>,
        new: NewEntry,
    ) -> Result<(DecryptedEntry, Receipt), Error> {
        self.context.has_joined().await?;
        let key = new.key.as_str();
        let environment = new.environment.as_ref().map(|environment| environment.as_str().to_owned());
        let derived = self.context.derived_key(credentials).await?;
        let name = EntryId { key: key.to_owned(), environment };
        let category = new.category.as_ref().map(|category| category.as_str().to_owned());
        if let Some(federation) = &self.context.federation
            && self.context.exact(key, name.environment.as_deref()).await?.is_none()
        {
            self.context.is_free_elsewhere(federation, &derived, &name).await?;
        }
        let ciphertext = seal(&derived, &new.value);
        let unconfirmed = &self.context.unconfirmed;
        let receipt = unconfirmed.receipt(name.clone(), unconfirmed.entry(Some(&ciphertext)));
        let write = Write::create(name.clone(), category, ciphertext);
        let (row, receipt) = match self.write(write, &derived).await? {
            Ok(row) => (row, receipt),
            Err(error) => {
                receipt.discard();
                match error {
                    WriteError::AlreadyExists | WriteError::Changed => {
                        self.created_before(&derived, &name, &new).await?
                    }
                    WriteError::Ahead { ahead_ms } => return Err(Error::version_ahead(key, ahead_ms)),
                    WriteError::Store(error) => return Err(error.into()),
                }
            }
        };
        derived.mark_proven();
        let value = Value::of(&derived, &row, new.value);
        Ok((DecryptedEntry { row, value }, receipt))
    }

    /// Returns the entry that an unconfirmed creation has stored, if this request repeats it.
    ///
    /// # Errors
    /// Returns [`Error::AlreadyExists`] if it does not, and [`Error::NotReplicated`] if it is still not acknowledged.
    async fn created_before(
        &self,
        derived: &DerivedKey,
        name: &EntryId,
        new: &NewEntry,
    ) -> Result<(Arc<SealedEntry>, Receipt), Error> {
        let row = self.context.exact(&name.key, name.environment.as_deref()).await?;
        let is_repeated = |row: &&Arc<SealedEntry>| {
            self.context.unconfirmed.has_created(name, row)
                && row.category.as_deref() == new.category.as_ref().map(Category::as_str)
                && open(derived, row).is_ok_and(|value| value == new.value)
        };
        match row.filter(|row| is_repeated(&row)) {
            Some(row) => {
                let made = self.context.unconfirmed.entry(row.ciphertext.as_ref());
                Ok((row, self.repeated(name.clone(), made).await?))
            }
            None => Err(self.already_exists(derived, &name.key, name.environment.as_deref()).await?),
        }
    }

    /// Waits for the acknowledgements of an unconfirmed write that a request repeats.
    async fn repeated(&self, name: EntryId, made: Made) -> Result<Receipt, Error> {
        let receipt = self.context.unconfirmed.receipt(name, made);
        self.context.is_acknowledged().await?;
        Ok(receipt)
    }

    async fn already_exists(
        &self,
        derived: &DerivedKey,
        key: &str,
        environment: Option<&str>,
    ) -> Result<Error, Error> {
        let row = self.context.exact(key, environment).await?;
        let is_foreign = row.is_some_and(|row| verify(derived, &row).is_err());
        Ok(Error::AlreadyExists {
            key: key.to_owned(),
            environment: environment.map(str::to_owned),
            is_foreign,
        })
    }

    /// Replaces the value of an entry that the user key decrypts; durable when this returns.
    ///
    /// # Errors
    /// Fails as [`Self::read`] does, and if the key is already taken in the environment to move to.
    pub async fn update(
        &self,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
        update: Update,
    ) -> Result<DecryptedEntry, Error> {
        let use_case = self.update_unguarded(credentials, key, environment, update);
        self.context.guarded(credentials, key, Purpose::Open, use_case).await
    }

    async fn update_unguarded(
        &self,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
        update: Update,
    ) -> Result<DecryptedEntry, Error> {
        self.context.has_joined().await?;
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let (seen, derived) =
                match (self.owned(credentials, key, environment).await, &self.context.federation) {
                    (Err(Error::NotFound { .. }), Some(federation)) => {
                        return self
                            .context
                            .update_elsewhere(federation, credentials, key, environment, update)
                            .await;
                    }
                    (owned, _) => owned?,
                };
            // An entry that the request names with its environment is not moved.
            let moved = update.environment.as_ref().filter(|_| environment.is_none());
            if self.context.cluster().is_some() && changes_nothing(&derived, &seen, &update, moved) {
                // Writing it would send a change without effect to every peer. The current value may not have
                // reached them yet, because clients retry a write that was not acknowledged.
                self.context.is_acknowledged().await?;
                let value = Value::of(&derived, &seen, update.value);
                return Ok(DecryptedEntry { row: seen, value });
            }
            let category = update.category.as_ref().map(|category| category.as_str().to_owned());
            let environment_to = moved.map(|environment| environment.as_str().to_owned());
            let write = Write::update(&seen, category, environment_to, seal(&derived, &update.value));
            match self.write(write, &derived).await? {
                Ok(row) => {
                    let value = Value::of(&derived, &row, update.value);
                    return Ok(DecryptedEntry { row, value });
                }
                Err(WriteError::Changed) => {}
                Err(WriteError::AlreadyExists) => {
                    let environment = moved.map(Environment::as_str);
                    return Err(self.already_exists(&derived, key, environment).await?);
                }
                Err(WriteError::Ahead { ahead_ms }) => return Err(Error::version_ahead(key, ahead_ms)),
                Err(WriteError::Store(error)) => return Err(error.into()),
            }
        }
        Err(Error::Busy)
    }

    /// Deletes an entry that the user key decrypts; durable when this returns. The retry of an unconfirmed deletion
    /// succeeds as well.
    ///
    /// # Errors
    /// Fails as [`Self::read`] does.
    pub async fn delete(
        &self,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
    ) -> Result<Receipt, Error> {
        let name = EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) };
        let use_case = self.delete_unguarded(credentials, &name);
        self.context.guarded(credentials, key, Purpose::Open, use_case).await
    }

    async fn delete_unguarded(
        &self,
        credentials: &Credentials<'_>,
        name: &EntryId,
    ) -> Result<Receipt, Error> {
        self.context.has_joined().await?;
        let deleted = self.delete_present(credentials, name).await;
        // A peer that does not reply may still have the entry.
        if !matches!(&deleted, Err(Error::NotFound { silent, .. }) if silent.is_empty()) {
            return deleted;
        }
        let Some(made @ Made::Deletion { owner, .. }) = self.context.unconfirmed.made(name) else {
            return deleted;
        };
        let derived = self.context.derived_key(credentials).await?;
        if owner != OwnerTag(*derived.id()) {
            // Counts as a failed key, because the right one gets another response.
            return Err(Error::WrongUserKey { key: name.key.clone() });
        }
        self.repeated(name.clone(), made).await
    }

    async fn delete_present(&self, credentials: &Credentials<'_>, name: &EntryId) -> Result<Receipt, Error> {
        let (key, environment) = (name.key.as_str(), name.environment.as_deref());
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let (seen, derived) =
                match (self.owned(credentials, key, environment).await, &self.context.federation) {
                    (Err(Error::NotFound { .. }), Some(federation)) => {
                        return self.context.delete_elsewhere(federation, credentials, name).await;
                    }
                    (owned, _) => owned?,
                };
            let made = Made::deletion(&derived, &seen);
            if let Some(before) = self.context.unconfirmed.made(name).filter(|before| made.is_next_of(before))
            {
                return self.repeated(name.clone(), before).await;
            }
            let receipt = self.context.unconfirmed.receipt(name.clone(), made);
            let Err(error) = self.write(Write::delete(&seen), &derived).await? else { return Ok(receipt) };
            receipt.discard();
            match error {
                WriteError::Changed | WriteError::AlreadyExists => {}
                WriteError::Ahead { ahead_ms } => return Err(Error::version_ahead(key, ahead_ms)),
                WriteError::Store(error) => return Err(error.into()),
            }
        }
        Err(Error::Busy)
    }

    /// Returns a row and its derived key, which is proven to decrypt it.
    async fn owned(
        &self,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
    ) -> Result<(Arc<SealedEntry>, Arc<DerivedKey>), Error> {
        let row = self.context.resolve(key, environment).await?;
        let derived = self.context.derived_key(credentials).await?;
        verify(&derived, &row)?;
        Ok((row, derived))
    }

    /// Commits a write; returns the new entry, or the deleted one.
    ///
    /// # Errors
    /// Returns [`Error::NotReplicated`] if the write is stored, but not acknowledged by enough peers.
    async fn write(
        &self,
        write: Write,
        derived: &DerivedKey,
    ) -> Result<Result<Arc<SealedEntry>, WriteError>, Error> {
        if !self.context.storage.salt().pin(derived.salt().as_bytes()) {
            // The salt has just been replaced by that of another node; a retry derives the key again.
            return Ok(Err(storage::Error::Busy.into()));
        }
        // From here on the change is made, even if the request is cancelled.
        let result = self.context.storage.commit_one(write, Some(OwnerTag(*derived.id()))).await;
        if result.is_ok() {
            self.context.is_acknowledged().await?;
        }
        Ok(result)
    }
}

impl Context {
    /// Returns the local entry that a request names. On a node that is still joining, a miss is retried once it has
    /// joined.
    pub(super) async fn resolve(
        &self,
        key: &str,
        environment: Option<&str>,
    ) -> Result<Arc<SealedEntry>, Error> {
        match self.resolve_now(key, environment).await {
            Err(Error::NotFound { .. })
                if self.cluster().is_some_and(|cluster| !cluster.joining().is_open()) =>
            {
                self.has_joined().await?;
                self.resolve_now(key, environment).await
            }
            found => found,
        }
    }

    async fn resolve_now(&self, key: &str, environment: Option<&str>) -> Result<Arc<SealedEntry>, Error> {
        let missing = || Error::NotFound {
            key: key.to_owned(),
            environment: environment.map(str::to_owned),
            silent: Vec::new(),
        };
        if environment.is_some() {
            return self.exact(key, environment).await?.ok_or_else(missing);
        }
        match self.storage.get(key).await? {
            Some(group) => select(&group, key),
            // More environments than are read together: only the entry without one can be named by the key alone.
            None => {
                self.exact(key, None).await?.ok_or_else(|| Error::Ambiguous {
                    key: key.to_owned(),
                    environments: vec!["…".to_owned()],
                })
            }
        }
    }

    pub(super) async fn exact(
        &self,
        key: &str,
        environment: Option<&str>,
    ) -> Result<Option<Arc<SealedEntry>>, Error> {
        let id = EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) };
        Ok(self.storage.get_exact(&id).await?)
    }
}

/// Selects the entry that a key without an environment names.
fn select(group: &KeyEntries, key: &str) -> Result<Arc<SealedEntry>, Error> {
    if let Some(row) = group.exact(None) {
        return Ok(Arc::clone(row));
    }
    match group.rows.as_slice() {
        [] => Err(Error::NotFound { key: key.to_owned(), environment: None, silent: Vec::new() }),
        [only] => Ok(Arc::clone(only)),
        several => Err(Error::Ambiguous {
            key: key.to_owned(),
            environments: several.iter().filter_map(|row| row.environment.clone()).collect(),
        }),
    }
}

fn changes_nothing(
    derived: &DerivedKey,
    seen: &SealedEntry,
    update: &Update,
    moved: Option<&Environment>,
) -> bool {
    let same = |new: Option<&str>, old: &Option<String>| new.is_none() || new == old.as_deref();
    same(update.category.as_ref().map(Category::as_str), &seen.category)
        && same(moved.map(Environment::as_str), &seen.environment)
        && open(derived, seen).is_ok_and(|value| value == update.value)
}

pub(super) fn seal(derived: &DerivedKey, value: &Plaintext) -> Ciphertext {
    Ciphertext::from_bytes(derived.fernet().seal_raw(value.expose(), Timestamp::now().as_seconds()))
}

/// Verifies that the user key decrypts a row, without decrypting it.
pub(super) fn verify(derived: &DerivedKey, row: &SealedEntry) -> Result<(), Error> {
    let sealed = row.ciphertext.as_ref().ok_or_else(|| DecryptError::NotAToken.of(row))?;
    if !derived.fernet().verifies_raw(sealed.as_bytes()) {
        return Err(DecryptError::WrongKey.of(row));
    }
    derived.mark_proven();
    Ok(())
}

/// Decrypts a row, or leaves it encrypted if it is large and known to be canonical.
fn read_value(derived: &Arc<DerivedKey>, row: &Arc<SealedEntry>) -> Result<Value, Error> {
    let is_large = row.ciphertext.as_ref().is_some_and(|sealed| sealed.as_bytes().len() > LARGE_VALUE_BYTES);
    if is_large && row.is_canonical() {
        return SealedValue::verify(derived, row).map(Value::Sealed).map_err(|error| error.of(row));
    }
    // Decryption may have found the row to be canonical.
    open(derived, row).map(|plaintext| Value::of(derived, row, plaintext))
}

/// Decrypts a row to canonical JSON.
fn open(derived: &DerivedKey, row: &SealedEntry) -> Result<Plaintext, Error> {
    Decryptor::new(derived).into_plaintext(row).map_err(|error| error.of(row))
}
