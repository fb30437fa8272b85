//! Changing an entry that another node has. It is opened and sealed here, and the owner exchanges one sealed
//! value for another: neither the user key nor the value goes there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::local_lookup::digest_of;
use super::messages::{
    RemoteWrite, RemoteWriteAction, RemoteWriteOutcome, WRITE, decode_outcome, encode_order,
};
use super::peer_requests::{Answers, Federation};
use super::remote_lookup::{OwnerPolicy, Remote};
use crate::model::{Category, EntryId, Environment};
use crate::service::configs::{seal, verify};
use crate::service::{Credentials, DecryptedEntry, Error, Service, Update, Value, salt_fingerprint};
use crate::store::SealedEntry;

/// How often the owner is asked again when somebody else was faster. More often than for an own entry: its
/// other clients are nearer to it.
const ATTEMPTS_MAX: usize = 64;
/// How long the owner is waited for. Longer than for a question: what it does has to be durable.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

impl Service {
    /// Replaces the value of an entry of the nearest peer that has it.
    ///
    /// # Errors
    /// As for an own entry; [`Error::Unavailable`] when the owner's answer is lost: it may be done then.
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
        for _ in 0..ATTEMPTS_MAX {
            verify(&derived, &remote.row)?;
            // An entry that was named with its environment stays there.
            let moved =
                update.environment.as_ref().filter(|_| environment.is_none()).map(Environment::as_str);
            let action = RemoteWriteAction::Update {
                ciphertext: seal(&derived, &update.value),
                category: update.category.as_ref().map(|category| Category::as_str(category).to_owned()),
                environment: moved.map(str::to_owned),
            };
            match self.order(federation, &remote, derived.salt().as_bytes(), action).await? {
                RemoteWriteOutcome::Done(row) => {
                    return Ok(DecryptedEntry { row: Arc::new(row), value: Value::Plain(update.value) });
                }
                RemoteWriteOutcome::Exists => {
                    let environment = moved.map(str::to_owned);
                    // Its value is at the owner: whether the key would open it is not known here.
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

    /// Deletes an entry of the nearest peer that has it.
    ///
    /// # Errors
    /// As for [`Self::update_elsewhere`].
    pub(in crate::service) async fn delete_elsewhere(
        &self,
        federation: &Federation,
        credentials: &Credentials<'_>,
        key: &str,
        environment: Option<&str>,
    ) -> Result<(), Error> {
        let mut remote = self.find_remote(federation, key, environment, OwnerPolicy::FirstConfigured).await?;
        let derived = self.derived_key(credentials).await?;
        for _ in 0..ATTEMPTS_MAX {
            verify(&derived, &remote.row)?;
            match self
                .order(federation, &remote, derived.salt().as_bytes(), RemoteWriteAction::Delete)
                .await?
            {
                RemoteWriteOutcome::Done(_) => {
                    federation.locations.forget(key, environment);
                    return Ok(());
                }
                RemoteWriteOutcome::Changed(Some(row)) => remote.row = Arc::new(row),
                RemoteWriteOutcome::Changed(None) | RemoteWriteOutcome::Exists => {
                    remote =
                        self.find_remote(federation, key, environment, OwnerPolicy::FirstConfigured).await?;
                }
                RemoteWriteOutcome::Full => return Err(Error::DiskFull),
                RemoteWriteOutcome::Busy => return Err(Error::Busy),
            }
        }
        Err(Error::Busy)
    }

    async fn order(
        &self,
        federation: &Federation,
        remote: &Remote,
        salt: &[u8],
        action: RemoteWriteAction,
    ) -> Result<RemoteWriteOutcome, Error> {
        if !self.store.salt().pin(salt) {
            // The salt has just yielded to another node's; the next attempt derives anew.
            return Err(Error::Busy);
        }
        let SealedEntry { ciphertext, .. } = &*remote.row;
        let seen = digest_of(ciphertext.as_ref());
        let id = remote.row.entry_id();
        let moved = match &action {
            RemoteWriteAction::Update { environment, .. } => environment.clone(),
            RemoteWriteAction::Delete => None,
        };
        let order = RemoteWrite { salt: salt_fingerprint(salt), id: id.clone(), seen, action };
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let mut answers = Answers::default();
        answers
            .expect(remote.peer, federation.ask(remote.peer, WRITE, &encode_order(&order).into(), deadline));
        match answers.next().await {
            Some((_, Some(answer))) => {
                let outcome = self.decoded(federation, remote.peer, answer, decode_outcome).await;
                let outcome = outcome.filter(|outcome| is_about(outcome, &id, moved.as_deref()));
                outcome.ok_or_else(|| {
                    federation.note_malformed(remote.peer);
                    let peer = federation.peers().name(remote.peer);
                    tracing::warn!(peer, "remote write failed: the answer is not that of a node");
                    Error::Unavailable
                })
            }
            _ => Err(Error::Unavailable),
        }
    }
}

/// Whether an outcome can be that of a change of this entry, which may have moved it to another environment.
fn is_about(outcome: &RemoteWriteOutcome, id: &EntryId, moved: Option<&str>) -> bool {
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
    fn an_outcome_is_of_the_entry_that_was_to_be_changed() {
        let row = |key: &str, environment: Option<&str>| {
            SealedEntry::new(1, key.to_owned(), environment.map(str::to_owned), None)
        };
        let id = EntryId { key: "k".into(), environment: Some("e".into()) };
        for (outcome, moved, is_right) in [
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
            assert_eq!(is_about(&outcome, &id, moved), is_right, "{outcome:?} {moved:?}");
        }
    }
}
