//! What other nodes ask of this one. None of it asks any further.

use sha2::{Digest as _, Sha256};

use super::messages::{Find, Found, NamePage, Order, OrderAction, Outcome, PageQuery};
use crate::model::{Ciphertext, Digest};
use crate::service::{Error, Service, salt_fingerprint};
use crate::store::{self, Row, Write, WriteError};

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
    pub async fn find_here(&self, find: &Find) -> Result<Found, Error> {
        match self.resolve(&find.key, find.environment.as_deref()).await {
            Ok(row) => Ok(Found::Row(row)),
            Err(Error::NotFound { .. }) => Ok(Found::Nothing),
            Err(Error::Ambiguous { environments, .. }) => Ok(Found::Ambiguous(environments)),
            Err(error) => Err(error),
        }
    }

    /// Entries that this node itself has.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn page_here(&self, query: PageQuery) -> Result<NamePage, Error> {
        self.read_store(move |store| {
            let PageQuery { after, filter, bytes_max, names_only } = query;
            let (rows, more) = store.page_by_name(&filter, after.as_ref(), bytes_max, names_only)?;
            Ok(NamePage { rows, more })
        })
        .await
    }

    /// Changes an entry of this node, if it is still what the other node has seen: there the user key was
    /// seen to open it.
    ///
    /// # Errors
    /// [`Error::SaltDiffers`] when the new value would open nowhere here, or when the store fails.
    pub async fn write_here(&self, order: Order) -> Result<Outcome, Error> {
        let own = self.salt().filter(|own| salt_fingerprint(own) == order.salt);
        if !own.is_some_and(|own| self.store.salt().seal_with(&own)) {
            return Err(Error::SaltDiffers);
        }
        let seen = self.exact(&order.id.key, order.id.environment.as_deref()).await?;
        let seen = match seen {
            Some(seen) if digest_of(seen.ciphertext.as_ref()) == order.seen => seen,
            now => return Ok(Outcome::Changed(now.map(|row| copy_of(&row, row.ciphertext.clone())))),
        };
        let write = match order.action {
            OrderAction::Update { ciphertext, category, environment } => {
                Write::Update { seen, category, environment, ciphertext }
            }
            OrderAction::Delete => Write::Delete { seen },
        };
        let receiver = match self.store.write_for_peer(write) {
            Ok(receiver) => receiver,
            Err(store::Error::Busy) => return Ok(Outcome::Busy),
            Err(error) => return Err(error.into()),
        };
        match receiver.await.map_err(|_| Error::Unavailable)? {
            Ok(row) => Ok(Outcome::Done(copy_of(&row, None))),
            Err(WriteError::Changed) => {
                let now = self.exact(&order.id.key, order.id.environment.as_deref()).await?;
                Ok(Outcome::Changed(now.map(|row| copy_of(&row, row.ciphertext.clone()))))
            }
            Err(WriteError::AlreadyExists) => Ok(Outcome::Exists),
            Err(WriteError::Store(store::Error::Full)) => Ok(Outcome::Full),
            Err(WriteError::Store(store::Error::Busy)) => Ok(Outcome::Busy),
            Err(WriteError::Store(error)) => Err(error.into()),
        }
    }
}

fn copy_of(row: &Row, ciphertext: Option<Ciphertext>) -> Row {
    let mut copy = Row::new(row.id, row.key.clone(), row.environment.clone(), ciphertext);
    copy.category.clone_from(&row.category);
    copy.created_at = row.created_at;
    copy.updated_at = row.updated_at;
    copy
}
