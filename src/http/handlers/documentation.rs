//! The API description, for programs and for people.

use std::time::Duration;

use crate::http::call::{Call, Parameter};
use crate::http::content::Content;
use crate::http::response::{HandlerOutput, Response};

/// Handles `GET /openapi.json`.
pub(in crate::http) fn openapi(description: &'static [u8]) -> HandlerOutput {
    let head = Response::json(200, Vec::new()).with_header("cache-control", "no-cache");
    HandlerOutput::Large(head, Content::default().with_static(description))
}

/// Handles `GET /docs`, `GET /redoc` and their assets.
pub(in crate::http) fn page(call: &Call<'_>) -> HandlerOutput {
    let Parameter::File(file) = call.request.parameter else { unreachable!("the path names a file") };
    let headers = file.headers.iter().map(|&(name, value)| (name, value.into())).collect();
    let head = Response {
        status: 200,
        content_type: Some(file.content_type),
        headers,
        body: Vec::new().into(),
        delay: Duration::ZERO,
    };
    HandlerOutput::Large(head, Content::default().with_static(file.bytes))
}
