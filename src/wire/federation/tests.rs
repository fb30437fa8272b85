//! Round trip of every message, and validation of every field.

use super::*;
use crate::wire::tests::VERSIONS;

fn token() -> Ciphertext {
    let mut bytes = vec![7; 73];
    bytes[0] = 0x80;
    Ciphertext::from_bytes(bytes)
}

fn row(key: &str, environment: Option<&str>) -> SealedEntry {
    let sealed = Some(token());
    let mut row = SealedEntry::new(7, key.to_owned(), environment.map(str::to_owned), sealed);
    row.category = Some("c\"".to_owned());
    row.updated_at = Some(Timestamp::from_microseconds(5));
    row
}

fn shown(row: &SealedEntry) -> String {
    format!("{row:?}")
}

#[test]
fn messages_survive_a_round_trip() {
    for protocol in VERSIONS {
        let find = Find { key: "ключ\n".into(), environment: Some("e".into()) };
        assert_eq!(decode_find(&encode_find(protocol, &find)).expect("valid"), find);
        let entry = row("k", Some("e"));
        let (salt, found) = decode_found(&encode_found(
            protocol,
            Some(u64::MAX),
            &FindReply::Row(Arc::new(row("k", Some("e")))),
        ))
        .expect("valid");
        assert!(matches!(&found, FindReply::Row(found) if shown(found) == shown(&entry)), "{found:?}");
        assert_eq!(salt, Some(u64::MAX));
        let several = FindReply::Ambiguous(vec!["a".into(), "b".into()]);
        assert!(
            matches!(decode_found(&encode_found(protocol, None, &several)), Ok((None, FindReply::Ambiguous(found))) if found.len() == 2)
        );
        assert!(matches!(
            decode_found(&encode_found(protocol, None, &FindReply::Nothing)),
            Ok((None, FindReply::Nothing))
        ));
        let filter = Filter { category: Some("c".into()), environment: None, prefix: Some("p".into()) };
        let after = Some(EntryId { key: "k".into(), environment: None });
        let query = NameScan { after, filter, bytes_max: 5, names_only: true };
        assert_eq!(decode_query(&encode_query(protocol, &query)).expect("valid"), query);
        let page =
            NameScanPage { rows: vec![row("k", None), row("k", Some("e")), row("l", None)], more: true };
        let (_, decoded) = decode_page(&encode_page(protocol, Some(1), &page)).expect("valid");
        assert_eq!(format!("{decoded:?}"), format!("{page:?}"));
        let id = EntryId { key: "k".into(), environment: Some("e".into()) };
        let ciphertext = token();
        let update = RemoteWriteAction::Update { ciphertext, category: Some("c".into()), environment: None };
        for action in [update, RemoteWriteAction::Delete] {
            let write = RemoteWrite { salt: 3, id: id.clone(), seen: Digest(u128::MAX - 1), action };
            assert_eq!(decode_write(&encode_write(protocol, &write)).expect("valid"), write);
        }
        for outcome in [
            RemoteWriteOutcome::Done(row("k", None)),
            RemoteWriteOutcome::Changed(None),
            RemoteWriteOutcome::Changed(Some(row("k", None))),
            RemoteWriteOutcome::Exists,
            RemoteWriteOutcome::Full,
            RemoteWriteOutcome::Busy,
        ] {
            let decoded = decode_outcome(&encode_outcome(protocol, &outcome)).expect("valid");
            assert_eq!(format!("{decoded:?}"), format!("{outcome:?}"));
        }
    }
}

#[test]
fn malformed_messages_are_rejected() {
    for text in ["", "{}", "[]", "null", r#"{"salt":"x"}"#, r#"{"salt":1,"row":{"key":"k"}}"#] {
        assert!(decode_find(text.as_bytes()).is_err(), "{text}");
        assert!(decode_found(text.as_bytes()).is_err(), "{text}");
        assert!(decode_page(text.as_bytes()).is_err(), "{text}");
        assert!(decode_write(text.as_bytes()).is_err(), "{text}");
        assert!(decode_outcome(text.as_bytes()).is_err(), "{text}");
    }
    let invalid_token = br#"{"row":{"salt":1,"row":{"id":1,"key":"k","ciphertext":"?"}}}"#;
    assert!(decode_found(invalid_token).is_err());
    for rows in [vec![row("b", None), row("a", None)], vec![row("a", None), row("a", None)], vec![]] {
        let page = NameScanPage { rows, more: true };
        assert!(decode_page(&encode_page(Protocol::NEWEST, None, &page)).is_err(), "{page:?}");
    }
}

/// Returns a JSON text with one of its fields replaced.
fn with(text: &str, field: &str, value: serde_json::Value) -> String {
    let mut parsed: serde_json::Value = serde_json::from_str(text).expect("JSON");
    *parsed.pointer_mut(field).unwrap_or_else(|| panic!("{field} is not in {text}")) = value;
    parsed.to_string()
}

/// Returns invalid values of a field.
fn invalid(field: &str) -> Vec<serde_json::Value> {
    use serde_json::json;
    if ["/category", "/environment", "/prefix"].contains(&field) {
        return vec![json!("x".repeat(3 * 8192 + 1)), json!(1)];
    }
    match field.rsplit('/').next().expect("a name") {
        "key" => vec![json!(""), json!("k".repeat(256)), json!("k".repeat(2_000_000)), json!(1), json!(null)],
        "environment" => vec![json!(""), json!("e".repeat(101)), json!(7)],
        "category" => vec![json!("c".repeat(101)), json!(7)],
        "ciphertext" => vec![json!(""), json!("gAAA"), json!("?"), json!(1)],
        "created_at" | "updated_at" => vec![json!(-1), json!(i64::MAX), json!(i64::MIN), json!("now")],
        "seen" => vec![json!(""), json!("0"), json!("+".to_owned() + &"0".repeat(31)), json!(0)],
        "salt" => vec![json!(-1), json!("1"), json!(1.5)],
        "bytes" => vec![json!(-1), json!(null)],
        field => panic!("unknown field {field}"),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_field_of_each_message_is_validated() {
    let full_row = || {
        let mut row = row("k", Some("e"));
        row.created_at = Some(Timestamp::from_microseconds(5));
        row
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("JSON");
    let names = ["key", "environment", "ciphertext", "category", "created_at", "updated_at"];
    let of_row = |before: &str| names.map(|name| format!("{before}/{name}")).to_vec();
    let id = EntryId { key: "k".into(), environment: Some("e".into()) };
    let update = RemoteWriteAction::Update {
        ciphertext: token(),
        category: Some("c".into()),
        environment: Some("f".into()),
    };
    let write = RemoteWrite { salt: 3, id: id.clone(), seen: Digest(1), action: update };
    let text_filter = || Some("x".to_owned());
    let query = NameScan {
        after: Some(id),
        filter: Filter { category: text_filter(), environment: text_filter(), prefix: text_filter() },
        bytes_max: 5,
        names_only: true,
    };
    let find = Find { key: "k".into(), environment: Some("e".into()) };
    let found = FindReply::Row(Arc::new(full_row()));
    let page = NameScanPage { rows: vec![full_row()], more: false };
    let of = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>();
    type Decode = fn(&[u8]) -> bool;
    let messages: [(&str, String, Decode, Vec<String>); 7] = [
        (
            "find",
            text(encode_find(Protocol::NEWEST, &find)),
            |text| decode_find(text).is_ok(),
            of(&["/key", "/environment"]),
        ),
        (
            "found",
            text(encode_found(Protocol::NEWEST, Some(1), &found)),
            |text| decode_found(text).is_ok(),
            [of_row("/row/row"), of(&["/row/salt"])].concat(),
        ),
        (
            "query",
            text(encode_query(Protocol::NEWEST, &query)),
            |text| decode_query(text).is_ok(),
            of(&["/after/key", "/after/environment", "/category", "/environment", "/prefix", "/bytes"]),
        ),
        (
            "page",
            text(encode_page(Protocol::NEWEST, Some(1), &page)),
            |text| decode_page(text).is_ok(),
            [of_row("/rows/0"), of(&["/salt"])].concat(),
        ),
        (
            "write",
            text(encode_write(Protocol::NEWEST, &write)),
            |text| decode_write(text).is_ok(),
            of(&[
                "/id/key",
                "/id/environment",
                "/seen",
                "/salt",
                "/update/ciphertext",
                "/update/category",
                "/update/environment",
            ]),
        ),
        (
            "done",
            text(encode_outcome(Protocol::NEWEST, &RemoteWriteOutcome::Done(full_row()))),
            |text| decode_outcome(text).is_ok(),
            of_row("/done"),
        ),
        (
            "changed",
            text(encode_outcome(Protocol::NEWEST, &RemoteWriteOutcome::Changed(Some(full_row())))),
            |text| decode_outcome(text).is_ok(),
            of_row("/changed"),
        ),
    ];
    for (message, text, decode, fields) in messages {
        assert!(decode(text.as_bytes()), "{message}: {text}");
        for field in fields {
            for value in invalid(&field) {
                let shown: String = value.to_string().chars().take(40).collect();
                assert!(!decode(with(&text, &field, value).as_bytes()), "{message}, {field}: {shown}");
            }
        }
    }
    for environments in ["[]", r#"["a","a"]"#, r#"[""]"#, &format!(r#"["{}"]"#, "e".repeat(101))] {
        let text = format!(r#"{{"ambiguous":{environments}}}"#);
        assert!(decode_found(text.as_bytes()).is_err(), "{text}");
    }
    let rows = (0..=LIST_PAGE_ROWS_MAX).map(|number| row(&format!("k{number:05}"), None)).collect();
    assert!(decode_page(&encode_page(Protocol::NEWEST, None, &NameScanPage { rows, more: false })).is_err());
}
