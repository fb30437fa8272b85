//! JSON serialization of entries and strings. Values are spliced in verbatim, because they are already JSON text.

use crate::model::{SealedEntry, json};

/// Appends a JSON string.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    json::write_string(text, out);
}

/// Appends a JSON string or null.
pub(super) fn write_optional(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        Some(text) => write_string(text, out),
        None => out.extend_from_slice(b"null"),
    }
}

/// Upper bound for the field names, the id and the times of an entry, in bytes.
const FIXED_BYTES_MAX: usize = 256;

/// The set of fields in which an entry is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryView {
    /// The four fields of version 2.0, for an entry without an environment that was requested without one.
    Plain,
    /// The plain fields and the environment.
    Short,
    /// The plain fields, the environment and both times.
    Full,
}

impl EntryView {
    /// Selects the view by rule 2 of the API contract: an entry without an environment, requested without one, looks as
    /// in version 2.0.
    pub(super) fn of(row: &SealedEntry, requested_environment: Option<&str>, full: bool) -> Self {
        match (row.environment.is_none() && requested_environment.is_none(), full) {
            (true, _) => Self::Plain,
            (false, false) => Self::Short,
            (false, true) => Self::Full,
        }
    }
}

/// Appends an entry.
pub(super) fn write_entry(row: &SealedEntry, value: &[u8], view: EntryView, out: &mut Vec<u8>) {
    write_entry_with(row, view, value.len(), out, |out| {
        out.extend_from_slice(value);
        Some(())
    });
}

/// Appends an entry whose value `write_value` appends, at most `value_bytes_max` bytes. If that returns `None`, so does
/// this function, and `out` is unchanged.
pub(super) fn write_entry_with(
    row: &SealedEntry,
    view: EntryView,
    value_bytes_max: usize,
    out: &mut Vec<u8>,
    write_value: impl FnOnce(&mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    let start = out.len();
    // Enough in almost every case; a reallocation would leave a copy of the value in freed memory.
    out.reserve(value_bytes_max + 6 * row.names_bytes() + FIXED_BYTES_MAX);
    write_before(row, view, out);
    if write_value(out).is_none() {
        out.truncate(start);
        return None;
    }
    write_after(row, view, out);
    Some(())
}

/// Appends the part of an entry before its value.
pub(super) fn write_before(row: &SealedEntry, view: EntryView, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(itoa::Buffer::new().format(row.id).as_bytes());
    out.extend_from_slice(b",\"key\":");
    write_string(&row.key, out);
    out.extend_from_slice(b",\"category\":");
    write_optional(row.category.as_deref(), out);
    if view != EntryView::Plain {
        out.extend_from_slice(b",\"environment\":");
        write_optional(row.environment.as_deref(), out);
    }
    out.extend_from_slice(b",\"value\":");
}

/// Appends the part of an entry after its value.
pub(super) fn write_after(row: &SealedEntry, view: EntryView, out: &mut Vec<u8>) {
    if view == EntryView::Full {
        for (name, time) in
            [(&b",\"created_at\":"[..], row.created_at), (b",\"updated_at\":", row.updated_at)]
        {
            out.extend_from_slice(name);
            write_optional(time.map(|time| time.to_string()).as_deref(), out);
        }
    }
    out.push(b'}');
}
