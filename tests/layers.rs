//! The layers of `src/lib.rs`: each module imports only from those below it. Rust itself allows cycles.

use std::fs;
use std::path::{Path, PathBuf};

/// What each module may name after `crate::`.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("limits", &[]),
    ("model", &["limits"]),
    ("tls", &["limits"]),
    ("config", &["limits", "model", "tls"]),
    ("telemetry", &["limits", "model", "config"]),
    ("http1", &["limits"]),
    ("crypto", &["limits", "model", "telemetry"]),
    ("store", &["limits", "model", "telemetry"]),
    ("service", &["limits", "model", "telemetry", "config", "crypto", "store"]),
    ("http", &["limits", "model", "telemetry", "config", "http1", "service", "store"]),
    ("cluster", &["limits", "model", "telemetry", "config", "tls", "http1", "service", "store"]),
    (
        "runtime",
        &[
            "limits",
            "model",
            "telemetry",
            "config",
            "tls",
            "http1",
            "crypto",
            "store",
            "service",
            "http",
            "cluster",
        ],
    ),
    ("healthcheck", &["config", "http1", "tls"]),
    ("main", &["runtime", "healthcheck", "config", "telemetry"]),
];

/// What only these modules may name at all.
const ONLY_IN: [(&str, &[&str]); 10] = [
    ("rustls::", &["tls"]),
    ("glommio::", &["runtime"]),
    ("tokio::", &["runtime"]),
    ("rusqlite::", &["store"]),
    ("std::env", &["config"]),
    ("httparse::", &["http1"]),
    ("rayon::", &["crypto"]),
    ("signal_hook::", &["runtime"]),
    ("unsafe {", &["runtime"]),
    ("std::process", &["main", "runtime"]),
];

/// What no file may hold.
const NOWHERE: [&str; 5] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "FIXME"];

const LINES_MAX: usize = 600;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top module of a file, and its text without comments.
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

/// The modules named behind `prefix`, also inside a group: `use crate::{a::X, b}`.
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
            assert_eq!(module, "lib", "{} is in no layer", path.display());
            continue;
        };
        for name in named_after(&code, prefix) {
            if name != module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{}: {prefix}{name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that point up or aside:\n{}", wrong.join("\n"));
}

#[test]
fn names_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (path, module, code) in all() {
        for (name, modules) in ONLY_IN {
            if code.contains(name) && !modules.contains(&module.as_str()) {
                wrong.push(format!("{}: {name}", path.display()));
            }
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

#[test]
fn the_reader_of_imports_sees_groups() {
    let code =
        "use crate::{limits::{A, B}, model::X,\n    store};\nuse crate::http1::Y;\ncrate::service::f();";
    assert_eq!(named_after(code, "crate::"), ["limits", "model", "store", "http1", "service"]);
}
