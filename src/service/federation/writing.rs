//! Remote writes: changes of entries that another node owns. The value is decrypted and encrypted on this node, and the
//! owner applies a compare-and-swap on the encrypted value; neither the user key nor the plaintext is sent to it.

use std::sync::Arc;
use std::time::Instant;

use super::local_lookup::digest_of;
use super::peer_requests::{Answers, Federation};
use super::remote_lookup::{OwnerPolicy, Remote};
use crate::limits::{REMOTE_WRITE_ATTEMPTS_MAX, REMOTE_WRITE_TIMEOUT};
use crate::model::{Category, EntryId, Environment, SealedEntry};
use crate::service::context::Context;
use crate::service::entries::{seal, verify};
use crate::service::retries::Made;
use crate::service::{Credentials, DecryptedEntry, Error, Receipt, Update, Value, salt_fingerprint};
use crate::wire::Message;
use crate::wire::federation::{RemoteWrite, RemoteWriteAction, RemoteWriteOutcome, decode_outcome};

impl Context {
    /// Replaces the value of an entry on the nearest peer that has it.
    ///
    /// # Errors
    /// Fails as for a local entry. Returns [`Error::Unavailable`] if the reply of the owner is lost: the change may
    /// have been applied.
    pub(in crate::service) async fn update_elsewhere(
        &self,
        federation: &Federation,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
        update: Update,
    ) -> Result<DecryptedEntry, Error> {
        let mut remote = self.find_remote(federation, key, environment, OwnerPolicy::FirstConfigured).await?;
        let derived = self.derived_key(credentials).await?;
        for _ in 0..REMOTE_WRITE_ATTEMPTS_MAX {
            verify(&derived, &remote.row)?;
            // An entry that the request names with its environment is not moved.
            let moved =
                update.environment.as_ref().filter(|_| environment.is_none()).map(Environment::as_str);
            let action = RemoteWriteAction::Update {
                ciphertext: seal(&derived, &update.value),
                category: update.category.as_ref().map(|category| Category::as_str(category).to_owned()),
                environment: moved.map(str::to_owned),
            };
            match self.write_remote(federation, &remote, derived.salt().as_bytes(), action).await? {
                RemoteWriteOutcome::Done(row) => {
                    return Ok(DecryptedEntry { row: Arc::new(row), value: Value::Plain(update.value) });
                }
                RemoteWriteOutcome::Exists => {
                    let environment = moved.map(str::to_owned);
                    // Whether the user key decrypts the existing entry is unknown: only the owner has its value.
                    return Err(Error::AlreadyExists { key: key.to_owned(), environment, is_foreign: true });
                }
                RemoteWriteOutcome::Changed(Some(row)) => remote.row = Arc::new(row),
                RemoteWriteOutcome::Changed(None) => {
                    remote =
                        self.find_remote(federation, key, environment, OwnerPolicy::FirstConfigured).await?;
                }
                RemoteWriteOutcome::Full => return Err(Error::DiskFull),
                RemoteWriteOutcome::Busy => return Err(Error::Busy),
            }
        }
        Err(Error::Busy)
    }

    /// Deletes an entry on the nearest peer that has it.
    ///
    /// # Errors
    /// Fails as [`Self::update_elsewhere`] does.
    pub(in crate::service) async fn delete_elsewhere(
        &self,
        federation: &Federation,
        credentials: &Credentials<'_>,
        name: &EntryId,
    ) -> Result<Receipt, Error> {
        let (key, environment) = (name.key.as_str(), name.environment.as_deref());
        let mut remote = self.find_remote(federation, key, environment, OwnerPolicy::FirstConfigured).await?;
        let derived = self.derived_key(credentials).await?;
        for _ in 0..REMOTE_WRITE_ATTEMPTS_MAX {
            verify(&derived, &remote.row)?;
            let receipt = self.unconfirmed.receipt(name.clone(), Made::deletion(&derived, &remote.row));
            let outcome = self
                .write_remote(federation, &remote, derived.salt().as_bytes(), RemoteWriteAction::Delete)
                .await?;
            if let RemoteWriteOutcome::Done(_) = outcome {
                federation.locations.forget(key, environment);
                return Ok(receipt);
            }
            receipt.discard();
            match outcome {
                RemoteWriteOutcome::Changed(Some(row)) => remote.row = Arc::new(row),
                RemoteWriteOutcome::Changed(None)
                | RemoteWriteOutcome::Exists
                | RemoteWriteOutcome::Done(_) => {
                    remote =
                        self.find_remote(federation, key, environment, OwnerPolicy::FirstConfigured).await?;
                }
                RemoteWriteOutcome::Full => return Err(Error::DiskFull),
                RemoteWriteOutcome::Busy => return Err(Error::Busy),
            }
        }
        Err(Error::Busy)
    }

    /// Sends one remote write to the owner and returns its outcome.
    async fn write_remote(
        &self,
        federation: &Federation,
        remote: &Remote,
        salt: &[u8],
        action: RemoteWriteAction,
    ) -> Result<RemoteWriteOutcome, Error> {
        if !self.storage.salt().pin(salt) {
            // The salt has just been replaced by that of another node; a retry derives the key again.
            return Err(Error::Busy);
        }
        let SealedEntry { ciphertext, .. } = &*remote.row;
        let seen = digest_of(ciphertext.as_ref());
        let id = remote.row.entry_id();
        let moved = match &action {
            RemoteWriteAction::Update { environment, .. } => environment.clone(),
            RemoteWriteAction::Delete => None,
        };
        let write = RemoteWrite { salt: salt_fingerprint(salt), id: id.clone(), seen, action };
        let deadline = Instant::now() + REMOTE_WRITE_TIMEOUT;
        let message = Arc::new(Message::Write(write));
        let mut replies = Answers::default();
        replies.expect(remote.peer, federation.send(remote.peer, &message, deadline));
        match replies.next().await {
            Some((_, Some(reply))) => {
                let outcome = self.decoded(federation, remote.peer, reply, decode_outcome).await;
                let outcome = outcome.filter(|outcome| matches_write(outcome, &id, moved.as_deref()));
                outcome.ok_or_else(|| {
                    federation.report_malformed(remote.peer);
                    let peer = federation.peers().name(remote.peer);
                    tracing::warn!(peer, "remote write failed: malformed reply");
                    Error::Unavailable
                })
            }
            _ => Err(Error::Unavailable),
        }
    }
}

/// Returns whether an outcome matches a change of this entry, which may have moved it to another environment.
fn matches_write(outcome: &RemoteWriteOutcome, id: &EntryId, moved: Option<&str>) -> bool {
    match outcome {
        RemoteWriteOutcome::Done(row) => {
            let environment = moved.or(id.environment.as_deref());
            row.key == id.key && row.environment.as_deref() == environment
        }
        RemoteWriteOutcome::Changed(Some(row)) => row.entry_id() == *id,
        RemoteWriteOutcome::Changed(None)
        | RemoteWriteOutcome::Exists
        | RemoteWriteOutcome::Full
        | RemoteWriteOutcome::Busy => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_must_match_the_entry_of_the_write() {
        let row = |key: &str, environment: Option<&str>| {
            SealedEntry::new(1, key.to_owned(), environment.map(str::to_owned), None)
        };
        let id = EntryId { key: "k".into(), environment: Some("e".into()) };
        for (outcome, moved, is_match) in [
            (RemoteWriteOutcome::Done(row("k", Some("e"))), None, true),
            (RemoteWriteOutcome::Done(row("k", Some("f"))), Some("f"), true),
            (RemoteWriteOutcome::Done(row("k", Some("e"))), Some("f"), false),
            (RemoteWriteOutcome::Done(row("k", None)), None, false),
            (RemoteWriteOutcome::Done(row("other", Some("e"))), None, false),
            (RemoteWriteOutcome::Changed(Some(row("k", Some("e")))), Some("f"), true),
            (RemoteWriteOutcome::Changed(Some(row("k", Some("f")))), Some("f"), false),
            (RemoteWriteOutcome::Changed(None), None, true),
            (RemoteWriteOutcome::Exists, Some("f"), true),
        ] {
            assert_eq!(matches_write(&outcome, &id, moved), is_match, "{outcome:?} {moved:?}");
        }
    }
}
