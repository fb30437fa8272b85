//! API keys: whether one is required, and whether clients can send them.
//!
//! No message reveals the content of the variable or the file.

use std::path::Path;

use super::error::Warning;
use super::secret_file;
use super::variables::{Variables, shown};
use crate::limits::{API_KEY_BYTES_MIN, API_KEY_BYTES_WITHOUT_WARNING};
use crate::model::ApiKey;

/// Default key of the Python server: publicly known, so it is refused.
const PLACEHOLDER: &str = "your-super-secret-api-key-here";

/// Reads the accepted keys: that in `OSC_API_KEY` first, then those in `OSC_API_KEY_FILE`. The list is empty if no key
/// is required.
pub(super) fn read(variables: &mut Variables<'_>, warnings: &mut Vec<Warning>) -> Vec<ApiKey> {
    let is_required = variables.switch("OSC_API_KEY_REQUIRED");
    let errors_before = variables.errors.len();
    let text = variables.secret("OSC_API_KEY");
    let file = variables.text("OSC_API_KEY_FILE");
    if !is_required {
        let names = [("OSC_API_KEY", text.is_some()), ("OSC_API_KEY_FILE", file.is_some())];
        let unused = names.into_iter().filter(|(_, is_set)| *is_set);
        warnings.extend(unused.map(|(name, _)| Warning::ApiKeyUnused(name)));
        return Vec::new();
    }
    let mut keys = Vec::new();
    match text.as_deref().map(|text| (text, problem(text))) {
        Some((_, Some(problem))) => variables.add_error("OSC_API_KEY", problem),
        Some((text, None)) => {
            if is_short(text) {
                warnings.push(Warning::ApiKeyShort("OSC_API_KEY"));
            }
            keys.push(ApiKey::new(text));
        }
        None => {}
    }
    if let Some(path) = &file {
        match secret_file::read(Path::new(path), "key", problem) {
            Ok(more) => {
                if more.iter().any(|text| is_short(text)) {
                    warnings.push(Warning::ApiKeyShort("OSC_API_KEY_FILE"));
                }
                keys.extend(more.iter().map(|text| ApiKey::new(text)));
            }
            Err(problem) => variables.add_error("OSC_API_KEY_FILE", format!("{} {problem}", shown(path))),
        }
    }
    if keys.is_empty() && variables.errors.len() == errors_before {
        variables.add_error("OSC_API_KEY", "is empty, but OSC_API_KEY_REQUIRED is true");
    }
    keys
}

fn problem(text: &str) -> Option<&'static str> {
    if text.trim() == PLACEHOLDER {
        Some("is the documented example, which is not a secret")
    } else if text.contains(char::is_control) {
        Some("contains a control character, which clients cannot send in a header")
    } else if text.trim() != text {
        Some("has leading or trailing white space, which is not part of a header value")
    } else if !text.is_ascii() {
        // The Python server compares with the header as Latin-1, other servers use UTF-8, and clients encode in
        // different ways: such a key works for some clients only.
        Some("contains non-ASCII characters, which clients encode in different ways")
    } else if text.len() < API_KEY_BYTES_MIN {
        Some("is shorter than 8 characters, so it can be guessed")
    } else if text.bytes().all(|byte| text.starts_with(char::from(byte))) {
        Some("is one repeated character, so it can be guessed")
    } else {
        None
    }
}

fn is_short(text: &str) -> bool {
    text.len() < API_KEY_BYTES_WITHOUT_WARNING
}
