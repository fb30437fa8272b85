//! The API description, for programs and for people.

use std::time::Duration;

use crate::http::call::{Call, Parameter};
use crate::http::response::Response;

/// Handles `GET /openapi.json`.
pub(in crate::http) fn openapi(description: &'static [u8]) -> Response {
    Response::json(200, description).with_header("cache-control", "no-cache")
}

/// Handles `GET /docs`, `GET /redoc` and their assets.
pub(in crate::http) fn page(call: &Call<'_>) -> Response {
    let Parameter::File(file) = call.request.parameter else { unreachable!("the path names a file") };
    let headers = file.headers.iter().map(|&(name, value)| (name, value.into())).collect();
    Response {
        status: 200,
        content_type: Some(file.content_type),
        headers,
        body: file.bytes.into(),
        delay: Duration::ZERO,
        receipt: None,
    }
}
