//! Canonical JSON: canonicalisation is idempotent, never lengthens the text, and keeps the value that serde_json reads.

use opensecureconf::model::json::{self, Kind};
use serde_json::Value;

const BEFORE: &[u8] = b"before";

/// Checks the canonical form of `data`.
pub fn run(data: &[u8]) {
    let mut out = BEFORE.to_vec();
    let result = json::canonicalize(data, &mut out);
    let canonical = out.strip_prefix(BEFORE).expect("output is only appended");
    let value = serde_json::from_slice::<Value>(data);
    match result {
        Err(error) => {
            assert!(canonical.is_empty(), "output after an error");
            assert!(error.position <= data.len(), "an error at {} of {} bytes", error.position, data.len());
            assert!(value.is_err(), "serde_json accepts an input that is rejected with {error}");
        }
        Ok(kind) => check(data, canonical, kind, value.ok().as_ref()),
    }
}

fn check(data: &[u8], canonical: &[u8], kind: Kind, value: Option<&Value>) {
    assert!(canonical.len() <= data.len(), "the canonical text is longer than the input");
    assert_eq!(json::kind(canonical), kind);
    let mut again = Vec::new();
    assert_eq!(json::canonicalize(canonical, &mut again), Ok(kind), "canonical text is rejected");
    assert_eq!(again, canonical, "canonicalisation is not idempotent");
    // serde_json rejects more (nesting beyond 128 levels, integers beyond a double), but both texts alike.
    let read_again = serde_json::from_slice::<Value>(canonical).ok();
    assert_eq!(read_again.as_ref(), value, "the value has changed");

    if kind == Kind::String {
        let text = json::string(canonical).expect("a canonical string has a value");
        assert_eq!(value.and_then(Value::as_str), Some(&*text), "the string has changed");
        let mut written = Vec::new();
        json::write_string(&text, &mut written);
        assert_eq!(written, canonical, "the spelling is not canonical");
    } else {
        assert_eq!(json::string(canonical), None, "a string value of something that is not a string");
    }

    let mut names = std::collections::BTreeSet::new();
    let mut written = b"{".to_vec();
    for (name, member) in json::members(canonical) {
        if written.len() > 1 {
            written.push(b',');
        }
        json::write_string(&name, &mut written);
        written.push(b':');
        written.extend_from_slice(member);
        let read = serde_json::from_slice::<Value>(member).ok();
        let expected = value.map(|value| &value[&*name]);
        assert!(expected.is_none() || read.as_ref() == expected, "a member has changed");
        assert!(names.insert(name), "a repeated name");
    }
    written.push(b'}');
    assert!(
        if kind == Kind::Object { written == canonical } else { names.is_empty() },
        "the members differ from the object"
    );
}
