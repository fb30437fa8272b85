//! `/configs` and `/configs/{key}`.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::cursor;
use super::list_stream::{ListStream, list_fields};
use crate::http::body::{self, ValidationError};
use crate::http::call::{CachedCall, Call, environment};
use crate::http::content::Content;
use crate::http::error::{failed, redirect};
use crate::http::json::{EntryView, write_after, write_before, write_entry, write_entry_with};
use crate::http::key_path::KeyPath;
use crate::http::query::parameter;
use crate::http::response::{Body, Response};
use crate::limits::{LARGE_VALUE_BYTES, LIST_LIMIT_MAX, LIST_UNSTREAMED_BYTES_MAX};
use crate::model::{Filter, SealedEntry};
use crate::service::{After, DecryptedEntry, Error, ListQuery, Render, RenderedPage, Value};

/// Converts an error, with a redirect if no entry was found and the path has a trailing slash, which may be
/// superfluous.
fn error_or_redirect(call: &Call<'_>, error: Error) -> Response {
    match (&error, &call.key().without_slash) {
        (Error::NotFound { .. }, Some(path)) => redirect(path, call.query()),
        _ => failed(error),
    }
}

fn full_mode(call: &Call<'_>) -> Result<bool, Response> {
    is_full(call.query()).map_err(|other| {
        ValidationError::parameter("literal_error", "mode", "'short' or 'full'", &other).into()
    })
}

/// Handles `POST /configs`.
pub(in crate::http) async fn create(call: Call<'_>) -> Result<Response, Response> {
    let new = body::new_entry(&call.body, call.content_type()).map_err(Response::from)?;
    // Ignoring the query would create the entry in another environment than the client meant.
    let requested = call.environment();
    if let Some(other) =
        requested.filter(|requested| new.environment.as_ref().is_none_or(|new| new.as_str() != &**requested))
    {
        return Err(ValidationError::parameter(
            "value_error",
            "environment",
            "the environment in the body",
            &other,
        )
        .into());
    }
    let (found, receipt) = call.service.entries.create(&call.credentials(), new).await.map_err(failed)?;
    Ok(entry(201, found, None, true).with_receipt(receipt))
}

/// Handles `GET /configs/{key}` without waiting, if the row and the key are both in memory, and appends the entry to
/// `out`. Returns `None` otherwise, also for errors, which [`read`] reports.
pub(in crate::http) fn try_read_cached(call: &CachedCall<'_>, out: &mut Vec<u8>) -> Option<()> {
    let CachedCall { service, user_key, key, query } = *call;
    if !key.is_text {
        return None;
    }
    let full = is_full(query).ok()?;
    let environment = environment(query);
    let requested = environment.as_deref();
    let found = service.entries.try_read_cached(user_key, &key.text, requested)?;
    let row = found.row();
    // A large value is sent piece by piece.
    if found.value_bytes_max() > LARGE_VALUE_BYTES {
        return None;
    }
    write_entry_with(row, EntryView::of(row, requested, full), found.value_bytes_max(), out, |out| {
        found.open_into(out)
    })
}

/// Handles `GET /configs/{key}`.
pub(in crate::http) async fn read(call: Call<'_>) -> Result<Response, Response> {
    let full = full_mode(&call)?;
    let environment = call.environment();
    let requested = environment.as_deref();
    let found = named(call.key(), requested)?;
    let found = call.service.entries.read(&call.credentials(), found, requested).await;
    let found = found.map_err(|error| error_or_redirect(&call, error))?;
    Ok(entry(200, found, requested, full))
}

/// Handles `PUT /configs/{key}`.
pub(in crate::http) async fn update(call: Call<'_>) -> Result<Response, Response> {
    let update = body::update(&call.body, call.content_type()).map_err(Response::from)?;
    let environment = call.environment();
    let requested = environment.as_deref();
    let text = named(call.key(), requested)?;
    let found = call.service.entries.update(&call.credentials(), text, requested, update).await;
    let found = found.map_err(|error| error_or_redirect(&call, error))?;
    Ok(entry(200, found, requested, true))
}

#[derive(Serialize)]
struct Deleted {
    message: String,
}

/// Handles `DELETE /configs/{key}`.
pub(in crate::http) async fn delete(call: Call<'_>) -> Result<Response, Response> {
    let environment = call.environment();
    let text = named(call.key(), environment.as_deref())?;
    let deleted = call.service.entries.delete(&call.credentials(), text, environment.as_deref()).await;
    let receipt = deleted.map_err(|error| error_or_redirect(&call, error))?;
    let message = format!("Configuration '{text}' deleted successfully");
    Ok(Response::serialized(200, &Deleted { message }).with_receipt(receipt))
}

/// Handles `GET /configs`, and `GET /cluster/configs` (`is_local`), which lists only the entries of this node.
pub(in crate::http) async fn list(call: Call<'_>) -> Result<Response, Response> {
    list_entries(&call, false).await
}

/// Handles `GET /cluster/configs`: the local entries only.
pub(in crate::http) async fn list_local(call: Call<'_>) -> Result<Response, Response> {
    list_entries(&call, true).await
}

async fn list_entries(call: &Call<'_>, is_local: bool) -> Result<Response, Response> {
    let render: Render = match (call.environment().is_some(), full_mode(call)?) {
        (false, false) => |row, value, out| render(row, value, None, false, out),
        (false, true) => |row, value, out| render(row, value, None, true, out),
        (true, false) => |row, value, out| render(row, value, row.environment.as_deref(), false, out),
        (true, true) => |row, value, out| render(row, value, row.environment.as_deref(), true, out),
    };
    let query = list_query(call, is_local)?;
    let mut list = call.service.entries.list(&call.credentials(), query, render).await.map_err(failed)?;
    let RenderedPage { bytes: mut first, mut hidden_count, .. } =
        list.next_page().await.map_err(failed)?.unwrap_or_default();
    // Most lists still fit with the peers' entries, and can then report everything in header fields, not trailers.
    while !list.is_finished() && first.len() < LIST_UNSTREAMED_BYTES_MAX {
        let Some(page) = list.next_page().await.map_err(failed)? else { break };
        hidden_count += page.hidden_count;
        first.with_room(page.bytes.len()).extend_from_slice(&page.bytes);
    }
    if list.is_limited() {
        // The cursor is sent as a header field, which every client and proxy supports, unlike a trailer.
        list.cut();
    }
    let has_entries = !first.is_empty();
    match first.first_mut() {
        Some(comma) => *comma = b'[',
        None => first.with_room(2).push(b'['),
    }
    if !list.is_finished() {
        let rest = Box::new(ListStream::new(list, hidden_count));
        return Ok(Response::json(200, Body::Stream { first, rest }));
    }
    first.with_room(1).push(b']');
    let delay = match has_entries {
        true => Duration::ZERO,
        false => list.shows_nothing(&call.credentials()).map_err(failed)?,
    };
    let mut response = Response::json(200, first).delayed(delay);
    response.headers.extend(list_fields(&list, hidden_count).map(|(name, value)| (name, value.into())));
    Ok(response)
}

fn render(
    row: &SealedEntry,
    value: &[u8],
    requested_environment: Option<&str>,
    full: bool,
    out: &mut Vec<u8>,
) {
    write_entry(row, value, EntryView::of(row, requested_environment, full), out);
}

fn list_query(call: &Call<'_>, is_local: bool) -> Result<ListQuery, Response> {
    let text = |name: &str| parameter(call.query(), name).filter(|value| !value.is_empty());
    let limit = match text("limit") {
        None => None,
        Some(found) => match found.parse() {
            Ok(limit) if (1..=LIST_LIMIT_MAX).contains(&limit) => Some(limit),
            _ => {
                let allowed = format!("an integer from 1 to {LIST_LIMIT_MAX}");
                return Err(ValidationError::parameter("int_parsing", "limit", &allowed, &found).into());
            }
        },
    };
    let after = match text("after") {
        None => After::default(),
        Some(found) => cursor::parse(&found).ok_or_else(|| {
            ValidationError::parameter(
                "int_parsing",
                "after",
                "the id of an entry, or what X-Next-After gave",
                &found,
            )
        })?,
    };
    let filter = Filter {
        category: text("category").map(Cow::into_owned),
        environment: call.environment().map(Cow::into_owned),
        prefix: text("prefix").map(Cow::into_owned),
    };
    Ok(ListQuery { filter, after, limit, is_local })
}

fn entry(status: u16, found: DecryptedEntry, requested_environment: Option<&str>, full: bool) -> Response {
    let DecryptedEntry { row, value } = found;
    let view = EntryView::of(&row, requested_environment, full);
    let mut before = Vec::new();
    let content = match value {
        Value::Plain(value) if value.expose().len() <= LARGE_VALUE_BYTES => {
            write_entry(&row, value.expose(), view, &mut before);
            return Response::json(status, before);
        }
        Value::Plain(value) => Content::default().with_bytes(value.into()),
        Value::Sealed(value) => Content::default().with_sealed(value),
    };
    let mut after = Vec::new();
    write_before(&row, view, &mut before);
    write_after(&row, view, &mut after);
    Response::json(status, content.between(before, after))
}

fn is_full(query: Option<&[u8]>) -> Result<bool, Cow<'_, str>> {
    match parameter(query, "mode") {
        None => Ok(false),
        Some(mode) => match &*mode {
            "" | "short" => Ok(false),
            "full" => Ok(true),
            _ => Err(mode),
        },
    }
}

/// Returns the key as text, or 404 if it is not UTF-8, because no entry can have it.
fn named<'a>(key: &'a KeyPath<'_>, environment: Option<&str>) -> Result<&'a str, Response> {
    if key.is_text {
        return Ok(&key.text);
    }
    let environment = environment.map(str::to_owned);
    Err(Error::NotFound { key: key.text.clone().into_owned(), environment, silent: Vec::new() }.into())
}
