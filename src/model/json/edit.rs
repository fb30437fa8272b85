//! Deferred edits of the output, applied in one pass once all of it is written.
//!
//! Moving a value as soon as its name is repeated would move the rest of the text each time, and a hostile document
//! could cause that at every level of nesting.

use std::ops::Range;

use zeroize::Zeroizing;

/// Replacement of the bytes `from..to` of the output by the bytes `instead` of it.
pub(super) struct Edit {
    pub(super) from: usize,
    pub(super) to: usize,
    /// After `to`, or empty.
    pub(super) instead: Range<usize>,
}

/// Applies the edits to `out`; all of them are after `start`.
pub(super) fn apply(edits: &mut [Edit], start: usize, out: &mut Vec<u8>) {
    if edits.is_empty() {
        return;
    }
    edits.sort_unstable_by_key(|edit| edit.from);
    // Reserved for the worst case, so that a reallocation leaves no copy of a secret behind.
    let mut edited = Zeroizing::new(Vec::with_capacity(out.len() - start));
    write(edits, out, start..out.len(), &mut edited);
    out.truncate(start);
    out.extend_from_slice(&edited);
}

/// Writes `range` with the edits applied. Every byte of the output is written at most once, and edits within omitted
/// bytes are skipped, so this takes linear time; it recurses once per level of nesting.
fn write(edits: &[Edit], out: &[u8], range: Range<usize>, edited: &mut Vec<u8>) {
    let mut at = range.start;
    loop {
        let next = edits.partition_point(|edit| edit.from < at);
        match edits.get(next) {
            Some(edit) if edit.from < range.end => {
                edited.extend_from_slice(&out[at..edit.from]);
                write(edits, out, edit.instead.clone(), edited);
                at = edit.to;
            }
            _ => break,
        }
    }
    edited.extend_from_slice(&out[at..range.end]);
}
