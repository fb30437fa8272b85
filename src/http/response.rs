//! Answers before they are encoded.

use std::borrow::Cow;
use std::time::Duration;

use super::content::Content;
use crate::model::SecretBytes;
use crate::service::EntryList;

/// The media type of almost every answer.
pub(super) const JSON: &str = "application/json";

/// A complete answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The media type, unless there is no body.
    pub content_type: Option<&'static str>,
    /// Further header fields.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body.
    pub body: SecretBytes,
    /// For how long it is held back: it is about a key that failed.
    pub delay: Duration,
}

/// What a handler gives back.
#[derive(Debug)]
pub enum HandlerOutput {
    /// Everything at once.
    Complete(Response),
    /// A head, and a large body that is sent piece by piece, so that slow readers cost little memory.
    Large(Response, Content),
    /// A list that did not fit one page: it is sent as it is read.
    List(Box<ListStream>),
}

/// A list under way, its first page already read.
#[derive(Debug)]
pub struct ListStream {
    /// The opening bracket and the first entries.
    pub first: SecretBytes,
    /// Hidden entries so far.
    pub hidden_count: u64,
    /// Where the other pages come from.
    pub rest: EntryList,
}

impl Response {
    /// A JSON answer.
    pub fn json(status: u16, body: impl Into<SecretBytes>) -> Self {
        Self {
            status,
            content_type: Some(JSON),
            headers: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
        }
    }

    /// Holds it back.
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
    fn from(answer: Response) -> Self {
        Self::Complete(answer)
    }
}
