//! Listing entries page by page, so that memory does not grow with the store.

use std::sync::Arc;

use super::configs::open;
use super::federation::Others;
use super::{Error, Service};
use crate::crypto::{DerivedKey, Lane};
use crate::model::{EntryId, UserKey};
use crate::store::{Filter, Row};

/// Appends one entry to the bytes of a page. Called on a pool thread, between reading and answering.
pub type Render = fn(row: &Row, value: &[u8], out: &mut Vec<u8>);

/// Which entries, and how many.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Which entries.
    pub filter: Filter,
    /// Where to begin.
    pub after: After,
    /// At most so many.
    pub limit: Option<u64>,
    /// Only those of this node, also when it could ask others.
    pub is_local: bool,
}

/// A place in a list: own entries come first, by id, then those of other nodes, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// After the own entry with this id.
    Id(i64),
    /// After all own entries, and those of other nodes up to this name.
    Name(EntryId),
}

impl Default for After {
    fn default() -> Self {
        Self::Id(i64::MIN)
    }
}

/// A list under way. Between two pages nothing of the database is held.
#[derive(Debug)]
pub struct EntryList {
    service: Arc<Service>,
    derived: Arc<DerivedKey>,
    query: ListQuery,
    render: Render,
    others: Option<Others>,
    finished: bool,
    silent: Vec<String>,
    next_after: Option<After>,
}

/// Some entries of a list, rendered and separated by commas.
#[derive(Debug, Default)]
pub struct RenderedPage {
    /// The entries that the user key opens; empty if it opens none of this page.
    pub bytes: Vec<u8>,
    /// How many entries are in `bytes`.
    pub shown_count: u64,
    /// How many matched the query but are not shown, because the key does not open them.
    pub hidden_count: u64,
    /// The last one of them.
    last_shown: Option<usize>,
}

impl Service {
    /// Begins a list of what the user key opens.
    ///
    /// # Errors
    /// When no key can be derived now.
    pub async fn list(
        self: &Arc<Self>,
        user_key: &UserKey,
        query: ListQuery,
        render: Render,
    ) -> Result<EntryList, Error> {
        let derived = self.derived_key(user_key).await?;
        Ok(EntryList {
            service: Arc::clone(self),
            derived,
            query,
            render,
            others: None,
            finished: false,
            silent: Vec::new(),
            next_after: None,
        })
    }
}

impl EntryList {
    /// The next entries, which may be none; `None` after the last ones.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn next_page(&mut self) -> Result<Option<RenderedPage>, Error> {
        if self.finished {
            return Ok(None);
        }
        let page = match self.query.after.clone() {
            After::Id(after) => self.next_own(after).await?,
            After::Name(after) => self.next_of_others((!after.key.is_empty()).then_some(&after)).await?,
        };
        if let Some(limit) = &mut self.query.limit {
            *limit = limit.saturating_sub(page.shown_count);
            if *limit == 0 {
                self.next_after = Some(self.query.after.clone());
                self.finished = true;
            }
        }
        Ok(Some(page))
    }

    /// Whether the page that was given out last was the last one.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether peers are asked, too.
    pub fn asks_others(&self) -> bool {
        self.service.federation.is_some() && !self.query.is_local
    }

    /// Whether it may end before its last entry.
    pub fn is_limited(&self) -> bool {
        self.query.limit.is_some()
    }

    /// Where to go on, after a list that ended because of its limit. Nothing may come after it.
    pub fn next_after(&self) -> Option<&After> {
        self.next_after.as_ref()
    }

    /// Peers whose entries may be missing, by name; complete once the list is finished.
    pub fn silent(&self) -> &[String] {
        &self.silent
    }

    async fn next_own(&mut self, after: i64) -> Result<RenderedPage, Error> {
        let store = Arc::clone(&self.service.store);
        let (query, render, derived) = (self.query.clone(), self.render, Arc::clone(&self.derived));
        let job = move || -> Result<_, Error> {
            let page = store.page(&query.filter, after)?;
            let mut rendered = render_page(page.rows.iter().map(|row| &**row), &derived, query.limit, render);
            rendered.hidden_count += page.unreadable_count;
            let last_shown = rendered.last_shown.map(|index| page.rows[index].id);
            Ok((rendered, last_shown, page.next_after))
        };
        let receiver = self.service.pool.submit(Lane::Read, job).map_err(|_| Error::Busy)?;
        let (page, last_shown, next_after) = receiver.await.map_err(|_| Error::Unavailable)??;
        let is_full = self.query.limit.is_some_and(|limit| limit <= page.shown_count);
        match (is_full, last_shown, next_after) {
            (true, Some(last), _) | (_, _, Some(last)) => self.query.after = After::Id(last),
            _ if self.asks_others() => {
                // No entry has an empty key: this is before all of them.
                self.query.after = After::Name(EntryId { key: String::new(), environment: None });
            }
            _ => self.finished = true,
        }
        Ok(page)
    }

    async fn next_of_others(&mut self, after: Option<&EntryId>) -> Result<RenderedPage, Error> {
        let Some(federation) = &self.service.federation else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        let salt = self.service.salt_in_use().0;
        let filter = &self.query.filter;
        let others =
            self.others.get_or_insert_with(|| Others::new(federation, salt, filter.clone(), after, false));
        let rows_max =
            self.query.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let rows = self.service.next_of_others(federation, others, rows_max).await?;
        self.silent = others.silent(federation);
        let Some(rows) = rows else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        if let Some(last) = rows.last() {
            self.query.after = After::Name(last.entry_id());
        }
        let (limit, render, derived) = (self.query.limit, self.render, Arc::clone(&self.derived));
        let job = move || render_page(rows.iter().map(|row| &**row), &derived, limit, render);
        self.service.on_pool(job).await
    }
}

fn render_page<'a>(
    rows: impl Iterator<Item = &'a Row>,
    derived: &DerivedKey,
    limit: Option<u64>,
    render: Render,
) -> RenderedPage {
    let mut page = RenderedPage::default();
    for (index, row) in rows.enumerate() {
        if limit.is_some_and(|limit| page.shown_count >= limit) {
            break;
        }
        match open(derived, row) {
            Ok(value) => {
                if !page.bytes.is_empty() {
                    page.bytes.push(b',');
                }
                render(row, value.expose(), &mut page.bytes);
                page.shown_count += 1;
                page.last_shown = Some(index);
            }
            // One entry of another owner, or a damaged one, never takes the list away.
            Err(_) => page.hidden_count += 1,
        }
    }
    page
}
