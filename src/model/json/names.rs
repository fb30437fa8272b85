//! Which names an object has had: a repeated one moves its value to the first.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use hashbrown::HashTable;

use super::edit::Edit;

/// Up to this many names are compared one by one, which is faster than hashing them.
const LINEAR_COUNT_MAX: usize = 16;

/// The members of one large object, each with the hash of its name, so that growing hashes none again.
pub(super) type NameTable = HashTable<(u64, usize)>;

/// The members of all objects that are open, the innermost last. Names and values stay in the output:
/// this knows only where.
#[derive(Default)]
pub(super) struct Names {
    members: Vec<Member>,
    /// Differs from process to process, so nobody can choose names that collide.
    random: RandomState,
}

struct Member {
    name: Range<usize>,
    value_end: usize,
    /// The edit that gives it another value, once its name has come again.
    replaced: Option<usize>,
}

impl Names {
    /// Starts an object; the answer tells its members from those around it.
    pub(super) fn open(&self) -> usize {
        self.members.len()
    }

    /// Forgets the members of the innermost object.
    pub(super) fn close(&mut self, first: usize) {
        self.members.truncate(first);
    }

    /// Adds the member whose value `out` ends with to the object of `first`. `table` belongs to this
    /// object; `member_start` is where the comma before the member is.
    pub(super) fn add(
        &mut self,
        first: usize,
        table: &mut NameTable,
        out: &[u8],
        member_start: usize,
        name: Range<usize>,
        edits: &mut Vec<Edit>,
    ) {
        let Some(index) = self.find_or_remember(first, table, out, &name) else {
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
            // Many repetitions in a row need one edit, so they cannot fill the memory.
            Some(last) if last.to == member_start && last.instead.is_empty() => last.to = out.len(),
            _ => edits.push(Edit { from: member_start, to: out.len(), instead: 0..0 }),
        }
    }

    /// The member of this name. If there is none, the name is put into the table for the member to come.
    fn find_or_remember(
        &self,
        first: usize,
        table: &mut NameTable,
        out: &[u8],
        name: &Range<usize>,
    ) -> Option<usize> {
        let name_of = |index: usize| &out[self.members[index].name.clone()];
        let sought = &out[name.clone()];
        if self.members.len() - first < LINEAR_COUNT_MAX {
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
