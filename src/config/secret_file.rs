//! Files of secrets, one per line, so that several can be valid while nodes or clients move to a new one.

use std::path::Path;

use zeroize::Zeroizing;

use super::text_file;
use crate::limits::{API_KEY_FILE_BYTES_MAX, API_KEYS_COUNT_MAX};

/// Reads the secrets of a file. Skips empty lines and comments, which begin with `#`. `problem` says why a line is
/// not a `noun`.
///
/// # Errors
/// With the rest of a sentence that begins with the name of the file, and that quotes nothing of it.
pub(super) fn read(
    path: &Path,
    noun: &str,
    problem: fn(&str) -> Option<&'static str>,
) -> Result<Vec<Zeroizing<String>>, String> {
    let text = text_file::read(path, API_KEY_FILE_BYTES_MAX)?;
    let mut secrets = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(problem) = problem(line) {
            return Err(format!("has a line, {}, that {problem}", index + 1));
        }
        secrets.push(Zeroizing::new(line.to_owned()));
    }
    match secrets.len() {
        0 => Err(format!("holds no {noun}")),
        1..=API_KEYS_COUNT_MAX => Ok(secrets),
        _ => Err(format!("holds more than {API_KEYS_COUNT_MAX} {noun}s")),
    }
}
