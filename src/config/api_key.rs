//! The API key: whether one is required, and whether it is one that a client can send.
//!
//! No message here says anything about what the variable holds.

use super::fault::Warning;
use super::variables::Variables;
use crate::model::ApiKey;

/// What the original uses when the variable is not set: known to everybody, so no key at all.
const PLACEHOLDER: &str = "your-super-secret-api-key-here";

pub(super) fn read(variables: &mut Variables<'_>, warnings: &mut Vec<Warning>) -> Option<ApiKey> {
    let is_required = variables.switch("OSC_API_KEY_REQUIRED");
    let known_before = variables.faults.len();
    let text = variables.secret("OSC_API_KEY");
    if !is_required {
        if text.is_some() {
            warnings.push(Warning::ApiKeyUnused);
        }
        return None;
    }
    let problem = match text.as_deref() {
        // Not UTF-8, which is reported already.
        None if variables.faults.len() > known_before => return None,
        None => "is empty, but OSC_API_KEY_REQUIRED is true",
        Some(text) if text.trim() == PLACEHOLDER => "is the documented example, which is no secret",
        Some(text) if text.contains(char::is_control) => {
            "holds a control character, which no client can send in a header"
        }
        Some(text) if text.trim() != text => {
            "has white space at its start or end, which is not part of a header value"
        }
        // The original compares with a header read as Latin-1, other servers read UTF-8, and each
        // client encodes in its own way: such a key works for some and not for others.
        Some(text) if !text.is_ascii() => {
            "holds characters beyond ASCII, which clients send in different ways"
        }
        Some(text) => return Some(ApiKey::new(text)),
    };
    variables.fault("OSC_API_KEY", problem);
    None
}
