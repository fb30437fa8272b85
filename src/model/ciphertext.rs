//! A sealed value: opaque bytes, all that the store ever sees of one.

use base64::{Engine as _, engine::general_purpose::URL_SAFE};

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
