//! Request bodies: field-by-field validation of JSON, with errors in FastAPI's format.

use std::borrow::Cow;

use zeroize::Zeroize;

use super::error::detail;
use super::json::write_string;
use super::response::Response;
use crate::limits::{CATEGORY_CHARS_MAX, ENTRY_KEY_CHARS_MAX, ENVIRONMENT_CHARS_MAX, ERROR_INPUT_CHARS_MAX};
use crate::model::entry::LengthError;
use crate::model::json::{self, Kind, Reason};
use crate::model::{Category, EntryKey, Environment, Plaintext, SecretBytes};
use crate::service::{NewEntry, Update};

/// One element of the `detail` list of a 422 response.
#[derive(Debug)]
pub(super) struct ValidationError {
    kind: &'static str,
    /// JSON text of the `loc` array.
    location: String,
    message: Cow<'static, str>,
    /// JSON text of the offending input, redacted so that it never contains a value.
    input: Vec<u8>,
    /// JSON text of `ctx`.
    context: Option<String>,
    /// Whether the error links to pydantic's documentation; FastAPI's own errors do not.
    has_url: bool,
}

/// The reason why a body is rejected.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The body is not UTF-8.
    NotUtf8,
    /// The body is text, but fails validation.
    Invalid(Vec<ValidationError>),
}

impl From<BodyError> for Response {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::NotUtf8 => detail(400, "There was an error parsing the body"),
            BodyError::Invalid(errors) => {
                let mut body = b"{\"detail\":[".to_vec();
                for (index, error) in errors.iter().enumerate() {
                    if index > 0 {
                        body.push(b',');
                    }
                    error.write(&mut body);
                }
                body.extend_from_slice(b"]}");
                Self::json(422, body)
            }
        }
    }
}

impl ValidationError {
    fn new(kind: &'static str, location: &str, message: impl Into<Cow<'static, str>>, input: &[u8]) -> Self {
        Self {
            kind,
            location: location.to_owned(),
            message: message.into(),
            input: input.to_vec(),
            context: None,
            has_url: true,
        }
    }

    fn missing(location: &str, input: &[u8]) -> Self {
        Self::new("missing", location, "Field required", input)
    }

    /// Returns the error for a missing `X-User-Key` header.
    pub(super) fn user_key_missing() -> Self {
        Self::missing(r#"["header","x-user-key"]"#, b"null")
    }

    /// Returns the error for an invalid query parameter; `allowed` completes "Input should be ".
    pub(super) fn parameter(kind: &'static str, name: &str, allowed: &str, found: &str) -> Self {
        let mut input = Vec::new();
        write_string(if is_short(found) { found } else { "" }, &mut input);
        Self::new(kind, &format!(r#"["query","{name}"]"#), format!("Input should be {allowed}"), &input)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(self.kind.as_bytes());
        out.extend_from_slice(b"\",\"loc\":");
        out.extend_from_slice(self.location.as_bytes());
        out.extend_from_slice(b",\"msg\":");
        write_string(&self.message, out);
        out.extend_from_slice(b",\"input\":");
        out.extend_from_slice(&self.input);
        if let Some(context) = &self.context {
            out.extend_from_slice(b",\"ctx\":");
            out.extend_from_slice(context.as_bytes());
        }
        if self.has_url {
            out.extend_from_slice(b",\"url\":\"https://errors.pydantic.dev/2.5/v/");
            out.extend_from_slice(self.kind.as_bytes());
            out.push(b'"');
        }
        out.push(b'}');
    }
}

impl From<ValidationError> for Response {
    fn from(error: ValidationError) -> Self {
        BodyError::Invalid(vec![error]).into()
    }
}

/// Parses the body of `POST /configs`.
pub(super) fn new_entry(body: &[u8], content_type: Option<&[u8]>) -> Result<NewEntry, BodyError> {
    let text = read(body, content_type)?;
    let mut fields = Fields::new(&text);
    let key = fields.key();
    let value = fields.value();
    let category = fields.category();
    let environment = fields.environment();
    match (key, value, fields.errors.is_empty()) {
        (Some(key), Some(value), true) => Ok(NewEntry { key, environment, category, value }),
        _ => Err(BodyError::Invalid(fields.errors)),
    }
}

/// Parses the body of `PUT /configs/{key}`.
pub(super) fn update(body: &[u8], content_type: Option<&[u8]>) -> Result<Update, BodyError> {
    let text = read(body, content_type)?;
    let mut fields = Fields::new(&text);
    let value = fields.value();
    let category = fields.category();
    let environment = fields.environment();
    match (value, fields.errors.is_empty()) {
        (Some(value), true) => Ok(Update { environment, category, value }),
        _ => Err(BodyError::Invalid(fields.errors)),
    }
}

/// Returns the canonical text of a body that is a JSON object.
fn read(body: &[u8], content_type: Option<&[u8]>) -> Result<Plaintext, BodyError> {
    let invalid = |error| BodyError::Invalid(vec![error]);
    if body.is_empty() {
        return Err(invalid(ValidationError::missing(r#"["body"]"#, b"null")));
    }
    if !content_type.is_none_or(is_json) {
        std::str::from_utf8(body).map_err(|_| BodyError::NotUtf8)?;
        return Err(invalid(not_an_object(Kind::String)));
    }
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let mut canonical = SecretBytes::default();
    let kind = match json::canonicalize(body, canonical.with_room(body.len())) {
        Ok(kind) => kind,
        Err(error) if error.reason == Reason::NotUtf8 => return Err(BodyError::NotUtf8),
        Err(error) => return Err(invalid(invalid_json(&error))),
    };
    match kind {
        Kind::Object => Ok(canonical.into()),
        Kind::Null => Err(invalid(ValidationError::missing(r#"["body"]"#, b"null"))),
        other => Err(invalid(not_an_object(other))),
    }
}

fn not_an_object(found: Kind) -> ValidationError {
    let message = "Input should be a valid dictionary or object to extract fields from";
    ValidationError::new("model_attributes_type", r#"["body"]"#, message, placeholder(found))
}

/// Returns a placeholder of the same JSON kind, without content.
fn placeholder(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Object => b"{}",
        Kind::Array => b"[]",
        Kind::String => b"\"\"",
        Kind::Number | Kind::True | Kind::False | Kind::Null => b"null",
    }
}

/// Returns the input of a name field as an error may show it. A structure, or a text longer than any name, may be a
/// value in the wrong field, and responses end up in the logs of clients, so those are replaced by a placeholder.
fn redacted(found: &[u8]) -> &[u8] {
    match json::kind(found) {
        Kind::Object => placeholder(Kind::Object),
        Kind::Array => placeholder(Kind::Array),
        _ if std::str::from_utf8(found).is_ok_and(is_short) => found,
        kind => placeholder(kind),
    }
}

fn is_short(text: &str) -> bool {
    text.len() <= ERROR_INPUT_CHARS_MAX || text.chars().count() <= ERROR_INPUT_CHARS_MAX
}

fn invalid_json(error: &json::SyntaxError) -> ValidationError {
    let location = format!(r#"["body",{}]"#, error.position);
    let mut validation_error = ValidationError::new("json_invalid", &location, "JSON decode error", b"{}");
    let mut context = b"{\"error\":".to_vec();
    write_string(&error.reason.to_string(), &mut context);
    context.push(b'}');
    validation_error.context = String::from_utf8(context).ok();
    validation_error.has_url = false;
    validation_error
}

/// Returns whether the type is `application/json` or any `application/...+json`, ignoring parameters.
fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let essence = essence.to_ascii_lowercase();
    match essence.strip_prefix(b"application/") {
        Some(subtype) => subtype == b"json" || subtype.ends_with(b"+json"),
        None => false,
    }
}

/// The fields of a body and their validation errors, in the order of the model.
struct Fields<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    category: Option<&'a [u8]>,
    environment: Option<&'a [u8]>,
    errors: Vec<ValidationError>,
}

impl<'a> Fields<'a> {
    fn new(body: &'a Plaintext) -> Self {
        let mut fields =
            Self { key: None, value: None, category: None, environment: None, errors: Vec::new() };
        for (name, text) in json::members(body.expose()) {
            match &*name {
                "key" => fields.key = Some(text),
                "value" => fields.value = Some(text),
                "category" => fields.category = Some(text),
                "environment" => fields.environment = Some(text),
                _ => {}
            }
        }
        fields
    }

    fn key(&mut self) -> Option<EntryKey> {
        let Some(found) = self.key else {
            self.errors.push(ValidationError::missing(r#"["body","key"]"#, placeholder(Kind::Object)));
            return None;
        };
        self.text("key", found, ENTRY_KEY_CHARS_MAX, EntryKey::parse)
    }

    fn value(&mut self) -> Option<Plaintext> {
        match self.value {
            None => {
                self.errors.push(ValidationError::missing(r#"["body","value"]"#, placeholder(Kind::Object)));
            }
            Some(b"null") => {
                let message = "Input should be any JSON value but null";
                self.errors.push(ValidationError::new("dict_type", r#"["body","value"]"#, message, b"null"));
            }
            Some(value) => return Some(Plaintext::new(value.to_vec())),
        }
        None
    }

    fn category(&mut self) -> Option<Category> {
        let found = self.category.filter(|text| *text != b"null")?;
        self.text("category", found, CATEGORY_CHARS_MAX, Category::parse)
    }

    fn environment(&mut self) -> Option<Environment> {
        let found = self.environment.filter(|text| *text != b"null")?;
        self.text("environment", found, ENVIRONMENT_CHARS_MAX, Environment::parse).flatten()
    }

    fn text<T>(
        &mut self,
        name: &str,
        found: &[u8],
        chars_max: usize,
        parse: impl FnOnce(&str) -> Result<T, LengthError>,
    ) -> Option<T> {
        let location = format!(r#"["body","{name}"]"#);
        let Some(mut text) = json::string(found) else {
            let message = "Input should be a valid string";
            self.errors.push(ValidationError::new("string_type", &location, message, redacted(found)));
            return None;
        };
        let parsed = parse(&text);
        if let Cow::Owned(text) = &mut text {
            text.zeroize();
        }
        let error = match parsed {
            Ok(parsed) => return Some(parsed),
            Err(error) => error,
        };
        let mut validation_error = match error {
            LengthError::TooShort => ValidationError::new(
                "string_too_short",
                &location,
                "String should have at least 1 character",
                redacted(found),
            ),
            LengthError::TooLong(_) => {
                let message = format!("String should have at most {chars_max} characters");
                ValidationError::new("string_too_long", &location, message, redacted(found))
            }
        };
        validation_error.context = Some(match error {
            LengthError::TooShort => r#"{"min_length":1}"#.to_owned(),
            LengthError::TooLong(chars_max) => format!(r#"{{"max_length":{chars_max}}}"#),
        });
        self.errors.push(validation_error);
        None
    }
}
