//! Prompt for a user key on the terminal, without echo.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::limits::TERMINAL_LINE_BYTES_MAX;
use crate::model::UserKey;

/// Failure to read a user key.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// Standard input or standard error is not a terminal.
    #[error("no terminal to prompt on: set OSC_USER_KEY or OSC_USER_KEY_FILE")]
    NoTerminal,
    /// The entered line was empty.
    #[error("no user key was entered")]
    Empty,
    /// An I/O error of the terminal.
    #[error("cannot read from the terminal: {0}")]
    Io(#[from] io::Error),
}

/// Guard that disables the echo, and restores the terminal modes when it is dropped.
struct EchoGuard(Termios);

impl EchoGuard {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut without_echo = before.clone();
        without_echo.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &without_echo)?;
        Ok(Self(before))
    }
}

impl Drop for EchoGuard {
    fn drop(&mut self) {
        tcsetattr(io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

/// Prompts for a user key.
///
/// # Errors
/// Fails without a terminal, or if nothing is entered.
pub fn prompt_user_key() -> Result<UserKey, PromptError> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(PromptError::NoTerminal);
    }
    let echo_guard = EchoGuard::new()?;
    write!(io::stderr(), "User key: ")?;
    let mut line = Zeroizing::new(Vec::with_capacity(crate::limits::HEAD_BYTES_MAX));
    io::Read::take(io::stdin().lock(), TERMINAL_LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    drop(echo_guard);
    writeln!(io::stderr())?;
    let user_key = line.strip_suffix(b"\n").unwrap_or(&line);
    match user_key.is_empty() {
        true => Err(PromptError::Empty),
        false => Ok(UserKey::from_header(user_key)),
    }
}
