//! What is to be changed in a text once all of it is written, in one pass.
//!
//! Moving a value as soon as its name comes again would move the rest of the text each time, and a
//! hostile document could have that done at every level of nesting.

use std::ops::Range;

use zeroize::Zeroizing;

/// The bytes `from..to` of the output are left out and those of `instead` take their place.
pub(super) struct Edit {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Lies behind `to`, or is empty.
    pub(super) instead: Range<usize>,
}

/// Makes the edits in `out`, all of which lie behind `start`.
pub(super) fn apply(edits: &mut [Edit], start: usize, out: &mut Vec<u8>) {
    if edits.is_empty() {
        return;
    }
    edits.sort_unstable_by_key(|edit| edit.from);
    // Reserved for the worst case, so that growing leaves no copy of a secret behind.
    let mut edited = Zeroizing::new(Vec::with_capacity(out.len() - start));
    write(edits, out, start..out.len(), &mut edited);
    out.truncate(start);
    out.extend_from_slice(&edited);
}

/// Writes `range` as edited. Every byte of the output is written once or never, and edits in what is
/// left out are stepped over, so this takes linear time; it recurses once for each level of nesting.
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
