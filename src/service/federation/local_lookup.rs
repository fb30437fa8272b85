//! What other nodes ask of this one. None of it asks any further.

use sha2::{Digest as _, Sha256};

use super::messages::{
    Find, FindReply, NamePage, PageQuery, RemoteWrite, RemoteWriteAction, RemoteWriteOutcome, encode_found,
    encode_outcome, encode_page,
};
use super::peer_requests::Federation;
use crate::limits::PEER_INLINE_BYTES;
use crate::model::{Category, Ciphertext, Digest, Environment};
use crate::service::exchange::DecodeError;
use crate::service::{Error, PeerId, Service, salt_fingerprint};
use crate::store::{self, SealedEntry, Store, Write, WriteError};

/// Which sealed value this is.
pub(super) fn digest_of(ciphertext: Option<&Ciphertext>) -> Digest {
    let hash = Sha256::digest(ciphertext.map(Ciphertext::as_bytes).unwrap_or_default());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Digest(u128::from_be_bytes(bytes))
}

impl Service {
    /// What this node itself has of a name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn find_local(&self, find: &Find) -> Result<FindReply, Error> {
        match self.resolve(&find.key, find.environment.as_deref()).await {
            Ok(row) if is_exchangeable(&row) => Ok(FindReply::Row(row)),
            Ok(_) | Err(Error::NotFound { .. }) => Ok(FindReply::Nothing),
            Err(Error::Ambiguous { mut environments, .. }) => {
                environments.retain(|name| Environment::check(name).is_ok());
                Ok(if environments.is_empty() {
                    FindReply::Nothing
                } else {
                    FindReply::Ambiguous(environments)
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Entries that this node itself has, those that a peer takes.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn page_local(&self, query: PageQuery) -> Result<NamePage, Error> {
        self.read_store(move |store| page_of(store, query)).await
    }

    /// The answer to a peer that looks for an entry.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn found_message(&self, find: &Find) -> Result<Vec<u8>, Error> {
        let found = self.find_local(find).await?;
        let salt = self.salt_in_use().0;
        let bytes = if let FindReply::Row(row) = &found { row.weight() } else { 0 };
        self.encoded(bytes, move || encode_found(salt, &found)).await
    }

    /// The answer to a peer that asks for entries by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn page_message(&self, query: PageQuery) -> Result<Vec<u8>, Error> {
        let salt = self.salt_in_use().0;
        self.read_store(move |store| Ok(encode_page(salt, &page_of(store, query)?))).await
    }

    /// The answer to a peer that wants an entry of this node to be changed.
    ///
    /// # Errors
    /// As for [`Self::write_here`].
    pub async fn outcome_message(&self, order: RemoteWrite) -> Result<Vec<u8>, Error> {
        let outcome = self.write_local(order).await?;
        let bytes = if let RemoteWriteOutcome::Changed(Some(row)) = &outcome { row.weight() } else { 0 };
        self.encoded(bytes, move || encode_outcome(&outcome)).await
    }

    /// Reads an answer of a peer: here if it is short, otherwise on the pool. `None` for one that is not that of a
    /// node, which is noted.
    pub(super) async fn decoded<T: Send + 'static>(
        &self,
        federation: &Federation,
        peer: PeerId,
        answer: Vec<u8>,
        decode: fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Option<T> {
        let decoded = match answer.len() <= PEER_INLINE_BYTES {
            true => decode(&answer),
            // A pool that is too busy for it has as little to say as a peer that does not answer.
            false => self.on_pool(move || decode(&answer)).await.ok()?,
        };
        let note = |error: &DecodeError| {
            tracing::debug!(%error, "a peer's answer is not that of a node");
            federation.note_malformed(peer);
        };
        decoded.inspect_err(note).ok()
    }

    /// Writes a message of about so many bytes: here if it is short, otherwise on the pool.
    pub(super) async fn encoded(
        &self,
        bytes: usize,
        encode: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Vec<u8>, Error> {
        match bytes <= PEER_INLINE_BYTES {
            true => Ok(encode()),
            false => self.on_pool(encode).await,
        }
    }

    /// Changes an entry of this node, if it is still what the other node has seen: there the user key was
    /// seen to open it.
    ///
    /// # Errors
    /// [`Error::SaltDiffers`] when the new value would open nowhere here, or when the store fails.
    pub async fn write_local(&self, order: RemoteWrite) -> Result<RemoteWriteOutcome, Error> {
        let own = self.salt().filter(|own| salt_fingerprint(own) == order.salt);
        if !own.is_some_and(|own| self.store.salt().pin(&own)) {
            return Err(Error::SaltDiffers);
        }
        let seen = self.exact(&order.id.key, order.id.environment.as_deref()).await?;
        let seen = match seen {
            Some(seen) if digest_of(seen.ciphertext.as_ref()) == order.seen => seen,
            now => {
                return Ok(RemoteWriteOutcome::Changed(now.map(|row| copy_of(&row, row.ciphertext.clone()))));
            }
        };
        let write = match order.action {
            RemoteWriteAction::Update { ciphertext, category, environment } => {
                Write::Update { seen, category, environment, ciphertext }
            }
            RemoteWriteAction::Delete => Write::Delete { seen },
        };
        let receiver = match self.store.write_for_peer(write) {
            Ok(receiver) => receiver,
            Err(store::Error::Busy) => return Ok(RemoteWriteOutcome::Busy),
            Err(error) => return Err(error.into()),
        };
        match receiver.await.map_err(|_| Error::Unavailable)? {
            Ok(row) => Ok(RemoteWriteOutcome::Done(copy_of(&row, None))),
            Err(WriteError::Changed) => {
                let now = self.exact(&order.id.key, order.id.environment.as_deref()).await?;
                Ok(RemoteWriteOutcome::Changed(now.map(|row| copy_of(&row, row.ciphertext.clone()))))
            }
            Err(WriteError::AlreadyExists) => Ok(RemoteWriteOutcome::Exists),
            Err(WriteError::Ahead { .. }) => Err(Error::Unavailable),
            Err(WriteError::Store(store::Error::Full)) => Ok(RemoteWriteOutcome::Full),
            Err(WriteError::Store(store::Error::Busy)) => Ok(RemoteWriteOutcome::Busy),
            Err(WriteError::Store(error)) => Err(error.into()),
        }
    }
}

fn page_of(store: &Store, query: PageQuery) -> Result<NamePage, store::Error> {
    let PageQuery { mut after, filter, bytes_max, names_only } = query;
    loop {
        let (mut rows, more) = store.page_by_name(&filter, after.as_ref(), bytes_max, names_only)?;
        after = rows.last().map(SealedEntry::entry_id);
        rows.retain(is_exchangeable);
        if !rows.is_empty() || !more {
            return Ok(NamePage { rows, more });
        }
    }
}

/// Whether a peer would take it: another program may have written what no client can.
fn is_exchangeable(row: &SealedEntry) -> bool {
    row.entry_id().check().is_ok() && row.category.as_deref().is_none_or(|text| Category::check(text).is_ok())
}

fn copy_of(row: &SealedEntry, ciphertext: Option<Ciphertext>) -> SealedEntry {
    let mut copy = SealedEntry::new(row.id, row.key.clone(), row.environment.clone(), ciphertext);
    copy.category.clone_from(&row.category);
    copy.created_at = row.created_at;
    copy.updated_at = row.updated_at;
    copy
}
