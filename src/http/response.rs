//! Responses before encoding.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::body_stream::BodyStream;
use super::content::Content;
use crate::model::SecretBytes;
use crate::service::Receipt;

/// The media type of almost every response.
pub(super) const JSON: &str = "application/json";

/// A response: its head and its body.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The media type; `None` without a body.
    pub content_type: Option<&'static str>,
    /// Further header fields.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// The body.
    pub body: Body,
    /// Delay before the response is sent, after a failed key; zero otherwise.
    pub delay: Duration,
    /// Receipt of the write that it reports, confirmed once it has been sent.
    pub receipt: Option<Box<Receipt>>,
}

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// Bytes.
    Bytes(SecretBytes),
    /// Bytes of the binary.
    Static(&'static [u8]),
    /// A large body, sent piece by piece, so that slow clients cost little memory.
    Large(Box<Content>),
    /// A body whose length is not known when it begins.
    Stream {
        /// The beginning, which may be empty. Sent with the head.
        first: SecretBytes,
        /// Source of the other pieces.
        rest: Box<dyn BodyStream>,
    },
}

impl Response {
    /// Creates a JSON response.
    pub fn json(status: u16, body: impl Into<Body>) -> Self {
        Self {
            status,
            content_type: Some(JSON),
            headers: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
            receipt: None,
        }
    }

    /// Creates a JSON response from a value that contains no secrets, because growth leaves copies behind.
    pub(super) fn serialized(status: u16, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("texts, numbers and structs always serialize to memory");
        Self::json(status, body)
    }

    /// Sets the delay before the response is sent.
    pub fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Sets the receipt of the write that the response reports.
    pub(super) fn with_receipt(self, receipt: Receipt) -> Self {
        Self { receipt: Some(Box::new(receipt)), ..self }
    }

    /// Adds a header field.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl Body {
    /// Returns a body that is in memory; empty for one that is produced piece by piece.
    pub(super) fn in_memory(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Static(bytes) => bytes,
            Self::Large(_) | Self::Stream { .. } => &[],
        }
    }
}

impl Default for Body {
    /// Returns an empty body.
    fn default() -> Self {
        Self::Static(&[])
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<SecretBytes> for Body {
    fn from(bytes: SecretBytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}

impl From<Content> for Body {
    fn from(content: Content) -> Self {
        Self::Large(Box::new(content))
    }
}
