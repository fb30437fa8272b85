//! Cache of list pages, encrypted as in the database and coherent with it.
//!
//! Invariant: a page contains the state of the database when it was read, and every change published since. After
//! COMMIT the writer updates the pages in place. Changes published while a page is being read are buffered, and applied
//! before the page is cached. A change holds the new state of a row regardless of the old one, so applying a change
//! that the reader has already seen is harmless.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::{LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX, PAGE_CHANGES_BYTES_MAX, PAGES_CACHED_COUNT_MAX};
use crate::model::Filter;
use crate::model::SealedEntry;

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

/// Effect of an applied job on the caches, once it is committed.
pub(super) struct Effect {
    pub(super) key: String,
    pub(super) id: i64,
    pub(super) after: Option<Arc<SealedEntry>>,
}

/// Process-wide cache of [`Page`]s, bounded by bytes and by number, with second-chance eviction.
#[derive(Debug)]
pub(super) struct PageCache(Mutex<State>);

/// Permission to fill the cache with the result of a later read.
#[derive(Debug)]
pub(super) struct FillTicket<'a> {
    cache: &'a PageCache,
    /// Position in the sequence of changes when the ticket was issued.
    position: u64,
}

#[derive(Debug)]
struct State {
    slots: VecDeque<Slot>,
    bytes_max: usize,
    /// Number of pages that are being read.
    fills_count: usize,
    /// Buffered changes, published since the first of those reads began.
    changes: Vec<Change>,
    changes_bytes: usize,
    /// Position of the first buffered change.
    changes_start: u64,
}

/// New state of the row with this id; `None` if it was deleted.
#[derive(Clone, Debug)]
struct Change {
    id: i64,
    row: Option<Arc<SealedEntry>>,
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
        Self(Mutex::new(State {
            slots: VecDeque::new(),
            bytes_max,
            fills_count: 0,
            changes: Vec::new(),
            changes_bytes: 0,
            changes_start: 0,
        }))
    }

    /// Returns the page of a filter after an id, if it is cached.
    pub(super) fn get(&self, filter: &Filter, after: i64) -> Option<Arc<Page>> {
        let mut state = self.state();
        let slot = state.slots.iter_mut().find(|slot| slot.is(filter, after))?;
        slot.used = true;
        Some(Arc::clone(&slot.page))
    }

    /// Issues a ticket for [`Self::fill`]. Must be called before the database is read.
    pub(super) fn prepare_fill(&self) -> FillTicket<'_> {
        let mut state = self.state();
        state.fills_count += 1;
        FillTicket { cache: self, position: state.position() }
    }

    /// Caches a page read from the database, if the changes since the ticket was issued are still buffered. Returns the
    /// page to use.
    pub(super) fn fill(&self, ticket: &FillTicket<'_>, filter: &Filter, after: i64, page: Page) -> Arc<Page> {
        let mut slot = Slot { filter: filter.clone(), after, page: Arc::new(page), used: false };
        let mut state = self.state();
        if let Some(cached) = state.slots.iter().find(|cached| cached.is(filter, after)) {
            // The cached rows may be marked as canonical already.
            return Arc::clone(&cached.page);
        }
        let Some(changes) = state.changes_since(ticket.position) else { return slot.page };
        for change in changes {
            slot.apply(change);
        }
        let page = Arc::clone(&slot.page);
        if filter.is_plain() && slot.is_worth_keeping() && page.bytes <= state.bytes_max / 2 {
            state.slots.push_back(slot);
            state.evict();
        }
        page
    }

    /// Applies the effects of a commit, after COMMIT and in commit order.
    pub(super) fn publish(&self, effects: &[Effect]) {
        let mut state = self.state();
        for effect in effects {
            let change = Change { id: effect.id, row: effect.after.clone() };
            for slot in &mut state.slots {
                slot.apply(&change);
            }
            state.buffer(change);
        }
        state.slots.retain(Slot::is_worth_keeping);
        state.evict();
    }

    /// Returns the cached bytes and the number of cached pages.
    pub(super) fn usage(&self) -> (usize, usize) {
        let state = self.state();
        (state.slots.iter().map(|slot| slot.page.bytes).sum(), state.slots.len())
    }

    /// Clears the cache, because another process has changed the database.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        state.slots.clear();
        state.drop_changes();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FillTicket<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        state.fills_count -= 1;
        if state.fills_count == 0 {
            state.drop_changes();
        }
    }
}

impl State {
    /// Returns the number of changes buffered so far, plus one for each time that the buffer was dropped.
    fn position(&self) -> u64 {
        self.changes_start + self.changes.len() as u64
    }

    fn changes_since(&self, position: u64) -> Option<&[Change]> {
        let first = usize::try_from(position.checked_sub(self.changes_start)?).ok()?;
        self.changes.get(first..)
    }

    fn buffer(&mut self, change: Change) {
        if self.fills_count == 0 {
            return;
        }
        self.changes_bytes += size_of::<Change>() + change.row.as_ref().map_or(0, |row| row.weight());
        self.changes.push(change);
        if self.changes_bytes > PAGE_CHANGES_BYTES_MAX {
            self.drop_changes();
        }
    }

    /// Drops the buffered changes. Invalidates all tickets issued before.
    fn drop_changes(&mut self) {
        self.changes_start = self.position() + 1;
        self.changes = Vec::new();
        self.changes_bytes = 0;
    }

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

    fn apply(&mut self, change: &Change) {
        let is_before_end = self.page.next_after.is_none_or(|last| change.id <= last);
        if change.id <= self.after || !is_before_end {
            return;
        }
        let place = self.page.rows.binary_search_by_key(&change.id, |row| row.id);
        let row = change.row.as_ref().filter(|row| self.filter.admits(row));
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

    fn put(id: i64, sealed: u8) -> Effect {
        Effect { key: format!("key {id}"), id, after: Some(row(id, sealed)) }
    }

    fn delete(id: i64) -> Effect {
        Effect { key: format!("key {id}"), id, after: None }
    }

    fn fill(cache: &PageCache, filter: &Filter, after: i64, page: Page) {
        cache.fill(&cache.prepare_fill(), filter, after, page);
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
        let cache = PageCache::new(BYTES_MAX);
        let all = Filter::default();
        let seventh = Filter { prefix: Some("key 7".into()), ..Filter::default() };
        fill(&cache, &all, 0, page([row(1, 1), row(2, 1)], Some(2)));
        fill(&cache, &all, 2, page([row(4, 1)], None));
        fill(&cache, &seventh, 0, page([], None));
        let read_before = cache.get(&all, 0).expect("cached");
        cache.publish(&[put(2, 2), put(3, 2), delete(4), put(7, 2), delete(1), put(7, 3)]);
        assert_eq!(cached(&cache, &all, 0), Some(vec![(2, 2)]));
        assert_eq!(cached(&cache, &all, 2), Some(vec![(3, 2), (7, 3)]));
        assert_eq!(cached(&cache, &seventh, 0), Some(vec![(7, 3)]));
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
            let cache = PageCache::new(BYTES_MAX);
            let ticket = cache.prepare_fill();
            cache.publish(&[put(1, 2), delete(2)]);
            cache.publish(&[put(3, 2)]);
            let filled = cache.fill(&ticket, &all, 0, page(snapshot, None));
            assert_eq!(shown(&filled), [(1, 2), (3, 2)]);
            assert_eq!(cached(&cache, &all, 0), Some(vec![(1, 2), (3, 2)]));
        }
    }

    #[test]
    fn a_page_whose_changes_were_dropped_is_not_cached() {
        let all = Filter::default();
        let large = Arc::new(SealedEntry::new(
            9,
            "key 9".into(),
            None,
            Some(Ciphertext::from_bytes(vec![1; PAGE_CHANGES_BYTES_MAX])),
        ));
        let drop_changes: [fn(&PageCache, Arc<SealedEntry>); 2] = [
            |cache, _| cache.clear(),
            |cache, row| cache.publish(&[Effect { key: row.key.clone(), id: row.id, after: Some(row) }]),
        ];
        for drop_changes in drop_changes {
            let cache = PageCache::new(BYTES_MAX);
            let (early, late) = (cache.prepare_fill(), cache.prepare_fill());
            drop_changes(&cache, Arc::clone(&large));
            cache.fill(&early, &all, 0, page([row(1, 1)], None));
            drop(early);
            cache.fill(&late, &all, 0, page([row(1, 1)], None));
            assert_eq!(cached(&cache, &all, 0), None);
            fill(&cache, &all, 0, page([row(1, 2)], None));
            assert_eq!(cached(&cache, &all, 0), Some(vec![(1, 2)]));
            drop(late);
            assert_eq!(cache.state().changes.len(), 0);
        }
    }

    #[test]
    fn bytes_and_number_are_bounded_and_used_pages_stay() {
        let cache = PageCache::new(BYTES_MAX);
        let all = Filter::default();
        fill(&cache, &all, -1, page([row(1, 1)], None));
        for after in 0..1000 {
            let rows = (0..100).map(|id| row(after + id, 1));
            fill(&cache, &all, after, page(rows, None));
            assert!(cache.get(&all, -1).is_some(), "after {after}");
        }
        for after in 1000..2000 {
            fill(&cache, &all, after, page([], None));
            assert!(cache.get(&all, -1).is_some(), "after {after}");
        }
        let state = cache.state();
        assert_eq!(state.slots.len(), PAGES_CACHED_COUNT_MAX);
        drop(state);
        fill(&cache, &all, 0, page((0..10_000).map(|id| row(id, 1)), None));
        assert!(cache.get(&all, 0).is_none(), "too large for one page");
        cache.publish(&(0..10_000).map(|id| put(id, 2)).collect::<Vec<_>>());
        assert!(cache.get(&all, -1).is_none(), "the page has grown too long");
        let bytes: usize = cache.state().slots.iter().map(|slot| slot.page.bytes).sum();
        assert!(bytes <= BYTES_MAX, "{bytes}");
    }
}
