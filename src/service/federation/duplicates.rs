//! Entries that several nodes have, which only data of the original or a copied database can bring about.

use std::collections::BTreeSet;

use super::listing::RemoteEntries;
use super::messages::PageQuery;
use crate::limits::LIST_PAGE_BYTES;
use crate::model::EntryId;
use crate::service::{Error, Service};
use crate::store::Filter;

/// An entry that several nodes have.
#[derive(Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Its name.
    pub id: EntryId,
    /// Whether this node is one of them; it is the one that counts here, then.
    pub is_here: bool,
    /// The peers that have it, in the order of the configuration: the first one counts.
    pub peers: Vec<String>,
}

/// Some of them, in the order of their names.
#[derive(Debug, Default)]
pub struct Duplicates {
    /// The entries.
    pub found: Vec<Duplicate>,
    /// There may be more after the last one.
    pub more: bool,
    /// Peers that did not answer, by name.
    pub silent: Vec<String>,
}

impl Service {
    /// Looks for entries of the same name on several nodes.
    ///
    /// # Errors
    /// When the own store cannot be read, or this node is in no federation.
    pub async fn duplicates(&self, after: Option<EntryId>, count_max: usize) -> Result<Duplicates, Error> {
        let Some(federation) = &self.federation else { return Err(Error::Unavailable) };
        let mut others = RemoteEntries::new(federation, None, Filter::default(), after.as_ref(), true);
        let mut own = Own { service: self, after, names: BTreeSet::new(), more: true };
        let mut duplicates = Duplicates::default();
        loop {
            let merged = others.next_merged(self, federation, usize::MAX).await;
            let Some(last) = merged.last().map(|merged| merged.row.entry_id()) else {
                if others.is_over() {
                    break;
                }
                continue;
            };
            let here = own.names_up_to(&last).await?;
            for merged in merged {
                let id = merged.row.entry_id();
                let is_here = here.contains(&id);
                if merged.peers.len() + usize::from(is_here) > 1 {
                    if duplicates.found.len() == count_max {
                        duplicates.more = true;
                        break;
                    }
                    let peers = others.names(&merged.peers);
                    duplicates.found.push(Duplicate { id, is_here, peers });
                }
            }
            if duplicates.more {
                break;
            }
        }
        duplicates.silent = others.silent();
        Ok(duplicates)
    }
}

/// The names of this node's own entries, read along.
struct Own<'a> {
    service: &'a Service,
    after: Option<EntryId>,
    names: BTreeSet<EntryId>,
    more: bool,
}

impl Own<'_> {
    async fn names_up_to(&mut self, last: &EntryId) -> Result<BTreeSet<EntryId>, Error> {
        while self.more && self.after.as_ref().is_none_or(|after| after < last) {
            let query = PageQuery {
                after: self.after.clone(),
                bytes_max: LIST_PAGE_BYTES,
                names_only: true,
                ..PageQuery::default()
            };
            let page = self.service.page_local(query).await?;
            self.more = page.more;
            self.after = page.rows.last().map(crate::store::SealedEntry::entry_id).or(self.after.take());
            self.names.extend(page.rows.iter().map(crate::store::SealedEntry::entry_id));
        }
        let mut rest = self.names.split_off(last);
        // The bound itself belongs to what is given out.
        let bound = rest.take(last);
        let mut names = std::mem::replace(&mut self.names, rest);
        names.extend(bound);
        Ok(names)
    }
}
