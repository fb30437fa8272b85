//! Names of the members of open objects: a repeated name moves its value to the first occurrence.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use hashbrown::HashTable;

use super::edit::Edit;
use crate::limits::JSON_NAMES_LINEAR_COUNT_MAX;

/// Members of one large object, each with the hash of its name, so that growing the table hashes no name again.
pub(super) type NameTable = HashTable<(u64, usize)>;

/// Members of all open objects, the innermost last. Names and values stay in the output; only their positions are
/// recorded.
#[derive(Default)]
pub(super) struct Names {
    members: Vec<Member>,
    /// Random for each process, so that no client can choose names that collide.
    random: RandomState,
}

struct Member {
    name: Range<usize>,
    value_end: usize,
    /// Index of the edit that replaces its value, once its name was repeated.
    replaced: Option<usize>,
}

impl Names {
    /// Opens an object, and returns the index of its first member.
    pub(super) fn open(&self) -> usize {
        self.members.len()
    }

    /// Closes the innermost object and removes its members.
    pub(super) fn close(&mut self, first: usize) {
        self.members.truncate(first);
    }

    /// Adds the member at the end of `out` to the object of `first`. `table` belongs to this object; `member_start` is
    /// the position of the comma before the member.
    pub(super) fn add(
        &mut self,
        first: usize,
        table: &mut NameTable,
        out: &[u8],
        member_start: usize,
        name: Range<usize>,
        edits: &mut Vec<Edit>,
    ) {
        let Some(index) = self.find_or_insert(first, table, out, &name) else {
            self.members.push(Member { name, value_end: out.len(), replaced: None });
            return;
        };
        let value = name.end + 1..out.len();
        let known = &mut self.members[index];
        if let Some(edit) = known.replaced {
            edits[edit].instead = value;
        } else {
            known.replaced = Some(edits.len());
            edits.push(Edit { from: known.name.end + 1, to: known.value_end, instead: value });
        }
        match edits.last_mut() {
            // Successive repetitions share one edit, so they cannot exhaust the memory.
            Some(last) if last.to == member_start && last.instead.is_empty() => last.to = out.len(),
            _ => edits.push(Edit { from: member_start, to: out.len(), instead: 0..0 }),
        }
    }

    /// Returns the index of the member with this name. If there is none, inserts the name for the member that follows.
    fn find_or_insert(
        &self,
        first: usize,
        table: &mut NameTable,
        out: &[u8],
        name: &Range<usize>,
    ) -> Option<usize> {
        let name_of = |index: usize| &out[self.members[index].name.clone()];
        let sought = &out[name.clone()];
        if self.members.len() - first < JSON_NAMES_LINEAR_COUNT_MAX {
            return (first..self.members.len()).find(|index| name_of(*index) == sought);
        }
        if table.is_empty() {
            for index in first..self.members.len() {
                let hash = self.random.hash_one(name_of(index));
                table.insert_unique(hash, (hash, index), |(hash, _)| *hash);
            }
        }
        let hash = self.random.hash_one(sought);
        let found = table.find(hash, |(_, index)| name_of(*index) == sought).map(|(_, index)| *index);
        if found.is_none() {
            table.insert_unique(hash, (hash, self.members.len()), |(hash, _)| *hash);
        }
        found
    }
}
