//! Files of secrets, one per line. Several can be valid while nodes or clients change to a new one.

use std::path::Path;

use zeroize::Zeroizing;

use super::text_file;
use crate::limits::{API_KEY_FILE_BYTES_MAX, API_KEYS_COUNT_MAX};

/// Reads the secrets in a file. Skips empty lines and comments, which start with `#`. `problem` returns why a line is
/// not a valid `noun`, or `None`.
///
/// # Errors
/// Fails with a message that follows the name of the file, and that quotes nothing of its content.
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
            return Err(format!("line {} {problem}", index + 1));
        }
        secrets.push(Zeroizing::new(line.to_owned()));
    }
    match secrets.len() {
        0 => Err(format!("contains no {noun}")),
        1..=API_KEYS_COUNT_MAX => Ok(secrets),
        _ => Err(format!("contains more than {API_KEYS_COUNT_MAX} {noun}s")),
    }
}
