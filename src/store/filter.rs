//! Filter of a list, as SQL and in memory.

use rusqlite::ToSql;

use super::sealed_entry::SealedEntry;

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
    /// Appends the conditions to a statement, and their parameters to `values`.
    pub(super) fn restrict<'a>(&'a self, sql: &mut String, values: &mut Vec<&'a dyn ToSql>) {
        if let Some(category) = &self.category {
            sql.push_str(" AND category = ?");
            values.push(category);
        }
        if let Some(environment) = &self.environment {
            sql.push_str(" AND environment = ?");
            values.push(environment);
        }
        if let Some(prefix) = &self.prefix {
            // LIKE would fold case and treat `%` and `_` as wildcards.
            sql.push_str(r#" AND substr("key", 1, length(?)) = ?"#);
            values.push(prefix);
            values.push(prefix);
        }
    }

    /// Returns whether a row matches. Agrees with [`Self::restrict`] if [`Self::is_plain`].
    pub(super) fn admits(&self, row: &SealedEntry) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        same(&self.category, &row.category)
            && same(&self.environment, &row.environment)
            && self.prefix.as_ref().is_none_or(|prefix| row.key.starts_with(prefix.as_str()))
    }

    /// Returns whether SQL and [`Self::admits`] agree. SQL counts the characters of a text only up to a NUL, and
    /// distinguishes an empty environment from a missing one.
    pub(super) fn is_plain(&self) -> bool {
        let has_nul = self.prefix.as_ref().is_some_and(|prefix| prefix.contains('\0'));
        !has_nul && self.environment.as_deref() != Some("")
    }
}
