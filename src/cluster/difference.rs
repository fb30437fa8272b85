//! Difference of two nodes, computed from the versions that both hold: pure, and symmetric.

use std::collections::BTreeMap;

use super::peer::Difference;
use crate::model::{Digest, EntryId, VersionedDigest};

/// Returns the entries that each side lacks: the larger (version, digest) wins.
pub fn difference(own: Vec<VersionedDigest>, theirs: Vec<VersionedDigest>) -> Difference {
    let rank = |known: &VersionedDigest| (known.version, known.digest);
    let mut own: BTreeMap<EntryId, VersionedDigest> =
        own.into_iter().map(|known| (known.id.clone(), known)).collect();
    let mut difference = Difference::default();
    let is_deleted = |known: &VersionedDigest| known.digest == Digest::default();
    for theirs in theirs {
        match own.remove(&theirs.id) {
            // A tombstone of an entry that this node does not have changes nothing.
            None if is_deleted(&theirs) => {}
            None => difference.fetch.push(theirs.id),
            Some(own) if rank(&own) < rank(&theirs) => difference.fetch.push(theirs.id),
            Some(own) if rank(&own) > rank(&theirs) => difference.send.push(theirs.id),
            Some(_) => {}
        }
    }
    difference.send.extend(own.into_values().filter(|own| !is_deleted(own)).map(|own| own.id));
    difference
}

/// Returns how many of the requested entries are settled by a reply that ends with `last`. An entry before it that
/// the reply lacks has been removed in the meantime.
pub fn settled_count(ids: &[EntryId], last: Option<&EntryId>) -> usize {
    last.and_then(|last| ids.iter().position(|id| id == last)).map_or(ids.len(), |position| position + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HlcTimestamp, ReplicaId, Version};

    fn id(key: &str) -> EntryId {
        EntryId { key: key.to_owned(), environment: None }
    }

    fn known(milliseconds: u64, digest: u128) -> VersionedDigest {
        let version = Version {
            timestamp: HlcTimestamp::from_milliseconds(milliseconds),
            replica: ReplicaId::default(),
        };
        VersionedDigest { id: id("k"), version, digest: Digest(digest) }
    }

    #[test]
    fn the_larger_version_wins_and_both_sides_agree_on_it() {
        let both = Difference::default();
        let fetch = Difference { fetch: vec![id("k")], ..both.clone() };
        let send = Difference { send: vec![id("k")], ..both.clone() };
        for (own, theirs, expected) in [
            (None, None, &both),
            (None, Some(known(1, 1)), &fetch),
            // A tombstone of an entry that the other side lacks is not exchanged.
            (None, Some(known(1, 0)), &both),
            (Some(known(1, 1)), Some(known(1, 1)), &both),
            (Some(known(1, 1)), Some(known(2, 1)), &fetch),
            (Some(known(1, 1)), Some(known(2, 0)), &fetch),
            (Some(known(2, 1)), Some(known(1, 0)), &send),
            // Copies of one entry that were encrypted separately before there were versions.
            (Some(known(0, 1)), Some(known(0, 2)), &fetch),
            (Some(known(1, 1)), Some(known(1, 0)), &send),
        ] {
            let list = |known: &Option<VersionedDigest>| known.iter().cloned().collect::<Vec<_>>();
            assert_eq!(&difference(list(&own), list(&theirs)), expected, "{own:?} {theirs:?}");
            let mirrored = difference(list(&theirs), list(&own));
            assert_eq!((&mirrored.send, &mirrored.fetch), (&expected.fetch, &expected.send));
        }
    }

    #[test]
    fn a_reply_settles_all_entries_up_to_its_last_one() {
        let ids = [id("a"), id("b"), id("c")];
        for (last, expected) in [(Some(id("a")), 1), (Some(id("c")), 3), (None, 3), (Some(id("x")), 3)] {
            assert_eq!(settled_count(&ids, last.as_ref()), expected, "{last:?}");
        }
    }
}
