//! Handling of peer requests from local entries; they are never forwarded.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::peer_requests::Federation;
use crate::limits::PEER_INLINE_BYTES;
use crate::model::{Category, Ciphertext, Digest, Environment, SealedEntry};
use crate::service::context::Context;
use crate::service::{Error, PeerId, salt_fingerprint};
use crate::storage::{self, NameScan, NameScanPage, Write, WriteError};
use crate::wire::federation::{
    Find, FindReply, RemoteWrite, RemoteWriteAction, RemoteWriteOutcome, encode_found, encode_outcome,
    encode_page,
};
use crate::wire::{DecodeError, Protocol};

/// Returns the digest that identifies an encrypted value.
pub(super) fn digest_of(ciphertext: Option<&Ciphertext>) -> Digest {
    let hash = Sha256::digest(ciphertext.map(Ciphertext::as_bytes).unwrap_or_default());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Digest(u128::from_be_bytes(bytes))
}

/// Use cases of federated mode: replies to peers from local entries, and entries that several nodes have.
#[derive(Debug)]
pub struct Federated {
    pub(in crate::service) context: Arc<Context>,
}

impl Federated {
    /// Finds an entry among the local ones.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn find_local(&self, find: &Find) -> Result<FindReply, Error> {
        match self.context.resolve(&find.key, find.environment.as_deref()).await {
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

    /// Reads a page of local entries, without those that a peer would refuse.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn page_local(&self, query: NameScan) -> Result<NameScanPage, Error> {
        let mut query = query;
        loop {
            let NameScanPage { mut rows, more } = self.context.storage.scan_names(query.clone()).await?;
            query.after = rows.last().map(SealedEntry::entry_id);
            rows.retain(is_exchangeable);
            if !rows.is_empty() || !more {
                return Ok(NameScanPage { rows, more });
            }
        }
    }

    /// Encodes the reply to a lookup of a peer.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn find_reply(&self, protocol: Protocol, find: &Find) -> Result<Vec<u8>, Error> {
        let found = self.find_local(find).await?;
        let salt = self.context.salt_in_use().0;
        let bytes = if let FindReply::Row(row) = &found { row.weight() } else { 0 };
        self.context.encoded(bytes, move || encode_found(protocol, salt, &found)).await
    }

    /// Encodes the reply to a page query of a peer.
    ///
    /// # Errors
    /// Fails if the store cannot be read.
    pub async fn page_reply(&self, protocol: Protocol, query: NameScan) -> Result<Vec<u8>, Error> {
        let salt = self.context.salt_in_use().0;
        let page = self.page_local(query).await?;
        let bytes = page.rows.iter().map(SealedEntry::weight).sum();
        self.context.encoded(bytes, move || encode_page(protocol, salt, &page)).await
    }

    /// Executes the remote write of a peer and encodes the reply.
    ///
    /// # Errors
    /// Fails as [`Self::write_local`] does.
    pub async fn write_reply(&self, protocol: Protocol, remote_write: RemoteWrite) -> Result<Vec<u8>, Error> {
        let outcome = self.write_local(remote_write).await?;
        let bytes = if let RemoteWriteOutcome::Changed(Some(row)) = &outcome { row.weight() } else { 0 };
        self.context.encoded(bytes, move || encode_outcome(protocol, &outcome)).await
    }

    /// Applies a remote write to a local entry as a compare-and-swap on the encrypted value. The requesting node has
    /// verified that the user key decrypts that value.
    ///
    /// # Errors
    /// Returns [`Error::SaltDiffers`] if the new value was encrypted with another salt, since no key on this node could
    /// decrypt it. Fails if the store cannot be read or written.
    pub async fn write_local(&self, remote_write: RemoteWrite) -> Result<RemoteWriteOutcome, Error> {
        let RemoteWrite { salt, id, seen: expected, action } = remote_write;
        let own = self.context.salt().filter(|own| salt_fingerprint(own) == salt);
        if !own.is_some_and(|own| self.context.storage.salt().pin(&own)) {
            return Err(Error::SaltDiffers);
        }
        let seen = match self.context.exact(&id.key, id.environment.as_deref()).await? {
            Some(seen) if digest_of(seen.ciphertext.as_ref()) == expected => seen,
            current => {
                let current = current.map(|row| row.copy_with(row.ciphertext.clone()));
                return Ok(RemoteWriteOutcome::Changed(current));
            }
        };
        let write = match action {
            RemoteWriteAction::Update { ciphertext, category, environment } => {
                Write::update(&seen, category, environment, ciphertext)
            }
            RemoteWriteAction::Delete => Write::delete(&seen),
        };
        match self.context.storage.commit_one(write, None).await {
            Ok(row) => Ok(RemoteWriteOutcome::Done(row.copy_with(None))),
            Err(WriteError::Changed) => {
                let current = self.context.exact(&id.key, id.environment.as_deref()).await?;
                Ok(RemoteWriteOutcome::Changed(current.map(|row| row.copy_with(row.ciphertext.clone()))))
            }
            Err(WriteError::AlreadyExists) => Ok(RemoteWriteOutcome::Exists),
            Err(WriteError::Ahead { .. }) => Err(Error::Unavailable),
            Err(WriteError::Store(storage::Error::Full)) => Ok(RemoteWriteOutcome::Full),
            Err(WriteError::Store(storage::Error::Busy)) => Ok(RemoteWriteOutcome::Busy),
            Err(WriteError::Store(error)) => Err(error.into()),
        }
    }
}

impl Context {
    /// Decodes the reply of a peer: in place if it is short, otherwise on the pool. Returns `None` for a malformed
    /// reply, which is recorded, and if the pool is busy.
    pub(super) async fn decoded<T: Send + 'static>(
        &self,
        federation: &Federation,
        peer: PeerId,
        reply: Vec<u8>,
        decode: fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Option<T> {
        let decoded = match reply.len() <= PEER_INLINE_BYTES {
            true => decode(&reply),
            // A busy pool is treated like a peer that does not reply.
            false => self.on_pool(move || decode(&reply)).await.ok()?,
        };
        let record = |error: &DecodeError| {
            tracing::debug!(%error, "malformed reply from a peer");
            federation.report_malformed(peer);
        };
        decoded.inspect_err(record).ok()
    }
}

/// Returns whether a peer would accept a row. Another program may have written rows that no client can create.
fn is_exchangeable(row: &SealedEntry) -> bool {
    row.entry_id().check().is_ok() && row.category.as_deref().is_none_or(|text| Category::check(text).is_ok())
}
