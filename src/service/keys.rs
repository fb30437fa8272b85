//! Resolves a user key to its derived key, from the cache or by a single-flight derivation.

use std::sync::Arc;

use super::Error;
use super::context::Context;
use crate::crypto::{DerivedKey, Lookup, Salt};
use crate::model::{Requester, UserKey};

/// User key of a request, and the requester that its derivation is charged to.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// User key.
    pub user_key: &'a UserKey,
    /// Origin of the request.
    pub requester: Requester,
}

impl Context {
    /// Returns the derived key of a user key.
    ///
    /// # Errors
    /// Returns [`Error::Busy`] if too many derivations wait, and [`Error::Unavailable`] if there is no salt.
    pub(super) async fn derived_key(&self, credentials: &Credentials<'_>) -> Result<Arc<DerivedKey>, Error> {
        self.salt_is_agreed().await?;
        if self.salt().is_none() {
            self.generate_salt().await?;
        }
        let mut has_joined = false;
        loop {
            let waiter = match self.keys.lookup(credentials.user_key, self.now_seconds()) {
                Lookup::Ready(key) => return Ok(key),
                Lookup::Wait(waiter) if !has_joined => {
                    has_joined = true;
                    match waiter.await {
                        Ok(key) => return Ok(key),
                        // The derivation may have been displaced because it was charged to another requester. It
                        // is retried once, charged to this one.
                        Err(_) => continue,
                    }
                }
                Lookup::Wait(waiter) => waiter,
                Lookup::Derive(claim, waiter) => {
                    // Read after the claim was taken: replacing the salt invalidates all earlier claims.
                    let salt = self.salt().and_then(|salt| Salt::new(&salt)).ok_or(Error::Unavailable)?;
                    // A refused claim is dropped, which notifies all its waiters.
                    self.deriver.derive(claim, salt, credentials.requester).map_err(|_| Error::Busy)?;
                    waiter
                }
            };
            return waiter.await.map_err(|_| Error::Busy);
        }
    }
}
