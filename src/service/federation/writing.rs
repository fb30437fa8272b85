//! Changing an entry that another node has. It is opened and sealed here, and the owner exchanges one sealed
//! value for another: neither the user key nor the value goes there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asking::{Answers, Federation};
use super::elsewhere::{Choice, Remote};
use super::here::digest_of;
use super::messages::{Order, OrderAction, Outcome, WRITE, decode_outcome, encode_order};
use crate::model::{Category, Environment, UserKey};
use crate::service::configs::{seal, verify};
use crate::service::{Error, Found, Service, Update, salt_fingerprint};
use crate::store::Row;

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
        user_key: &UserKey,
        key: &str,
        environment: Option<&str>,
        update: Update,
    ) -> Result<Found, Error> {
        let mut remote = self.find_elsewhere(federation, key, environment, Choice::Nearest).await?;
        let derived = self.derived_key(user_key).await?;
        for _ in 0..ATTEMPTS_MAX {
            verify(&derived, &remote.row)?;
            // An entry that was named with its environment stays there.
            let moved =
                update.environment.as_ref().filter(|_| environment.is_none()).map(Environment::as_str);
            let action = OrderAction::Update {
                ciphertext: seal(&derived, &update.value),
                category: update.category.as_ref().map(|category| Category::as_str(category).to_owned()),
                environment: moved.map(str::to_owned),
            };
            match self.order(federation, &remote, derived.salt().as_bytes(), action).await? {
                Outcome::Done(row) => return Ok(Found { row: Arc::new(row), value: update.value }),
                Outcome::Exists => {
                    let environment = moved.map(str::to_owned);
                    return Err(Error::AlreadyExists { key: key.to_owned(), environment });
                }
                Outcome::Changed(Some(row)) => remote.row = Arc::new(row),
                Outcome::Changed(None) => {
                    remote = self.find_elsewhere(federation, key, environment, Choice::Nearest).await?;
                }
                Outcome::Full => return Err(Error::DiskFull),
                Outcome::Busy => return Err(Error::Busy),
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
        user_key: &UserKey,
        key: &str,
        environment: Option<&str>,
    ) -> Result<(), Error> {
        let mut remote = self.find_elsewhere(federation, key, environment, Choice::Nearest).await?;
        let derived = self.derived_key(user_key).await?;
        for _ in 0..ATTEMPTS_MAX {
            verify(&derived, &remote.row)?;
            match self.order(federation, &remote, derived.salt().as_bytes(), OrderAction::Delete).await? {
                Outcome::Done(_) => {
                    federation.locations.forget(key, environment);
                    return Ok(());
                }
                Outcome::Changed(Some(row)) => remote.row = Arc::new(row),
                Outcome::Changed(None) | Outcome::Exists => {
                    remote = self.find_elsewhere(federation, key, environment, Choice::Nearest).await?;
                }
                Outcome::Full => return Err(Error::DiskFull),
                Outcome::Busy => return Err(Error::Busy),
            }
        }
        Err(Error::Busy)
    }

    async fn order(
        &self,
        federation: &Federation,
        remote: &Remote,
        salt: &[u8],
        action: OrderAction,
    ) -> Result<Outcome, Error> {
        if !self.store.salt().seal_with(salt) {
            // The salt has just yielded to another node's; the next attempt derives anew.
            return Err(Error::Busy);
        }
        let Row { ciphertext, .. } = &*remote.row;
        let seen = digest_of(ciphertext.as_ref());
        let order = Order { salt: salt_fingerprint(salt), id: remote.row.entry_id(), seen, action };
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let mut answers = Answers::default();
        answers
            .expect(remote.peer, federation.ask(remote.peer, WRITE, &encode_order(&order).into(), deadline));
        match answers.next().await {
            Some((_, Some(answer))) => decode_outcome(&answer).map_err(|error| {
                tracing::warn!(%error, peer = federation.peers().name(remote.peer), "an order came to nothing");
                Error::Unavailable
            }),
            _ => Err(Error::Unavailable),
        }
    }
}
