//! Helpers that the messages share: errors, names, digits, times.

use serde::Serialize;

use crate::model::change::EntryError;
use crate::model::{EntryId, Timestamp};

/// Error of a message that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("not a message of a peer: {0}")]
pub struct DecodeError(String);

impl DecodeError {
    /// Creates an error with a reason, which must not quote the message.
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl From<EntryError> for DecodeError {
    fn from(error: EntryError) -> Self {
        Self(error.to_string())
    }
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        // The text of a serde error gives the kind and the position, and quotes nothing of the content.
        Self(error.to_string())
    }
}

/// Encodes a message.
pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("encoding maps with text keys into memory cannot fail")
}

/// Parses exactly `digits_count` hexadecimal digits.
pub(super) fn hexadecimal(text: &str, digits_count: usize) -> Result<u128, DecodeError> {
    let is_whole = text.len() == digits_count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| is_whole);
    number.ok_or_else(|| DecodeError::new(format!("not {digits_count} hexadecimal digits")))
}

/// Validates the name of an entry.
pub(super) fn id_of(key: String, environment: Option<String>) -> Result<EntryId, DecodeError> {
    let id = EntryId { key, environment };
    id.check()?;
    Ok(id)
}

/// Encodes a time, or returns `None` if peers would refuse it. Such a time was written by another program, and must not
/// prevent the replication of the entry.
pub(super) fn exchangeable(time: Option<Timestamp>, latest: Timestamp) -> Option<i64> {
    time.filter(|time| time.is_exchangeable() && *time <= latest).map(Timestamp::as_microseconds)
}
