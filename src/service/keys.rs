//! From a user key to a derived key: out of the cache, or by one derivation for all who wait.

use std::sync::Arc;

use super::{Error, Service};
use crate::crypto::{DerivedKey, Lane, Lookup, Salt};
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
        let receiver = match self.keys.lookup(user_key, self.now_seconds()) {
            Lookup::Ready(key) => return Ok(key),
            Lookup::Wait(receiver) => receiver,
            Lookup::Derive(ticket, receiver) => {
                let store = Arc::clone(&self.store);
                let job = move || match store.salt().current_or_new() {
                    Ok(salt) => ticket.derive(&Salt::new(&salt).expect("an empty salt file was refused")),
                    Err(error) => tracing::error!(%error, "no key can be derived"),
                };
                // A full queue drops the job and with it the ticket, which tells all who wait.
                self.pool.spawn(Lane::Derive, job).map_err(|_| Error::Busy)?;
                receiver
            }
        };
        receiver.await.map_err(|_| Error::Busy)
    }
}
