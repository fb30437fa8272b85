//! Requirements on a salt, and the tag by which a database recognises its salt.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::limits::{SALT_BYTES, SALT_DISTINCT_BYTES_MIN, SALT_TAGGED_BYTES_MIN};

/// Domain separation of the tag from any other MAC under the salt.
const TAG_MESSAGE: &[u8] = b"opensecureconf salt tag 1";

/// Why a byte string is refused as a salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaltProblem {
    /// Length other than [`SALT_BYTES`].
    Size(usize),
    /// Fewer distinct byte values than random bytes ever have.
    Degenerate {
        /// Number of distinct byte values.
        distinct: usize,
    },
}

/// Predicate of a sentence, after the name of the file or "the salt".
impl fmt::Display for SaltProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "has {size} bytes instead of {SALT_BYTES}"),
            Self::Degenerate { distinct } => {
                write!(f, "is not random (distinct byte values: {distinct})")
            }
        }
    }
}

/// Returns why these bytes are refused as a salt; `None` for a proper one.
pub(super) fn problem(salt: &[u8]) -> Option<SaltProblem> {
    if salt.len() != SALT_BYTES {
        return Some(SaltProblem::Size(salt.len()));
    }
    let mut seen = [false; 256];
    for byte in salt {
        seen[usize::from(*byte)] = true;
    }
    let distinct = seen.iter().filter(|seen| **seen).count();
    (distinct < SALT_DISTINCT_BYTES_MIN).then_some(SaltProblem::Degenerate { distinct })
}

/// Computes the tag, the first 64 bits of the HMAC-SHA256 of a constant under the salt; `None` for a salt that could be
/// guessed from it.
pub(super) fn tag(salt: &[u8]) -> Option<i64> {
    if salt.len() < SALT_TAGGED_BYTES_MIN {
        return None;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(salt).expect("HMAC accepts keys of any length");
    mac.update(TAG_MESSAGE);
    mac.finalize().into_bytes().first_chunk().copied().map(i64::from_be_bytes)
}

/// Computes the SHA-256 of a salt, which `sha256sum` prints for the file.
pub(super) fn digest(salt: &[u8]) -> [u8; 32] {
    Sha256::digest(salt).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: [u8; 8] = [0xbf, 0x7e, 0xcc, 0x1b, 0x24, 0x78, 0xb6, 0x91];

    #[test]
    fn proper_salts() {
        let mut random = [0; SALT_BYTES];
        for _ in 0..1000 {
            getrandom::fill(&mut random).expect("random bytes");
            assert_eq!(problem(&random), None);
        }
        let sixteen: Vec<u8> = (0..64).map(|at| at % 16).collect();
        assert_eq!(problem(&sixteen), None);
    }

    #[test]
    fn refused_salts() {
        for size in [0, 1, 16, 63, 65, 4096] {
            assert_eq!(problem(&vec![b's'; size]), Some(SaltProblem::Size(size)));
        }
        for distinct in [1, 2, 15] {
            let salt: Vec<u8> = (0..64).map(|at| at % 15 % u8::try_from(distinct).expect("few")).collect();
            assert_eq!(problem(&salt), Some(SaltProblem::Degenerate { distinct }));
        }
        assert_eq!(problem(&[0xA5; 64]), Some(SaltProblem::Degenerate { distinct: 1 }));
    }

    /// Computed by Python: `hmac.new(bytes(range(64)), b"opensecureconf salt tag 1", "sha256").digest()[:8]`.
    #[test]
    fn the_tag_is_hmac_sha256() {
        let salt: Vec<u8> = (0..64).collect();
        assert_eq!(tag(&salt), Some(i64::from_be_bytes(TAG)));
        assert_ne!(tag(&salt), tag(&salt[..63]));
        assert!(tag(&salt[..16]).is_some() && tag(&salt[..15]).is_none());
    }
}
