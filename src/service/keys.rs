//! From a user key to a derived key: out of the cache, or by one derivation for all who wait.

use std::sync::Arc;

use super::{Error, Service};
use crate::crypto::{DerivedKey, Lookup, Salt};
use crate::model::UserKey;

impl Service {
    /// The derived key if it is cached; never waits.
    pub(super) fn cached_key(&self, user_key: &UserKey) -> Option<Arc<DerivedKey>> {
        self.keys.cached(user_key.header_bytes(), self.now_seconds())
    }

    /// # Errors
    /// [`Error::Busy`] when too many derivations wait, [`Error::Unavailable`] when there is no salt.
    pub(super) async fn derived_key(&self, user_key: &UserKey) -> Result<Arc<DerivedKey>, Error> {
        self.salt_is_agreed().await?;
        if self.salt().is_none() {
            self.make_salt().await?;
        }
        let waiter = match self.keys.lookup(user_key, self.now_seconds()) {
            Lookup::Ready(key) => return Ok(key),
            Lookup::Wait(waiter) => waiter,
            Lookup::Derive(ticket, waiter) => {
                // Read when there is a ticket: whoever replaces the salt disowns all tickets after that.
                let salt = self.salt().and_then(|salt| Salt::new(&salt)).ok_or(Error::Unavailable)?;
                // A full queue drops the ticket, which tells all who wait.
                self.pool.derive(ticket, salt).map_err(|_| Error::Busy)?;
                waiter
            }
        };
        waiter.await.map_err(|_| Error::Busy)
    }
}
