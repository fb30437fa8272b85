//! Secrets as types: no `Display`, a redacted `Debug`, wiped when dropped.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The user key of one request, as the bytes of the header.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct UserKey(Vec<u8>);

impl UserKey {
    /// Takes the header value as it came, white space around it removed.
    pub fn from_header(value: &[u8]) -> Self {
        Self(value.to_vec())
    }

    /// Length of the header value in bytes, which is what the original counts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the header was there but empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The header's bytes: an identity for caches (through a keyed hash), not the PBKDF2 password.
    pub fn header_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The PBKDF2 password: the original reads header bytes as Latin-1 and encodes the text as
    /// UTF-8, so each byte from 0x80 on becomes two.
    pub fn password(&self) -> Zeroizing<Vec<u8>> {
        // Reserved for the worst case, so that growing leaves no copy behind.
        let mut password = Zeroizing::new(Vec::with_capacity(2 * self.0.len()));
        for &byte in &self.0 {
            if byte < 0x80 {
                password.push(byte);
            } else {
                password.extend_from_slice(&[0xC0 | (byte >> 6), 0x80 | (byte & 0x3F)]);
            }
        }
        password
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserKey(redacted)")
    }
}

/// The key that clients must present in `X-API-Key` when one is required.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ApiKey(Vec<u8>);

impl ApiKey {
    /// Takes the configured text.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// The key itself, for the header of a request to a peer.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it was made from a text")
    }

    /// Whether `candidate` is this key; takes the same time for every candidate of the same length.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.ct_eq(candidate).into()
    }
}

/// Secret that the nodes of a cluster share.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecret(Vec<u8>);

impl ClusterSecret {
    /// Takes the configured text.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// The secret itself, for the key of a MAC.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(redacted)")
    }
}

/// The API keys that are valid now; clones are handles to the same ones. Several are, while clients move from an
/// old one to a new one.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<ArcSwap<Vec<ApiKey>>>);

impl ApiKeys {
    /// These; none means that no key is required.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(keys)))
    }

    /// From now on only these are valid.
    pub fn replace(&self, keys: Vec<ApiKey>) {
        self.0.store(Arc::new(keys));
    }

    /// Whether requests must carry one.
    pub fn are_required(&self) -> bool {
        !self.0.load().is_empty()
    }

    /// The number of the key that `candidate` is. Compares with all of them, whichever it is.
    pub fn find(&self, candidate: &[u8]) -> Option<usize> {
        let keys = self.0.load();
        keys.iter()
            .enumerate()
            .fold(None, |found, (number, key)| key.matches(candidate).then_some(number).or(found))
    }

    /// The first one, which nodes of a cluster without a secret share.
    pub fn own(&self) -> Option<ApiKey> {
        self.0.load().first().cloned()
    }

    /// Whether `candidate` is the first one.
    pub fn is_own(&self, candidate: &[u8]) -> bool {
        self.0.load().first().is_some_and(|key| key.matches(candidate))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({}, redacted)", self.0.load().len())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(redacted)")
    }
}

/// A decrypted value: JSON text, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Plaintext(SecretBytes);

impl Plaintext {
    /// Takes ownership of the bytes, which are wiped when this is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(SecretBytes(bytes))
    }

    /// The bytes themselves: for sealing them, or for the answer to the client that may see them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<SecretBytes> for Plaintext {
    fn from(bytes: SecretBytes) -> Self {
        Self(bytes)
    }
}

impl From<Plaintext> for SecretBytes {
    fn from(plaintext: Plaintext) -> Self {
        plaintext.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext({} bytes, redacted)", self.0.len())
    }
}

/// Memory for decrypted values: wiped when it is dropped, and when it moves because it grows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Empty, with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// The bytes, with room for `count` more. Whoever appends more than that leaves an unwiped copy behind.
    pub fn with_room(&mut self, count: usize) -> &mut Vec<u8> {
        if self.0.capacity() - self.0.len() < count {
            let bytes = (self.0.len() + count).max(2 * self.0.capacity());
            let mut larger = Self::with_capacity(bytes);
            larger.0.extend_from_slice(&self.0);
            *self = larger;
        }
        &mut self.0
    }

    /// Bytes that there is room for.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Wipes the bytes and keeps the room.
    pub fn clear(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }
}

impl Drop for SecretBytes {
    /// As slices, because `Vec` wipes one byte at a time, which takes longer than opening the token took.
    fn drop(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.spare_capacity_mut().zeroize();
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for SecretBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Wipes what functions that have returned left on the stack below the caller: ciphers and moved values leave copies
/// there, which no owner can reach. `BYTES` is how deep they went.
#[inline(never)]
pub fn wipe_stack<const BYTES: usize>() {
    let mut dead = [const { MaybeUninit::<u8>::uninit() }; BYTES];
    // As a slice: an array is wiped byte by byte, which takes thirty times as long.
    dead[..].zeroize();
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes, redacted)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_the_utf_8_of_the_latin_1_reading() {
        let text = "pässwörter";
        let expected: String = text.bytes().map(char::from).collect();
        assert_eq!(*UserKey::from_header(text.as_bytes()).password(), expected.into_bytes());
        let all: Vec<u8> = (0..=255).collect();
        let expected: String = all.iter().map(|&b| char::from(b)).collect();
        assert_eq!(*UserKey::from_header(&all).password(), expected.into_bytes());
    }

    #[test]
    fn debug_shows_nothing() {
        let secrets = format!(
            "{:?} {:?} {:?} {:?}",
            UserKey::from_header(b"canary"),
            ApiKey::new("canary"),
            ClusterSecret::new("canary"),
            Plaintext::new(b"canary".to_vec())
        );
        assert!(!secrets.contains("canary") && !secrets.contains("99"), "{secrets}");
    }

    #[test]
    fn keys_are_replaced_for_all_who_hold_them() {
        let keys = ApiKeys::new(vec![ApiKey::new("one"), ApiKey::new("two")]);
        let others = keys.clone();
        assert_eq!((others.find(b"two"), others.find(b"three")), (Some(1), None));
        assert!(others.is_own(b"one") && !others.is_own(b"two"));
        keys.replace(vec![ApiKey::new("three")]);
        assert_eq!((others.find(b"two"), others.find(b"three")), (None, Some(0)));
        assert!(others.own().is_some_and(|key| key.matches(b"three")));
        keys.replace(Vec::new());
        assert!(!others.are_required() && others.own().is_none());
        assert!(!format!("{others:?}").contains("three"));
    }

    #[test]
    fn api_key_matches_only_itself() {
        let key = ApiKey::new("secret");
        assert!(key.matches(b"secret"));
        for other in [&b""[..], b"secre", b"secretx", b"Secret"] {
            assert!(!key.matches(other));
        }
    }
}
