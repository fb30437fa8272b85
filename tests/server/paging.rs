//! Pages of lists: their order, their cursors, and changes between them.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use crate::support::{Launch, OTHER_KEY, Server, USER_KEY};

/// Name of an entry: environment and key.
type Name = (Option<String>, String);

fn servers() -> [Server; 2] {
    ["sqlite", "memory"].map(|store| Launch::new().set("OSC_STORE", store).start())
}

fn create(server: &Server, user_key: &str, (environment, key): &Name, category: &str) {
    let body =
        serde_json::json!({ "key": key, "value": 1, "environment": environment, "category": category });
    assert_eq!(server.send("POST", "/configs", user_key, Some(&body.to_string())).status, 201);
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn delete(server: &Server, (environment, key): &Name) {
    let environment = escaped(environment.as_deref().unwrap_or_default());
    let target = format!("/configs/{}?environment={environment}", escaped(key));
    assert_eq!(server.send("DELETE", &target, USER_KEY, None).status, 200);
}

/// Returns the names on a page, and the cursor of the next one.
fn page(server: &Server, query: &str) -> (Vec<Name>, Option<String>) {
    let response = server.get(&format!("/configs?mode=full&{query}"));
    assert_eq!(response.status, 200, "{query}: {response:?}");
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&response.body).expect("a list");
    let names = entries.iter().map(|entry| {
        let text = |field: &str| entry[field].as_str().map(str::to_owned);
        (text("environment"), text("key").expect("a key"))
    });
    (names.collect(), response.header("x-next-after").map(str::to_owned))
}

fn names(list: &[(&str, &str)]) -> Vec<Name> {
    let environment = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    list.iter().map(|(name, key)| (environment(name), (*key).to_owned())).collect()
}

#[test]
fn pages_are_in_the_order_of_environment_and_key() {
    let (long_key, long_environment) = ("𝔎".repeat(255), "𝔢".repeat(100));
    let sorted = names(&[
        ("", "\u{1}"),
        ("", "B"),
        ("", "a"),
        ("", "a/b"),
        ("", "ä"),
        ("", "\u{ffff}"),
        // In UTF-16 it would precede the one before.
        ("", "\u{10000}"),
        ("", &long_key),
        ("A", "z"),
        ("a", "a"),
        ("a", "b"),
        ("aa", "a"),
        (&long_environment, &long_key),
        (&long_environment, "𝔏"),
    ]);
    for server in servers() {
        for (index, name) in sorted.iter().enumerate().rev() {
            create(&server, USER_KEY, name, if index % 2 == 0 { "even" } else { "odd" });
            // Entries that are not shown do not count.
            let first: String = name.1.chars().take(1).collect();
            create(&server, OTHER_KEY, &(name.0.clone(), format!("{first}~{index}")), "even");
        }
        let even: Vec<Name> = sorted.iter().step_by(2).cloned().collect();
        let matching =
            |matches: fn(&Name) -> bool| sorted.iter().filter(|name| matches(name)).cloned().collect();
        for (filter, expected) in [
            (String::new(), sorted.clone()),
            ("&category=even".to_owned(), even),
            ("&category=none".to_owned(), Vec::new()),
            ("&environment=a".to_owned(), matching(|name| name.0.as_deref() == Some("a"))),
            ("&prefix=a".to_owned(), matching(|name| name.1.starts_with('a'))),
            (format!("&prefix={}", escaped("𝔎")), matching(|name| name.1.starts_with('𝔎'))),
            (format!("&prefix={}", escaped("\u{ffff}")), matching(|name| name.1.starts_with('\u{ffff}'))),
        ] {
            for limit in [1, 2, 3, 1000] {
                let (mut found, mut after) = (Vec::new(), String::new());
                loop {
                    let (names, next) = page(&server, &format!("limit={limit}{filter}{after}"));
                    assert!(names.len() <= limit);
                    found.extend(names);
                    match next {
                        Some(next) => after = format!("&after={next}"),
                        None => break,
                    }
                }
                assert_eq!(found, expected, "{filter:?}, limit {limit}");
            }
        }
        // Without a limit, the rest follows.
        let (_, next) = page(&server, "limit=5");
        let (rest, end) = page(&server, &format!("after={}", next.expect("a full page")));
        assert_eq!((&rest[..], end), (&sorted[5..], None));
        let (by_id, _) = page(&server, "");
        assert!(by_id.iter().eq(sorted.iter().rev()), "without limit and cursor, by id");
    }
}

#[test]
fn a_text_that_is_not_a_cursor_is_400() {
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let error =
        r#"{"detail":"Invalid cursor: 'after' takes the X-Next-After or next_after of the previous page"}"#;
    for server in servers() {
        assert_eq!(server.create("k", "1").status, 201);
        for after in [
            "0",
            "1",
            "-1",
            "x",
            "%00",
            "nWyJrIixudWxsXQ",
            "AQAAaw=",
            &encoded(b"\x01\0\0"),
            &encoded(b"\x01\0\x05abc"),
            &encoded(b"\x02\0\0k"),
            &encoded(b"\x01\0\0\xff"),
            &"A".repeat(7000),
        ] {
            for path in ["/configs?limit=1&", "/configs?", "/cluster/configs?"] {
                let response = server.get(&format!("{path}after={after}"));
                assert_eq!((response.status, response.text()), (400, error), "{path}after={after}");
            }
        }
        assert_eq!(page(&server, "after=").0, names(&[("", "k")]));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Delete(usize),
    /// Deletes an entry and creates it again, under another id.
    Replace(usize),
    Page,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn entries_that_exist_throughout_are_listed_once(
        before in prop::collection::btree_set(0..60_usize, 0..50),
        limit in 1..7_usize,
        steps in prop::collection::vec(
            prop_oneof![
                2 => (0..60_usize).prop_map(Step::Create),
                2 => (0..60_usize).prop_map(Step::Delete),
                1 => (0..60_usize).prop_map(Step::Replace),
                4 => Just(Step::Page),
            ],
            0..60,
        ),
    ) {
        let name = |number: usize| {
            let environment = ["", "e", "f"][number % 3];
            names(&[(environment, &format!("k{}", number / 3))]).remove(0)
        };
        for server in servers() {
            let mut existing: BTreeSet<Name> = BTreeSet::new();
            for number in &before {
                create(&server, USER_KEY, &name(*number), "");
                existing.insert(name(*number));
            }
            let mut throughout = existing.clone();
            let mut seen: BTreeMap<Name, usize> = BTreeMap::new();
            let mut after = Some(String::new());
            let rest = std::iter::repeat_n(Step::Page, 60);
            for step in steps.iter().cloned().chain(rest) {
                match step {
                    Step::Create(number) => {
                        if existing.insert(name(number)) {
                            create(&server, USER_KEY, &name(number), "");
                        }
                    }
                    Step::Delete(number) => {
                        if existing.remove(&name(number)) {
                            delete(&server, &name(number));
                            throughout.remove(&name(number));
                        }
                    }
                    Step::Replace(number) => {
                        if existing.contains(&name(number)) {
                            delete(&server, &name(number));
                            create(&server, USER_KEY, &name(number), "");
                        }
                    }
                    Step::Page => {
                        let Some(cursor) = &after else { continue };
                        let (names, next) = page(&server, &format!("limit={limit}&after={cursor}"));
                        names.into_iter().for_each(|name| *seen.entry(name).or_default() += 1);
                        after = next;
                    }
                }
            }
            prop_assert_eq!(after, None);
            prop_assert!(seen.values().all(|count| *count == 1), "{:?}", seen);
            // A replaced entry exists before and after each page.
            for name in throughout {
                prop_assert!(seen.contains_key(&name), "{:?} is missing", name);
            }
        }
    }
}
