//! List of entries, read page by page so that memory does not grow with the store.

use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::decryptor::Decryptor;
use super::entries::Entries;
use super::federation::RemoteEntries;
use super::{Credentials, Error};
use crate::crypto::DerivedKey;
use crate::limits::LIST_INLINE_BYTES;
use crate::model::{EntryId, Filter, SealedEntry, SecretBytes};
use crate::storage::Page;

/// Function that appends one entry to the bytes of a page. Called between the read and the response; on a pool thread
/// unless the page is small.
pub type Render = fn(row: &SealedEntry, value: &[u8], out: &mut Vec<u8>);

/// Query of a list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Filter of the entries.
    pub filter: Filter,
    /// Position to start after.
    pub after: After,
    /// Maximum number of entries shown.
    pub limit: Option<u64>,
    /// Whether to list only the entries of this node, even in federated mode.
    pub is_local: bool,
}

/// Position in a list. Local entries come first, in the order of their IDs, followed by those of peers, in the order of
/// their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// After the local entry with this ID.
    Id(i64),
    /// After all local entries, and after the entries of peers up to this name.
    Name(EntryId),
}

impl ListQuery {
    /// Returns whether the list covers every entry. The number of hidden entries in a part of it would be an oracle for
    /// the names of other owners' entries, because clients choose the prefix and the cursor freely.
    fn is_complete(&self) -> bool {
        self.filter == Filter::default() && self.after == After::default() && self.limit.is_none()
    }
}

impl Default for After {
    fn default() -> Self {
        Self::Id(i64::MIN)
    }
}

/// List in progress. It holds no database resources between two pages.
#[derive(Debug)]
pub struct EntryList {
    context: Arc<Context>,
    derived: Arc<DerivedKey>,
    query: ListQuery,
    reports_hidden: bool,
    /// Whether the user key was not cached, so that the list is an attempt to guess it.
    tries_key: bool,
    render: Render,
    remote: Option<RemoteEntries>,
    finished: bool,
    silent: Vec<String>,
    next_after: Option<After>,
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
    /// Index of the last row that is shown.
    last_shown: Option<usize>,
}

/// Page of local entries, and the position at which it ends.
struct LocalPage {
    rendered: RenderedPage,
    /// ID of the last entry that is shown.
    last_shown: Option<i64>,
    next_after: Option<i64>,
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
            query,
            render,
            remote: None,
            finished: false,
            silent: Vec::new(),
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
        let page = match self.query.after.clone() {
            After::Id(after) => self.next_local(after).await?,
            After::Name(after) => self.next_remote((!after.key.is_empty()).then_some(&after)).await?,
        };
        if let Some(limit) = &mut self.query.limit {
            *limit = limit.saturating_sub(page.shown_count);
            if *limit == 0 {
                self.cut();
            }
        }
        Ok(Some(page))
    }

    /// Ends a limited list early, after the page that was returned last.
    pub fn cut(&mut self) {
        if !self.finished {
            self.next_after = Some(self.query.after.clone());
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
    pub fn next_after(&self) -> Option<&After> {
        self.next_after.as_ref()
    }

    /// Returns the names of the peers whose entries may be missing; complete once the list is finished.
    pub fn unreachable(&self) -> &[String] {
        &self.silent
    }

    async fn next_local(&mut self, after: i64) -> Result<RenderedPage, Error> {
        let LocalPage { rendered: page, last_shown, next_after } = self.local_page(after).await?;
        let is_full = self.query.limit.is_some_and(|limit| limit <= page.shown_count);
        match (is_full, last_shown, next_after) {
            (true, Some(last), _) | (_, _, Some(last)) => self.query.after = After::Id(last),
            _ if self.includes_peers() => {
                // No entry has an empty key, so this position precedes all of them.
                self.query.after = After::Name(EntryId { key: String::new(), environment: None });
            }
            _ => self.finished = true,
        }
        Ok(page)
    }

    /// Reads a page of local entries. Small pages are decrypted on the executor, all others on the pool.
    async fn local_page(&self, after: i64) -> Result<LocalPage, Error> {
        let (limit, render, derived) = (self.query.limit, self.render, Arc::clone(&self.derived));
        let page = self.context.storage.scan(&self.query.filter, after).await?;
        if page.bytes <= LIST_INLINE_BYTES {
            return Ok(LocalPage::render(&page, &derived, limit, render));
        }
        self.context.on_pool(move || LocalPage::render(&page, &derived, limit, render)).await
    }

    async fn next_remote(&mut self, after: Option<&EntryId>) -> Result<RenderedPage, Error> {
        let Some(federation) = &self.context.federation else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        let salt = self.context.salt_in_use().0;
        let filter = &self.query.filter;
        let remote = self
            .remote
            .get_or_insert_with(|| RemoteEntries::new(federation, salt, filter.clone(), after, false));
        let rows_max =
            self.query.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let rows = self.context.next_of_others(federation, remote, rows_max).await?;
        self.silent = remote.silent();
        let Some(rows) = rows else {
            self.finished = true;
            return Ok(RenderedPage::default());
        };
        if let Some(last) = rows.last() {
            self.query.after = After::Name(last.entry_id());
        }
        let (limit, render, derived) = (self.query.limit, self.render, Arc::clone(&self.derived));
        let job = move || render_page(&rows, &derived, limit, render);
        self.context.on_pool(job).await
    }
}

impl LocalPage {
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
    let mut decryptor = Decryptor::new(derived);
    for (index, row) in rows.iter().enumerate() {
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
        page.last_shown = Some(index);
    }
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
