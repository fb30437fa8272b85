//! PBKDF2-HMAC-SHA256 (RFC 8018, section 5.2) with one block of output.

use std::fmt;
use std::sync::Arc;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::mac::{DigestBlock, MacKey, mac_in_place};
use crate::limits;

/// Salt of all user keys of a database: the contents of the salt file, never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt(Arc<[u8]>);

impl Salt {
    /// Creates a salt; `None` if it is empty, as a file is whose contents never reached the disk.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() { None } else { Some(Self(bytes.into())) }
    }

    /// Returns the bytes of the salt file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salt({} bytes, redacted)", self.0.len())
    }
}

/// Output of a derivation: 32 bytes, wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct RawKey([u8; 32]);

impl RawKey {
    /// Wraps bytes that have already been derived; the caller wipes its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes: the two halves of a Fernet key.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawKey(redacted)")
    }
}

/// Derives a key. Takes tens of milliseconds.
pub fn derive(password: &[u8], salt: &[u8]) -> RawKey {
    let mut derivation = Derivation::new(password, salt);
    while !derivation.is_done() {
        advance([&mut derivation]);
    }
    derivation.key()
}

/// Running derivation; wiped when dropped.
///
/// In the notation of RFC 8018: `U_1 = PRF(P, S || INT(1))`, `U_i = PRF(P, U_{i-1})`, and the key is
/// `T_1`, the exclusive or of all of them. The key is as long as a digest, so there is no `T_2`.
pub struct Derivation {
    mac_key: MacKey,
    last: DigestBlock,
    sum: Zeroizing<[u32; 8]>,
    rounds_left: u32,
}

impl Derivation {
    /// Starts a derivation, and performs the first round.
    pub fn new(password: &[u8], salt: &[u8]) -> Self {
        Self::with_rounds(password, salt, limits::KDF_ROUNDS)
    }

    fn with_rounds(password: &[u8], salt: &[u8], rounds: u32) -> Self {
        assert!(rounds > 0, "PBKDF2 has at least one round");
        let mac_key = MacKey::new(password);
        let sum = Zeroizing::new(mac_key.mac_words(&[salt, &1_u32.to_be_bytes()].concat()));
        Self { mac_key, last: DigestBlock::new(&sum), sum, rounds_left: rounds - 1 }
    }

    /// Returns whether all rounds are done.
    pub fn is_done(&self) -> bool {
        self.rounds_left == 0
    }

    /// Returns the key.
    ///
    /// # Panics
    /// Panics if not all rounds are done.
    pub fn key(&self) -> RawKey {
        assert!(self.is_done(), "the key requires all rounds");
        let mut raw_key = RawKey([0; 32]);
        for (bytes, word) in raw_key.0.as_chunks_mut().0.iter_mut().zip(self.sum.iter()) {
            *bytes = word.to_be_bytes();
        }
        raw_key
    }
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Derivation({} rounds left, redacted)", self.rounds_left)
    }
}

/// Advances these derivations side by side, by one step or until one of them is done. Two take 1.2 times
/// as long as one.
pub fn advance<const COUNT: usize>(mut derivations: [&mut Derivation; COUNT]) {
    let left = derivations.iter().map(|derivation| derivation.rounds_left).min().unwrap_or(0);
    let step = left.min(limits::KDF_ROUNDS_PER_STEP);
    for _ in 0..step {
        let macs = derivations.each_mut().map(|derivation| (&derivation.mac_key, &mut derivation.last));
        let digests = mac_in_place(macs);
        for (derivation, words) in derivations.iter_mut().zip(digests) {
            for (sum, word) in derivation.sum.iter_mut().zip(words) {
                *sum ^= word;
            }
        }
    }
    for derivation in derivations {
        derivation.rounds_left -= step;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Sha256;

    use super::super::test_data;
    use super::*;

    fn derive_rounds(password: &[u8], salt: &[u8], rounds: u32) -> RawKey {
        let mut derivation = Derivation::with_rounds(password, salt, rounds);
        while !derivation.is_done() {
            advance([&mut derivation]);
        }
        derivation.key()
    }

    fn check(password: &[u8], salt: &[u8], rounds: u32, expected: &str) {
        let raw_key = derive_rounds(password, salt, rounds);
        assert_eq!(raw_key.expose()[..], test_data::from_hex(expected));
    }

    #[test]
    fn vectors_of_rfc_7914() {
        // Section 11. The outputs there have 64 bytes; these are their first blocks.
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
        // One row has the number of rounds of the file format, so this also verifies that it is 480,000.
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
    fn a_salt_is_not_empty_and_debug_output_shows_no_secret() {
        assert_eq!(Salt::new(b""), None);
        let salt = Salt::new(b"canary").expect("it is not empty");
        assert_eq!(salt.as_bytes(), b"canary");
        let shown = format!("{salt:?} {:?}", RawKey::new([99; 32]));
        assert!(!shown.contains("canary") && !shown.contains("99"), "{shown}");
    }

    #[test]
    fn two_derivations_advance_by_a_step_or_until_one_is_done() {
        let mut long = Derivation::with_rounds(b"password", b"salt", 2 * limits::KDF_ROUNDS_PER_STEP + 2);
        let mut short = Derivation::with_rounds(b"password", b"salt", limits::KDF_ROUNDS_PER_STEP + 2);
        advance([&mut long, &mut short]);
        assert_eq!((long.rounds_left, short.rounds_left), (limits::KDF_ROUNDS_PER_STEP + 1, 1));
        advance([&mut long, &mut short]);
        assert!(short.is_done());
        assert_eq!(long.rounds_left, limits::KDF_ROUNDS_PER_STEP);
        advance([&mut long]);
        assert!(long.is_done());
    }

    prop_compose! {
        fn bytes()(bytes in prop::collection::vec(any::<u8>(), 0..150)) -> Vec<u8> { bytes }
    }

    fn reference(password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
        pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, rounds)
    }

    proptest! {
        #[test]
        fn matches_the_pbkdf2_crate(password in bytes(), salt in bytes(), rounds in 1_u32..20) {
            let raw_key = derive_rounds(&password, &salt, rounds);
            prop_assert_eq!(raw_key.expose(), &reference(&password, &salt, rounds));
        }

        #[test]
        fn derivations_side_by_side_are_independent(
            passwords in [bytes(), bytes()],
            salts in [bytes(), bytes()],
            rounds in [1_u32..2100, 1_u32..2100],
            head_start in 0..2,
        ) {
            let new = |n: usize| Derivation::with_rounds(&passwords[n], &salts[n], rounds[n]);
            let (mut one, mut other) = (new(0), new(1));
            for _ in 0..head_start {
                advance([&mut one]);
            }
            while !one.is_done() && !other.is_done() {
                advance([&mut one, &mut other]);
            }
            for (n, mut derivation) in [one, other].into_iter().enumerate() {
                while !derivation.is_done() {
                    advance([&mut derivation]);
                }
                let expected = reference(&passwords[n], &salts[n], rounds[n]);
                let raw_key = derivation.key();
                prop_assert_eq!(raw_key.expose(), &expected);
            }
        }
    }
}
