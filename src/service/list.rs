//! List of entries, read page by page so that memory does not grow with the store.

use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::decryptor::Decryptor;
use super::entries::Entries;
use super::federation::MergedEntries;
use super::{Credentials, Error};
use crate::crypto::DerivedKey;
use crate::limits::LIST_INLINE_BYTES;
use crate::model::{EntryId, Filter, SealedEntry, SecretBytes};
use crate::storage::{NameScan, PageView, Position};

/// Function that appends one entry to the bytes of a page. Called between the read and the response; on a pool thread
/// unless the page is small.
pub type Render = fn(row: &SealedEntry, value: &[u8], out: &mut Vec<u8>);

/// Query of a list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Filter of the entries.
    pub filter: Filter,
    /// Name to start after.
    pub after: Option<EntryId>,
    /// Maximum number of entries shown.
    pub limit: Option<u64>,
    /// Whether to list only the entries of this node, even in federated mode.
    pub is_local: bool,
}

impl ListQuery {
    fn first_place(&self) -> Place {
        match (&self.after, self.limit) {
            (None, None) => Place::Local(i64::MIN),
            _ => Place::Names(self.after.clone()),
        }
    }

    /// Returns whether the list covers every entry. The number of hidden entries in a part of it would be an oracle for
    /// the names of other owners' entries, because clients choose the prefix and the cursor freely.
    fn is_complete(&self) -> bool {
        self.filter == Filter::default() && self.after.is_none() && self.limit.is_none()
    }
}

/// Place in a list that is in progress. A whole list has the local entries in the order of their ids, followed by those
/// of the peers. A part of a list is in the order of names, which all nodes share, so that any node can continue it.
#[derive(Clone, Debug)]
enum Place {
    /// After the local entry with this id.
    Local(i64),
    /// After all local entries, and after the entries of peers up to this name.
    Peers(Option<EntryId>),
    /// After this name, of the entries of all nodes.
    Names(Option<EntryId>),
}

/// List in progress. It holds no database resources between two pages.
#[derive(Debug)]
pub struct EntryList {
    context: Arc<Context>,
    derived: Arc<DerivedKey>,
    query: ListQuery,
    place: Place,
    reports_hidden: bool,
    /// Whether the user key was not cached, so that the list is an attempt to guess it.
    tries_key: bool,
    render: Render,
    merged: Option<MergedEntries>,
    finished: bool,
    silent: Vec<String>,
    /// Name of the entry that was shown last, in a list with a limit. A cursor must not give away the name of an entry
    /// that is not shown.
    last_shown: Option<EntryId>,
    next_after: Option<EntryId>,
}

/// Rendered entries of one page of a list.
#[derive(Debug, Default)]
pub struct RenderedPage {
    /// Entries that the user key decrypts, each preceded by a comma.
    pub bytes: SecretBytes,
    /// Number of entries in `bytes`.
    pub shown_count: u64,
    /// Number of entries that match the query but are not shown, because the key does not decrypt them.
    pub hidden_count: u64,
    /// Name of the last entry that is shown, in a list with a limit.
    last_shown: Option<EntryId>,
}

impl Entries {
    /// Starts a list of the entries that the user key decrypts.
    ///
    /// # Errors
    /// Fails if the guard refuses the attempt, if the node has not joined yet, or if no key can be derived now.
    pub async fn list(
        &self,
        credentials: &Credentials<'_>,
        query: ListQuery,
        render: Render,
    ) -> Result<EntryList, Error> {
        let tries_key = self.context.permit_list(credentials)?;
        self.context.has_joined().await?;
        let derived = self.context.derived_key(credentials).await?;
        Ok(EntryList {
            context: Arc::clone(&self.context),
            derived,
            reports_hidden: query.is_complete(),
            tries_key,
            place: query.first_place(),
            query,
            render,
            merged: None,
            finished: false,
            silent: Vec::new(),
            last_shown: None,
            next_after: None,
        })
    }
}

impl EntryList {
    /// Returns the next page, which may be empty; `None` after the last one.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub async fn next_page(&mut self) -> Result<Option<RenderedPage>, Error> {
        if self.finished {
            return Ok(None);
        }
        let page = match self.place.clone() {
            Place::Local(after) => self.next_local(after).await?,
            Place::Peers(after) => self.next_of_peers(after).await?,
            Place::Names(after) if self.includes_peers() => self.next_of_all(after).await?,
            Place::Names(after) => self.next_by_name(after).await?,
        };
        if page.last_shown.is_some() {
            self.last_shown.clone_from(&page.last_shown);
        }
        if let Some(limit) = &mut self.query.limit {
            *limit = limit.saturating_sub(page.shown_count);
            if *limit == 0 {
                // Also at the end of the list: entries that are not shown must make no difference.
                self.finished = false;
                self.cut();
            }
        }
        Ok(Some(page))
    }

    /// Ends a limited list early, after the entry that was shown last.
    pub fn cut(&mut self) {
        if !self.finished {
            self.next_after = self.last_shown.take();
            self.finished = true;
        }
    }

    /// Returns whether the list has no further pages.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Returns whether the list includes the entries of peers.
    pub fn includes_peers(&self) -> bool {
        self.context.federation.is_some() && !self.query.is_local
    }

    /// Returns whether the number of hidden entries may be reported.
    pub fn reports_hidden(&self) -> bool {
        self.reports_hidden
    }

    /// Reports to the guard that the list shows nothing, and returns the delay of the response: a list is an attempt
    /// with a user key like any other.
    ///
    /// # Errors
    /// Returns [`Error::TooManyFailures`] if the attempt is refused.
    pub fn shows_nothing(&self, credentials: &Credentials<'_>) -> Result<Duration, Error> {
        match self.tries_key {
            true => self.context.list_failed(credentials),
            false => Ok(Duration::ZERO),
        }
    }

    /// Returns whether the list has a limit, so that it may end before the last entry.
    pub fn is_limited(&self) -> bool {
        self.query.limit.is_some()
    }

    /// Returns the position at which to continue a list that its limit has ended. There may be no further entries.
    pub fn next_after(&self) -> Option<&EntryId> {
        self.next_after.as_ref()
    }

    /// Returns the names of the peers whose entries may be missing; complete once the list is finished.
    pub fn unreachable(&self) -> &[String] {
        &self.silent
    }

    async fn next_local(&mut self, after: i64) -> Result<RenderedPage, Error> {
        let view = self.context.storage.scan(&self.query.filter, &Position::Id(after)).await?;
        match view.page.next_after {
            Some(Position::Id(last)) => self.place = Place::Local(last),
            _ if self.includes_peers() => self.place = Place::Peers(None),
            _ => self.finished = true,
        }
        let unreadable_count = view.page.unreadable_count;
        let mut rendered = self.rendered(view).await?;
        rendered.hidden_count += unreadable_count;
        Ok(rendered)
    }

    async fn next_by_name(&mut self, after: Option<EntryId>) -> Result<RenderedPage, Error> {
        let view = self.context.storage.scan(&self.query.filter, &Position::Name(after)).await?;
        match &view.page.next_after {
            Some(Position::Name(after)) => self.place = Place::Names(after.clone()),
            _ => self.finished = true,
        }
        self.rendered(view).await
    }

    async fn next_of_peers(&mut self, after: Option<EntryId>) -> Result<RenderedPage, Error> {
        let Some(federation) = &self.context.federation else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        let salt = self.context.salt_in_use().0;
        let peers = self.merged.get_or_insert_with(|| {
            let scan = NameScan { filter: self.query.filter.clone(), after, ..NameScan::default() };
            MergedEntries::of_peers(federation, salt, scan)
        });
        let rows = self.context.next_of_others(federation, peers, usize::MAX).await?;
        self.silent = peers.silent();
        self.merged_page(rows, Place::Peers).await
    }

    async fn next_of_all(&mut self, after: Option<EntryId>) -> Result<RenderedPage, Error> {
        let Some(federation) = &self.context.federation else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        let salt = self.context.salt_in_use().0;
        let all = self
            .merged
            .get_or_insert_with(|| MergedEntries::of_all(federation, salt, self.query.filter.clone(), after));
        let rows_max =
            self.query.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let rows = self.context.next_of_all(federation, all, rows_max).await?;
        self.silent = all.silent();
        self.merged_page(rows, Place::Names).await
    }

    async fn merged_page(
        &mut self,
        rows: Option<Vec<Arc<SealedEntry>>>,
        place: fn(Option<EntryId>) -> Place,
    ) -> Result<RenderedPage, Error> {
        let Some(rows) = rows else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        if let Some(last) = rows.last() {
            self.place = place(Some(last.entry_id()));
        }
        let (limit, render, derived) = (self.query.limit, self.render, Arc::clone(&self.derived));
        self.context.on_pool(move || render_page(&rows, &derived, limit, render)).await
    }

    /// Decrypts and renders a page. A small one is decrypted on the executor, any other on the pool.
    async fn rendered(&self, view: PageView) -> Result<RenderedPage, Error> {
        let (limit, render, derived) = (self.query.limit, self.render, Arc::clone(&self.derived));
        if view.page.bytes <= LIST_INLINE_BYTES {
            return Ok(render_page(view.rows(), &derived, limit, render));
        }
        self.context.on_pool(move || render_page(view.rows(), &derived, limit, render)).await
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
    let mut decryptor = Decryptor::new(derived);
    let mut last_shown = None;
    for row in rows {
        if limit.is_some_and(|limit| page.shown_count >= limit) {
            break;
        }
        // An entry of another owner, or a damaged one, never fails the list.
        let Ok(value) = decryptor.open(row) else {
            page.hidden_count += 1;
            continue;
        };
        let out = page.bytes.with_room(value.len() + rendered_names_bytes_max(row));
        out.push(b',');
        render(row, value, out);
        page.shown_count += 1;
        last_shown = Some(row);
    }
    page.last_shown = last_shown.filter(|_| limit.is_some()).map(|row| row.entry_id());
    page
}

/// Estimates the rendered size of an entry: the overhead of a token covers the syntax around its value.
fn rendered_bytes(row: &SealedEntry) -> usize {
    row.names_bytes() + row.ciphertext.as_ref().map_or(0, |sealed| sealed.as_bytes().len())
}

/// Returns the maximum number of rendered bytes besides the value: an escaped byte of a text becomes six.
fn rendered_names_bytes_max(row: &SealedEntry) -> usize {
    const FIXED_BYTES_MAX: usize = 256;
    FIXED_BYTES_MAX + 6 * row.names_bytes()
}
