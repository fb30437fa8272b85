//! Search for duplicates: entries of one name on several nodes. They come from data of the Python server, from a copied
//! database, or from clients that write one name on several nodes.

use std::collections::BTreeSet;

use super::listing::RemoteEntries;
use super::local_lookup::Federated;
use crate::limits::LIST_PAGE_BYTES;
use crate::model::{EntryId, Filter};
use crate::service::Error;
use crate::storage::NameScan;

/// Entry that several nodes have.
#[derive(Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Name of the entry.
    pub id: EntryId,
    /// Whether this node has it; if so, the local entry takes precedence on this node.
    pub is_local: bool,
    /// Peers that have it, in the order of the configuration; the first one takes precedence.
    pub peers: Vec<String>,
}

/// Page of duplicates, in the order of their names.
#[derive(Debug, Default)]
pub struct Duplicates {
    /// Duplicates found.
    pub found: Vec<Duplicate>,
    /// Whether there may be more after the last one.
    pub more: bool,
    /// Names of the peers that did not reply.
    pub silent: Vec<String>,
}

impl Federated {
    /// Finds entries of the same name on several nodes.
    ///
    /// # Errors
    /// Fails if the local store cannot be read, or if this node is not in federated mode.
    pub async fn duplicates(&self, after: Option<EntryId>, count_max: usize) -> Result<Duplicates, Error> {
        let Some(federation) = &self.context.federation else { return Err(Error::Unavailable) };
        let mut remote = RemoteEntries::new(federation, None, Filter::default(), after.as_ref(), true);
        let mut local = LocalNames { federated: self, after, names: BTreeSet::new(), more: true };
        let mut duplicates = Duplicates::default();
        loop {
            let merged = remote.next_merged(&self.context, federation, usize::MAX).await;
            let Some(last) = merged.last().map(|merged| merged.row.entry_id()) else {
                if remote.is_over() {
                    break;
                }
                continue;
            };
            let local_names = local.names_up_to(&last).await?;
            for merged in merged {
                let id = merged.row.entry_id();
                let is_here = local_names.contains(&id);
                if merged.peers.len() + usize::from(is_here) > 1 {
                    federation.duplicates.note(&id);
                    if duplicates.found.len() == count_max {
                        duplicates.more = true;
                        break;
                    }
                    let peers = remote.names(&merged.peers);
                    duplicates.found.push(Duplicate { id, is_local: is_here, peers });
                }
            }
            if duplicates.more {
                break;
            }
        }
        duplicates.silent = remote.silent();
        Ok(duplicates)
    }
}

/// Names of local entries, read in step with those of the peers.
struct LocalNames<'a> {
    federated: &'a Federated,
    after: Option<EntryId>,
    names: BTreeSet<EntryId>,
    more: bool,
}

impl LocalNames<'_> {
    /// Returns the names that were not returned before, up to and including `last`.
    async fn names_up_to(&mut self, last: &EntryId) -> Result<BTreeSet<EntryId>, Error> {
        while self.more && self.after.as_ref().is_none_or(|after| after < last) {
            let query = NameScan {
                after: self.after.clone(),
                bytes_max: LIST_PAGE_BYTES,
                names_only: true,
                ..NameScan::default()
            };
            let page = self.federated.page_local(query).await?;
            self.more = page.more;
            self.after = page.rows.last().map(crate::model::SealedEntry::entry_id).or(self.after.take());
            self.names.extend(page.rows.iter().map(crate::model::SealedEntry::entry_id));
        }
        let mut rest = self.names.split_off(last);
        // The bound is inclusive.
        let bound = rest.take(last);
        let mut names = std::mem::replace(&mut self.names, rest);
        names.extend(bound);
        Ok(names)
    }
}
