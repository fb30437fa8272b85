//! Which entries a list wants, as SQL and in memory.

use rusqlite::ToSql;

use super::sealed_entry::SealedEntry;

/// Which entries a list wants; each `None` means "all".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Exactly this category.
    pub category: Option<String>,
    /// Exactly this environment.
    pub environment: Option<String>,
    /// Keys that begin with this.
    pub prefix: Option<String>,
}

impl Filter {
    /// Appends what the statement must ask, and the values for it.
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
            // Not LIKE, which would fold case and give `%` and `_` a meaning.
            sql.push_str(r#" AND substr("key", 1, length(?)) = ?"#);
            values.push(prefix);
            values.push(prefix);
        }
    }

    /// Whether this row would have been read: the same as [`Self::restrict`], if [`Self::is_plain`].
    pub(super) fn admits(&self, row: &SealedEntry) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        same(&self.category, &row.category)
            && same(&self.environment, &row.environment)
            && self.prefix.as_ref().is_none_or(|prefix| row.key.starts_with(prefix.as_str()))
    }

    /// Whether SQL and [`Self::admits`] agree. SQL ends a text at a NUL when it counts its characters, and
    /// tells an empty environment from none.
    pub(super) fn is_plain(&self) -> bool {
        let has_nul = self.prefix.as_ref().is_some_and(|prefix| prefix.contains('\0'));
        !has_nul && self.environment.as_deref() != Some("")
    }
}
