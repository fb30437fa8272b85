//! Marker of a restore that is under way, beside the database.

use std::path::Path;

use crate::storage::error::OpenError;
use crate::storage::paths::{resolved, sibling};

/// Suffix of the marker.
pub(super) const MARKER: &str = ".restore-unfinished";

/// Refuses to open a database while a restore of it is unfinished.
pub(in crate::storage) fn refuse_unfinished(database: &Path) -> Result<(), OpenError> {
    let marker = sibling(&resolved(database), MARKER);
    match marker.exists() {
        true => Err(OpenError::Unusable {
            path: marker,
            what: "shows that a restore was interrupted".to_owned(),
            remedy: "run `opensecureconf restore DIR` again; the files from before the restore are beside it",
        }),
        false => Ok(()),
    }
}
