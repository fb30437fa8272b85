//! Raw settings by name, and readers for each kind of value.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::error::SettingError;
use super::host::HostError;
use super::number::integer;
use crate::limits::SETTING_SHOWN_CHARS_MAX;

/// Values from all sources, and the errors found so far.
pub(super) struct Variables<'a> {
    environment: &'a BTreeMap<String, OsString>,
    dotenv: BTreeMap<String, OsString>,
    pub(super) errors: Vec<SettingError>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(
        environment: &'a BTreeMap<String, OsString>,
        dotenv: BTreeMap<String, OsString>,
    ) -> Self {
        Self { environment, dotenv, errors: Vec::new() }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        self.dotenv
            .iter()
            .filter(|(name, _)| !self.environment.contains_key(*name))
            .chain(self.environment)
            .map(|(name, value)| (name.as_str(), value.as_os_str()))
    }

    /// Returns whether the effective value is present, not empty, and not this default.
    pub(super) fn is_set_to_other_than(&self, variable: &str, default: &str) -> bool {
        let value = self.environment.get(variable).or_else(|| self.dotenv.get(variable));
        value.is_some_and(|value| !value.is_empty() && !value.eq_ignore_ascii_case(default))
    }

    /// Returns whether the settings file sets the variable.
    pub(super) fn is_in_file(&self, variable: &str) -> bool {
        self.dotenv.contains_key(variable)
    }

    /// Returns whether the effective value comes from the settings file.
    pub(super) fn is_from_file(&self, variable: &str) -> bool {
        self.is_in_file(variable) && !self.environment.contains_key(variable)
    }

    pub(super) fn add_error(&mut self, variable: &'static str, message: impl Into<String>) {
        self.errors.push(SettingError::new(variable, message));
    }

    pub(super) fn add_host_error(&mut self, variable: &'static str, text: &str, error: &HostError) {
        let is_passing = matches!(error, HostError::Unresolved(_));
        self.errors.push(SettingError {
            is_transient: is_passing,
            ..SettingError::new(variable, format!("{} {error}", shown(text)))
        });
    }

    /// Returns the unmodified value; `None` if it is unset, empty, or not UTF-8, which is an error. An empty variable
    /// in the environment hides the one in `.env`.
    pub(super) fn secret(&mut self, variable: &'static str) -> Option<String> {
        let value = self.environment.get(variable).or_else(|| self.dotenv.get(variable))?;
        match value.to_str() {
            Some("") => None,
            Some(text) => Some(text.to_owned()),
            None => {
                self.add_error(variable, "is not UTF-8");
                None
            }
        }
    }

    /// Returns a value like [`Self::secret`], for values on one line that may be shown.
    pub(super) fn text(&mut self, variable: &'static str) -> Option<String> {
        let text = self.secret(variable)?;
        if text.contains(char::is_control) {
            self.add_error(variable, format!("{} contains a control character", shown(&text)));
            return None;
        }
        Some(text)
    }

    /// Returns a value like [`Self::text`], without leading and trailing white space.
    pub(super) fn word(&mut self, variable: &'static str) -> Option<String> {
        let text = self.text(variable)?;
        let word = text.trim();
        (!word.is_empty()).then(|| word.to_owned())
    }

    /// Returns an integer in `range`. `what` describes it in an error.
    pub(super) fn number<T>(
        &mut self,
        variable: &'static str,
        what: &str,
        range: &RangeInclusive<T>,
    ) -> Option<T>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let word = self.word(variable)?;
        let number = integer(&word).filter(|number| range.contains(number));
        if number.is_none() {
            let (min, max) = (range.start(), range.end());
            self.add_error(variable, format!("{} is not {what} (allowed: {min} to {max})", shown(&word)));
        }
        number
    }

    /// Returns one of several choices; the case of the value is ignored.
    pub(super) fn choice<T: Copy>(&mut self, variable: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let word = self.word(variable)?;
        let chosen = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word));
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.add_error(variable, format!("{} is unknown (allowed: {})", shown(&word), names.join(", ")));
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// Returns a boolean that is false by default.
    pub(super) fn switch(&mut self, variable: &'static str) -> bool {
        let Some(word) = self.word(variable) else { return false };
        match word.to_ascii_lowercase().as_str() {
            "true" => return true,
            "false" | "0" | "no" | "off" => {}
            // Refused, because either interpretation may be wrong: the Python server reads them as false, but the
            // operator probably meant true.
            "1" | "yes" | "on" => self.add_error(
                variable,
                format!(
                    "{} is ambiguous: the Python server reads it as false (allowed: true, false, 0, no, off)",
                    shown(&word)
                ),
            ),
            _ => self.add_error(
                variable,
                format!("{} is not a boolean (allowed: true, false, 0, no, off)", shown(&word)),
            ),
        }
        false
    }
}

/// Quotes a value for an error. Shows only its first line: an unclosed quote in `.env` includes the lines after it,
/// one of which may contain a secret.
pub(super) fn shown(value: &str) -> String {
    let line: String =
        value.chars().take_while(|character| !character.is_control()).take(SETTING_SHOWN_CHARS_MAX).collect();
    let cut = if line.len() < value.len() { "…" } else { "" };
    format!("\"{line}\"{cut}")
}
