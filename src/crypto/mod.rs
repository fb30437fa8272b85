//! Keys and tokens: the derivation of a key from a user key and the salt, the threads that derive keys, the
//! cache of derived keys, and the Fernet format.
//!
//! Does no I/O on files or sockets, reads no clock (callers pass the time), and depends on no executor.
//!
//! Threads: [`FernetKey`] and [`KeyCache::lookup`] take about a microsecond and run on the calling
//! executor. A derivation takes tens of milliseconds and belongs on [`KeyDeriver`]. Results return over
//! `futures_channel::oneshot`, whose receivers work on any executor.

mod mac;

mod kdf;
pub use kdf::{Derivation, RawKey, Salt, advance, derive};

mod fernet;
pub use fernet::{FernetKey, OpenError, decode, encode};

mod derived_key;
pub use derived_key::DerivedKey;

mod key_map;
pub use fair_queue::Busy;
pub use key_map::Waiter;

mod key_cache;
pub use key_cache::{Counts, DerivationClaim, KeyCache, Lookup};

mod fair_queue;

mod kdf_worker;

mod key_deriver;
pub use key_deriver::KeyDeriver;

/// Test vectors, and the set-up that several tests share.
#[cfg(test)]
mod test_data {
    use super::{DerivationClaim, KeyCache, Lookup, Salt, Waiter};
    use crate::model::UserKey;

    pub(super) fn salt() -> Salt {
        Salt::new(b"salt").expect("it is not empty")
    }

    /// Returns the claim and the waiter for a user key that is not in the cache.
    pub(super) fn start(cache: &KeyCache, text: &str) -> (DerivationClaim, Waiter) {
        match cache.lookup(&UserKey::from_header(text.as_bytes()), 0) {
            Lookup::Derive(claim, waiter) => (claim, waiter),
            Lookup::Ready(_) | Lookup::Wait(_) => panic!("{text} is known already"),
        }
    }

    /// Returns the bytes of a hexadecimal field; `-` stands for an empty one.
    pub(super) fn from_hex(field: &str) -> Vec<u8> {
        let digits: Vec<u8> = field.bytes().filter(|&byte| byte != b'-').collect();
        let byte = |pair: &[u8; 2]| {
            let pair = std::str::from_utf8(pair).expect("vectors are ASCII");
            u8::from_str_radix(pair, 16).expect("vectors are hexadecimal")
        };
        digits.as_chunks().0.iter().map(byte).collect()
    }
}
