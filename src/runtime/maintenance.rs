//! Reports of the maintenance commands (`backup`, `restore`, `verify`, `migrate`), as text or JSON.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::config::Config;
use crate::model::UserKey;
use crate::service::{OpenedCounts, VerifyTarget};
use crate::storage::maintenance::{
    self, DataFiles, Examined, MaintenanceError, MaintenanceErrorKind, Migration, Verified,
};

/// Outcome of a command: its output and exit code.
#[derive(Debug)]
pub struct Outcome {
    /// Text for standard output.
    pub output: String,
    /// Lines for standard error.
    pub notes: Vec<String>,
    /// Exit code.
    pub code: u8,
}

/// Exit codes, see `docs/operations.md`.
const FAILED: u8 = 1;
const MISSING: u8 = 3;
const DENIED: u8 = 4;
const CONFLICT: u8 = 5;
const INVALID: u8 = 7;

/// Text form of a report.
#[derive(Default)]
struct Report {
    text: String,
    notes: Vec<String>,
    code: u8,
}

impl Report {
    fn line(&mut self, line: impl std::fmt::Display) {
        writeln!(self.text, "{line}").expect("writing to a String never fails");
    }

    fn into_outcome(self, json: Value, is_json: bool) -> Outcome {
        // The JSON contains everything that the notes say.
        match is_json {
            true => Outcome { output: format!("{json}\n"), notes: Vec::new(), code: self.code },
            false => Outcome { output: self.text, notes: self.notes, code: self.code },
        }
    }
}

/// Backs up the data files into a directory.
pub fn back_up(config: &Config, directory: &Path, is_json: bool) -> Outcome {
    let result = maintenance::back_up(&files(config), directory, env!("CARGO_PKG_VERSION"));
    let backup = match result {
        Ok(backup) => backup,
        Err(error) => return failure(&error, is_json),
    };
    let mut report = Report::default();
    let database = &backup.manifest.database;
    report.line(format_args!("backup     {}", directory.display()));
    report.line(format_args!(
        "database   {} entries, {} bytes, SHA-256 {}",
        database.entries, database.bytes, database.sha256
    ));
    match &backup.manifest.salt {
        Some(salt) => report.line(format_args!("salt       {} bytes, SHA-256 {}", salt.bytes, salt.sha256)),
        None => report.line("salt       none yet, because there are no entries"),
    }
    note_malformed(&mut report, &backup.examined);
    let json = json!({
        "directory": directory.to_string_lossy(),
        "manifest": backup.manifest,
        "malformed": backup.examined.malformed_count,
    });
    report.into_outcome(json, is_json)
}

/// Restores a backup; with `is_trial`, only checks whether it can be restored.
pub fn restore(config: &Config, directory: &Path, is_trial: bool, is_json: bool) -> Outcome {
    let restored = match maintenance::restore(&files(config), directory, is_trial) {
        Ok(restored) => restored,
        Err(error) => return failure(&error, is_json),
    };
    let mut report = Report::default();
    report.line(format_args!(
        "{} {} entries of {} to {}",
        if is_trial { "would restore" } else { "restored" },
        restored.manifest.database.entries,
        restored.manifest.started_at,
        restored.database.display()
    ));
    for path in &restored.kept {
        report.line(format_args!(
            "{} {}",
            if is_trial { "would keep as" } else { "kept as" },
            path.display()
        ));
    }
    if restored.manifest.node.is_some() {
        report.notes.push(
            "the node is part of a cluster: newer versions on its peers will replace the restored ones"
                .to_owned(),
        );
    }
    note_malformed(&mut report, &restored.examined);
    let json = json!({
        "database": restored.database.to_string_lossy(),
        "salt": restored.salt.as_ref().map(|path| path.to_string_lossy()),
        "kept": restored.kept.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
        "manifest": restored.manifest,
        "dry_run": is_trial,
    });
    report.into_outcome(json, is_json)
}

/// Verifies a backup or a database file; without a path, the data files in the settings.
pub fn verify(config: &Config, path: Option<&Path>, user_key: Option<&UserKey>, is_json: bool) -> Outcome {
    let configured = files(config);
    let target = match path {
        None => VerifyTarget::Files(configured),
        Some(path) if path.is_dir() => VerifyTarget::Backup(path, config.accepted_salt),
        Some(path) => VerifyTarget::Files(DataFiles { database: path, ..configured }),
    };
    let (verified, opened) = match crate::service::verify(&target, user_key) {
        Ok(verified) => verified,
        Err(error) => return failure(&error, is_json),
    };
    let mut report = Report { notes: verified.problems.clone(), ..Report::default() };
    describe(&mut report, &verified);
    if let Some(examined) = &verified.examined {
        describe_entries(&mut report, examined, opened.as_ref());
    }
    if !report.notes.is_empty() {
        report.code = INVALID;
    } else if let (Some(counts), Some(examined)) = (&opened, &verified.examined)
        && counts.opened + counts.unreadable == 0
        && examined.entries_count > 0
    {
        report.code = DENIED;
        report.notes.push("the user key decrypts no entry".to_owned());
    }
    let json = verification_json(&verified, opened.as_ref(), report.code == 0);
    report.into_outcome(json, is_json)
}

/// Migrates the database to the current schema; with `is_trial`, only migrates a temporary copy.
pub fn migrate(config: &Config, is_trial: bool, is_json: bool) -> Outcome {
    let migration = match maintenance::migrate(&files(config), is_trial) {
        Ok(migration) => migration,
        Err(error) => return failure(&error, is_json),
    };
    let mut report = Report::default();
    let Migration { from, is_due, entries_count, bytes, copy } = &migration;
    let database = config.database_path.display();
    report.line(match (is_due, is_trial) {
        (false, _) => format!("{database} has the current schema; nothing to migrate"),
        (true, true) => format!(
            "{database} can be migrated from {from}: a migrated copy has the same {entries_count} entries; the \
             migration needs {bytes} bytes for a copy of the current file; nothing was changed"
        ),
        (true, false) => format!("migrated {database} from {from}: {entries_count} entries"),
    });
    if let Some(copy) = copy {
        report.line(format_args!("kept as {}", copy.display()));
    }
    let json = json!({
        "database": config.database_path.to_string_lossy(),
        "from": from,
        "due": is_due,
        "entries": entries_count,
        "bytes": bytes,
        "copy": copy.as_ref().map(|path| path.to_string_lossy()),
        "dry_run": is_trial,
    });
    report.into_outcome(json, is_json)
}

/// Returns the outcome of a command that failed with the given error name and exit code.
pub fn refuse(name: &str, code: u8, message: &str, is_json: bool) -> Outcome {
    let note = match is_json {
        true => json!({"error": name, "code": code, "message": message}).to_string(),
        false => message.to_owned(),
    };
    Outcome { output: String::new(), notes: vec![note], code }
}

fn failure(error: &MaintenanceError, is_json: bool) -> Outcome {
    let (name, code) = match error.kind() {
        MaintenanceErrorKind::Missing => ("not_found", MISSING),
        MaintenanceErrorKind::Conflict => ("conflict", CONFLICT),
        MaintenanceErrorKind::Invalid => ("invalid", INVALID),
        MaintenanceErrorKind::Failed => ("failed", FAILED),
    };
    refuse(name, code, &error.to_string(), is_json)
}

fn files(config: &Config) -> DataFiles<'_> {
    DataFiles {
        database: &config.database_path,
        salt: &config.salt_file_path,
        accepted_salt: config.accepted_salt,
    }
}

fn describe(report: &mut Report, verified: &Verified) {
    let is_intact = verified.examined.is_some();
    report.line(format_args!(
        "database   {}: {}, schema {}{}",
        verified.database.display(),
        if is_intact { "intact" } else { "damaged" },
        verified.generation,
        if verified.is_online { ", in use by a server" } else { "" }
    ));
    report.line(match verified.has_salt {
        true => format!("salt       {}", verified.salt.display()),
        false => "salt       none".to_owned(),
    });
    if let Some(manifest) = &verified.manifest {
        report.line(format_args!(
            "backup     of {}, by version {}",
            manifest.started_at, manifest.server_version
        ));
    }
}

fn describe_entries(report: &mut Report, examined: &Examined, opened: Option<&OpenedCounts>) {
    let Examined { entries_count, malformed_count, unnamed_count, .. } = examined;
    report.line(format_args!(
        "entries    {entries_count}, of which {} have a well-formed token",
        entries_count - malformed_count - unnamed_count
    ));
    if let Some(OpenedCounts { opened, unreadable, other_key }) = opened {
        report.line(format_args!(
            "user key   decrypts {opened}; {other_key} have another key, {unreadable} are not JSON"
        ));
    }
    note_malformed(report, examined);
}

fn note_malformed(report: &mut Report, examined: &Examined) {
    for id in &examined.malformed {
        let environment = id.environment.as_deref().map_or(String::new(), |name| format!(" of {name:?}"));
        report.notes.push(format!("the value of {:?}{environment} is not a Fernet token", id.key));
    }
    let unlisted_count = examined.malformed_count - examined.malformed.len() as u64;
    if unlisted_count > 0 {
        report.notes.push(format!("{unlisted_count} more values are not Fernet tokens"));
    }
    if examined.unnamed_count > 0 {
        report.notes.push(format!("{} entries have a key that is not text", examined.unnamed_count));
    }
}

fn verification_json(verified: &Verified, opened: Option<&OpenedCounts>, is_ok: bool) -> Value {
    let entries = verified.examined.as_ref().map(|examined| {
        let malformed: Vec<Value> = examined
            .malformed
            .iter()
            .map(|id| json!({"key": id.key, "environment": id.environment}))
            .collect();
        json!({
            "total": examined.entries_count,
            "malformed": examined.malformed_count,
            "malformed_entries": malformed,
            "unnamed": examined.unnamed_count,
        })
    });
    json!({
        "ok": is_ok,
        "database": verified.database.to_string_lossy(),
        "generation": verified.generation,
        "online": verified.is_online,
        "salt": verified.has_salt.then(|| verified.salt.to_string_lossy()),
        "problems": verified.problems,
        "entries": entries,
        "user_key": opened.map(|counts| json!({
            "opened": counts.opened,
            "other_key": counts.other_key,
            "unreadable": counts.unreadable,
        })),
        "manifest": verified.manifest,
    })
}
