//! Consistency of the documents with settings, files, commands, and each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variables that are not settings of the server.
const OTHER_VARIABLES: [&str; 7] = [
    // Read by commands.
    "OSC_USER_KEY",
    "OSC_USER_KEY_FILE",
    // Read by tests and checks.
    "OSC_TEST_",
    "OSC_ADVISORY_DB",
    "OSC_CLIENTS_DIR",
    // Read by the Python clients, and one of an earlier version.
    "OSC_",
    "OSC_CLUSTER_",
];

/// Directories of this repository whose files the documents name.
const DIRECTORIES: [&str; 8] =
    ["src/", "docs/", "deploy/", "tests/", "benches/", "loadtest/", "fuzz/", ".ci/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents of the repository by path.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("readable").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_other = ["target", ".git", "node_modules", "fixtures"].contains(&name.as_str());
            match path.is_dir() {
                true if !is_other => directories.push(path),
                false if name.ends_with(".md") => {
                    let text = fs::read_to_string(&path).expect("UTF-8");
                    found.insert(path.strip_prefix(root()).expect("below the root").to_owned(), text);
                }
                _ => {}
            }
        }
    }
    assert!(found.len() > 20, "{:?}", found.keys());
    found
}

/// The settings that the server reads, from their table.
fn settings() -> BTreeSet<String> {
    let source = fs::read_to_string(root().join("src/config/table.rs")).expect("readable");
    let names: BTreeSet<String> = source
        .split("setting!(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 40, "{names:?}");
    names
}

/// Words that consist of these characters.
fn words(text: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !is_part(c)).filter(|word| !word.is_empty())
}

/// Lines outside fenced code, with their indices.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

fn check(errors: Vec<String>) {
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}

#[test]
fn every_named_setting_exists() {
    let known = settings();
    let mut texts: Vec<(String, String)> =
        documents().into_iter().map(|(path, text)| (path.display().to_string(), text)).collect();
    for path in [".env.example", "deploy/systemd/opensecureconf.service", "Dockerfile", "src/main.rs"] {
        texts.push((path.to_owned(), fs::read_to_string(root().join(path)).expect("exists")));
    }
    let mut errors = Vec::new();
    for (path, text) in &texts {
        for word in words(text, |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            let is_other = OTHER_VARIABLES.contains(&word) || word.starts_with("OSC_TEST_");
            if word.starts_with("OSC_") && !known.contains(word) && !is_other {
                errors.push(format!("{path}: {word} is not a setting"));
            }
        }
    }
    check(errors);
}

#[test]
fn every_setting_is_documented() {
    let (reference, example) = (
        fs::read_to_string(root().join("docs/settings.md")).expect("exists"),
        fs::read_to_string(root().join(".env.example")).expect("exists"),
    );
    let mut errors = Vec::new();
    for name in settings() {
        if !reference.contains(&format!("`{name}`")) {
            errors.push(format!("docs/settings.md: {name} is missing"));
        }
        if !words(&example, |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
            .any(|word| word == name)
        {
            errors.push(format!(".env.example: {name} is missing"));
        }
    }
    check(errors);
}

/// Anchors of headings, as GitHub generates them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter_map(|(_, line)| {
        let rest = line.trim_start_matches('#');
        (rest.len() < line.len() && rest.starts_with(' ')).then(|| rest.trim())
    });
    let mut found = BTreeSet::new();
    for heading in headings {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = counts.entry(slug.clone()).or_default();
        found.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    found
}

/// Targets of `[text](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_link_resolves() {
    let documents = documents();
    let mut errors = Vec::new();
    for (path, text) in &documents {
        for (number, line) in prose(text) {
            let mut report =
                |reason: String| errors.push(format!("{}:{}: {reason}", path.display(), number + 1));
            for target in
                links(line).filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
            {
                let (file, anchor) =
                    target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
                let here = path.parent().expect("a directory");
                let file = match file {
                    "" => root().join(path),
                    file => root().join(here).join(file),
                };
                let Ok(file) = file.canonicalize() else {
                    report(format!("{target} does not exist"));
                    continue;
                };
                let Some(anchor) = anchor else { continue };
                let text = fs::read_to_string(&file).expect("a string");
                if !anchors(&text).contains(anchor) {
                    report(format!("{target}: no such heading"));
                }
            }
        }
    }
    check(errors);
}

#[test]
fn every_named_file_exists() {
    let mut errors = Vec::new();
    for (path, text) in documents() {
        for word in words(&text, |c| c.is_ascii_alphanumeric() || "_-./".contains(c)) {
            let word = word.trim_end_matches(['.', '/']);
            // Created by a command in the document, or a placeholder.
            let is_exempt = word.starts_with("fuzz/corpus/") || word.ends_with("TARGET");
            if is_exempt || !DIRECTORIES.iter().any(|directory| word.starts_with(directory)) {
                continue;
            }
            let here = root().join(path.parent().expect("a directory"));
            if ![root(), &here].iter().any(|base| base.join(word).exists()) {
                errors.push(format!("{}: {word} does not exist", path.display()));
            }
        }
    }
    check(errors);
}

#[test]
fn every_named_command_exists() {
    let help =
        Command::new(env!("CARGO_BIN_EXE_opensecureconf")).arg("--help").output().expect("the command runs");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let commands: BTreeSet<&str> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty())
        .collect();
    assert!(commands.contains("serve") && commands.contains("backup"), "{help}");
    let mut errors = Vec::new();
    for (path, text) in documents() {
        for rest in text.split("`opensecureconf ").skip(1) {
            let command = words(rest, |c| c.is_ascii_alphanumeric() || c == '-').next().unwrap_or_default();
            if !rest.starts_with('-') && !commands.contains(command) {
                errors.push(format!("{}: no such command: {command}", path.display()));
            }
        }
    }
    check(errors);
}
