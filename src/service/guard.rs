//! Brute-force guard: counts failed keys by client network, user key and entry, and decides when responses are delayed
//! and when attempts are refused.
//!
//! It refuses attempts, never proven keys: a cached user key that decrypts the entry is served whatever else its
//! address does, and so is an API key that the address has used before it was refused.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::failures::{Ledger, Pace, Record};
use crate::limits::{FAILURE_WINDOW, FAILURES_PER_ENTRY_FACTOR, OPENER_KNOWN};
use crate::model::requester::network;

/// Kind of a failed secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// User key that does not decrypt the entry, or a name that was probed with it.
    UserKey,
    /// API key of a client.
    ApiKey,
    /// Credential of a node.
    Node,
}

/// Failure counts and policy of the guard; one per process.
#[derive(Debug)]
pub struct Guard {
    /// Allowed failure rates; `None` if the guard is off.
    paces: Option<Paces>,
    hasher: RandomState,
    /// Failed user keys, by network.
    networks: Ledger,
    /// Failures by user key. The mark is the entry that failed last.
    user_keys: Ledger,
    /// Failed user keys, by entry.
    entries: Ledger,
    /// Networks that decrypted an entry with an uncached key.
    openers: Ledger,
    /// Failed API keys and node credentials, by network. The mark has a bit for each credential that was accepted.
    credentials: Ledger,
    has_failed_credentials: AtomicBool,
    failures: [AtomicU64; CredentialKind::ALL.len()],
    refusals: [AtomicU64; CredentialKind::ALL.len()],
}

#[derive(Clone, Copy, Debug)]
struct Paces {
    network: Pace,
    entry: Pace,
}

/// Attempt to use a user key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    /// Client network; `None` if the connection has no address.
    pub(super) network: Option<IpAddr>,
    /// Identifier of the user key in this process.
    pub(super) user_key: u64,
    /// State of the derived key: `None` if it is not cached, otherwise whether it has decrypted anything.
    pub(super) cached: Option<bool>,
    /// Key of the entry that the request names.
    pub(super) entry: Option<&'a str>,
}

/// Scope of a permitted attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// No restriction.
    Full,
    /// The cached key may be used for entries that it decrypts; everything else is refused for this time.
    OwnedOnly(Duration),
}

impl CredentialKind {
    /// All kinds with their metric labels.
    pub const ALL: [(Self, &str); 3] =
        [(Self::UserKey, "user_key"), (Self::ApiKey, "api_key"), (Self::Node, "node")];

    fn label(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl Guard {
    /// Creates a guard that allows this many failures per minute and network; `None` turns it off.
    pub fn new(failures_per_minute: Option<NonZeroU32>) -> Self {
        let paces = failures_per_minute.map(|count| Paces {
            network: Pace::per_window(count.get()),
            entry: Pace::per_window(count.get().saturating_mul(FAILURES_PER_ENTRY_FACTOR)),
        });
        let [networks, user_keys, entries, openers, credentials] = [(); 5].map(|()| Ledger::new());
        Self {
            paces,
            hasher: RandomState::new(),
            networks,
            user_keys,
            entries,
            openers,
            credentials,
            has_failed_credentials: AtomicBool::new(false),
            failures: Default::default(),
            refusals: Default::default(),
        }
    }

    /// Returns the label, the failures and the refusals of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        CredentialKind::ALL.iter().map(|&(kind, label)| {
            let index = kind as usize;
            (label, self.failures[index].load(Relaxed), self.refusals[index].load(Relaxed))
        })
    }

    /// Removes counts that have decayed.
    pub(super) fn sweep(&self, now_ms: u64) {
        for ledger in [&self.networks, &self.user_keys, &self.entries, &self.openers] {
            ledger.sweep(now_ms);
        }
        // The order matters: a failure between the two steps sets the flag again.
        self.has_failed_credentials.store(false, Relaxed);
        if self.credentials.sweep(now_ms) > 0 {
            self.has_failed_credentials.store(true, Relaxed);
        }
    }

    /// Decides whether a key may be derived and an entry looked up; called before either.
    ///
    /// # Errors
    /// Returns the time to wait if neither is allowed.
    pub(super) fn permit(&self, tried: &Attempt<'_>, now_ms: u64) -> Result<Permit, Duration> {
        let Some(Paces { network, entry }) = self.paces else { return Ok(Permit::Full) };
        let own = self.user_keys.get(tried.user_key, now_ms);
        if tried.cached == Some(true) && own.is_none_or(|own| own.until_ms <= now_ms + window_ms()) {
            // The owner of an entry, with at most a few failures.
            return Ok(Permit::Full);
        }
        let refusal = |pace: Pace, record: Option<Record>| pace.refusal(&record?, now_ms);
        let of_network = tried.network.map(|network| self.key(CredentialKind::UserKey, network));
        let wait = refusal(network, own)
            .or_else(|| refusal(network, self.networks.get(of_network?, now_ms)))
            .or_else(|| {
                let name = tried.entry.filter(|_| tried.cached.is_none())?;
                let wait = refusal(entry, self.entries.get(self.hash(name), now_ms))?;
                let opener = of_network.map(|network| self.hash((network, name)));
                let is_known = opener.is_some_and(|opener| self.openers.get(opener, now_ms).is_some());
                (!is_known).then_some(wait)
            });
        match wait {
            None => Ok(Permit::Full),
            Some(wait) if tried.cached.is_some() => Ok(Permit::OwnedOnly(wait)),
            Some(wait) => {
                self.count_refusal(CredentialKind::UserKey);
                Err(wait)
            }
        }
    }

    /// Counts a user key that failed, or a name that was found with it, and returns the delay of the response. A
    /// repetition of the same key and entry tells an attacker nothing, so it is counted for the key alone.
    ///
    /// # Errors
    /// Returns the time to wait if the attempt is refused.
    pub(super) fn failed(&self, tried: &Attempt<'_>, now_ms: u64) -> Result<Duration, Duration> {
        let Some(paces) = self.paces else { return Ok(Duration::ZERO) };
        self.failures[CredentialKind::UserKey as usize].fetch_add(1, Relaxed);
        let entry = tried.entry.map(|name| self.hash(name));
        let (is_new, own) = self.user_keys.change(tried.user_key, now_ms, |record| {
            // A list has no entry; one failure is counted per derived key.
            let mark = entry.unwrap_or(1) | 1;
            let is_new = record.until_ms <= now_ms || record.mark != mark;
            record.mark = mark;
            (is_new, paces.network.charge(record, now_ms))
        });
        let mut verdict = own;
        if is_new && let Some(network) = tried.network {
            let of_network =
                self.charge(&self.networks, CredentialKind::UserKey, paces.network, network, now_ms);
            verdict = worse(verdict, of_network);
            if let Some(entry) = entry {
                // Only many networks together reach this limit; the responses to each of them are delayed above.
                let of_entry =
                    self.entries.change(entry, now_ms, |record| paces.entry.charge(record, now_ms));
                verdict = worse(verdict, of_entry);
            }
        }
        if verdict.is_err() {
            self.count_refusal(CredentialKind::UserKey);
        }
        verdict
    }

    /// Records that an uncached key has decrypted an entry.
    pub(super) fn opened(&self, tried: &Attempt<'_>, now_ms: u64) {
        if let (Some(_), Some(network), Some(name)) = (self.paces, tried.network, tried.entry) {
            let key = self.hash((self.key(CredentialKind::UserKey, network), name));
            let until_ms = now_ms + u64::try_from(OPENER_KNOWN.as_millis()).unwrap_or(u64::MAX);
            self.openers.change(key, now_ms, |record| record.until_ms = until_ms);
        }
    }

    /// Counts a refusal that follows from a [`Permit`].
    pub(super) fn count_refusal(&self, kind: CredentialKind) {
        self.refusals[kind as usize].fetch_add(1, Relaxed);
    }

    /// Counts a wrong credential, and returns the delay of the response.
    ///
    /// # Errors
    /// Returns the time to wait if the attempt is refused.
    pub(super) fn credential_failed(
        &self,
        kind: CredentialKind,
        address: Option<IpAddr>,
        now_ms: u64,
    ) -> Result<Duration, Duration> {
        self.failures[kind as usize].fetch_add(1, Relaxed);
        let (Some(paces), Some(address)) = (self.paces, address) else { return Ok(Duration::ZERO) };
        let verdict = self.charge(&self.credentials, kind, paces.network, network(address), now_ms);
        self.has_failed_credentials.store(true, Relaxed);
        if verdict.is_err() {
            self.count_refusal(kind);
        }
        verdict
    }

    /// Admits a valid credential, identified by its number. `now_ms` is called only if there were failures.
    ///
    /// # Errors
    /// Returns the time to wait if the client has no attempts left after its failures and has not used this credential
    /// since the first of them. Otherwise a correct guess would be accepted although no attempts are left.
    pub(super) fn credential_accepted(
        &self,
        kind: CredentialKind,
        number: usize,
        address: Option<IpAddr>,
        now_ms: impl FnOnce() -> u64,
    ) -> Result<(), Duration> {
        if !self.has_failed_credentials.load(Relaxed) {
            return Ok(());
        }
        let (Some(paces), Some(address), now_ms) = (self.paces, address, now_ms()) else { return Ok(()) };
        let key = self.key(kind, network(address));
        let Some(record) = self.credentials.get(key, now_ms) else { return Ok(()) };
        let bit = 1 << (number % 64);
        if record.mark & bit != 0 {
            return Ok(());
        }
        if let Some(wait) = paces.network.refusal(&record, now_ms) {
            self.count_refusal(kind);
            return Err(wait);
        }
        self.credentials.change(key, now_ms, |record| record.mark |= bit);
        Ok(())
    }

    fn charge(
        &self,
        ledger: &Ledger,
        kind: CredentialKind,
        pace: Pace,
        network: IpAddr,
        now_ms: u64,
    ) -> Result<Duration, Duration> {
        let (verdict, warns) = ledger.change(self.key(kind, network), now_ms, |record| {
            if record.until_ms <= now_ms {
                *record = Record { warned_ms: record.warned_ms, ..Record::default() };
            }
            let verdict = pace.charge(record, now_ms);
            let is_due = record.warned_ms.is_none_or(|warned_ms| now_ms >= warned_ms + window_ms());
            let warns = pace.refusal(record, now_ms).is_some() && is_due;
            if warns {
                record.warned_ms = Some(now_ms);
            }
            (verdict, warns)
        });
        if warns {
            tracing::warn!(client = %network, kind = kind.label(), "too many failed keys, refusing further attempts");
        }
        verdict
    }

    fn key(&self, kind: CredentialKind, network: IpAddr) -> u64 {
        self.hash((kind as usize, network))
    }

    fn hash(&self, value: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one(value)
    }
}

/// Returns the refusal if there is one, otherwise the longer delay.
fn worse(one: Result<Duration, Duration>, other: Result<Duration, Duration>) -> Result<Duration, Duration> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok(one.max(other)),
        (Err(one), Err(other)) => Err(one.max(other)),
        (Err(wait), _) | (_, Err(wait)) => Err(wait),
    }
}

fn window_ms() -> u64 {
    u64::try_from(FAILURE_WINDOW.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_MINUTE: u32 = 30;
    /// Number of allowed failures: those without delay and those with one.
    const ALLOWED: u32 = 2 * PER_MINUTE;

    fn guard() -> Guard {
        Guard::new(NonZeroU32::new(PER_MINUTE))
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Returns an attempt on an entry with a key that was never used before.
    fn guess(user_key: u64, from: u8) -> Attempt<'static> {
        Attempt { network: Some(address(from)), user_key, cached: None, entry: Some("entry") }
    }

    /// Tries one key after the other until one is refused, and returns the number of allowed attempts.
    fn attack(guard: &Guard, from: u8, keys: std::ops::Range<u64>, now_ms: u64) -> u32 {
        let mut allowed = 0;
        for user_key in keys {
            let tried = guess(user_key, from);
            if guard.permit(&tried, now_ms).is_err() {
                break;
            }
            assert!(guard.failed(&tried, now_ms).is_ok());
            allowed += 1;
        }
        allowed
    }

    #[test]
    fn guesses_of_one_address_are_bounded_and_decay() {
        let guard = guard();
        assert_eq!(attack(&guard, 1, 0..1000, 0), ALLOWED);
        let wait = guard.permit(&guess(2000, 1), 0).expect_err("no attempts left");
        assert_eq!(wait, FAILURE_WINDOW / PER_MINUTE);
        assert_eq!(attack(&guard, 1, 2000..3000, 2_000), 1);
        let hour = (0..3_600_000).step_by(50);
        let allowed: u32 = hour.map(|now_ms| attack(&guard, 1, now_ms..now_ms + 1, 10_000 + now_ms)).sum();
        assert!((59 * PER_MINUTE..=61 * PER_MINUTE).contains(&allowed), "{allowed} per hour");
    }

    #[test]
    fn other_addresses_and_proven_keys_are_not_refused() {
        let guard = guard();
        assert_eq!(attack(&guard, 1, 0..1000, 0), ALLOWED);
        assert_eq!(guard.permit(&guess(5000, 2), 0), Ok(Permit::Full), "another address");
        let owner = Attempt { cached: Some(true), ..guess(5000, 1) };
        assert_eq!(guard.permit(&owner, 0), Ok(Permit::Full), "a proven key at the same address");
        let unproven = Attempt { cached: Some(false), ..guess(5001, 1) };
        assert!(matches!(guard.permit(&unproven, 0), Ok(Permit::OwnedOnly(_))));
        let local = Attempt { network: None, ..guess(5002, 1) };
        assert_eq!(guard.permit(&local, 0), Ok(Permit::Full), "no address");
    }

    #[test]
    fn a_proven_key_that_probes_other_names_can_still_use_its_own_entries() {
        let guard = guard();
        let names: Vec<String> = (0..1000).map(|number| format!("name {number}")).collect();
        fn of(name: &str) -> Attempt<'_> {
            Attempt { network: Some(address(1)), user_key: 1, cached: Some(true), entry: Some(name) }
        }
        let found = names.iter().filter(|name| {
            let tried = of(name);
            guard.permit(&tried, 0) == Ok(Permit::Full) && guard.failed(&tried, 0).is_ok()
        });
        assert_eq!(found.count(), ALLOWED as usize);
        assert!(matches!(guard.permit(&of("its own"), 0), Ok(Permit::OwnedOnly(_))));
        // The failures are those of the key, from whichever address it is used.
        let other_address = Attempt { network: Some(address(9)), ..of("name 999") };
        assert!(matches!(guard.permit(&other_address, 0), Ok(Permit::OwnedOnly(_))));
        assert_eq!(guard.permit(&guess(2, 9), 0), Ok(Permit::Full));
    }

    #[test]
    fn a_repeated_failure_is_counted_for_its_key_alone() {
        let guard = guard();
        let repeated = guess(1, 1);
        let allowed = (0..1000).take_while(|_| guard.failed(&repeated, 0).is_ok()).count();
        assert_eq!(allowed, ALLOWED as usize);
        assert!(guard.permit(&repeated, 0).is_err());
        assert_eq!(guard.permit(&guess(2, 1), 0), Ok(Permit::Full));
        assert_eq!(attack(&guard, 1, 100..1000, 0), ALLOWED - 1, "it was counted once");
    }

    #[test]
    fn an_entry_under_distributed_attack_admits_few_attempts_and_clients_that_opened_it() {
        let guard = guard();
        let opener = guess(1, 250);
        guard.opened(&opener, 0);
        let keys = |from: u8| 1000 * u64::from(from)..1000 * u64::from(from) + 10;
        let allowed: u32 = (0..200).map(|from| attack(&guard, from, keys(from), 0)).sum();
        assert_eq!(allowed, ALLOWED * FAILURES_PER_ENTRY_FACTOR);
        assert!(guard.permit(&guess(2, 251), 0).is_err(), "an unknown client with an uncached key");
        assert_eq!(guard.permit(&opener, 0), Ok(Permit::Full));
        let owner = Attempt { cached: Some(true), ..guess(3, 251) };
        assert_eq!(guard.permit(&owner, 0), Ok(Permit::Full));
        let other = Attempt { entry: Some("other"), ..guess(2, 251) };
        assert_eq!(guard.permit(&other, 0), Ok(Permit::Full));
        assert_eq!(guard.permit(&guess(2, 251), 1_000), Ok(Permit::Full), "two per second");
    }

    #[test]
    fn wrong_credentials_block_guesses_and_not_credentials_in_use() {
        let (guard, from) = (guard(), Some(address(1)));
        let accepted =
            |number, now_ms| guard.credential_accepted(CredentialKind::ApiKey, number, from, || now_ms);
        assert_eq!(accepted(0, 0), Ok(()));
        for number in 0..ALLOWED {
            assert!(guard.credential_failed(CredentialKind::ApiKey, from, 0).is_ok(), "{number}");
            // A client with the first key uses the same address.
            assert_eq!(accepted(0, 0), Ok(()));
        }
        assert!(guard.credential_failed(CredentialKind::ApiKey, from, 0).is_err());
        assert_eq!(accepted(0, 0), Ok(()));
        assert!(accepted(1, 0).is_err(), "a correct guess must look like a wrong one");
        assert_eq!(guard.credential_accepted(CredentialKind::Node, 1, from, || 0), Ok(()));
        assert_eq!(guard.credential_accepted(CredentialKind::ApiKey, 1, Some(address(2)), || 0), Ok(()));
        assert_eq!(accepted(1, 2_000), Ok(()));
        guard.sweep(2_000_000);
        assert!(!guard.has_failed_credentials.load(Relaxed));
        let counts: Vec<_> = guard.counts().collect();
        assert_eq!(counts, [("user_key", 0, 0), ("api_key", 61, 2), ("node", 0, 0)]);
    }

    #[test]
    fn a_disabled_guard_refuses_nothing() {
        let guard = Guard::new(None);
        assert_eq!(attack(&guard, 1, 0..1000, 0), 1000);
        let failed =
            |_| guard.credential_failed(CredentialKind::Node, Some(address(1)), 0) == Ok(Duration::ZERO);
        assert!((0..1000).all(failed));
    }
}
