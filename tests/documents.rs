//! What the documents say of settings, files, commands, and each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is read from the environment and is no setting of the server.
const OTHER_VARIABLES: [&str; 7] = [
    // Of commands.
    "OSC_USER_KEY",
    "OSC_USER_KEY_FILE",
    // Of tests and checks.
    "OSC_TEST_",
    "OSC_ADVISORY_DB",
    "OSC_CLIENTS_DIR",
    // Of the Python clients, and one that an earlier version had.
    "OSC_",
    "OSC_CLUSTER_",
];

/// Directories of this repository in which the documents name files.
const DIRECTORIES: [&str; 8] =
    ["src/", "docs/", "deploy/", "tests/", "benches/", "loadtest/", "fuzz/", ".ci/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents by their path, as far as they are of the repository.
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
                    found.insert(path.strip_prefix(root()).expect("below it").to_owned(), text);
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
    let source = fs::read_to_string(root().join("src/config/table.rs")).expect("the source");
    let names: BTreeSet<String> = source
        .split("setting!(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 40, "{names:?}");
    names
}

/// Words of these characters.
fn words(text: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !is_part(c)).filter(|word| !word.is_empty())
}

/// Text outside of fenced code, with the numbers of its lines.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

fn check(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn settings_that_are_named_are_settings() {
    let known = settings();
    let mut texts: Vec<(String, String)> =
        documents().into_iter().map(|(path, text)| (path.display().to_string(), text)).collect();
    for path in [".env.example", "deploy/systemd/opensecureconf.service", "Dockerfile", "src/main.rs"] {
        texts.push((path.to_owned(), fs::read_to_string(root().join(path)).expect("it is there")));
    }
    let mut faults = Vec::new();
    for (path, text) in &texts {
        for word in words(text, |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            let is_other = OTHER_VARIABLES.contains(&word) || word.starts_with("OSC_TEST_");
            if word.starts_with("OSC_") && !known.contains(word) && !is_other {
                faults.push(format!("{path}: {word} is no setting"));
            }
        }
    }
    check(faults);
}

#[test]
fn every_setting_is_described() {
    let (reference, example) = (
        fs::read_to_string(root().join("docs/settings.md")).expect("it is there"),
        fs::read_to_string(root().join(".env.example")).expect("it is there"),
    );
    let mut faults = Vec::new();
    for name in settings() {
        if !reference.contains(&format!("`{name}`")) {
            faults.push(format!("docs/settings.md: nothing about {name}"));
        }
        if !words(&example, |c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
            .any(|word| word == name)
        {
            faults.push(format!(".env.example: nothing about {name}"));
        }
    }
    check(faults);
}

/// As GitHub makes them of headings.
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
fn links_lead_somewhere() {
    let documents = documents();
    let mut faults = Vec::new();
    for (path, text) in &documents {
        for (number, line) in prose(text) {
            let mut fault =
                |reason: String| faults.push(format!("{}:{}: {reason}", path.display(), number + 1));
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
                    fault(format!("{target} is not there"));
                    continue;
                };
                let Some(anchor) = anchor else { continue };
                let text = fs::read_to_string(&file).expect("a text");
                if !anchors(&text).contains(anchor) {
                    fault(format!("{target}: there is no such heading"));
                }
            }
        }
    }
    check(faults);
}

#[test]
fn files_that_are_named_are_there() {
    let mut faults = Vec::new();
    for (path, text) in documents() {
        for word in words(&text, |c| c.is_ascii_alphanumeric() || "_-./".contains(c)) {
            let word = word.trim_end_matches(['.', '/']);
            // Made by a command beside it, or a name to fill in.
            let is_made = word.starts_with("fuzz/corpus/") || word.ends_with("TARGET");
            if is_made || !DIRECTORIES.iter().any(|directory| word.starts_with(directory)) {
                continue;
            }
            let here = root().join(path.parent().expect("a directory"));
            if ![root(), &here].iter().any(|base| base.join(word).exists()) {
                faults.push(format!("{}: {word} is not there", path.display()));
            }
        }
    }
    check(faults);
}

#[test]
fn commands_that_are_named_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_opensecureconf")).arg("--help").output().expect("it runs");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let commands: BTreeSet<&str> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty())
        .collect();
    assert!(commands.contains("serve") && commands.contains("backup"), "{help}");
    let mut faults = Vec::new();
    for (path, text) in documents() {
        for rest in text.split("`opensecureconf ").skip(1) {
            let command = words(rest, |c| c.is_ascii_alphanumeric() || c == '-').next().unwrap_or_default();
            if !rest.starts_with('-') && !commands.contains(command) {
                faults.push(format!("{}: there is no command {command}", path.display()));
            }
        }
    }
    check(faults);
}
