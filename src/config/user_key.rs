//! User key for `opensecureconf verify`: read only from the environment, never from `.env` or an argument.
//!
//! No message reveals the content of the variable or the file.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::error::{SettingError, SettingErrors};
use crate::limits::API_KEY_FILE_BYTES_MAX;
use crate::model::UserKey;

const VALUE: &str = "OSC_USER_KEY";
const FILE: &str = "OSC_USER_KEY_FILE";
/// Variables of commands, which the server ignores.
pub(super) const NAMES: [&str; 2] = [VALUE, FILE];

/// Reads the user key from `OSC_USER_KEY` or from the first line of `OSC_USER_KEY_FILE`; `None` without either.
///
/// # Errors
/// Fails if both are set, the file cannot be read, or no client could send the key.
pub fn user_key() -> Result<Option<UserKey>, SettingErrors> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let (name, user_key) = match (variable(VALUE), variable(FILE)) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(invalid(FILE, "cannot be combined with OSC_USER_KEY: set only one of them"));
        }
        (Some(value), None) => (VALUE, Zeroizing::new(value.into_vec())),
        (None, Some(path)) => {
            let path = Path::new(&path);
            let line = first_line(path)
                .map_err(|error| invalid(FILE, format!("{path:?} cannot be read: {error}")))?;
            (FILE, line)
        }
    };
    if user_key.is_empty() {
        return Err(invalid(name, "contains no user key: the first line is empty"));
    }
    if user_key.iter().any(u8::is_ascii_control) {
        return Err(invalid(name, "contains a control character, which clients cannot send in a header"));
    }
    Ok(Some(UserKey::from_header(&user_key)))
}

fn first_line(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // Allocated at full size, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(API_KEY_FILE_BYTES_MAX).unwrap_or(0)));
    File::open(path)?.take(API_KEY_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok(Zeroizing::new(line.trim_ascii_end().to_vec()))
}

fn invalid(variable: &'static str, message: impl Into<String>) -> SettingErrors {
    SettingErrors::from(SettingError::new(variable, message))
}
