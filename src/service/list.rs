//! Listing entries page by page, so that memory does not grow with the store.

use std::sync::Arc;

use super::configs::open;
use super::{Error, Service};
use crate::crypto::{DerivedKey, Lane};
use crate::model::UserKey;
use crate::store::{Filter, Row};

/// Appends one entry to the bytes of a page. Called on a pool thread, between reading and answering.
pub type Render = fn(row: &Row, value: &[u8], out: &mut Vec<u8>);

/// Which entries, and how many.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Which entries.
    pub filter: Filter,
    /// Only entries with a larger id.
    pub after: i64,
    /// At most so many.
    pub limit: Option<u64>,
}

/// A list under way. Between two pages nothing of the database is held.
#[derive(Debug)]
pub struct EntryList {
    service: Arc<Service>,
    derived: Arc<DerivedKey>,
    query: ListQuery,
    render: Render,
    finished: bool,
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
    next_after: Option<i64>,
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
        Ok(EntryList { service: Arc::clone(self), derived, query, render, finished: false })
    }
}

impl EntryList {
    /// The next entries; `None` after the last ones.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn next_page(&mut self) -> Result<Option<RenderedPage>, Error> {
        if self.finished {
            return Ok(None);
        }
        let (store, derived) = (Arc::clone(&self.service.store), Arc::clone(&self.derived));
        let (query, render) = (self.query.clone(), self.render);
        let job = move || -> Result<RenderedPage, Error> {
            let page = store.page(&query.filter, query.after)?;
            Ok(render_page(&page.rows, page.unreadable_count, page.next_after, &derived, query.limit, render))
        };
        let receiver = self.service.pool.submit(Lane::Read, job).map_err(|_| Error::Busy)?;
        let page = receiver.await.map_err(|_| Error::Unavailable)??;
        if let Some(limit) = &mut self.query.limit {
            *limit = limit.saturating_sub(page.shown_count);
        }
        match page.next_after {
            Some(after) if self.query.limit != Some(0) => self.query.after = after,
            _ => self.finished = true,
        }
        Ok(Some(page))
    }

    /// Whether the page that was given out last was the last one.
    pub fn is_finished(&self) -> bool {
        self.finished
    }
}

fn render_page(
    rows: &[Row],
    unreadable_count: u64,
    next_after: Option<i64>,
    derived: &DerivedKey,
    limit: Option<u64>,
    render: Render,
) -> RenderedPage {
    let mut page = RenderedPage { hidden_count: unreadable_count, next_after, ..RenderedPage::default() };
    for row in rows {
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
            }
            // One entry of another owner, or a damaged one, never takes the list away.
            Err(_) => page.hidden_count += 1,
        }
    }
    page
}
