//! The raw settings by name, and the readers for the kinds of value they hold.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::error::SettingError;
use super::host::HostError;

/// Longest part of a value that a fault shows.
const SHOWN_CHARS_MAX: usize = 80;

/// The values of all sources, and the faults found in them so far.
pub(super) struct Variables<'a> {
    environment: &'a BTreeMap<String, OsString>,
    dotenv: BTreeMap<String, OsString>,
    pub(super) faults: Vec<SettingError>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(
        environment: &'a BTreeMap<String, OsString>,
        dotenv: BTreeMap<String, OsString>,
    ) -> Self {
        Self { environment, dotenv, faults: Vec::new() }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        self.dotenv
            .iter()
            .filter(|(name, _)| !self.environment.contains_key(*name))
            .chain(self.environment)
            .map(|(name, value)| (name.as_str(), value.as_os_str()))
    }

    /// Whether the value in effect is neither absent nor empty, nor this default.
    pub(super) fn is_set_to_other_than(&self, variable: &str, default: &str) -> bool {
        let value = self.environment.get(variable).or_else(|| self.dotenv.get(variable));
        value.is_some_and(|value| !value.is_empty() && !value.eq_ignore_ascii_case(default))
    }

    /// Whether the settings file sets it.
    pub(super) fn is_in_file(&self, variable: &str) -> bool {
        self.dotenv.contains_key(variable)
    }

    /// Whether the settings file decides it.
    pub(super) fn is_from_file(&self, variable: &str) -> bool {
        self.is_in_file(variable) && !self.environment.contains_key(variable)
    }

    pub(super) fn fault(&mut self, variable: &'static str, message: impl Into<String>) {
        self.faults.push(SettingError::new(variable, message));
    }

    pub(super) fn host_fault(&mut self, variable: &'static str, text: &str, error: &HostError) {
        let is_passing = matches!(error, HostError::Unresolved(_));
        self.faults.push(SettingError {
            is_passing,
            ..SettingError::new(variable, format!("{} {error}", shown(text)))
        });
    }

    /// The value as it is; `None` when it is unset, empty, or no text at all, which is a fault.
    /// A variable that is set to nothing in the environment hides the one in `.env`.
    pub(super) fn secret(&mut self, variable: &'static str) -> Option<String> {
        let value = self.environment.get(variable).or_else(|| self.dotenv.get(variable))?;
        match value.to_str() {
            Some("") => None,
            Some(text) => Some(text.to_owned()),
            None => {
                self.fault(variable, "is not UTF-8");
                None
            }
        }
    }

    /// Like [`Self::secret`], for values that may be shown and that fit on one line.
    pub(super) fn text(&mut self, variable: &'static str) -> Option<String> {
        let text = self.secret(variable)?;
        if text.contains(char::is_control) {
            self.fault(variable, format!("{} holds a control character", shown(&text)));
            return None;
        }
        Some(text)
    }

    /// Like [`Self::text`], for values that white space around them is never part of.
    pub(super) fn word(&mut self, variable: &'static str) -> Option<String> {
        let text = self.text(variable)?;
        let word = text.trim();
        (!word.is_empty()).then(|| word.to_owned())
    }

    /// An integer of `range`. `what` names it in a fault.
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
            let (least, most) = (range.start(), range.end());
            self.fault(variable, format!("{} is not {what} (allowed: {least} to {most})", shown(&word)));
        }
        number
    }

    /// One of a few words in any case.
    pub(super) fn choice<T: Copy>(&mut self, variable: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let word = self.word(variable)?;
        let chosen = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word));
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.fault(variable, format!("{} is unknown (allowed: {})", shown(&word), names.join(", ")));
        }
        chosen.map(|(_, choice)| *choice)
    }

    /// A switch that is off by default.
    pub(super) fn switch(&mut self, variable: &'static str) -> bool {
        let Some(word) = self.word(variable) else { return false };
        match word.to_ascii_lowercase().as_str() {
            "true" => return true,
            "false" | "0" | "no" | "off" => {}
            // A guess in either direction is wrong for somebody: who moves here from the original has
            // run without the switch, and who wrote the line wanted it.
            "1" | "yes" | "on" => self.fault(
                variable,
                format!(
                    "{} is not clear: the original took it as false (allowed: true, or false, 0, no, off)",
                    shown(&word)
                ),
            ),
            _ => self.fault(
                variable,
                format!("{} is not a truth value (allowed: true, or false, 0, no, off)", shown(&word)),
            ),
        }
        false
    }
}

/// `FromStr` alone would also take a plus sign.
pub(super) fn integer<T: FromStr>(word: &str) -> Option<T> {
    word.parse().ok().filter(|_| !word.starts_with('+'))
}

/// A value for a fault. Only its first line: a quote that is not closed in `.env` takes in the lines
/// after it, and one of those may hold a secret.
pub(super) fn shown(value: &str) -> String {
    let line: String =
        value.chars().take_while(|character| !character.is_control()).take(SHOWN_CHARS_MAX).collect();
    let cut = if line.len() < value.len() { "…" } else { "" };
    format!("\"{line}\"{cut}")
}
