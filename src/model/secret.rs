//! Types of secrets: no `Display`, a redacted `Debug`, wiped when dropped.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// User key of one request, as the bytes of the header.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct UserKey(Vec<u8>);

impl UserKey {
    /// Copies the header value as it was sent, without surrounding white space.
    pub fn from_header(value: &[u8]) -> Self {
        Self(value.to_vec())
    }

    /// Returns the length of the header value in bytes, as the Python server counts it.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the header was present but empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes of the header: an identity for caches (through a keyed hash), not the PBKDF2 password.
    pub fn header_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the PBKDF2 password. The Python server decodes the header as Latin-1 and encodes the text as UTF-8, so
    /// each byte from 0x80 on becomes two.
    pub fn password(&self) -> Zeroizing<Vec<u8>> {
        // Reserved for the worst case, so that a reallocation leaves no copy behind.
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

/// Key that clients must present in `X-API-Key` if one is required.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ApiKey(Vec<u8>);

impl ApiKey {
    /// Copies the configured text.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// Returns the key, for the header of a request to a peer.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(&self.0).expect("an API key is created from a `str`")
    }

    /// Returns whether `candidate` is this key; takes the same time for every candidate of the same length.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.ct_eq(candidate).into()
    }
}

/// Shared secret of the nodes of a cluster.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ClusterSecret(Vec<u8>);

impl ClusterSecret {
    /// Copies the configured text.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// Returns the secret, for use as a MAC key.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(redacted)")
    }
}

/// Currently valid API keys; clones are handles to the same keys. Several are valid while clients are moved from an old
/// key to a new one.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<ArcSwap<Vec<ApiKey>>>);

impl ApiKeys {
    /// Creates a set of these keys; an empty one means that no key is required.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(keys)))
    }

    /// Replaces the keys: from now on only `keys` are valid.
    pub fn replace(&self, keys: Vec<ApiKey>) {
        self.0.store(Arc::new(keys));
    }

    /// Returns whether requests must carry an API key.
    pub fn are_required(&self) -> bool {
        !self.0.load().is_empty()
    }

    /// Returns the index of the key that equals `candidate`. Always compares with all keys.
    pub fn find(&self, candidate: &[u8]) -> Option<usize> {
        let keys = self.0.load();
        keys.iter()
            .enumerate()
            .fold(None, |found, (index, key)| key.matches(candidate).then_some(index).or(found))
    }

    /// Returns the first key, which the nodes of a cluster share if it has no cluster secret.
    pub fn first(&self) -> Option<ApiKey> {
        self.0.load().first().cloned()
    }

    /// Returns whether `candidate` is the first key.
    pub fn is_first(&self, candidate: &[u8]) -> bool {
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

/// Decrypted value: JSON text, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Plaintext(SecretBytes);

impl Plaintext {
    /// Takes ownership of the bytes, which are wiped on drop.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(SecretBytes(bytes))
    }

    /// Returns the bytes: to seal them, or for the response to a client that may see them.
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

/// Buffer for decrypted values: wiped when dropped, and when it is reallocated to grow.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Creates an empty buffer with a capacity of at least this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Returns the bytes, with room for `count` more. Appending more than that leaves an unwiped copy behind.
    pub fn with_room(&mut self, count: usize) -> &mut Vec<u8> {
        if self.0.capacity() - self.0.len() < count {
            let bytes = (self.0.len() + count).max(2 * self.0.capacity());
            let mut larger = Self::with_capacity(bytes);
            larger.0.extend_from_slice(&self.0);
            *self = larger;
        }
        &mut self.0
    }

    /// Returns the capacity in bytes.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Wipes the bytes and keeps the capacity.
    pub fn clear(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }
}

impl Drop for SecretBytes {
    /// Wipes slices, because `Vec` is wiped byte by byte, which takes longer than it took to open the token.
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

/// Wipes the data that returned functions left on the stack below the caller: ciphers and moved values leave copies
/// there, which no owner can reach. `BYTES` is the depth of the stack that they used.
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
    fn the_password_is_the_header_decoded_as_latin_1_and_encoded_as_utf_8() {
        let text = "pässwörter";
        let expected: String = text.bytes().map(char::from).collect();
        assert_eq!(*UserKey::from_header(text.as_bytes()).password(), expected.into_bytes());
        let all: Vec<u8> = (0..=255).collect();
        let expected: String = all.iter().map(|&b| char::from(b)).collect();
        assert_eq!(*UserKey::from_header(&all).password(), expected.into_bytes());
    }

    #[test]
    fn debug_output_is_redacted() {
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
    fn keys_are_replaced_for_all_handles() {
        let keys = ApiKeys::new(vec![ApiKey::new("one"), ApiKey::new("two")]);
        let clone = keys.clone();
        assert_eq!((clone.find(b"two"), clone.find(b"three")), (Some(1), None));
        assert!(clone.is_first(b"one") && !clone.is_first(b"two"));
        keys.replace(vec![ApiKey::new("three")]);
        assert_eq!((clone.find(b"two"), clone.find(b"three")), (None, Some(0)));
        assert!(clone.first().is_some_and(|key| key.matches(b"three")));
        keys.replace(Vec::new());
        assert!(!clone.are_required() && clone.first().is_none());
        assert!(!format!("{clone:?}").contains("three"));
    }

    #[test]
    fn an_api_key_matches_only_itself() {
        let key = ApiKey::new("secret");
        assert!(key.matches(b"secret"));
        for other in [&b""[..], b"secre", b"secretx", b"Secret"] {
            assert!(!key.matches(other));
        }
    }
}
