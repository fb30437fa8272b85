//! Canonical JSON: idempotent, never longer, equal to what serde_json reads.

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
            assert!(value.is_err(), "serde_json accepts what is refused with {error}");
        }
        Ok(kind) => check(data, canonical, kind, value.ok().as_ref()),
    }
}

fn check(data: &[u8], canonical: &[u8], kind: Kind, value: Option<&Value>) {
    assert!(canonical.len() <= data.len(), "canonical text grows");
    assert_eq!(json::kind(canonical), kind);
    let mut again = Vec::new();
    assert_eq!(json::canonicalize(canonical, &mut again), Ok(kind), "canonical text is refused");
    assert_eq!(again, canonical, "canonical text has another canonical form");
    // serde_json refuses more: nesting beyond 128 levels, integers beyond a double. But both texts alike.
    let read_again = serde_json::from_slice::<Value>(canonical).ok();
    assert_eq!(read_again.as_ref(), value, "another value");

    if kind == Kind::String {
        let text = json::string(canonical).expect("a canonical string has a text");
        assert_eq!(value.and_then(Value::as_str), Some(&*text), "another text");
        let mut written = Vec::new();
        json::write_string(&text, &mut written);
        assert_eq!(written, canonical, "another spelling");
    } else {
        assert_eq!(json::string(canonical), None, "the text of something that is not a string");
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
        assert!(expected.is_none() || read.as_ref() == expected, "another member");
        assert!(names.insert(name), "a repeated name");
    }
    written.push(b'}');
    assert!(if kind == Kind::Object { written == canonical } else { names.is_empty() }, "other members");
}
