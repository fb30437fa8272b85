//! PBKDF2-HMAC-SHA256 (RFC 8018, section 5.2) with one block of output.

use std::fmt;
use std::sync::Arc;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::mac::{DigestBlock, MacKey};
use crate::limits;

/// Rounds between two looks at whether anybody still waits: about a third of a millisecond.
const ROUNDS_PER_CHECK: u32 = 4096;

/// The salt that every user key of a database is combined with; as long as its file, never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt(Arc<[u8]>);

impl Salt {
    /// `None` for an empty salt, which is what a file looks like whose content never reached the disk.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() { None } else { Some(Self(bytes.into())) }
    }

    /// The bytes of the salt's file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salt({} bytes, redacted)", self.0.len())
    }
}

/// The 32 bytes that come out of a derivation, wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct RawKey([u8; 32]);

impl RawKey {
    /// Takes bytes that were derived before; the caller wipes its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves: the two halves of a Fernet key.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawKey(redacted)")
    }
}

/// Derives a key; takes tens of milliseconds.
pub fn derive(password: &[u8], salt: &[u8]) -> RawKey {
    derive_unless(password, salt, &|| false).expect("nothing cancels this derivation")
}

/// Derives a key, or gives up with `None` soon after `cancelled` turns true.
pub fn derive_unless(password: &[u8], salt: &[u8], cancelled: &dyn Fn() -> bool) -> Option<RawKey> {
    derive_rounds(password, salt, limits::KDF_ROUNDS, cancelled)
}

/// In the names of RFC 8018: `U_1 = PRF(P, S || INT(1))`, `U_i = PRF(P, U_{i-1})`, and the key is
/// `T_1`, the exclusive or of all of them. The key is as long as a digest, so there is no `T_2`.
fn derive_rounds(password: &[u8], salt: &[u8], rounds: u32, cancelled: &dyn Fn() -> bool) -> Option<RawKey> {
    assert!(rounds > 0, "PBKDF2 has at least one round");
    let mac_key = MacKey::new(password);
    let first = [salt, &1_u32.to_be_bytes()].concat();
    let mut sum = Zeroizing::new(mac_key.mac_words(&first));
    let mut block = DigestBlock::new(&sum);
    let mut rounds_left = rounds - 1;
    while rounds_left > 0 {
        if cancelled() {
            return None;
        }
        let batch = rounds_left.min(ROUNDS_PER_CHECK);
        for _ in 0..batch {
            let words = mac_key.mac_in_place(&mut block);
            for (sum, word) in sum.iter_mut().zip(words) {
                *sum ^= word;
            }
        }
        rounds_left -= batch;
    }
    let mut raw_key = RawKey([0; 32]);
    for (bytes, word) in raw_key.0.as_chunks_mut().0.iter_mut().zip(*sum) {
        *bytes = word.to_be_bytes();
    }
    Some(raw_key)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use sha2::Sha256;

    use super::super::test_data;
    use super::*;

    fn check(password: &[u8], salt: &[u8], rounds: u32, expected: &str) {
        let raw_key = derive_rounds(password, salt, rounds, &|| false).expect("nothing cancels it");
        assert_eq!(raw_key.expose()[..], test_data::from_hex(expected));
    }

    #[test]
    fn vectors_of_rfc_7914() {
        // Section 11; its outputs are 64 bytes, of which these are the first block.
        check(b"passwd", b"salt", 1, "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc");
        check(
            b"Password",
            b"NaCl",
            80_000,
            "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56",
        );
    }

    #[test]
    fn vectors_of_hashlib() {
        // One row has the rounds of the file format, so this also says that they are 480,000.
        for row in include_str!("vectors/pbkdf2_hashlib.txt").lines().skip(1) {
            let fields: Vec<&str> = row.split(' ').collect();
            let rounds = fields[2].parse().expect("the third field is a number");
            let (password, salt) = (test_data::from_hex(fields[0]), test_data::from_hex(fields[1]));
            check(&password, &salt, rounds, fields[3]);
            if rounds == limits::KDF_ROUNDS {
                assert_eq!(derive(&password, &salt).expose()[..], test_data::from_hex(fields[3]));
            }
        }
    }

    #[test]
    fn a_salt_is_never_empty_and_never_shown() {
        assert_eq!(Salt::new(b""), None);
        let salt = Salt::new(b"canary").expect("it is not empty");
        assert_eq!(salt.as_bytes(), b"canary");
        let shown = format!("{salt:?} {:?}", RawKey::new([99; 32]));
        assert!(!shown.contains("canary") && !shown.contains("99"), "{shown}");
    }

    #[test]
    fn stops_when_cancelled_and_not_before() {
        let checks = Cell::new(0);
        let cancel_at = |last: u32| {
            checks.set(0);
            derive_rounds(b"password", b"salt", 3 * ROUNDS_PER_CHECK + 1, &|| {
                checks.set(checks.get() + 1);
                checks.get() == last
            })
        };
        assert!(cancel_at(1).is_none() && checks.get() == 1);
        assert!(cancel_at(3).is_none() && checks.get() == 3);
        assert!(cancel_at(4).is_some() && checks.get() == 3);
    }

    proptest! {
        #[test]
        fn is_the_pbkdf2_of_the_pbkdf2_crate(
            password in prop::collection::vec(any::<u8>(), 0..150),
            salt in prop::collection::vec(any::<u8>(), 0..150),
            rounds in 1_u32..20,
        ) {
            let expected = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(&password, &salt, rounds);
            let raw_key = derive_rounds(&password, &salt, rounds, &|| false).expect("nothing cancels it");
            prop_assert_eq!(raw_key.expose(), &expected);
        }
    }
}
