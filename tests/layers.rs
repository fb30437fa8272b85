//! Layers of `src/lib.rs`: each module imports only from those below it. Rust itself allows cycles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that each module may name after `crate::`.
const MAY_IMPORT: [(&str, &[&str]); 19] = [
    ("limits", &[]),
    ("timer", &[]),
    ("sync", &[]),
    ("model", &["limits"]),
    ("tls", &["limits"]),
    ("config", &["limits", "model", "tls"]),
    ("telemetry", &["limits", "model", "config"]),
    ("threads", &["limits"]),
    ("blocking", &["limits", "threads"]),
    ("http1", &["limits"]),
    ("crypto", &["limits", "sync", "model", "telemetry", "threads"]),
    ("storage", &["limits", "sync", "model", "telemetry", "blocking"]),
    ("wire", &["limits", "model", "storage"]),
    (
        "service",
        &["limits", "timer", "model", "telemetry", "config", "blocking", "crypto", "storage", "wire"],
    ),
    ("http", &["limits", "model", "telemetry", "config", "http1", "service", "storage", "wire"]),
    ("cluster", &["limits", "model", "telemetry", "config", "tls", "http1", "service", "storage", "wire"]),
    (
        "runtime",
        &[
            "limits",
            "timer",
            "model",
            "telemetry",
            "config",
            "tls",
            "http1",
            "blocking",
            "crypto",
            "storage",
            "service",
            "http",
            "cluster",
        ],
    ),
    ("healthcheck", &["limits", "config", "http1", "tls"]),
    ("main", &["runtime", "healthcheck", "config", "telemetry"]),
];

/// Names that may occur only in these files, or in files below these directories.
const ONLY_IN: [(&str, &[&str]); 15] = [
    ("rustls::", &["tls/"]),
    ("glommio::", &["runtime/engine/", "runtime/ring/"]),
    ("tokio::", &["runtime/engine/"]),
    ("io_uring::", &["runtime/engine/", "runtime/ring/"]),
    ("socket2::", &["runtime/listener.rs", "runtime/ring/"]),
    ("rusqlite::", &["storage/sqlite/"]),
    ("std::env", &["config/", "sync.rs"]),
    ("httparse::", &["http1/"]),
    ("governor::", &["http/"]),
    ("ppp::", &["http/"]),
    ("prometheus::", &["telemetry/"]),
    ("tracing_subscriber::", &["telemetry/"]),
    ("signal_hook::", &["runtime/"]),
    ("unsafe {", &["runtime/"]),
    ("std::process", &["main.rs", "runtime/"]),
];

/// Text that no file may contain.
const NOWHERE: [&str; 5] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME"];

const LINES_MAX: usize = 600;

/// Ends of names of constants that belong in `src/limits.rs`, before a unit.
const BOUND_ENDS: [&str; 6] = ["_MAX", "_MIN", "_TIMEOUT", "_INTERVAL", "_DEADLINE", "_WINDOW"];
const UNIT_ENDS: [&str; 2] = ["_MS", "_SECONDS"];

/// Constants of that kind that stay beside the code that uses them.
const BOUNDS_ELSEWHERE: [(&str, &str); 7] = [
    // Sizes of fixed texts in the code below them.
    ("http/json.rs", "FIXED_BYTES_MAX"),
    ("http1/client/request.rs", "FIXED_BYTES_MAX"),
    ("http1/response.rs", "FIXED_BYTES_MAX"),
    ("http1/response.rs", "SIZE_BYTES_MAX"),
    ("service/list.rs", "FIXED_BYTES_MAX"),
    // Follows from the format of a token.
    ("model/ciphertext.rs", "TOKEN_BYTES_MIN"),
    // Disables a timer of glommio, and bounds nothing.
    ("runtime/engine/uring.rs", "PREEMPTION"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns the top-level module of a file, and its text without comments.
fn read(root: &Path, path: &Path) -> (String, String) {
    let relative = path.strip_prefix(root).expect("below the root");
    let module = relative.components().next().expect("not empty").as_os_str().to_string_lossy();
    let text = fs::read_to_string(path).expect("readable");
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    (module.trim_end_matches(".rs").to_owned(), code.join("\n"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn all() -> Vec<(PathBuf, String, String)> {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 40, "only {} source files were found", files.len());
    files
        .into_iter()
        .map(|path| {
            let (module, code) = read(&root(), &path);
            (path, module, code)
        })
        .collect()
}

/// Returns the modules named after `prefix`, also inside a group: `use crate::{a::X, b}`.
fn named_after(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => top_level_items(group),
            None => vec![rest],
        };
        for name in names {
            let name = name.trim_start();
            let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(name.len());
            found.push(name[..end].to_owned());
        }
    }
    found
}

fn top_level_items(group: &str) -> Vec<&str> {
    let (mut items, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.into_iter().filter(|item| !item.trim().is_empty()).collect()
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (path, module, code) in all() {
        let prefix = if module == "main" { "opensecureconf::" } else { "crate::" };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            assert_eq!(module, "lib", "{} does not belong to a layer", path.display());
            continue;
        };
        for name in named_after(&code, prefix) {
            if name != module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{}: {prefix}{name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports from the same or a higher layer:\n{}", wrong.join("\n"));
}

#[test]
fn names_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (path, _, code) in all() {
        let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        for (name, places) in ONLY_IN {
            if contains_word(&code, name) && !places.iter().any(|place| relative.starts_with(place)) {
                wrong.push(format!("{}: {name}", path.display()));
            }
        }
        // A path that climbs two levels could reach any layer.
        if without_tests(&code).contains("super::super::") {
            wrong.push(format!("{}: super::super::", path.display()));
        }
        for name in NOWHERE {
            if code.contains(name) {
                wrong.push(format!("{}: {name}", path.display()));
            }
        }
        let lines = fs::read_to_string(&path).expect("readable").lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{}: {lines} lines, more than {LINES_MAX}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the name of a constant that a line defines, and whether its type or its name makes it a bound.
fn constant_in(line: &str) -> Option<(&str, bool)> {
    let (before, definition) = line.split_once("const ")?;
    let (name, rest) = definition.split_once(": ")?;
    // Not a parameter: nothing but the visibility is before it.
    let is_constant =
        before.trim().is_empty() || before.trim().starts_with("pub") && !before.trim().contains(' ');
    let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    let stem = UNIT_ENDS.iter().find_map(|unit| name.strip_suffix(unit)).unwrap_or(name);
    let kind = rest.split([' ', ';']).next().unwrap_or_default();
    let is_duration = kind.rsplit("::").next() == Some("Duration");
    // A name may consist of the end alone.
    let is_bound = is_duration || BOUND_ENDS.iter().any(|end| stem.ends_with(end) || stem == &end[1..]);
    (is_constant && is_name).then_some((name, is_bound))
}

#[test]
fn bounds_are_in_limits() {
    let mut found = BTreeSet::new();
    for (path, module, code) in all() {
        let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        if module == "limits" || relative.contains("test") {
            continue;
        }
        let bounds = without_tests(&code).lines().filter_map(constant_in).filter(|(_, is_bound)| *is_bound);
        found.extend(bounds.map(|(name, _)| (relative.clone(), name.to_owned())));
    }
    let allowed = BOUNDS_ELSEWHERE.map(|(path, name)| (path.to_owned(), name.to_owned()));
    assert_eq!(
        found,
        BTreeSet::from(allowed),
        "constants outside of src/limits.rs, and those that may be there"
    );
}

/// Whether `code` contains `name` and not only as the end of a longer identifier.
fn contains_word(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn without_tests(code: &str) -> &str {
    code.split_once("#[cfg(test)]\nmod tests {").map_or(code, |(code, _)| code)
}

/// Path of a module, for example `["storage", "writer"]`.
type Module = Vec<String>;

fn module_of(path: &Path) -> Module {
    let relative = path.strip_prefix(root()).expect("below the root").with_extension("");
    let mut module: Module =
        relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// Spells out the paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn spell_out(tree: &str, prefix: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    match tree.split_once('{') {
        Some((start, group)) => {
            let prefix = format!("{prefix}{}", start.trim());
            top_level_items(group).into_iter().for_each(|item| spell_out(item, &prefix, found));
        }
        None => found.push(format!("{prefix}{}", tree.split(" as ").next().unwrap_or_default().trim())),
    }
}

/// Paths after `use`, and those relative to a module anywhere else.
fn paths_in(code: &str) -> (Vec<String>, Vec<String>) {
    let (mut imported, mut named) = (Vec::new(), Vec::new());
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let start = statement.rfind("use ").filter(|at| {
            let before = statement[..*at].trim_end();
            before.is_empty() || before.ends_with([';', '}', '{', ']', ')']) || before.ends_with("pub")
        });
        match start {
            Some(at) => spell_out(statement[at + 4..].trim_end_matches(';'), "", &mut imported),
            None => rest.push_str(statement),
        }
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    named.extend(rest.split(|c| !is_part(c)).filter(|word| word.contains("::")).map(str::to_owned));
    (imported, named)
}

/// Files that import each other, directly or through other files, could only be understood together. Parents may
/// re-export and use their children, and children name their parents.
#[test]
fn files_have_no_import_cycles() {
    let files: BTreeMap<Module, String> = all()
        .into_iter()
        .map(|(path, _, code)| (module_of(&path), without_tests(&code).to_owned()))
        .filter(|(module, _)| !module.iter().any(|part| part.contains("test")))
        .collect();
    let absolute = |module: &Module, path: &str| -> Option<Module> {
        let mut parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
        let mut base = match *parts.first()? {
            "crate" => {
                parts.remove(0);
                Vec::new()
            }
            "self" => {
                parts.remove(0);
                module.clone()
            }
            "super" => {
                let ups = parts.iter().take_while(|part| **part == "super").count();
                parts.drain(..ups);
                module[..module.len().checked_sub(ups)?].to_vec()
            }
            first if files.contains_key(&[module.clone(), vec![first.to_owned()]].concat()) => module.clone(),
            _ => return None,
        };
        base.extend(parts.into_iter().map(str::to_owned));
        Some(base)
    };
    let paths: BTreeMap<&Module, (Vec<String>, Vec<String>)> =
        files.iter().map(|(module, code)| (module, paths_in(code))).collect();
    let mut origins: BTreeMap<Module, Module> = BTreeMap::new();
    for (module, (imported, _)) in &paths {
        for origin in imported.iter().filter_map(|path| absolute(module, path)) {
            let name = [(*module).clone(), origin.last().cloned().into_iter().collect()].concat();
            if name != origin {
                origins.insert(name, origin);
            }
        }
    }
    // Finds the file that defines a name, which may be behind re-exports.
    let file_of = |mut name: Module| -> Option<Module> {
        for _ in 0..5 {
            let end = (1..=name.len()).rev().find(|end| files.contains_key(&name[..*end]))?;
            match name.get(..=end).and_then(|prefix| origins.get(prefix)) {
                Some(origin) => name = [origin.clone(), name[end + 1..].to_vec()].concat(),
                None => return Some(name[..end].to_vec()),
            }
        }
        None
    };
    let mut edges: BTreeMap<&Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, (imported, named)) in &paths {
        let found = imported.iter().chain(named).filter_map(|path| file_of(absolute(module, path)?));
        let are_related = |other: &Module| other.starts_with(module) || module.starts_with(other);
        edges.insert(module, found.filter(|other| !are_related(other)).collect());
    }
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 200, "imports are found");
    // Removes files without remaining imports until there are none. Whatever is left is in a cycle, or imports one that
    // is.
    loop {
        let leaves: Vec<Module> = edges
            .iter()
            .filter(|(_, imports)| !imports.iter().any(|other| edges.contains_key(other)))
            .map(|(module, _)| (*module).clone())
            .collect();
        if leaves.is_empty() {
            break;
        }
        edges.retain(|module, _| !leaves.contains(module));
    }
    let used: BTreeSet<&Module> = edges.values().flatten().collect();
    let cycles: Vec<String> = edges
        .iter()
        .filter(|(module, _)| used.contains(*module))
        .map(|(module, imports)| {
            let others = imports.iter().filter(|other| edges.contains_key(other));
            let others: Vec<String> = others.map(|other| other.join("/")).collect();
            format!("{} -> {}", module.join("/"), others.join(", "))
        })
        .collect();
    assert!(cycles.is_empty(), "files that import each other:\n{}", cycles.join("\n"));
}

#[test]
fn imports_in_groups_are_found() {
    let code =
        "use crate::{limits::{A, B}, model::X,\n    storage};\nuse crate::http1::Y;\ncrate::service::f();";
    assert_eq!(named_after(code, "crate::"), ["limits", "model", "storage", "http1", "service"]);
}

/// Names after `pub fn`, `pub const`, `pub struct` and `pub enum`, and all names that are not being defined.
fn defined_and_used(code: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let is_keyword = |word: &str| ["async", "const", "enum", "fn", "struct", "unsafe"].contains(&word);
    let (mut defined, mut used) = (BTreeSet::new(), BTreeSet::new());
    let (mut previous, mut is_public) = ("", false);
    for word in code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()) {
        if word == "pub" {
            is_public = true;
        } else if !is_keyword(word) {
            match (is_keyword(previous), is_public) {
                (true, true) => defined.insert(word),
                (true, false) => false,
                (false, _) => used.insert(word),
            };
            is_public = false;
        }
        previous = word;
    }
    (defined, used)
}

/// The compiler warns about unused items only if they are not public.
#[test]
fn public_items_are_used_outside_of_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut others = Vec::new();
    for directory in ["benches", "fuzz/src", "fuzz/fuzz_targets"] {
        sources(&root.join(directory), &mut others);
    }
    let (mut defined, mut used) = (BTreeSet::new(), BTreeSet::new());
    let code: Vec<(bool, String)> = all()
        .into_iter()
        .filter(|(path, ..)| !module_of(path).iter().any(|part| part.contains("test")))
        .map(|(_, _, code)| (true, without_tests(&code).to_owned()))
        .chain(others.iter().map(|path| (false, read(root, path).1)))
        .collect();
    for (is_in_src, code) in &code {
        let (file_defines, file_uses) = defined_and_used(code);
        defined.extend(file_defines.into_iter().filter(|_| *is_in_src));
        used.extend(file_uses);
    }
    assert!(defined.len() > 200, "only {} public items were found", defined.len());
    let unused: Vec<&&str> = defined.difference(&used).collect();
    assert!(unused.is_empty(), "public items that at most tests use: {unused:?}");
}

#[test]
fn definitions_are_not_uses() {
    let code =
        "pub const fn f() {}\npub(super) fn g() {}\npub struct S;\nimpl S { pub async fn h() { f(); } }";
    let (defined, used) = defined_and_used(code);
    assert_eq!(defined, BTreeSet::from(["S", "f", "h"]));
    assert_eq!(used, BTreeSet::from(["S", "f", "impl", "super"]));
}

#[test]
fn bounds_are_recognised() {
    for line in [
        "const PAUSE: Duration = Duration::ZERO;",
        "    pub(super) const PAUSE: std::time::Duration = X;",
        "pub const LINES_MAX: usize = 1;",
        "const TIMEOUT: u64 = 1;",
        "const RETRY_INTERVAL_MS: u64 = 1;",
    ] {
        assert!(constant_in(line).is_some_and(|(_, is_bound)| is_bound), "{line}");
    }
    assert_eq!(constant_in("const HEADER_BYTES: usize = 1;"), Some(("HEADER_BYTES", false)));
    for line in [
        "pub struct Bounded<T, const MAX: usize>(T);",
        "fn f<const BYTES_MAX: usize>() {",
        "const fn max(a: u8) {",
    ] {
        assert_eq!(constant_in(line), None, "{line}");
    }
}

#[test]
fn use_trees_are_spelled_out() {
    let code = "use super::a::{self, b::{C, D as E}};\npub(super) use f::G;\nfn x() { super::h::i(); }";
    let (imported, named) = paths_in(code);
    assert_eq!(imported, ["super::a::self", "super::a::b::C", "super::a::b::D", "f::G"]);
    assert_eq!(named, ["super::h::i"]);
}
