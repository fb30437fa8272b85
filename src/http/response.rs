//! Responses before encoding.

use std::borrow::Cow;
use std::time::Duration;

use super::content::Content;
use crate::model::SecretBytes;
use crate::service::EntryList;

/// The media type of almost every response.
pub(super) const JSON: &str = "application/json";

/// A complete response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The media type; `None` without a body.
    pub content_type: Option<&'static str>,
    /// Further header fields.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body.
    pub body: SecretBytes,
    /// Delay before the response is sent, after a failed key; zero otherwise.
    pub delay: Duration,
}

/// The output of a handler.
#[derive(Debug)]
pub enum HandlerOutput {
    /// A complete response.
    Complete(Response),
    /// A head, and a large body that is sent piece by piece, so that slow clients cost little memory.
    Large(Response, Content),
    /// A list of more than one page, streamed as it is read.
    List(Box<ListStream>),
}

/// A streamed list whose first page is already read.
#[derive(Debug)]
pub struct ListStream {
    /// The opening bracket and the first entries.
    pub first: SecretBytes,
    /// Number of hidden entries so far.
    pub hidden_count: u64,
    /// Source of the remaining pages.
    pub rest: EntryList,
}

impl Response {
    /// Creates a JSON response.
    pub fn json(status: u16, body: impl Into<SecretBytes>) -> Self {
        Self {
            status,
            content_type: Some(JSON),
            headers: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
        }
    }

    /// Sets the delay before the response is sent.
    pub fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Adds a header field.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<Response> for HandlerOutput {
    fn from(response: Response) -> Self {
        Self::Complete(response)
    }
}
