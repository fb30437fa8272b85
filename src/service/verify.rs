//! Verification of stored entries, with or without a user key.

use std::path::Path;

use super::decryptor::DecryptError;
use crate::crypto::{FernetKey, derive};
use crate::model::{SealedEntry, SecretBytes, UserKey, json};
use crate::storage::maintenance::{DataFiles, Inspection, MaintenanceError, Verified};

/// Files to verify.
#[derive(Clone, Copy, Debug)]
pub enum VerifyTarget<'a> {
    /// Data files of a node.
    Files(DataFiles<'a>),
    /// Backup, and the SHA-256 of a salt that the operator accepts although it would be refused.
    Backup(&'a Path, Option<[u8; 32]>),
}

/// Counts of entries by the result of decrypting them with one user key.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenedCounts {
    /// Number of entries that decrypt to a JSON value.
    pub opened: u64,
    /// Number of entries that decrypt, but whose value is not JSON or has wrong padding: the server responds with 422.
    pub unreadable: u64,
    /// Number of entries that were encrypted with another user key, or are damaged.
    pub other_key: u64,
}

/// Verifies files and, given a user key, counts the entries that it decrypts.
///
/// # Errors
/// Fails if the files cannot be read, or are not the files of a server.
pub fn verify(
    target: &VerifyTarget<'_>,
    user_key: Option<&UserKey>,
) -> Result<(Verified, Option<OpenedCounts>), MaintenanceError> {
    let inspection = match target {
        VerifyTarget::Files(files) => Inspection::of_files(files)?,
        VerifyTarget::Backup(directory, accepted_salt) => Inspection::of_backup(directory, *accepted_salt)?,
    };
    let (Some(user_key), Some(salt)) = (user_key, inspection.salt()) else {
        return Ok((inspection.run(&mut |_| {})?, None));
    };
    let fernet = FernetKey::new(&derive(&user_key.password(), &salt));
    let (mut counts, mut value) = (OpenedCounts::default(), SecretBytes::default());
    let verified = inspection.run(&mut |row| {
        *(match open(&fernet, row, &mut value) {
            Ok(()) => &mut counts.opened,
            Err(DecryptError::BadPadding | DecryptError::NotJson) => &mut counts.unreadable,
            Err(DecryptError::NotAToken | DecryptError::WrongKey) => &mut counts.other_key,
        }) += 1;
    })?;
    Ok((verified, Some(counts)))
}

fn open(fernet: &FernetKey, row: &SealedEntry, value: &mut SecretBytes) -> Result<(), DecryptError> {
    let sealed = row.ciphertext.as_ref().ok_or(DecryptError::NotAToken)?.as_bytes();
    value.clear();
    fernet.open_raw(sealed, value.with_room(sealed.len()))?;
    let mut canonical = SecretBytes::default();
    json::canonicalize(value, canonical.with_room(value.len())).map(|_| ()).map_err(|_| DecryptError::NotJson)
}
