//! Listing entries page by page, so that memory does not grow with the store.

use std::sync::Arc;
use std::time::Duration;

use super::decryptor::Decryptor;
use super::federation::RemoteEntries;
use super::{Credentials, Error, Service};
use crate::crypto::DerivedKey;
use crate::limits::LIST_INLINE_BYTES;
use crate::model::{EntryId, SecretBytes};
use crate::store::{Filter, Page, SealedEntry};

/// Appends one entry to the bytes of a page. Called between reading and answering, on a pool thread if the
/// page is not small.
pub type Render = fn(row: &SealedEntry, value: &[u8], out: &mut Vec<u8>);

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

impl ListQuery {
    /// Whether the list covers every entry. The number of hidden entries of any part of it would be an
    /// oracle for the names of other user keys: a prefix or a cursor can be chosen freely.
    fn is_complete(&self) -> bool {
        self.filter == Filter::default() && self.after == After::default() && self.limit.is_none()
    }
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
    reports_hidden: bool,
    /// The user key was not in memory.
    tries_key: bool,
    render: Render,
    others: Option<RemoteEntries>,
    finished: bool,
    silent: Vec<String>,
    next_after: Option<After>,
}

/// Some entries of a list, rendered.
#[derive(Debug, Default)]
pub struct RenderedPage {
    /// The entries that the user key opens, a comma before each.
    pub bytes: SecretBytes,
    /// How many entries are in `bytes`.
    pub shown_count: u64,
    /// How many matched the query but are not shown, because the key does not open them.
    pub hidden_count: u64,
    /// The last one that is shown.
    last_shown: Option<usize>,
}

/// Some of this node's own entries, and where they end.
struct OwnPage {
    rendered: RenderedPage,
    /// The id of the last one that is shown.
    last_shown: Option<i64>,
    next_after: Option<i64>,
}

impl Service {
    /// Begins a list of what the user key opens.
    ///
    /// # Errors
    /// When no key can be derived now.
    pub async fn list(
        self: &Arc<Self>,
        credentials: &Credentials<'_>,
        query: ListQuery,
        render: Render,
    ) -> Result<EntryList, Error> {
        let tries_key = self.permit_list(credentials)?;
        self.has_joined().await?;
        let derived = self.derived_key(credentials).await?;
        Ok(EntryList {
            service: Arc::clone(self),
            derived,
            reports_hidden: query.is_complete(),
            tries_key,
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
                self.cut();
            }
        }
        Ok(Some(page))
    }

    /// Ends the list of a limited query early, with the page that was given out last.
    pub fn cut(&mut self) {
        if !self.finished {
            self.next_after = Some(self.query.after.clone());
            self.finished = true;
        }
    }

    /// Whether the page that was given out last was the last one.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether peers are asked, too.
    pub fn asks_others(&self) -> bool {
        self.service.federation.is_some() && !self.query.is_local
    }

    /// Whether the number of hidden entries may be reported.
    pub fn reports_hidden(&self) -> bool {
        self.reports_hidden
    }

    /// Reports that the list shows nothing, and returns the time by which the response is delayed: a list is
    /// a try of a user key like any other.
    ///
    /// # Errors
    /// [`Error::TooManyFailures`]
    pub fn shows_nothing(&self, credentials: &Credentials<'_>) -> Result<Duration, Error> {
        match self.tries_key {
            true => self.service.list_failed(credentials),
            false => Ok(Duration::ZERO),
        }
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
        let OwnPage { rendered: page, last_shown, next_after } = self.own_page(after).await?;
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

    /// Small pages that are in memory are opened here, all others on the pool.
    async fn own_page(&self, after: i64) -> Result<OwnPage, Error> {
        let store = Arc::clone(&self.service.store);
        let (limit, render) = (self.query.limit, self.render);
        let cached = store.cached_page(&self.query.filter, after);
        if let Some(page) = &cached
            && page.bytes <= LIST_INLINE_BYTES
        {
            return Ok(OwnPage::render(page, &self.derived, limit, render));
        }
        let (filter, derived) = (self.query.filter.clone(), Arc::clone(&self.derived));
        let job = move || -> Result<_, Error> {
            let page = match cached {
                Some(page) => page,
                None => store.page(&filter, after)?,
            };
            Ok(OwnPage::render(&page, &derived, limit, render))
        };
        let receiver = self.service.pool.submit(job).map_err(|_| Error::Busy)?;
        receiver.await.map_err(|_| Error::Unavailable)?
    }

    async fn next_of_others(&mut self, after: Option<&EntryId>) -> Result<RenderedPage, Error> {
        let Some(federation) = &self.service.federation else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        let salt = self.service.salt_in_use().0;
        let filter = &self.query.filter;
        let others = self
            .others
            .get_or_insert_with(|| RemoteEntries::new(federation, salt, filter.clone(), after, false));
        let rows_max =
            self.query.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let rows = self.service.next_of_others(federation, others, rows_max).await?;
        self.silent = others.silent();
        let Some(rows) = rows else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        if let Some(last) = rows.last() {
            self.query.after = After::Name(last.entry_id());
        }
        let (limit, render, derived) = (self.query.limit, self.render, Arc::clone(&self.derived));
        let job = move || render_page(&rows, &derived, limit, render);
        self.service.on_pool(job).await
    }
}

impl OwnPage {
    fn render(page: &Page, derived: &DerivedKey, limit: Option<u64>, render: Render) -> Self {
        let mut rendered = render_page(&page.rows, derived, limit, render);
        rendered.hidden_count += page.unreadable_count;
        let last_shown = rendered.last_shown.map(|index| page.rows[index].id);
        Self { rendered, last_shown, next_after: page.next_after }
    }
}

fn render_page(
    rows: &[Arc<SealedEntry>],
    derived: &DerivedKey,
    limit: Option<u64>,
    render: Render,
) -> RenderedPage {
    let bytes = SecretBytes::with_capacity(rows.iter().map(|row| rendered_bytes(row)).sum());
    let mut page = RenderedPage { bytes, ..RenderedPage::default() };
    let mut opener = Decryptor::new(derived);
    for (index, row) in rows.iter().enumerate() {
        if limit.is_some_and(|limit| page.shown_count >= limit) {
            break;
        }
        // One entry of another owner, or a damaged one, never takes the list away.
        let Ok(value) = opener.open(row) else {
            page.hidden_count += 1;
            continue;
        };
        let out = page.bytes.with_room(value.len() + rendered_names_bytes_max(row));
        out.push(b',');
        render(row, value, out);
        page.shown_count += 1;
        page.last_shown = Some(index);
    }
    page
}

/// About as many bytes as the entry takes: a token is longer than its value by what surrounds it.
fn rendered_bytes(row: &SealedEntry) -> usize {
    row.names_bytes() + row.ciphertext.as_ref().map_or(0, |sealed| sealed.as_bytes().len())
}

/// So many bytes at most besides the value: each byte of a text becomes six if it is escaped.
fn rendered_names_bytes_max(row: &SealedEntry) -> usize {
    const FIXED_BYTES_MAX: usize = 256;
    FIXED_BYTES_MAX + 6 * row.names_bytes()
}
