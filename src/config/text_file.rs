//! Text files with settings: regular UTF-8 files, read completely or refused.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use zeroize::Zeroizing;

/// Reads a file that may contain secrets, without its byte order mark.
///
/// # Errors
/// Fails with a message that follows the name of the file, and that quotes nothing of its content. A directory, a FIFO
/// or a device is refused before it is opened: opening a FIFO would wait for a writer.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, String> {
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound if path.is_symlink() => {
            "is a symbolic link to a file that does not exist".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    })?;
    if found.is_dir() {
        return Err("is a directory, not a file".to_owned());
    }
    if !found.is_file() {
        return Err("is not a regular file, so it cannot be reloaded".to_owned());
    }
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > bytes_max) {
        return Err(format!("is too large (allowed: {bytes_max} bytes)"));
    }
    check(&bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| not_utf8(error.valid_up_to()))?;
    Ok(Zeroizing::new(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned()))
}

/// Refuses text in another encoding, as some editors store it.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("is UTF-16 (allowed: UTF-8)".to_owned());
    }
    if let Some(at) = memchr::memchr(0, bytes) {
        return Err(format!("contains a NUL character at byte {} (allowed: UTF-8 text)", at + 1));
    }
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(not_utf8(error.valid_up_to())),
    }
}

fn not_utf8(valid_up_to: usize) -> String {
    format!("is not UTF-8 (from byte {} on)", valid_up_to + 1)
}
