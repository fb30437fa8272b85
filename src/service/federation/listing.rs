//! Merged list of the entries of all peers: a k-way merge by name, page by page, so that memory does not grow with the
//! result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::peer_requests::{Answers, Federation, Peers};
use crate::limits::{
    ENTRY_KEY_CHARS_MAX, ENVIRONMENT_CHARS_MAX, FEDERATED_PAGE_BYTES_MAX, FEDERATED_PAGE_BYTES_MIN,
    LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX,
};
use crate::model::{EntryId, Filter, SealedEntry};
use crate::service::context::Context;
use crate::service::{Error, PeerId};
use crate::storage::{NameScan, NameScanPage};
use crate::wire::Message;
use crate::wire::federation::decode_page;

/// Merge of the entries of all peers, in progress.
#[derive(Debug)]
pub(in crate::service) struct RemoteEntries {
    filter: Filter,
    names_only: bool,
    bytes_max: usize,
    salt: Option<u64>,
    sources: Vec<PeerCursor>,
    silent: Vec<PeerId>,
    /// Peers at the start of the list.
    peers: Peers,
}

/// Cursor into the entries of one peer: the buffered rows, and the position after them.
#[derive(Debug)]
struct PeerCursor {
    peer: PeerId,
    rows: VecDeque<SealedEntry>,
    after: Option<EntryId>,
    more: bool,
}

/// Entry of the first peer in the configuration that has one of this name, and all peers that do, in the order of the
/// configuration.
#[derive(Debug)]
pub(super) struct MergedEntry {
    pub(super) row: SealedEntry,
    pub(super) peers: Vec<PeerId>,
}

impl RemoteEntries {
    /// Starts a list of the entries of all peers after a name.
    pub(in crate::service) fn new(
        federation: &Federation,
        salt: Option<u64>,
        filter: Filter,
        after: Option<&EntryId>,
        names_only: bool,
    ) -> Self {
        let peers = federation.peers();
        let sources: Vec<PeerCursor> = peers
            .askable()
            .map(|peer| PeerCursor {
                peer,
                rows: VecDeque::new(),
                after: after.map(valid_cursor),
                more: true,
            })
            .collect();
        let bytes_max = (8 * FEDERATED_PAGE_BYTES_MAX / sources.len().max(1))
            .clamp(FEDERATED_PAGE_BYTES_MIN, FEDERATED_PAGE_BYTES_MAX);
        let silent = peers.unreachable().collect();
        Self { filter, names_only, bytes_max, salt, sources, silent, peers }
    }

    /// Returns whether there are no further entries.
    pub(super) fn is_over(&self) -> bool {
        self.sources.iter().all(|source| source.rows.is_empty() && !source.more)
    }

    /// Returns the names of the peers whose entries may be missing.
    pub(in crate::service) fn silent(&self) -> Vec<String> {
        self.peers.names(&self.silent)
    }

    /// Returns the names of these peers, in the order of the configuration.
    pub(super) fn names(&self, peers: &[PeerId]) -> Vec<String> {
        self.peers.names(peers)
    }

    /// Returns the next entries, at most `rows_max`; none after the last ones.
    pub(super) async fn next_merged(
        &mut self,
        context: &Context,
        federation: &Federation,
        rows_max: usize,
    ) -> Vec<MergedEntry> {
        self.fill(context, federation).await;
        let (mut merged, mut bytes) = (Vec::new(), 0);
        // The next entry is known only while no peer has an empty buffer and further entries.
        while self.sources.iter().all(|source| !source.rows.is_empty() || !source.more) {
            let next =
                self.sources.iter().filter_map(|source| source.rows.front()).map(SealedEntry::entry_id).min();
            let Some(id) = next else { break };
            if bytes >= LIST_PAGE_BYTES || merged.len() >= rows_max.min(LIST_PAGE_ROWS_MAX) {
                break;
            }
            let mut entry: Option<MergedEntry> = None;
            for source in &mut self.sources {
                if source.rows.front().is_some_and(|row| row.entry_id() == id)
                    && let Some(row) = source.rows.pop_front()
                {
                    let entry = entry.get_or_insert(MergedEntry { row, peers: Vec::new() });
                    entry.peers.push(source.peer);
                }
            }
            if let Some(entry) = entry {
                if let Some(owner) = entry.peers.first() {
                    federation.locations.learn(&id, *owner);
                }
                if entry.peers.len() > 1 {
                    federation.duplicates.note(&id);
                }
                bytes += entry.row.weight();
                merged.push(entry);
            }
        }
        merged
    }

    /// Requests the next page from each peer with an empty buffer. A peer that does not reply is excluded from then on.
    async fn fill(&mut self, context: &Context, federation: &Federation) {
        let deadline = Instant::now() + federation.timeout;
        let mut replies = Answers::default();
        for source in self.sources.iter().filter(|source| source.rows.is_empty() && source.more) {
            let query = NameScan {
                after: source.after.clone(),
                filter: self.filter.clone(),
                bytes_max: self.bytes_max,
                names_only: self.names_only,
            };
            let message = Arc::new(Message::Page(query));
            replies.expect(source.peer, federation.send(source.peer, &message, deadline));
        }
        while let Some((peer, reply)) = replies.next().await {
            let page = match reply {
                Some(reply) => context.decoded(federation, peer, reply, decode_page).await,
                None => None,
            };
            let page =
                page.filter(|(salt, page)| *salt == self.salt || page.rows.is_empty() || self.names_only);
            let source = self.sources.iter_mut().find(|source| source.peer == peer);
            match (page, source) {
                (Some((_, page)), Some(source)) if source.continues_with(&page) => source.take(page),
                (page, _) => {
                    if page.is_some() {
                        federation.report_malformed(peer);
                    }
                    self.sources.retain(|source| source.peer != peer);
                    self.silent.push(peer);
                }
            }
        }
    }
}

/// Returns the last name up to this one that is valid as a cursor for peers. Another program may have created entries
/// with longer names than are valid.
fn valid_cursor(after: &EntryId) -> EntryId {
    let (key, environment) = (&after.key, after.environment.as_deref().unwrap_or_default());
    let truncated = |text: &str, chars_max| text.chars().take(chars_max).collect::<String>();
    let last = || "\u{10ffff}".repeat(ENVIRONMENT_CHARS_MAX);
    match truncated(key, ENTRY_KEY_CHARS_MAX) {
        short if short.len() < key.len() => EntryId { key: short, environment: Some(last()) },
        _ => {
            let environment =
                Some(truncated(environment, ENVIRONMENT_CHARS_MAX)).filter(|text| !text.is_empty());
            EntryId { key: key.clone(), environment }
        }
    }
}

impl PeerCursor {
    /// Returns whether a page begins after the cursor. Otherwise the list might never end.
    fn continues_with(&self, page: &NameScanPage) -> bool {
        match (&self.after, page.rows.first()) {
            (Some(after), Some(first)) => first.entry_id() > *after,
            _ => true,
        }
    }

    fn take(&mut self, page: NameScanPage) {
        self.after = page.rows.last().map(SealedEntry::entry_id).or(self.after.take());
        self.more = page.more;
        self.rows = page.rows.into();
    }
}

impl Context {
    /// Returns the next entries of the peers, without those whose names exist locally; `None` after the last ones.
    ///
    /// # Errors
    /// Fails if the local store cannot be read.
    pub(in crate::service) async fn next_of_others(
        &self,
        federation: &Federation,
        remote: &mut RemoteEntries,
        rows_max: usize,
    ) -> Result<Option<Vec<Arc<SealedEntry>>>, Error> {
        let merged = remote.next_merged(self, federation, rows_max).await;
        if merged.is_empty() && remote.is_over() {
            return Ok(None);
        }
        let ids = merged.iter().map(|entry| entry.row.entry_id()).collect();
        let are_local = self.storage.exist(ids).await?;
        let is_other = |(entry, is_local): &(MergedEntry, bool)| {
            if *is_local {
                federation.duplicates.note(&entry.row.entry_id());
            }
            !is_local
        };
        let others = merged.into_iter().zip(are_local).filter(is_other);
        Ok(Some(others.map(|(MergedEntry { row, .. }, _)| Arc::new(row)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_continues_after_a_name_that_is_too_long_for_peers() {
        let id = |key: &str, environment: &str| EntryId {
            key: key.to_owned(),
            environment: Some(environment.to_owned()).filter(|name| !name.is_empty()),
        };
        let (long, longer) = ("k".repeat(ENTRY_KEY_CHARS_MAX), "k".repeat(ENTRY_KEY_CHARS_MAX + 1));
        let (wide, wider) = ("e".repeat(ENVIRONMENT_CHARS_MAX), "e".repeat(ENVIRONMENT_CHARS_MAX + 1));
        let names = [
            id("k", ""),
            id("k", "e"),
            id("k", &wide),
            id("k", "f"),
            id(&long, ""),
            id(&long, &wide),
            id("l", ""),
        ];
        for after in
            [id("k", ""), id("k", "e"), id("k", &wider), id(&longer, ""), id(&longer, &wider), id("", "")]
        {
            let cursor = valid_cursor(&after);
            assert!(cursor.key.is_empty() || cursor.check().is_ok());
            for name in &names {
                assert_eq!(*name > cursor, *name > after, "{name:?} {after:?}");
            }
        }
    }
}
