//! Resolves a user key to its derived key, from the cache or by a single-flight derivation.

use std::sync::Arc;

use super::{Error, Service};
use crate::crypto::{DerivedKey, Lookup, Salt};
use crate::model::{Requester, UserKey};

/// The user key of a request, and who is charged for its derivation.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The user key.
    pub user_key: &'a UserKey,
    /// Where the request came from.
    pub requester: Requester,
}

impl Service {
    /// The derived key of a user key.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many derivations wait, [`Error::Unavailable`] when there is no salt.
    pub(super) async fn derived_key(&self, credentials: &Credentials<'_>) -> Result<Arc<DerivedKey>, Error> {
        self.salt_is_agreed().await?;
        if self.salt().is_none() {
            self.make_salt().await?;
        }
        let mut has_joined = false;
        loop {
            let waiter = match self.keys.lookup(credentials.user_key, self.now_seconds()) {
                Lookup::Ready(key) => return Ok(key),
                Lookup::Wait(waiter) if !has_joined => {
                    has_joined = true;
                    match waiter.await {
                        Ok(key) => return Ok(key),
                        // The job may have been displaced for being another requester's: once more, in
                        // the name of this one.
                        Err(_) => continue,
                    }
                }
                Lookup::Wait(waiter) => waiter,
                Lookup::Derive(ticket, waiter) => {
                    // Read when there is a ticket: whoever replaces the salt disowns all tickets after that.
                    let salt = self.salt().and_then(|salt| Salt::new(&salt)).ok_or(Error::Unavailable)?;
                    // A refused ticket is dropped, and all its waiters learn of it.
                    self.pool.derive(ticket, salt, credentials.requester).map_err(|_| Error::Busy)?;
                    waiter
                }
            };
            return waiter.await.map_err(|_| Error::Busy);
        }
    }
}
