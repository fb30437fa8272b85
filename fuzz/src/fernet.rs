//! Fernet tokens: only tokens of the key open, and a rejected token leaves no output.

use opensecureconf::crypto::{self, FernetKey, OpenError, RawKey};
use opensecureconf::model::Ciphertext;

const BEFORE: &[u8] = b"before";

/// The key of `seeds/fernet`.
pub const KEY: [u8; 32] = *b"the fuzz key: thirty-two letters";

/// Opens `data` as a token, and seals it as a plaintext.
pub fn run(data: &[u8]) {
    let key = FernetKey::new(&RawKey::new(KEY));
    let other = FernetKey::new(&RawKey::new([0x5A; 32]));
    open(&key, data);
    assert!(other.open(data).is_err(), "a token of one key opens with another");
    // The input is also tried as a decoded token.
    open_raw(&key, data);

    let raw = key.seal_raw(data, 0);
    assert_eq!(raw.len(), 1 + 8 + 16 + (data.len() / 16 + 1) * 16 + 32);
    let token = crypto::encode(&raw);
    assert_eq!(crypto::decode(token.as_bytes()).as_ref(), Ok(&raw));
    let opened = key.open(token.as_bytes()).expect("a sealed token opens");
    assert_eq!(opened.expose(), data);
    assert!(matches!(other.open(token.as_bytes()), Err(OpenError::WrongKey)));
    // Every bit is authenticated; the plaintext determines which bit is flipped.
    let bit = data.iter().fold(data.len(), |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
        % (8 * raw.len());
    let mut changed = raw;
    changed[bit / 8] ^= 1 << (bit % 8);
    assert!(!key.verifies_raw(&changed), "bit {bit} is not authenticated");
    assert!(open_raw(&key, &changed).is_none(), "bit {bit} is not authenticated");
}

fn open(key: &FernetKey, token: &[u8]) {
    let opened = key.open(token);
    match crypto::decode(token) {
        Err(error) => {
            assert_eq!(error, OpenError::Malformed);
            assert_eq!(opened.err(), Some(OpenError::Malformed));
        }
        Ok(raw) => {
            assert_eq!(crypto::encode(&raw).as_bytes(), token, "a token has two encodings");
            let stored = Ciphertext::from_text(token).expect("a token is a stored value");
            assert_eq!(stored.as_bytes(), raw);
            assert_eq!(open_raw(key, &raw).as_deref(), opened.ok().as_ref().map(|opened| opened.expose()));
        }
    }
}

fn open_raw(key: &FernetKey, raw: &[u8]) -> Option<Vec<u8>> {
    let mut out = BEFORE.to_vec();
    let result = key.open_raw(raw, &mut out);
    let plaintext = out.strip_prefix(BEFORE).expect("output is only appended");
    assert_eq!(key.verifies_raw(raw), matches!(result, Ok(()) | Err(OpenError::BadPadding)));
    match result {
        Ok(()) => {
            assert!(plaintext.len() < raw.len(), "a plaintext longer than its token");
            Some(plaintext.to_vec())
        }
        Err(_) => {
            assert!(plaintext.is_empty(), "a plaintext after an error");
            None
        }
    }
}
