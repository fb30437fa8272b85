//! The body of a list that is sent while it is read, and the fields that report on a list.

use super::cursor;
use crate::http::body_stream::{BodyStream, Next, NextPart};
use crate::http::{ENTRIES_HIDDEN, NEXT_AFTER, PARTIAL_RESULT};
use crate::service::EntryList;

/// The rest of a list whose first entries are already read.
#[derive(Debug)]
pub(super) struct ListStream {
    list: EntryList,
    /// Number of hidden entries so far.
    hidden_count: u64,
    is_closed: bool,
}

impl ListStream {
    pub(super) fn new(list: EntryList, hidden_count: u64) -> Self {
        Self { list, hidden_count, is_closed: false }
    }
}

impl BodyStream for ListStream {
    fn next(&mut self) -> NextPart<'_> {
        Box::pin(async {
            if let Some(page) = self.list.next_page().await? {
                self.hidden_count += page.hidden_count;
                return Ok(Next::Piece(page.bytes));
            }
            if !self.is_closed {
                self.is_closed = true;
                return Ok(Next::Piece(b"]".to_vec().into()));
            }
            Ok(Next::End(list_fields(&self.list, self.hidden_count).collect()))
        })
    }

    fn trailer_names(&self) -> Vec<&'static str> {
        let hidden = self.list.reports_hidden().then_some(ENTRIES_HIDDEN);
        hidden.into_iter().chain(self.list.includes_peers().then_some(PARTIAL_RESULT)).collect()
    }
}

/// Returns the header or trailer fields of a finished list.
pub(super) fn list_fields(
    list: &EntryList,
    hidden_count: u64,
) -> impl Iterator<Item = (&'static str, String)> {
    let hidden = list.reports_hidden().then(|| (ENTRIES_HIDDEN, hidden_count.to_string()));
    let silent = (!list.unreachable().is_empty()).then(|| (PARTIAL_RESULT, list.unreachable().join(", ")));
    let next_after = list.next_after().map(|after| (NEXT_AFTER, cursor::text(after)));
    hidden.into_iter().chain(silent).chain(next_after)
}
