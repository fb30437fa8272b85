//! Orders of entries by name.

use super::change::EntryId;
use super::sealed_entry::SealedEntry;

/// Order of entries by name. Texts compare by their bytes, and "no environment" precedes every environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameOrder {
    /// By key, then by environment.
    #[default]
    Key,
    /// By environment, then by key.
    Environment,
}

impl NameOrder {
    /// Returns the place of a name in this order.
    pub fn of_id(self, id: &EntryId) -> (&str, &str) {
        self.of(&id.key, id.environment.as_deref())
    }

    /// Returns the place of an entry in this order.
    pub fn of_row(self, row: &SealedEntry) -> (&str, &str) {
        self.of(&row.key, row.environment.as_deref())
    }

    fn of<'a>(self, key: &'a str, environment: Option<&'a str>) -> (&'a str, &'a str) {
        // No environment has an empty name.
        let environment = environment.unwrap_or_default();
        match self {
            Self::Key => (key, environment),
            Self::Environment => (environment, key),
        }
    }
}
