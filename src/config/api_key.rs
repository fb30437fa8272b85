//! The API keys: whether one is required, and whether they are such that a client can send them.
//!
//! No message here says anything about what the variable or the file holds.

use std::fs;
use std::path::Path;

use super::fault::Warning;
use super::variables::{Variables, shown};
use crate::limits::{API_KEY_FILE_BYTES_MAX, API_KEYS_COUNT_MAX};
use crate::model::ApiKey;

/// What the original uses when the variable is not set: known to everybody, so no key at all.
const PLACEHOLDER: &str = "your-super-secret-api-key-here";

/// All keys that are taken: that of `OSC_API_KEY` first, then those of `OSC_API_KEY_FILE`. None of them if none is
/// required.
pub(super) fn read(variables: &mut Variables<'_>, warnings: &mut Vec<Warning>) -> Vec<ApiKey> {
    let is_required = variables.switch("OSC_API_KEY_REQUIRED");
    let known_before = variables.faults.len();
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
        Some((_, Some(problem))) => variables.fault("OSC_API_KEY", problem),
        Some((text, None)) => keys.push(ApiKey::new(text)),
        None => {}
    }
    if let Some(path) = &file {
        match from_file(Path::new(path)) {
            Ok(more) => keys.extend(more),
            Err(problem) => variables.fault("OSC_API_KEY_FILE", format!("{} {problem}", shown(path))),
        }
    }
    if keys.is_empty() && variables.faults.len() == known_before {
        variables.fault("OSC_API_KEY", "is empty, but OSC_API_KEY_REQUIRED is true");
    }
    keys
}

/// A key on each line; empty lines, and those that begin with `#`, are none.
fn from_file(path: &Path) -> Result<Vec<ApiKey>, String> {
    let size = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if size > API_KEY_FILE_BYTES_MAX {
        return Err(format!("is no file of keys: it is longer than {API_KEY_FILE_BYTES_MAX} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut keys = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(problem) = problem(line) {
            return Err(format!("has a line, {}, that {problem}", index + 1));
        }
        keys.push(ApiKey::new(line));
    }
    match keys.len() {
        0 => Err("holds no key".to_owned()),
        1..=API_KEYS_COUNT_MAX => Ok(keys),
        _ => Err(format!("holds more than {API_KEYS_COUNT_MAX} keys")),
    }
}

fn problem(text: &str) -> Option<&'static str> {
    if text.trim() == PLACEHOLDER {
        Some("is the documented example, which is no secret")
    } else if text.contains(char::is_control) {
        Some("holds a control character, which no client can send in a header")
    } else if text.trim() != text {
        Some("has white space at its start or end, which is not part of a header value")
    } else if !text.is_ascii() {
        // The original compares with a header read as Latin-1, other servers read UTF-8, and each
        // client encodes in its own way: such a key works for some and not for others.
        Some("holds characters beyond ASCII, which clients send in different ways")
    } else {
        None
    }
}
