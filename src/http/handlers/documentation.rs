//! The description of the API, for programs and for people.

use std::time::Duration;

use crate::http::answer::{Answer, Outcome};
use crate::http::content::Content;
use crate::http::openapi;
use crate::http::pages::File;

/// `GET /openapi.json`
pub(in crate::http) fn openapi() -> Outcome {
    let head = Answer::json(200, Vec::new()).with_header("cache-control", "no-cache");
    Outcome::Large(head, Content::default().with_static(openapi::document()))
}

/// `GET /docs`, `GET /redoc` and what they load.
pub(in crate::http) fn file(file: &'static File) -> Outcome {
    let headers = file.headers.iter().map(|&(name, value)| (name, value.into())).collect();
    let head = Answer {
        status: 200,
        content_type: Some(file.content_type),
        headers,
        body: Vec::new().into(),
        delay: Duration::ZERO,
    };
    Outcome::Large(head, Content::default().with_static(file.bytes))
}
