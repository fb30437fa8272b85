//! Use cases under the brute-force guard, which permits each attempt and is informed of its result.

use std::time::Duration;

use super::context::Context;
use super::guard::{Attempt, CredentialKind, Permit};
use super::{Credentials, Error};

/// Purpose of a use case on the entry that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Decrypts the entry.
    Open,
    /// Creates the entry.
    Create,
}

impl Context {
    /// Runs a use case on one entry under the guard.
    ///
    /// # Errors
    /// Returns the error of the use case, possibly as [`Error::Delayed`], or [`Error::TooManyFailures`].
    pub(super) async fn guarded<T>(
        &self,
        credentials: &Credentials<'_>,
        name: &str,
        purpose: Purpose,
        use_case: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let tried = self.tried(credentials, Some(name));
        let permit = self.permit(&tried)?;
        if let (Permit::OwnedOnly(wait), Purpose::Create) = (permit, purpose) {
            return Err(self.refused(wait));
        }
        match (use_case.await, permit) {
            (Ok(done), _) => {
                if tried.cached.is_none() && purpose == Purpose::Open {
                    self.guard.opened(&tried, self.now_ms());
                }
                Ok(done)
            }
            (Err(error), Permit::OwnedOnly(wait)) if error.depends_on_names() => Err(self.refused(wait)),
            (Err(error), Permit::Full) if error.is_failed_try() => match self.failed(&tried)? {
                Duration::ZERO => Err(error),
                delay => Err(Error::Delayed { delay, error: Box::new(error) }),
            },
            (Err(error), _) => Err(error),
        }
    }

    /// Admits a list. Returns whether it is an attempt with an uncached user key, which has failed if the list shows
    /// nothing.
    ///
    /// # Errors
    /// Returns [`Error::TooManyFailures`] if the attempt is refused.
    pub(super) fn permit_list(&self, credentials: &Credentials<'_>) -> Result<bool, Error> {
        let tried = self.tried(credentials, None);
        // A list with a cached key reveals nothing new.
        self.permit(&tried).map(|_| tried.cached.is_none())
    }

    /// Counts a list that shows nothing, and returns the delay of the response.
    ///
    /// # Errors
    /// Returns [`Error::TooManyFailures`] if the attempt is refused.
    pub(super) fn list_failed(&self, credentials: &Credentials<'_>) -> Result<Duration, Error> {
        self.failed(&Attempt { cached: None, ..self.tried(credentials, None) })
    }

    fn tried<'a>(&self, credentials: &Credentials<'_>, entry: Option<&'a str>) -> Attempt<'a> {
        let user_key = credentials.user_key.header_bytes();
        let id = self.keys.id_of(user_key);
        let cached = self.keys.cached(user_key, self.now_seconds());
        Attempt {
            network: credentials.requester.network,
            user_key: u64::from_le_bytes(*id.first_chunk().expect("32 bytes")),
            cached: cached.map(|key| key.is_proven()),
            entry,
        }
    }

    fn permit(&self, tried: &Attempt<'_>) -> Result<Permit, Error> {
        self.guard.permit(tried, self.now_ms()).map_err(|wait| Error::TooManyFailures { wait })
    }

    fn failed(&self, tried: &Attempt<'_>) -> Result<Duration, Error> {
        self.guard.failed(tried, self.now_ms()).map_err(|wait| Error::TooManyFailures { wait })
    }

    fn refused(&self, wait: Duration) -> Error {
        self.guard.count_refusal(CredentialKind::UserKey);
        Error::TooManyFailures { wait }
    }
}
