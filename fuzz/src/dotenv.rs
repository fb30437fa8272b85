//! `.env` files: the result does not depend on line ends or comments, and quoting round-trips.

use std::collections::BTreeMap;
use std::ffi::OsString;

use opensecureconf::config::dotenv::{self, File};
use opensecureconf::limits::DOTENV_EXPANDED_BYTES_MAX;

/// Checks the statements that are parsed from `data`.
pub fn run(data: &[u8]) {
    let environment = BTreeMap::from([("SET".to_owned(), OsString::from("from-environment"))]);
    let Ok(file) = dotenv::parse(data, &environment) else { return };
    let text = std::str::from_utf8(data).expect("a parsed file is UTF-8");
    let lines_count = 1 + text.matches(['\n', '\r']).count();
    assert!(file.unread_lines.is_sorted_by(|line, next| line < next), "lines out of order");
    assert!(file.unread_lines.iter().all(|line| (1..=lines_count).contains(line)), "lines beyond the end");
    let bytes: usize = file.values.values().map(|value| value.len()).sum();
    assert!(bytes <= DOTENV_EXPANDED_BYTES_MAX, "values of {bytes} bytes");

    let same = |other: &str| {
        let other = dotenv::parse(other.as_bytes(), &environment);
        assert!(matches!(&other, Ok(other) if is_same(other, &file)), "the parsed file differs");
    };
    same(&format!("{text}\n# a comment\n"));
    if !text.contains('\r') {
        same(&text.replace('\n', "\r\n"));
        same(&text.replace('\n', "\r"));
    }
    // A byte order mark is only recognised at the start.
    if !text.starts_with('\u{feff}') {
        let moved = dotenv::parse(format!("# a comment\n{text}").as_bytes(), &environment);
        let moved = moved.expect("the values are unchanged");
        assert_eq!(moved.values, file.values, "a comment before the statements changes them");
        assert!(moved.unread_lines.iter().map(|line| line - 1).eq(file.unread_lines.iter().copied()));
    }
    for (name, value) in &file.values {
        assert!(!name.is_empty(), "a statement without a name");
        // A raw carriage return, which an escape may have produced, would be a line end.
        let is_literal = |value: &&str| !value.contains("${") && !value.contains('\r');
        let Some(value) = value.to_str().filter(is_literal) else { continue };
        if !name.contains('\'') {
            check_quoted(name, value);
        }
    }
}

/// Checks that a name and a value in single quotes are read verbatim.
fn check_quoted(name: &str, value: &str) {
    let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
    let file = dotenv::parse(format!("'{name}'='{quoted}'").as_bytes(), &BTreeMap::new()).expect("UTF-8");
    assert_eq!(file.unread_lines, [0; 0], "{name:?} {value:?}");
    assert_eq!(file.values, BTreeMap::from([(name.to_owned(), OsString::from(value))]));
}

fn is_same(one: &File, other: &File) -> bool {
    (&one.values, &one.unread_lines) == (&other.values, &other.unread_lines)
}
