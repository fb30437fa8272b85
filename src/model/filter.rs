//! Filter of a list.

use super::SealedEntry;

/// Filter of a list; a field of `None` matches every entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Exact category.
    pub category: Option<String>,
    /// Exact environment.
    pub environment: Option<String>,
    /// Prefix of the key.
    pub prefix: Option<String>,
}

impl Filter {
    /// Returns whether a row matches. An engine agrees if [`Self::is_plain`].
    pub fn admits(&self, row: &SealedEntry) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        same(&self.category, &row.category)
            && same(&self.environment, &row.environment)
            && self.prefix.as_ref().is_none_or(|prefix| row.key.starts_with(prefix.as_str()))
    }

    /// Returns whether SQL and [`Self::admits`] agree. SQL counts the characters of a text only up to a NUL, and
    /// distinguishes an empty environment from a missing one.
    pub fn is_plain(&self) -> bool {
        let has_nul = self.prefix.as_ref().is_some_and(|prefix| prefix.contains('\0'));
        !has_nul && self.environment.as_deref() != Some("")
    }
}
