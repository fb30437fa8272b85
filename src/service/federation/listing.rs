//! Merged list of the entries of all peers, or of all nodes: a k-way merge by name, page by page, so that memory does not
//! grow with the result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::peer_requests::{Answers, Federation, Peers};
use crate::limits::{
    ENTRY_KEY_CHARS_MAX, ENVIRONMENT_CHARS_MAX, FEDERATED_PAGE_BYTES_MAX, FEDERATED_PAGE_BYTES_MIN,
    LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX,
};
use crate::model::{EntryId, Filter, NameOrder, SealedEntry};
use crate::service::context::Context;
use crate::service::{Error, PeerId};
use crate::storage::{NameScan, NameScanPage, PageView, Position};
use crate::wire::Message;
use crate::wire::federation::decode_page;

/// Merge of the entries of several nodes, in progress.
#[derive(Debug)]
pub(in crate::service) struct MergedEntries {
    /// Query of the pages, apart from their position.
    scan: NameScan,
    salt: Option<u64>,
    /// Nodes in the order in which they take precedence.
    sources: Vec<Source>,
    silent: Vec<PeerId>,
    /// Peers at the start of the list.
    peers: Peers,
}

/// Cursor into the entries of one node: the buffered rows, and the position after them.
#[derive(Debug)]
struct Source {
    /// Peer; `None` for this node.
    peer: Option<PeerId>,
    rows: VecDeque<Arc<SealedEntry>>,
    after: Option<EntryId>,
    more: bool,
}

/// Entry of the first source that has one of this name, and all peers that do, in the order of the configuration.
#[derive(Debug)]
pub(super) struct MergedEntry {
    pub(super) row: Arc<SealedEntry>,
    pub(super) peers: Vec<PeerId>,
}

impl MergedEntries {
    /// Starts a list of the entries of all peers. The size of the pages that are requested depends on the number of
    /// peers, not on the query.
    pub(in crate::service) fn of_peers(
        federation: &Federation,
        salt: Option<u64>,
        mut scan: NameScan,
    ) -> Self {
        let environment = &scan.filter.environment;
        if environment.is_some() && scan.after.as_ref().is_none_or(|after| after.environment == *environment)
        {
            // Within one environment the two orders are the same, and every peer supports this one.
            scan.order = NameOrder::Key;
        }
        let peers = federation.peers();
        let after = scan.after.as_ref().map(|after| valid_cursor(after, scan.order));
        let sources: Vec<Source> =
            peers.askable().map(|peer| Source::new(Some(peer), after.clone())).collect();
        scan.bytes_max = (8 * FEDERATED_PAGE_BYTES_MAX / sources.len().max(1))
            .clamp(FEDERATED_PAGE_BYTES_MIN, FEDERATED_PAGE_BYTES_MAX);
        let silent = peers.unreachable().collect();
        Self { scan, salt, sources, silent, peers }
    }

    /// Starts a list of the entries of all nodes in the order of lists. Those of this node take precedence.
    pub(in crate::service) fn of_all(
        federation: &Federation,
        salt: Option<u64>,
        filter: Filter,
        after: Option<EntryId>,
    ) -> Self {
        let own = Source::new(None, after.clone());
        let scan = NameScan { filter, after, order: NameOrder::Environment, ..NameScan::default() };
        let mut merged = Self::of_peers(federation, salt, scan);
        merged.sources.insert(0, own);
        merged
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
    ///
    /// # Errors
    /// Fails if the local store cannot be read.
    pub(super) async fn next_merged(
        &mut self,
        context: &Context,
        federation: &Federation,
        rows_max: usize,
    ) -> Result<Vec<MergedEntry>, Error> {
        self.fill(context, federation).await?;
        let order = self.scan.order;
        let (mut merged, mut bytes) = (Vec::new(), 0);
        // The next entry is known only while no source has an empty buffer and further entries.
        while self.sources.iter().all(|source| !source.rows.is_empty() || !source.more) {
            let first = self.sources.iter().filter_map(|source| source.rows.front());
            let Some(next) = first.min_by_key(|row| order.of_row(row)).cloned() else { break };
            if bytes >= LIST_PAGE_BYTES || merged.len() >= rows_max.min(LIST_PAGE_ROWS_MAX) {
                break;
            }
            let mut entry = MergedEntry { row: next, peers: Vec::new() };
            let mut copies_count = 0;
            for source in &mut self.sources {
                let front = source.rows.front();
                if front.is_some_and(|row| order.of_row(row) == order.of_row(&entry.row)) {
                    source.rows.pop_front();
                    copies_count += 1;
                    entry.peers.extend(source.peer);
                }
            }
            let id = entry.row.entry_id();
            if let Some(owner) = entry.peers.first() {
                federation.locations.learn(&id, *owner);
            }
            if copies_count > 1 {
                federation.duplicates.note(&id);
            }
            bytes += entry.row.weight();
            merged.push(entry);
        }
        Ok(merged)
    }

    /// Reads the next page of each source with an empty buffer. A peer that does not reply is excluded from then on.
    async fn fill(&mut self, context: &Context, federation: &Federation) -> Result<(), Error> {
        let deadline = Instant::now() + federation.timeout;
        let mut replies = Answers::default();
        for source in self.sources.iter().filter(|source| source.rows.is_empty() && source.more) {
            let Some(peer) = source.peer else { continue };
            let query = NameScan { after: source.after.clone(), ..self.scan.clone() };
            let message = Arc::new(Message::Page(query));
            replies.expect(peer, federation.send(peer, &message, deadline));
        }
        for source in self.sources.iter_mut().filter(|source| source.rows.is_empty() && source.more) {
            if source.peer.is_none() {
                let after = Position::Name(source.after.clone());
                source.take_own(&context.storage.scan(&self.scan.filter, &after).await?);
            }
        }
        let order = self.scan.order;
        while let Some((peer, reply)) = replies.next().await {
            let decode = move |reply: &[u8]| decode_page(order, reply);
            let page = match reply {
                Some(reply) => context.decoded(federation, peer, reply, decode).await,
                None => None,
            };
            let page = page
                .filter(|(salt, page)| *salt == self.salt || page.rows.is_empty() || self.scan.names_only);
            let source = self.sources.iter_mut().find(|source| source.peer == Some(peer));
            match (page, source) {
                (Some((_, page)), Some(source)) if source.continues_with(order, &page) => source.take(page),
                (page, _) => {
                    if page.is_some() {
                        federation.report_malformed(peer);
                    }
                    self.sources.retain(|source| source.peer != Some(peer));
                    self.silent.push(peer);
                }
            }
        }
        Ok(())
    }
}

/// Returns the last name up to this one that is valid as a cursor for peers. Another program may have created entries
/// with longer names than are valid.
fn valid_cursor(after: &EntryId, order: NameOrder) -> EntryId {
    let (key, environment) = (&after.key, after.environment.as_deref().unwrap_or_default());
    let (short_key, short_environment) =
        (truncated(key, ENTRY_KEY_CHARS_MAX), truncated(environment, ENVIRONMENT_CHARS_MAX));
    let last = |chars_max| "\u{10ffff}".repeat(chars_max);
    let (key, environment) = match order {
        NameOrder::Key if short_key.len() < key.len() => (short_key, last(ENVIRONMENT_CHARS_MAX)),
        NameOrder::Environment if short_environment.len() < environment.len() => {
            (last(ENTRY_KEY_CHARS_MAX), short_environment)
        }
        _ => (short_key, short_environment),
    };
    EntryId { key, environment: Some(environment).filter(|text| !text.is_empty()) }
}

fn truncated(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

impl Source {
    fn new(peer: Option<PeerId>, after: Option<EntryId>) -> Self {
        Self { peer, rows: VecDeque::new(), after, more: true }
    }

    /// Returns whether a page begins after the cursor. Otherwise the list might never end.
    fn continues_with(&self, order: NameOrder, page: &NameScanPage) -> bool {
        match (&self.after, page.rows.first()) {
            (Some(after), Some(first)) => order.of_row(first) > order.of_id(after),
            _ => true,
        }
    }

    fn take(&mut self, page: NameScanPage) {
        self.after = page.rows.last().map(|row| row.entry_id()).or(self.after.take());
        self.more = page.more;
        self.rows = page.rows.into();
    }

    fn take_own(&mut self, view: &PageView) {
        self.rows = view.rows().to_vec().into();
        self.more = view.page.next_after.is_some();
        if let Some(Position::Name(after)) = &view.page.next_after {
            self.after.clone_from(after);
        }
    }
}

impl Context {
    /// Returns the next entries of a merge; `None` after the last ones.
    ///
    /// # Errors
    /// Fails if the local store cannot be read.
    pub(in crate::service) async fn next_of_all(
        &self,
        federation: &Federation,
        merged: &mut MergedEntries,
        rows_max: usize,
    ) -> Result<Option<Vec<Arc<SealedEntry>>>, Error> {
        let entries = merged.next_merged(self, federation, rows_max).await?;
        if entries.is_empty() && merged.is_over() {
            return Ok(None);
        }
        Ok(Some(entries.into_iter().map(|entry| entry.row).collect()))
    }

    /// Returns the next entries of the peers, without those whose names exist locally; `None` after the last ones.
    ///
    /// # Errors
    /// Fails if the local store cannot be read.
    pub(in crate::service) async fn next_of_others(
        &self,
        federation: &Federation,
        remote: &mut MergedEntries,
        rows_max: usize,
    ) -> Result<Option<Vec<Arc<SealedEntry>>>, Error> {
        let Some(rows) = self.next_of_all(federation, remote, rows_max).await? else { return Ok(None) };
        let are_local = self.storage.exist(rows.iter().map(|row| row.entry_id()).collect()).await?;
        let is_other = |(row, is_local): &(Arc<SealedEntry>, bool)| {
            if *is_local {
                federation.duplicates.note(&row.entry_id());
            }
            !is_local
        };
        let others = rows.into_iter().zip(are_local).filter(is_other);
        Ok(Some(others.map(|(row, _)| row).collect()))
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
        for order in [NameOrder::Key, NameOrder::Environment] {
            for after in
                [id("k", ""), id("k", "e"), id("k", &wider), id(&longer, ""), id(&longer, &wider), id("", "")]
            {
                let cursor = valid_cursor(&after, order);
                assert!(cursor.key.is_empty() || cursor.check().is_ok());
                for name in &names {
                    let is_later = |cursor| order.of_id(name) > order.of_id(cursor);
                    assert_eq!(is_later(&cursor), is_later(&after), "{name:?} {after:?} {order:?}");
                }
            }
        }
    }
}
