//! Keys and tokens.
//!
//! Owns: the derivation of a key from a user key and the salt, the cache of derived keys, the
//! Fernet format, and the pool of threads that carries what takes long. Never does: files, sockets,
//! the clock (callers pass the time in), or anything of an executor.
//!
//! Threads: [`FernetKey`] and [`KeyCache::lookup`] take about a microsecond and run where they are
//! called, on a shard. A derivation takes tens of milliseconds and belongs on [`Pool`]. Results
//! come back over `futures_channel::oneshot`, whose receivers work on any executor.

mod mac;

mod kdf;
pub use kdf::{Derivation, RawKey, Salt, advance, derive};

mod fernet;
pub use fernet::{FernetKey, OpenError, decode, encode};

mod derived_key;
pub use derived_key::DerivedKey;

mod key_map;
pub use key_map::Waiter;

mod key_cache;
pub use key_cache::{Counts, DerivationClaim, KeyCache, Lookup};

mod fair_queue;

mod kdf_worker;

mod completion_queue;
pub use completion_queue::CompletionQueue;

mod pool;
pub use pool::{Busy, Pool, PoolConfig, StartError};

/// Reads the vectors of the tests, and makes what several of them begin with.
#[cfg(test)]
mod test_data {
    use super::{DerivationClaim, KeyCache, Lookup, Salt, Waiter};
    use crate::model::UserKey;

    pub(super) fn salt() -> Salt {
        Salt::new(b"salt").expect("it is not empty")
    }

    /// The ticket for a user key that nobody has asked for, and who waits for it.
    pub(super) fn start(cache: &KeyCache, text: &str) -> (DerivationClaim, Waiter) {
        match cache.lookup(&UserKey::from_header(text.as_bytes()), 0) {
            Lookup::Derive(ticket, waiter) => (ticket, waiter),
            Lookup::Ready(_) | Lookup::Wait(_) => panic!("{text} is known already"),
        }
    }

    /// The bytes of a hexadecimal field, in which `-` stands for none.
    pub(super) fn from_hex(field: &str) -> Vec<u8> {
        let digits: Vec<u8> = field.bytes().filter(|&byte| byte != b'-').collect();
        let byte = |pair: &[u8; 2]| {
            let pair = std::str::from_utf8(pair).expect("vectors are ASCII");
            u8::from_str_radix(pair, 16).expect("vectors are hexadecimal")
        };
        digits.as_chunks().0.iter().map(byte).collect()
    }
}
