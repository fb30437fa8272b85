//! Names of an entry, validated when they are parsed.

use std::fmt;

use crate::limits::{CATEGORY_CHARS_MAX, ENTRY_KEY_CHARS_MAX, ENVIRONMENT_CHARS_MAX};

/// Error of a text that is too long or too short for its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LengthError {
    /// The text is empty, but needs at least one character.
    #[error("should have at least 1 character")]
    TooShort,
    /// The text has more characters than this maximum.
    #[error("should have at most {0} characters")]
    TooLong(usize),
}

fn within(text: &str, chars_max: usize) -> Result<(), LengthError> {
    // A character takes at least one byte, so the characters of short texts need not be counted.
    if text.len() > chars_max && text.chars().count() > chars_max {
        return Err(LengthError::TooLong(chars_max));
    }
    Ok(())
}

/// Key of an entry within its environment: 1 to 255 Unicode characters, compared without normalisation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey(String);

impl EntryKey {
    /// Parses an entry key.
    ///
    /// # Errors
    /// Fails if the text is empty or longer than 255 characters.
    pub fn parse(text: &str) -> Result<Self, LengthError> {
        Self::check(text)?;
        Ok(Self(text.to_owned()))
    }

    /// Checks that [`Self::parse`] accepts a text.
    ///
    /// # Errors
    /// Fails if [`Self::parse`] would.
    pub fn check(text: &str) -> Result<(), LengthError> {
        if text.is_empty() {
            return Err(LengthError::TooShort);
        }
        within(text, ENTRY_KEY_CHARS_MAX)
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Label for filtering: up to 100 characters, possibly empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category(String);

impl Category {
    /// Parses a category.
    ///
    /// # Errors
    /// Fails if the text is longer than 100 characters.
    pub fn parse(text: &str) -> Result<Self, LengthError> {
        Self::check(text)?;
        Ok(Self(text.to_owned()))
    }

    /// Checks that [`Self::parse`] accepts a text.
    ///
    /// # Errors
    /// Fails if [`Self::parse`] would.
    pub fn check(text: &str) -> Result<(), LengthError> {
        within(text, CATEGORY_CHARS_MAX)
    }

    /// Returns the category as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Environment of an entry: 1 to 100 characters. "No environment" is `None`, never an empty text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Environment(String);

impl Environment {
    /// Parses an environment; an empty text means no environment.
    ///
    /// # Errors
    /// Fails if the text is longer than 100 characters.
    pub fn parse(text: &str) -> Result<Option<Self>, LengthError> {
        within(text, ENVIRONMENT_CHARS_MAX)?;
        Ok((!text.is_empty()).then(|| Self(text.to_owned())))
    }

    /// Checks that a text names an environment.
    ///
    /// # Errors
    /// Fails if the text is empty or longer than 100 characters.
    pub fn check(text: &str) -> Result<(), LengthError> {
        if text.is_empty() {
            return Err(LengthError::TooShort);
        }
        within(text, ENVIRONMENT_CHARS_MAX)
    }

    /// Returns the environment as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_characters() {
        assert!(EntryKey::parse(&"🔑".repeat(255)).is_ok());
        assert_eq!(EntryKey::parse(&"é".repeat(256)), Err(LengthError::TooLong(255)));
        assert_eq!(EntryKey::parse(""), Err(LengthError::TooShort));
        assert!(Category::parse(&"ü".repeat(100)).is_ok());
        assert_eq!(Category::parse(&"c".repeat(101)), Err(LengthError::TooLong(100)));
        assert!(Category::parse("").is_ok());
        assert_eq!(Environment::parse(""), Ok(None));
        assert_eq!(Environment::parse(&"e".repeat(101)), Err(LengthError::TooLong(100)));
    }
}
