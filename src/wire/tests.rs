//! Spelling of every message in each version, to the byte. Nodes of other releases rely on it.

use std::fmt::Debug;

use super::{DecodeError, Protocol, federation, replication};
use crate::model::EntryId;
use crate::storage::{AppliedChanges, bucket_of};

pub(super) const VERSIONS: [Protocol; 2] = [Protocol::V1, Protocol::V2];

const TOKEN: &str =
    "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0OD82vA_gAT3he_maUoRqQNQFeUZwJ8NfG15wKy0-MBFX28YDHnd_3jU1Hg8wt2U7sPA==";

/// Asserts that both texts decode to the same message, and that its encodings are these texts.
fn check<M: Debug>(
    texts: [&str; 2],
    decode: impl Fn(&[u8]) -> Result<M, DecodeError>,
    encode: impl Fn(Protocol, &M) -> Vec<u8>,
) {
    let texts = texts.map(|text| text.replace("TOKEN", TOKEN));
    let messages = texts.each_ref().map(|text| decode(text.as_bytes()).expect(text));
    assert_eq!(format!("{:?}", messages[0]), format!("{:?}", messages[1]));
    for (protocol, text) in VERSIONS.into_iter().zip(&texts) {
        for message in &messages {
            assert_eq!(&String::from_utf8(encode(protocol, message)).expect("JSON"), text);
        }
    }
}

#[test]
fn messages_of_replication_are_spelled_as_ever() {
    check(
        [
            concat!(
                r#"{"salt":"00000000000000ff","changes":[{"k":"a","e":"prod","s":113000000000000000,"n":77,"#,
                r#""t":"TOKEN","c":"db","a":1700000000000000,"u":1700000000000001},{"k":"b","s":3,"n":4}]}"#
            ),
            concat!(
                r#"{"salt":"00000000000000ff","changes":[{"key":"a","environment":"prod","#,
                r#""timestamp":113000000000000000,"replica":77,"ciphertext":"TOKEN","category":"db","#,
                r#""created_at":1700000000000000,"updated_at":1700000000000001},"#,
                r#"{"key":"b","timestamp":3,"replica":4}]}"#
            ),
        ],
        replication::decode_changes,
        |protocol, (salt, changes)| replication::encode_changes(protocol, *salt, changes),
    );
    let id = |key: &str, environment: Option<&str>| EntryId {
        key: key.to_owned(),
        environment: environment.map(str::to_owned),
    };
    let requested = [id("a", Some("prod")), id("b", None)].map(|id| bucket_of(&id));
    check(
        [
            concat!(
                r#"{"buckets":2,"known":[{"k":"a","e":"prod","s":5,"n":6,"#,
                r#""d":"0123456789abcdef0123456789abcdef"},{"k":"b","s":3,"n":4}]}"#
            ),
            concat!(
                r#"{"buckets":2,"known":[{"key":"a","environment":"prod","timestamp":5,"replica":6,"#,
                r#""digest":"0123456789abcdef0123456789abcdef"},{"key":"b","timestamp":3,"replica":4}]}"#
            ),
        ],
        |text| replication::decode_versions(text, &requested),
        replication::encode_versions,
    );
    check(
        [r#"[{"k":"a","e":"prod"},{"k":"b"}]"#, r#"[{"key":"a","environment":"prod"},{"key":"b"}]"#],
        replication::decode_ids,
        |protocol, ids| replication::encode_ids(protocol, ids),
    );
    let same = |text| [text, text];
    check(same("[0,512,1023]"), replication::decode_buckets, |_, buckets| {
        replication::encode_buckets(buckets)
    });
    check(same("0123456789abcdef0123456789abcdef"), replication::decode_digest, |_, digest| {
        replication::encode_digest(*digest).into_bytes()
    });
    let applied = AppliedChanges { won: 2, ahead: Vec::new() };
    assert_eq!(replication::encode_applied(&applied), br#"{"applied":2,"refused":0,"ahead_ms":0}"#);
}

#[test]
fn messages_of_federated_mode_are_spelled_as_ever() {
    check(
        [r#"{"k":"a","e":"prod"}"#, r#"{"key":"a","environment":"prod"}"#],
        federation::decode_find,
        federation::encode_find,
    );
    let row = |text: &str, [short, word]: [&str; 2]| [text.replace("ROW", short), text.replace("ROW", word)];
    let full = [
        r#"{"i":7,"k":"a","e":"prod","t":"TOKEN","c":"db","a":1700000000000000,"u":1700000000000001}"#,
        concat!(
            r#"{"id":7,"key":"a","environment":"prod","ciphertext":"TOKEN","category":"db","#,
            r#""created_at":1700000000000000,"updated_at":1700000000000001}"#
        ),
    ];
    let name = [r#"{"i":7,"k":"a"}"#, r#"{"id":7,"key":"a"}"#];
    for texts in [
        row(r#"{"row":{"salt":18446744073709551615,"row":ROW}}"#, full),
        row(r#"{"row":{"salt":null,"row":ROW}}"#, name),
        row(r#"{"ambiguous":["dev","prod"]}"#, full),
        row(r#""nothing""#, full),
    ] {
        check(texts.each_ref().map(String::as_str), federation::decode_found, |protocol, (salt, found)| {
            federation::encode_found(protocol, *salt, found)
        });
    }
    check(
        [
            r#"{"after":{"k":"a","e":"dev"},"category":"db","environment":"prod","prefix":"p","bytes":5,"names":true}"#,
            concat!(
                r#"{"after":{"key":"a","environment":"dev"},"category":"db","environment":"prod","#,
                r#""prefix":"p","bytes":5,"names":true}"#
            ),
        ],
        federation::decode_query,
        federation::encode_query,
    );
    for texts in [
        row(r#"{"salt":1,"rows":[ROW],"more":true}"#, full),
        row(r#"{"salt":null,"rows":[],"more":false}"#, full),
    ] {
        check(texts.each_ref().map(String::as_str), federation::decode_page, |protocol, (salt, page)| {
            federation::encode_page(protocol, *salt, page)
        });
    }
    let seen = "0123456789abcdef0123456789abcdef";
    for [short, word] in [
        [
            r#"{"salt":3,"id":{"k":"a","e":"e"},"seen":"SEEN","update":{"t":"TOKEN","c":"c","e":"f"}}"#,
            concat!(
                r#"{"salt":3,"id":{"key":"a","environment":"e"},"seen":"SEEN","#,
                r#""update":{"ciphertext":"TOKEN","category":"c","environment":"f"}}"#
            ),
        ],
        [r#"{"salt":3,"id":{"k":"a"},"seen":"SEEN"}"#, r#"{"salt":3,"id":{"key":"a"},"seen":"SEEN"}"#],
    ] {
        let texts = [short.replace("SEEN", seen), word.replace("SEEN", seen)];
        check(texts.each_ref().map(String::as_str), federation::decode_write, federation::encode_write);
    }
    for texts in [
        row(r#"{"done":ROW}"#, name),
        row(r#"{"changed":ROW}"#, full),
        row(r#"{"changed":null}"#, full),
        row(r#""exists""#, full),
        row(r#""full""#, full),
        row(r#""busy""#, full),
    ] {
        check(texts.each_ref().map(String::as_str), federation::decode_outcome, federation::encode_outcome);
    }
}

#[test]
fn a_field_under_both_names_is_refused() {
    assert!(federation::decode_find(br#"{"k":"a","environment":"e"}"#).is_ok());
    for text in [r#"{"k":"a","key":"a"}"#, r#"{"key":"a","e":"e","environment":"e"}"#] {
        let error = federation::decode_find(text.as_bytes()).expect_err(text);
        assert!(error.to_string().contains("duplicate field"), "{error}");
    }
}
