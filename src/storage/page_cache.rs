//! Cache of list pages, encrypted as in the store and coherent with it.
//!
//! Invariant: a page contains the state of the store when it was read, and every change published since. After a commit
//! the pages are updated in place. Changes that were published while a page was being read are taken from the feed, and
//! applied before the page is cached. A change holds the new state of a row regardless of the old one, so applying a
//! change that the reader has already seen is harmless.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::feed::{Commit, EntryChange, Feed, Subscriber};
use crate::limits::{LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX, PAGES_CACHED_COUNT_MAX};
use crate::model::{Filter, Revision, SealedEntry};
use crate::sync::{Mutex, MutexGuard};

/// Page of entries in ascending order of ids.
#[derive(Clone, Debug)]
pub struct Page {
    /// Rows that match the filter.
    pub rows: Vec<Arc<SealedEntry>>,
    /// Approximate memory that the rows take, in bytes.
    pub bytes: usize,
    /// Number of unreadable rows, whose key is not text.
    pub unreadable_count: u64,
    /// Id after which the next page begins; `None` after the last row.
    pub next_after: Option<i64>,
}

/// Process-wide cache of [`Page`]s, bounded by bytes and by number, with second-chance eviction.
#[derive(Debug)]
pub(super) struct PageCache(Mutex<State>);

#[derive(Debug)]
struct State {
    slots: VecDeque<Slot>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Slot {
    filter: Filter,
    after: i64,
    page: Arc<Page>,
    used: bool,
}

impl PageCache {
    /// Creates an empty cache that takes about `bytes_max` bytes when full.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self(Mutex::new(State { slots: VecDeque::new(), bytes_max }))
    }

    /// Returns the page of a filter after an id, if it is cached.
    pub(super) fn get(&self, filter: &Filter, after: i64) -> Option<Arc<Page>> {
        let mut state = self.state();
        let slot = state.slots.iter_mut().find(|slot| slot.is(filter, after))?;
        slot.used = true;
        Some(Arc::clone(&slot.page))
    }

    /// Caches a page that was read from the store after the change `since`, unless the feed no longer has all later
    /// changes. Returns the page to use.
    pub(super) fn fill(
        &self,
        feed: &Feed,
        since: Revision,
        filter: &Filter,
        after: i64,
        page: Page,
    ) -> Arc<Page> {
        let mut slot = Slot { filter: filter.clone(), after, page: Arc::new(page), used: false };
        // The lock is held from reading the feed until the page is cached: a commit is in the feed by then, or is
        // published to the cached page.
        let mut state = self.state();
        if let Some(cached) = state.slots.iter().find(|cached| cached.is(filter, after)) {
            // The cached rows may be marked as canonical already.
            return Arc::clone(&cached.page);
        }
        let Ok(changes) = feed.changes_since(since) else { return slot.page };
        for change in &changes {
            slot.apply(change);
        }
        let page = Arc::clone(&slot.page);
        if filter.is_plain() && slot.is_worth_keeping() && page.bytes <= state.bytes_max / 2 {
            state.slots.push_back(slot);
            state.evict();
        }
        page
    }

    /// Returns the cached bytes and the number of cached pages.
    pub(super) fn usage(&self) -> (usize, usize) {
        let state = self.state();
        (state.slots.iter().map(|slot| slot.page.bytes).sum(), state.slots.len())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for PageCache {
    fn publish(&self, commit: &Commit) {
        let mut state = self.state();
        for change in &commit.changes {
            for slot in &mut state.slots {
                slot.apply(change);
            }
        }
        state.slots.retain(Slot::is_worth_keeping);
        state.evict();
    }

    fn reset(&self) {
        self.state().slots.clear();
    }
}

impl State {
    fn evict(&mut self) {
        let mut bytes: usize = self.slots.iter().map(|slot| slot.page.bytes).sum();
        while (bytes > self.bytes_max || self.slots.len() > PAGES_CACHED_COUNT_MAX)
            && let Some(mut oldest) = self.slots.pop_front()
        {
            if std::mem::take(&mut oldest.used) {
                self.slots.push_back(oldest);
            } else {
                bytes -= oldest.page.bytes;
            }
        }
    }
}

impl Slot {
    fn is(&self, filter: &Filter, after: i64) -> bool {
        self.after == after && self.filter == *filter
    }

    fn apply(&mut self, change: &EntryChange) {
        let id = change.entry().id;
        let is_before_end = self.page.next_after.is_none_or(|last| id <= last);
        if id <= self.after || !is_before_end {
            return;
        }
        let place = self.page.rows.binary_search_by_key(&id, |row| row.id);
        let row = change.after().filter(|row| self.filter.admits(row));
        if place.is_err() && row.is_none() {
            return;
        }
        // Copies the page if a list is reading it.
        let page = Arc::make_mut(&mut self.page);
        page.bytes += row.map_or(0, |row| row.weight());
        let before = match (place, row.map(Arc::clone)) {
            (Ok(index), Some(row)) => Some(std::mem::replace(&mut page.rows[index], row)),
            (Ok(index), None) => Some(page.rows.remove(index)),
            (Err(index), Some(row)) => {
                page.rows.insert(index, row);
                None
            }
            (Err(_), None) => None,
        };
        page.bytes -= before.map_or(0, |row| row.weight());
    }

    /// Returns whether the page stays cached. A page that has grown too long is read again, as several pages.
    fn is_worth_keeping(&self) -> bool {
        self.page.rows.len() <= LIST_PAGE_ROWS_MAX && self.page.bytes <= 2 * LIST_PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::FEED_BYTES_MAX;
    use crate::model::Ciphertext;

    const BYTES_MAX: usize = 1 << 20;

    fn row(id: i64, sealed: u8) -> Arc<SealedEntry> {
        Arc::new(SealedEntry::new(
            id,
            format!("key {id}"),
            None,
            Some(Ciphertext::from_bytes(vec![sealed; 100])),
        ))
    }

    fn page(rows: impl IntoIterator<Item = Arc<SealedEntry>>, next_after: Option<i64>) -> Page {
        let rows: Vec<_> = rows.into_iter().collect();
        Page { bytes: rows.iter().map(|row| row.weight()).sum(), rows, unreadable_count: 0, next_after }
    }

    /// Feed of a cache, whose changes get ascending revisions.
    struct Fixture {
        cache: Arc<PageCache>,
        feed: Feed,
    }

    impl Fixture {
        fn new() -> Self {
            let cache = Arc::new(PageCache::new(BYTES_MAX));
            let subscribers = vec![Arc::clone(&cache) as Arc<dyn Subscriber>];
            Self { cache, feed: Feed::new(Revision::default(), None, subscribers) }
        }

        fn publish(&self, changes: &[(i64, Option<u8>)]) {
            let changes = changes.iter().map(|(id, sealed)| (*id, sealed.map(|sealed| row(*id, sealed))));
            self.publish_rows(changes);
        }

        fn publish_rows(&self, changes: impl IntoIterator<Item = (i64, Option<Arc<SealedEntry>>)>) {
            let first = self.feed.last().number() + 1;
            let change = |(number, (id, after)): (i64, (i64, Option<Arc<SealedEntry>>))| {
                let revision = Revision::from_number(number);
                match after {
                    Some(mut entry) => {
                        Arc::get_mut(&mut entry).expect("not shared yet").revision = revision;
                        EntryChange::Put(entry)
                    }
                    None => EntryChange::Delete { entry: row(id, 0), revision },
                }
            };
            let changes = (first..).zip(changes).map(change).collect();
            let commit = Commit { changes, ..Commit::default() };
            self.feed.commit(&commit, || Ok::<_, ()>(())).expect("committed");
        }

        fn fill(&self, filter: &Filter, after: i64, page: Page) {
            self.cache.fill(&self.feed, self.feed.last(), filter, after, page);
        }
    }

    /// Returns the ids and the first bytes of the ciphertexts.
    fn shown(page: &Page) -> Vec<(i64, u8)> {
        page.rows
            .iter()
            .map(|row| (row.id, row.ciphertext.as_ref().map_or(0, |sealed| sealed.as_bytes()[0])))
            .collect()
    }

    fn cached(cache: &PageCache, filter: &Filter, after: i64) -> Option<Vec<(i64, u8)>> {
        cache.get(filter, after).map(|page| shown(&page))
    }

    #[test]
    fn changes_are_applied_to_the_affected_pages() {
        let fixture = Fixture::new();
        let cache = &fixture.cache;
        let all = Filter::default();
        let seventh = Filter { prefix: Some("key 7".into()), ..Filter::default() };
        fixture.fill(&all, 0, page([row(1, 1), row(2, 1)], Some(2)));
        fixture.fill(&all, 2, page([row(4, 1)], None));
        fixture.fill(&seventh, 0, page([], None));
        let read_before = cache.get(&all, 0).expect("cached");
        let changes = [(2, Some(2)), (3, Some(2)), (4, None), (7, Some(2)), (1, None), (7, Some(3))];
        fixture.publish(&changes);
        assert_eq!(cached(cache, &all, 0), Some(vec![(2, 2)]));
        assert_eq!(cached(cache, &all, 2), Some(vec![(3, 2), (7, 3)]));
        assert_eq!(cached(cache, &seventh, 0), Some(vec![(7, 3)]));
        assert_eq!(shown(&read_before), [(1, 1), (2, 1)], "a list in progress keeps its snapshot");
        for (filter, after) in [(&all, 0), (&all, 2), (&seventh, 0)] {
            let page = cache.get(filter, after).expect("cached");
            assert_eq!(page.bytes, page.rows.iter().map(|row| row.weight()).sum::<usize>());
        }
    }

    #[test]
    fn changes_published_during_a_read_are_applied() {
        let all = Filter::default();
        // The snapshot of the reader contains all of the published changes or none.
        for snapshot in [vec![row(1, 1), row(2, 1)], vec![row(1, 2), row(3, 2)]] {
            let fixture = Fixture::new();
            let since = fixture.feed.last();
            fixture.publish(&[(1, Some(2)), (2, None)]);
            fixture.publish(&[(3, Some(2))]);
            let filled = fixture.cache.fill(&fixture.feed, since, &all, 0, page(snapshot, None));
            assert_eq!(shown(&filled), [(1, 2), (3, 2)]);
            assert_eq!(cached(&fixture.cache, &all, 0), Some(vec![(1, 2), (3, 2)]));
        }
    }

    #[test]
    fn a_page_whose_changes_are_no_longer_buffered_is_not_cached() {
        let all = Filter::default();
        let lag: [fn(&Fixture); 2] = [
            |fixture| fixture.feed.reset(Revision::from_number(fixture.feed.last().number() + 1)),
            |fixture| {
                let sealed = Some(Ciphertext::from_bytes(vec![1; FEED_BYTES_MAX]));
                let large = Arc::new(SealedEntry::new(9, "key 9".into(), None, sealed));
                fixture.publish_rows([(9, Some(large))]);
            },
        ];
        for lag in lag {
            let fixture = Fixture::new();
            let since = fixture.feed.last();
            lag(&fixture);
            fixture.cache.fill(&fixture.feed, since, &all, 0, page([row(1, 1)], None));
            assert_eq!(cached(&fixture.cache, &all, 0), None);
            fixture.fill(&all, 0, page([row(1, 2)], None));
            assert_eq!(cached(&fixture.cache, &all, 0), Some(vec![(1, 2)]));
        }
    }

    #[test]
    fn bytes_and_number_are_bounded_and_used_pages_stay() {
        let fixture = Fixture::new();
        let cache = &fixture.cache;
        let all = Filter::default();
        fixture.fill(&all, -1, page([row(1, 1)], None));
        for after in 0..1000 {
            let rows = (0..100).map(|id| row(after + id, 1));
            fixture.fill(&all, after, page(rows, None));
            assert!(cache.get(&all, -1).is_some(), "after {after}");
        }
        for after in 1000..2000 {
            fixture.fill(&all, after, page([], None));
            assert!(cache.get(&all, -1).is_some(), "after {after}");
        }
        let state = cache.state();
        assert_eq!(state.slots.len(), PAGES_CACHED_COUNT_MAX);
        drop(state);
        fixture.fill(&all, 0, page((0..10_000).map(|id| row(id, 1)), None));
        assert!(cache.get(&all, 0).is_none(), "too large for one page");
        fixture.publish(&(0..10_000).map(|id| (id, Some(2))).collect::<Vec<_>>());
        assert!(cache.get(&all, -1).is_none(), "the page has grown too long");
        let bytes: usize = cache.state().slots.iter().map(|slot| slot.page.bytes).sum();
        assert!(bytes <= BYTES_MAX, "{bytes}");
    }
}
