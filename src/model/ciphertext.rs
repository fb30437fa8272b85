//! A sealed value: opaque bytes, all that the store ever sees of one.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};

use crate::limits::TOKEN_BYTES_MAX;

/// The first byte of every token.
const VERSION: u8 = 0x80;
const BLOCK_BYTES: usize = 16;
/// Version, time, initial vector, one block of AES-CBC, and the MAC.
const TOKEN_BYTES_MIN: usize = 1 + 8 + 16 + BLOCK_BYTES + 32;

/// The bytes of a Fernet token. At rest it is base64url text, as the original wrote it; in memory
/// the decoded bytes, which are a quarter smaller and need no decoding when they are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ciphertext(Box<[u8]>);

impl Ciphertext {
    /// Takes decoded token bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }

    /// Decodes the text of the database; `None` when it is not base64url with padding.
    pub fn from_text(text: &[u8]) -> Option<Self> {
        URL_SAFE.decode(text).ok().map(Self::from_bytes)
    }

    /// Whether it has the version and a length of a Fernet token. What is sealed in it only its key tells.
    pub fn is_token(&self) -> bool {
        let length = self.0.len();
        self.0.first() == Some(&VERSION)
            && length >= TOKEN_BYTES_MIN
            && (length - TOKEN_BYTES_MIN).is_multiple_of(BLOCK_BYTES)
    }

    /// Whether it is a token of a size that nodes exchange.
    pub fn has_token_shape(&self) -> bool {
        self.is_token() && self.0.len() <= TOKEN_BYTES_MAX
    }

    /// The decoded token.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text for the database.
    pub fn to_text(&self) -> String {
        URL_SAFE.encode(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_of_a_token() {
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
    fn text_and_back() {
        for text in ["", "gAAA", "gAAAAA==", "_-8="] {
            let decoded = Ciphertext::from_text(text.as_bytes()).expect("valid base64url");
            assert_eq!(decoded.to_text(), text);
        }
        for text in ["garbage", "gAAA\n", "+/8=", "gAAAAA", "gAAAAB=="] {
            assert_eq!(Ciphertext::from_text(text.as_bytes()), None, "{text:?}");
        }
    }
}
