//! Entries and texts as JSON. Values are spliced in as they are: they are JSON text already.

use crate::model::json;
use crate::store::SealedEntry;

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

/// The names of the fields, the id and the times.
const FIXED_BYTES_MAX: usize = 256;

/// How much of an entry is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryView {
    /// The four fields of 2.0, for an entry without an environment that was asked for without one.
    Plain,
    /// With the environment.
    Short,
    /// With the environment and both times.
    Full,
}

impl EntryView {
    /// Rule 2 of the contract: an entry without an environment, asked for without one, looks as in 2.0.
    pub(super) fn of(row: &SealedEntry, asked_environment: Option<&str>, full: bool) -> Self {
        match (row.environment.is_none() && asked_environment.is_none(), full) {
            (true, _) => Self::Plain,
            (false, false) => Self::Short,
            (false, true) => Self::Full,
        }
    }
}

/// Appends an entry.
pub(super) fn write_entry(row: &SealedEntry, value: &[u8], shape: EntryView, out: &mut Vec<u8>) {
    write_entry_with(row, shape, value.len(), out, |out| {
        out.extend_from_slice(value);
        Some(())
    });
}

/// Appends an entry whose value is appended by `write_value`, at most so many bytes. When that gives `None`, so
/// does this, and `out` is as it was.
pub(super) fn write_entry_with(
    row: &SealedEntry,
    shape: EntryView,
    value_bytes_max: usize,
    out: &mut Vec<u8>,
    write_value: impl FnOnce(&mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    let start = out.len();
    // Enough in almost every case; growing would leave a copy of the value behind.
    out.reserve(value_bytes_max + 6 * row.names_bytes() + FIXED_BYTES_MAX);
    write_before(row, shape, out);
    if write_value(out).is_none() {
        out.truncate(start);
        return None;
    }
    write_after(row, shape, out);
    Some(())
}

/// Appends an entry up to its value.
pub(super) fn write_before(row: &SealedEntry, shape: EntryView, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(itoa::Buffer::new().format(row.id).as_bytes());
    out.extend_from_slice(b",\"key\":");
    write_string(&row.key, out);
    out.extend_from_slice(b",\"category\":");
    write_optional(row.category.as_deref(), out);
    if shape != EntryView::Plain {
        out.extend_from_slice(b",\"environment\":");
        write_optional(row.environment.as_deref(), out);
    }
    out.extend_from_slice(b",\"value\":");
}

/// Appends what follows its value.
pub(super) fn write_after(row: &SealedEntry, shape: EntryView, out: &mut Vec<u8>) {
    if shape == EntryView::Full {
        for (name, time) in
            [(&b",\"created_at\":"[..], row.created_at), (b",\"updated_at\":", row.updated_at)]
        {
            out.extend_from_slice(name);
            write_optional(time.map(|time| time.to_string()).as_deref(), out);
        }
    }
    out.push(b'}');
}
