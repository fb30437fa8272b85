//! Contract of the whole module: what is preserved, what is rejected, and with which messages.

use proptest::prelude::*;

use super::*;
use crate::limits::JSON_DEPTH_MAX;

fn canonical(text: &str) -> String {
    let mut out = Vec::new();
    let kind_found =
        canonicalize(text.as_bytes(), &mut out).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(kind(&out), kind_found, "{text}");
    String::from_utf8(out).expect("canonical text is UTF-8")
}

fn rejected(text: impl AsRef<[u8]>) -> (usize, String) {
    let mut out = b"before".to_vec();
    let error = canonicalize(text.as_ref(), &mut out).expect_err(&String::from_utf8_lossy(text.as_ref()));
    assert_eq!(out, b"before");
    (error.position, error.reason.to_string())
}

#[test]
fn canonical_form() {
    for (text, expected) in [
        (" \t\r\n1\n", "1"),
        ("[ ]", "[]"),
        ("{ }", "{}"),
        ("[ 1 , true ,false,\nnull ]", "[1,true,false,null]"),
        (r#"{ "b" : 1 , "a" : { "z" : [ ] } }"#, r#"{"b":1,"a":{"z":[]}}"#),
        (r#""a\/b\u0041\u00e9\ud83d\udd11""#, r#""a/bAé🔑""#),
        (r#""\u0022\u005c\u0008\u000C\u000a\u000d\u0009""#, r#""\"\\\b\f\n\r\t""#),
        (r#""\u0000\u001F\u007f\u2028""#, "\"\\u0000\\u001f\u{7f}\u{2028}\""),
        ("\"\u{7f}\u{2028}鍵\"", "\"\u{7f}\u{2028}鍵\""),
        (r#""\uD7FF\uE000\uFFFF\uDBFF\uDFFF""#, "\"\u{d7ff}\u{e000}\u{ffff}\u{10ffff}\""),
        (r#"{"":1}"#, r#"{"":1}"#),
    ] {
        assert_eq!(canonical(text), expected, "{text}");
        assert_eq!(canonical(expected), expected);
    }
}

#[test]
fn the_text_of_numbers_is_preserved() {
    let nines = "9".repeat(4300);
    for number in [
        "0",
        "-0",
        "-0.0",
        "0.1000",
        "1.0",
        "1E+2",
        "1e-7",
        "81111e1",
        "1e22",
        "2.5e-300",
        "5e-324",
        "1e-400",
        "1749667779000",
        "9007199254740993",
        "18446744073709551616",
        "-9223372036854775809",
        "123456789012345678901234567890",
        "123456789012345678901234567890.5",
        "1.7976931348623157e308",
        &nines,
    ] {
        assert_eq!(canonical(&format!(" {number} ")), number);
        assert_eq!(canonical(&format!("{{\"n\" : [{number}] }}")), format!("{{\"n\":[{number}]}}"));
    }
}

#[test]
fn a_repeated_name_keeps_its_position_and_gets_the_last_value() {
    for (text, expected) in [
        (r#"{"a":1,"b":3,"a":{"x":1,"x":2}}"#, r#"{"a":{"x":2},"b":3}"#),
        (r#"{"a":1,"a":2,"a":[3]}"#, r#"{"a":[3]}"#),
        (r#"{"a":[1,2,3],"b":0,"a":1,"c":9,"b":"long","a":2}"#, r#"{"a":2,"b":"long","c":9}"#),
        (r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#),
        (r#"{"a":1,"A":2,"":3,"":4}"#, r#"{"a":1,"A":2,"":4}"#),
        // Both the replaced and the replacing value may have repeated names.
        (r#"{"a":{"x":1,"x":2},"a":{"y":3,"y":4,"z":5}}"#, r#"{"a":{"y":4,"z":5}}"#),
        (
            r#"[{"a":{"b":1,"b":2}},{"a":1,"a":[{"c":1,"c":2}],"d":0}]"#,
            r#"[{"a":{"b":2}},{"a":[{"c":2}],"d":0}]"#,
        ),
        (r#"{"o":{"k":1},"p":{"k":2,"k":3},"o":{"p":{"q":1,"q":2}}}"#, r#"{"o":{"p":{"q":2}},"p":{"k":3}}"#),
    ] {
        assert_eq!(canonical(text), expected, "{text}");
    }
}

#[test]
fn repeated_names_in_a_large_object() {
    let first: Vec<String> = (0..40).map(|name| format!("\"{name}\":0")).collect();
    let again: Vec<String> = (0..40).rev().map(|name| format!("\"{name}\":[{name}]")).collect();
    let expected: Vec<String> = (0..40).map(|name| format!("\"{name}\":[{name}]")).collect();
    let text = format!("{{{},{}}}", first.join(","), again.join(" , "));
    assert_eq!(canonical(&text), format!("{{{}}}", expected.join(",")));
}

#[test]
fn hostile_repetition_takes_linear_time() {
    // Every level repeats its name, so moving values immediately would copy the core 2 × 255 times.
    let core = format!("\"{}\"", "x".repeat(500_000));
    let text = (1..JSON_DEPTH_MAX).fold(core.clone(), |inner, _| format!("{{\"a\":0,\"a\":{inner}}}"));
    let inner = (1..JSON_DEPTH_MAX).fold(core, |inner, _| format!("{{\"a\":{inner}}}"));
    assert_eq!(canonical(&text), inner);
    let repeated = "\"k\":0,".repeat(200_000);
    assert_eq!(canonical(&format!("{{{repeated}\"k\":1}}")), "{\"k\":1}");
}

/// Table of the conformance suite: FastAPI passes these messages on to the client.
#[test]
fn errors_equal_those_of_the_python_server() {
    for (text, position, reason) in [
        (&b"{bad"[..], 1, "Expecting property name enclosed in double quotes"),
        (b"{\"key\":\"x\"", 10, "Expecting ',' delimiter"),
        (b"{\"key\":\"x\",\"value\":{},}", 22, "Expecting property name enclosed in double quotes"),
        (b"{'key':1}", 1, "Expecting property name enclosed in double quotes"),
        (b"{\"key\":\"x\",\"value\":{\"a\":1}} trailing", 28, "Extra data"),
        (b"   ", 3, "Expecting value"),
        (b"{\"key\":\"x\",\"value\":{\"a\":tru}}", 24, "Expecting value"),
        (b"{\"key\":\"x\",\"value\":{\"a\":01}}", 25, "Expecting ',' delimiter"),
        (b"{\"key\":\"x\",\"value\":{\"a\":\"\n\"}}", 25, "Invalid control character at"),
        (b"{\"key\":\"x\" \"value\":{}}", 11, "Expecting ',' delimiter"),
        (b"{\"key\":\"x\",\"value\":{\"a\":\"unterminated}}", 24, "Unterminated string starting at"),
        (b"{\"key\":\"x\",\"value\":{\"a\":\"\\x\"}}", 25, "Invalid \\escape"),
        (b"\xff\xfe", 0, "Expecting value"),
    ] {
        assert_eq!(rejected(text), (position, reason.to_owned()), "{}", String::from_utf8_lossy(text));
    }
}

/// Found by comparison with CPython 3.11 on mutated documents.
#[test]
fn errors_equal_those_of_cpython() {
    for (text, position, reason) in [
        ("", 0, "Expecting value"),
        ("\u{feff}1", 0, "Expecting value"),
        ("[", 1, "Expecting value"),
        ("[1", 2, "Expecting ',' delimiter"),
        ("[1,", 3, "Expecting value"),
        ("[1,]", 3, "Expecting value"),
        ("[ ,", 2, "Expecting value"),
        ("[1 2]", 3, "Expecting ',' delimiter"),
        ("]", 0, "Expecting value"),
        ("[}", 1, "Expecting value"),
        ("[1}", 2, "Expecting ',' delimiter"),
        ("{", 1, "Expecting property name enclosed in double quotes"),
        ("{ ", 2, "Expecting property name enclosed in double quotes"),
        ("{\"a\"", 4, "Expecting ':' delimiter"),
        ("{\"a\" 1}", 5, "Expecting ':' delimiter"),
        ("{\"a\":", 5, "Expecting value"),
        ("{\"a\":1,\"b\"}", 10, "Expecting ':' delimiter"),
        ("{\"a\":1]", 6, "Expecting ',' delimiter"),
        ("{1:2}", 1, "Expecting property name enclosed in double quotes"),
        ("1 2", 2, "Extra data"),
        ("{}}", 2, "Extra data"),
        ("1.", 1, "Extra data"),
        ("[1.]", 2, "Expecting ',' delimiter"),
        ("[1e]", 2, "Expecting ',' delimiter"),
        ("1e+", 1, "Extra data"),
        ("-", 0, "Expecting value"),
        ("[-]", 1, "Expecting value"),
        ("+1", 0, "Expecting value"),
        (".5", 0, "Expecting value"),
        ("0x10", 1, "Extra data"),
        ("nul", 0, "Expecting value"),
        ("nulll", 4, "Extra data"),
        ("True", 0, "Expecting value"),
        ("-Inf", 0, "Expecting value"),
        ("[1,\u{a0}2]", 3, "Expecting value"),
        ("\"", 0, "Unterminated string starting at"),
        ("\"é\\", 0, "Unterminated string starting at"),
        ("[\"é\",\"\\\"", 5, "Unterminated string starting at"),
        ("\"é\u{1}", 2, "Invalid control character at"),
        ("\"a\tb\"", 2, "Invalid control character at"),
        ("\"🔑\\é\"", 2, "Invalid \\escape"),
        ("\"\\'\"", 1, "Invalid \\escape"),
        ("\"\\u12", 2, "Invalid \\uXXXX escape"),
        ("\"\\u1234", 2, "Invalid \\uXXXX escape"),
        ("\"\\u00e\"", 2, "Invalid \\uXXXX escape"),
        ("\"\\u00eé\"", 2, "Invalid \\uXXXX escape"),
        ("\"\\u+123\"", 2, "Invalid \\uXXXX escape"),
        ("\"\\ud800\\uzzzz\"", 8, "Invalid \\uXXXX escape"),
        ("\"\\ud800\\u12\"", 8, "Invalid \\uXXXX escape"),
    ] {
        assert_eq!(rejected(text), (position, reason.to_owned()), "{text}");
    }
}

#[test]
fn unrepresentable_texts_are_rejected() {
    let digits = "1".repeat(4301);
    for (text, position, reason) in [
        ("{\"x\":1e400}", 5, "Number too large for a double"),
        ("[1,-1e400]", 3, "Number too large for a double"),
        ("[NaN]", 1, "NaN and Infinity are not allowed"),
        ("{\"é\":Infinity}", 5, "NaN and Infinity are not allowed"),
        (" -Infinity", 1, "NaN and Infinity are not allowed"),
        ("{\"x\":\"a\\ud800\"}", 7, "Lone surrogate"),
        ("{\"\\udc00\":1}", 2, "Lone surrogate"),
        ("\"\\ud800\\ud800\\udc00\"", 1, "Lone surrogate"),
        ("\"\\ud800\\u0041\"", 1, "Lone surrogate"),
        ("\"\\udfffy\"", 1, "Lone surrogate"),
        (&digits, 0, "Integer with more than 4300 digits"),
    ] {
        assert_eq!(rejected(text), (position, reason.to_owned()), "{text}");
    }
    for (bytes, position) in
        [(&b"\"\xC3\xA9\xFF\""[..], 2), (b"{}\x80", 2), (b"\"\xED\xA0\x80\"", 1), (b"[\"\xC3", 2)]
    {
        assert_eq!(rejected(bytes), (position, "Not UTF-8".to_owned()));
    }
}

#[test]
fn nesting_is_limited_to_protect_the_stack() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nest = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert_eq!(canonical(&nest(JSON_DEPTH_MAX)), nest(JSON_DEPTH_MAX));
        let expected = (open.len() * JSON_DEPTH_MAX, "Nesting deeper than 256 levels".to_owned());
        assert_eq!(rejected(nest(JSON_DEPTH_MAX + 1)), expected);
        assert_eq!(rejected(nest(200_000)), expected);
        assert_eq!(rejected(open.repeat(200_000)), expected);
    }
    let wide = format!("[{}[]]", "[[]],".repeat(10_000));
    assert_eq!(canonical(&wide), wide);
}

#[test]
fn the_output_is_appended_without_moving() {
    let text = r#"{ "a" : "\u0001\n", "a" : [1, 2] }"#;
    let mut out = Vec::with_capacity(100);
    out.extend_from_slice(b"before ");
    let address = out.as_ptr();
    assert_eq!(canonicalize(text.as_bytes(), &mut out), Ok(Kind::Object));
    assert_eq!(out, b"before {\"a\":[1,2]}");
    assert_eq!(out.as_ptr(), address);
}

#[test]
fn members_of_canonical_text() {
    let text = canonical(r#"{"key":"a\u0022b", "value":{"x":[1.0,"}"]}, "key":"é", "more":null}"#);
    let found: Vec<_> = members(text.as_bytes()).collect();
    let expected: [(_, &[u8]); 3] = [
        ("key".into(), "\"é\"".as_bytes()),
        ("value".into(), b"{\"x\":[1.0,\"}\"]}"),
        ("more".into(), b"null"),
    ];
    assert_eq!(found, expected);
    assert_eq!(string(found[0].1).as_deref(), Some("é"));
}

/// Generates JSON text in any form: white space, escapes, all forms of numbers, repeated names.
fn document() -> impl Strategy<Value = String> {
    let space = "[ \t\r\n]{0,2}";
    let text = prop_oneof![
        "[a-c]{0,2}".prop_map(|text| format!("\"{text}\"")),
        any::<String>().prop_map(|text| serde_json::to_string(&text).expect("a string")),
        r#""(\\["\\/bfnrt]|\\u00[0-9a-fA-F]{2}|\\uD83[d-f]\\udD[0-9]a|[é鍵🔑 ])*""#,
    ];
    let number = "-?(0|[1-9][0-9]{0,12})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,2})?";
    let scalar =
        prop_oneof![Just("null".into()), Just("true".into()), Just("false".into()), number, text.clone()];
    (space, scalar).prop_map(|(space, scalar)| format!("{space}{scalar}{space}")).prop_recursive(
        5,
        60,
        8,
        move |inner| {
            let member = (text.clone(), space, inner.clone())
                .prop_map(|(name, space, value)| format!("{name}{space}:{value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..8).prop_map(|items| format!("[{}]", items.join(","))),
                (space, prop::collection::vec(member, 0..8)).prop_map(|(space, members)| format!(
                    "{{{space}{}}}",
                    members.join(&format!(",{space}"))
                )),
            ]
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn canonical_text_is_equivalent_and_stable(text in document()) {
        let once = canonical(&text);
        prop_assert_eq!(&canonical(&once), &once);
        let before: serde_json::Value = serde_json::from_str(&text).expect("generated documents are JSON");
        let after: serde_json::Value = serde_json::from_str(&once).expect("canonical text is JSON");
        prop_assert_eq!(before, after);
    }

    #[test]
    fn joined_members_are_the_object(text in document()) {
        let object = canonical(&format!("{{\"a\":{text},\"b\\n\":{text}}}"));
        let mut again = Vec::from(*b"{");
        for (name, value) in members(object.as_bytes()) {
            if again.len() > 1 {
                again.push(b',');
            }
            write_string(&name, &mut again);
            again.push(b':');
            again.extend_from_slice(value);
        }
        again.push(b'}');
        prop_assert_eq!(again, object.into_bytes());
    }

    /// Accepts the same texts as another parser, and never panics.
    #[test]
    fn accepts_what_serde_json_accepts(
        text in document(),
        at: prop::sample::Index,
        put in "[\\[\\]{}\":,\\\\0-9eE.+\u{1}ux é-]{0,2}",
    ) {
        let mut mutated: Vec<char> = text.chars().collect();
        let at = at.index(mutated.len());
        mutated.splice(at..=at, put.chars());
        let mutated: String = mutated.into_iter().collect();
        let ours = canonicalize(mutated.as_bytes(), &mut Vec::new());
        let theirs = serde_json::from_str::<serde_json::Value>(&mutated);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}: {:?} {:?}", mutated, ours, theirs);
    }

    #[test]
    fn any_bytes_are_handled_like_serde_json(bytes: Vec<u8>) {
        let _kind = kind(&bytes);
        let _text = string(&bytes);
        let _members = members(&bytes).count();
        let ours = canonicalize(&bytes, &mut Vec::new());
        let theirs = serde_json::from_slice::<serde_json::Value>(&bytes);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
    }
}
