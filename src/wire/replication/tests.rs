//! Round trip of every message, and validation of every field.

use super::*;
use crate::wire::tests::VERSIONS;

fn token(length: usize) -> Ciphertext {
    let mut bytes = vec![7; length];
    bytes[0] = 0x80;
    Ciphertext::from_bytes(bytes)
}

fn version(timestamp: i64, node: i64) -> Version {
    version_of(timestamp, node, false).expect("a version")
}

#[test]
fn messages_survive_a_round_trip() {
    let version = version(7, 9);
    let content = SealedBody {
        category: Some("c\"".into()),
        ciphertext: token(73),
        created_at: Some(Timestamp::from_microseconds(1)),
        updated_at: None,
    };
    // Clients can create a key with a NUL, as `%00`.
    let id = EntryId { key: "ключ\n\0".into(), environment: Some("e".into()) };
    let changes = vec![
        Change { id: id.clone(), version, body: Some(content) },
        Change { id: EntryId { key: "k".into(), environment: None }, version, body: None },
    ];
    for protocol in VERSIONS {
        let encoded = encode_changes(protocol, 5, &changes);
        assert_eq!(decode_changes(&encoded).expect("valid"), (5, changes.clone()));
    }
    let other = EntryId { key: "gone".into(), environment: None };
    let known = vec![
        VersionedDigest { id: id.clone(), version, digest: Digest(u128::MAX - 1) },
        VersionedDigest { id: other.clone(), version, digest: Digest(0) },
    ];
    let page = VersionsPage { known, buckets_count: 2 };
    let requested = [bucket_of(&other), bucket_of(&id), 0];
    for protocol in VERSIONS {
        let encoded = encode_versions(protocol, &page);
        assert_eq!(decode_versions(&encoded, &requested).expect("valid"), page);
        let encoded = encode_ids(protocol, std::slice::from_ref(&id));
        assert_eq!(decode_ids(&encoded).expect("valid"), std::slice::from_ref(&id));
    }
    assert_eq!(decode_buckets(&encode_buckets(&[0, 1023])).expect("valid"), [0, 1023]);
    let digests: Vec<Digest> = (0..1024).map(Digest).collect();
    assert_eq!(decode_digests(&encode_digests(&digests)).expect("valid"), digests);
    let horizon =
        TombstoneHorizon { synced: HlcTimestamp::from_milliseconds(5), forgotten: HlcTimestamp::default() };
    assert_eq!(decode_horizon(&encode_horizon(&horizon)), Some(horizon));
    assert_eq!(decode_digest(encode_digest(Digest(77)).as_bytes()).expect("valid"), Digest(77));
}

#[test]
fn times_that_peers_refuse_are_left_out() {
    let now = Timestamp::now();
    for (time, is_kept) in [
        (Timestamp::from_microseconds(0), true),
        (now, true),
        (Timestamp::from_microseconds(-1), false),
        (now.later(std::time::Duration::from_secs(3600)), false),
    ] {
        let content =
            SealedBody { category: None, ciphertext: token(73), created_at: Some(time), updated_at: None };
        let id = EntryId { key: "k".into(), environment: None };
        let change = Change { id, version: version(1, 1), body: Some(content) };
        let (_, changes) = decode_changes(&encode_changes(Protocol::NEWEST, 0, &[change])).expect("valid");
        let content = changes[0].body.as_ref().expect("it is not a deletion");
        assert_eq!(content.created_at, is_kept.then_some(time));
    }
}

/// Returns the fields of a change, with one of them replaced or left out.
fn change_with(field: &str, value: Option<serde_json::Value>) -> serde_json::Value {
    let mut change = serde_json::json!({
        "key": "k", "environment": "e", "timestamp": 1, "replica": 1, "ciphertext": token(73).to_text(),
        "category": "c", "created_at": 1, "updated_at": 1,
    });
    let fields = change.as_object_mut().expect("an object");
    match value {
        Some(value) => fields.insert(field.to_owned(), value),
        None => fields.remove(field),
    };
    change
}

fn changes_text(changes: &[serde_json::Value]) -> Vec<u8> {
    serde_json::json!({ "salt": "00c0ffee00c0ffee", "changes": changes }).to_string().into_bytes()
}

#[test]
fn each_field_of_a_change_is_validated() {
    use serde_json::json;
    let year_10000 = 253_402_300_800_000_000_i64;
    let cases: [(&str, Vec<serde_json::Value>, Vec<serde_json::Value>); 9] = [
        (
            "key",
            vec![json!("🔑".repeat(255)), json!("\0")],
            vec![json!(""), json!("k".repeat(256)), json!("k".repeat(2_000_000)), json!(1), json!(null)],
        ),
        (
            "environment",
            vec![json!("é".repeat(100)), json!("\0"), json!(null)],
            vec![json!(""), json!("e".repeat(101)), json!("e".repeat(1_000_000)), json!(["e"])],
        ),
        (
            "category",
            vec![json!("c".repeat(100)), json!(""), json!(null)],
            vec![json!("c".repeat(101)), json!(7)],
        ),
        (
            "timestamp",
            vec![json!(1), json!(i64::MAX)],
            vec![json!(0), json!(-1), json!(i64::MIN), json!(u64::MAX), json!("1"), json!(1.5)],
        ),
        ("replica", vec![json!(0), json!(i64::MAX)], vec![json!(-1), json!(u64::MAX), json!("1")]),
        (
            "ciphertext",
            vec![json!(token(89).to_text()), json!(token(73 + 16 * 100_000).to_text())],
            vec![
                json!(""),
                json!("gAAA"),
                json!("?"),
                json!(token(74).to_text()),
                json!(token(57).to_text()),
                json!(token(crate::limits::TOKEN_BYTES_MAX + 16).to_text()),
                json!(Ciphertext::from_bytes(vec![0x81; 73]).to_text()),
                json!(token(73).to_text().trim_end_matches('=').to_owned() + "\n"),
                json!(1),
            ],
        ),
        (
            "created_at",
            vec![json!(0), json!(year_10000 - 1), json!(null)],
            vec![json!(-1), json!(year_10000), json!(i64::MIN), json!(i64::MAX), json!("now")],
        ),
        (
            "updated_at",
            vec![json!(0), json!(year_10000 - 1), json!(null)],
            vec![json!(-1), json!(year_10000), json!(i64::MIN), json!(i64::MAX)],
        ),
        // A later release may send further fields.
        ("unknown", vec![json!({"deep": [[[]]]})], vec![]),
    ];
    for (field, valid, invalid) in cases {
        for (values, is_valid) in [(valid, true), (invalid, false)] {
            for value in values {
                let shown: String = value.to_string().chars().take(40).collect();
                let text = changes_text(&[change_with(field, Some(value))]);
                let decoded = decode_changes(&text);
                assert_eq!(decoded.is_ok(), is_valid, "{field}: {shown}: {:?}", decoded.err());
            }
        }
    }
    for required in ["key", "timestamp", "replica"] {
        assert!(decode_changes(&changes_text(&[change_with(required, None)])).is_err(), "{required}");
    }
    // A deletion; one from before there were versions does not exist.
    assert!(decode_changes(&changes_text(&[change_with("ciphertext", None)])).is_ok());
    let mut deletion = change_with("ciphertext", None);
    deletion["replica"] = json!(0);
    assert!(decode_changes(&changes_text(&[deletion])).is_err());
}

#[test]
fn one_invalid_field_rejects_the_whole_message() {
    let named = |key: String| change_with("key", Some(key.into()));
    let many = |count: usize| (0..count).map(|number| named(format!("k{number}"))).collect::<Vec<_>>();
    assert!(decode_changes(&changes_text(&many(512))).is_ok());
    assert!(decode_changes(&changes_text(&many(513))).is_err());
    let twice = [named("one".into()), named("two".into()), named("one".into())];
    assert!(decode_changes(&changes_text(&twice)).is_err());
    for salt in ["", "0", "+0c0ffee00c0ffee", "00c0ffee00c0ffee0", "xxxxxxxxxxxxxxxx"] {
        let text = serde_json::json!({ "salt": salt, "changes": [] }).to_string();
        assert!(decode_changes(text.as_bytes()).is_err(), "{salt}");
    }
    for text in ["", "{}", "[]", "null", r#"{"salt":"00c0ffee00c0ffee"}"#] {
        assert!(decode_changes(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn lists_of_names_and_buckets_are_bounded_and_free_of_duplicates() {
    let names = |count: usize| {
        let ids = (0..count).map(|number| EntryId { key: format!("k{number}"), environment: None });
        encode_ids(Protocol::NEWEST, &ids.collect::<Vec<_>>())
    };
    assert_eq!(decode_ids(&names(512)).expect("valid").len(), 512);
    assert!(decode_ids(&names(513)).is_err());
    for text in [
        r#"[{"key":"a"},{"key":"a"}]"#,
        r#"[{"key":""}]"#,
        r#"[{"key":"a","environment":""}]"#,
        "[{}]",
        "{}",
        "[1]",
    ] {
        assert!(decode_ids(text.as_bytes()).is_err(), "{text}");
    }
    assert!(decode_ids(format!(r#"[{{"key":"{}"}}]"#, "k".repeat(256)).as_bytes()).is_err());
    let all: Vec<usize> = (0..1024).collect();
    assert_eq!(decode_buckets(&encode_buckets(&all)).expect("valid"), all);
    for text in ["[1024]", "[-1]", "[1,1]", "[1.0]", "[\"1\"]", "{}", ""] {
        assert!(decode_buckets(text.as_bytes()).is_err(), "{text}");
    }
    let began = std::time::Instant::now();
    assert!(decode_buckets(&encode_buckets(&vec![7; 8_000_000])).is_err());
    assert!(
        began.elapsed() < std::time::Duration::from_secs(5),
        "most of the time is spent encoding the message"
    );
}

#[test]
fn digests_have_a_fixed_length() {
    assert!(decode_digests(&[0; 16]).is_err());
    assert!(decode_digests(&[0; 1024 * 16 + 1]).is_err());
    for text in ["", "0", "ok", "+c1e97c66fbece7c8144f705314bccd0", "c1e97c66fbece7c8144f705314bccd0a0"] {
        assert!(decode_digest(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn versions_are_only_from_the_requested_buckets() {
    let id = EntryId { key: "k".into(), environment: None };
    let bucket = bucket_of(&id);
    let other = (bucket + 1) % BUCKETS_COUNT;
    let one = r#"{"key":"k","timestamp":1,"replica":1,"digest":"c1e97c66fbece7c8144f705314bccd0a"}"#;
    let reply = |buckets_count: usize, known: &str| {
        format!(r#"{{"buckets":{buckets_count},"known":[{known}]}}"#).into_bytes()
    };
    assert!(decode_versions(&reply(1, one), &[bucket, other]).is_ok());
    assert!(decode_versions(&reply(1, ""), &[bucket]).is_ok());
    let many = vec![one; VERSIONS_COUNT_MAX_PER_MESSAGE + 1].join(",");
    let error = decode_versions(&reply(1, &many), &[bucket]).expect_err("more than a message can have");
    assert!(error.to_string().contains("more than 131072 items"), "{error}");
    for (count, known, requested) in [
        // A reply that covers no bucket would be requested again indefinitely.
        (0, "", vec![bucket]),
        (2, "", vec![bucket]),
        (usize::MAX, "", vec![bucket]),
        (1, one, vec![other, bucket]),
        (1, &format!("{one},{one}"), vec![bucket]),
        (1, r#"{"key":"","timestamp":1,"replica":1}"#, vec![bucket]),
        (1, r#"{"key":"k","timestamp":-1,"replica":1}"#, vec![bucket]),
        (1, r#"{"key":"k","timestamp":1,"replica":1,"digest":"xyz"}"#, vec![bucket]),
        (
            1,
            r#"{"key":"k","timestamp":1,"replica":1,"digest":"00000000000000000000000000000000"}"#,
            vec![bucket],
        ),
    ] {
        assert!(decode_versions(&reply(count, known), &requested).is_err(), "{count} {known}");
    }
    for text in ["", "ok", "{}", "[]"] {
        assert!(decode_versions(text.as_bytes(), &[bucket]).is_err(), "{text}");
    }
}
