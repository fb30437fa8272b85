//! Sealed values: opaque bytes, the only form in which the store sees values.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};

use crate::limits::TOKEN_BYTES_MAX;

/// Version, the first byte of every token.
const VERSION: u8 = 0x80;
const BLOCK_BYTES: usize = 16;
/// Version, time, initialisation vector, one AES-CBC block, and the MAC.
const TOKEN_BYTES_MIN: usize = 1 + 8 + 16 + BLOCK_BYTES + 32;

/// Fernet token. In the database it is base64url text, as the Python server writes it; in memory it is the decoded
/// bytes, which are a quarter smaller and need no decoding when the token is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ciphertext(Box<[u8]>);

impl Ciphertext {
    /// Wraps decoded token bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }

    /// Decodes the text of the database; returns `None` if it is not base64url with padding.
    pub fn from_text(text: &[u8]) -> Option<Self> {
        URL_SAFE.decode(text).ok().map(Self::from_bytes)
    }

    /// Returns whether it has the version and a valid length of a Fernet token. Authenticity can be checked only with
    /// the key.
    pub fn is_token(&self) -> bool {
        let length = self.0.len();
        self.0.first() == Some(&VERSION)
            && length >= TOKEN_BYTES_MIN
            && (length - TOKEN_BYTES_MIN).is_multiple_of(BLOCK_BYTES)
    }

    /// Returns whether it is a token of a size that nodes exchange.
    pub fn has_token_shape(&self) -> bool {
        self.is_token() && self.0.len() <= TOKEN_BYTES_MAX
    }

    /// Returns the decoded token.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the text for the database.
    pub fn to_text(&self) -> String {
        URL_SAFE.encode(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_version_and_whole_blocks() {
        let token = |first: u8, length: usize| {
            let mut bytes = vec![0; length];
            bytes.iter_mut().take(1).for_each(|byte| *byte = first);
            Ciphertext::from_bytes(bytes)
        };
        for length in [73, 89, 73 + 16 * 1000, TOKEN_BYTES_MAX / 16 * 16 - 7] {
            assert!(token(0x80, length).has_token_shape(), "{length}");
            assert!(!token(0x81, length).has_token_shape(), "{length}");
            assert!(!token(0x80, length - 1).has_token_shape(), "{length}");
        }
        for length in [0, 1, 57, TOKEN_BYTES_MAX + 16] {
            assert!(!token(0x80, length).has_token_shape(), "{length}");
        }
    }

    #[test]
    fn text_round_trips() {
        for text in ["", "gAAA", "gAAAAA==", "_-8="] {
            let decoded = Ciphertext::from_text(text.as_bytes()).expect("valid base64url");
            assert_eq!(decoded.to_text(), text);
        }
        for text in ["garbage", "gAAA\n", "+/8=", "gAAAAA", "gAAAAB=="] {
            assert_eq!(Ciphertext::from_text(text.as_bytes()), None, "{text:?}");
        }
    }
}
