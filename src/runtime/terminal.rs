//! Prompt for a user key on the terminal, without echo.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::model::UserKey;

/// Longest line that is read; a request head is no longer.
const LINE_BYTES_MAX: u64 = crate::limits::HEAD_BYTES_MAX as u64;

/// No user key was entered.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// Standard input or standard error is not a terminal.
    #[error("there is no terminal to prompt on: set OSC_USER_KEY or OSC_USER_KEY_FILE")]
    NoTerminal,
    /// The line was empty.
    #[error("no user key was entered")]
    Empty,
    /// The terminal failed.
    #[error("cannot read from the terminal: {0}")]
    Io(#[from] io::Error),
}

/// Restores the modes of the terminal when it is dropped.
struct Hidden(Termios);

impl Hidden {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        tcsetattr(io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

/// Prompts for a user key.
///
/// # Errors
/// Without a terminal, or when nothing was entered.
pub fn prompt_user_key() -> Result<UserKey, PromptError> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(PromptError::NoTerminal);
    }
    let hidden = Hidden::new()?;
    write!(io::stderr(), "User key: ")?;
    let mut line = Zeroizing::new(Vec::with_capacity(crate::limits::HEAD_BYTES_MAX));
    io::Read::take(io::stdin().lock(), LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    drop(hidden);
    writeln!(io::stderr())?;
    let key = line.strip_suffix(b"\n").unwrap_or(&line);
    match key.is_empty() {
        true => Err(PromptError::Empty),
        false => Ok(UserKey::from_header(key)),
    }
}
