//! `opensecureconf repair`: offline repair of the versions of a node.

use std::fmt::Write;

use crate::config::Config;
use crate::limits::CLOCK_AHEAD_MAX;
use crate::storage::{OpenError, Repaired, repair_versions};

/// Repairs versions that are ahead of the clock, and returns the report; with `is_trial`, changes nothing.
///
/// # Errors
/// Fails if a server is running, or the data files cannot be used.
pub fn versions(config: &Config, is_trial: bool) -> Result<String, OpenError> {
    let now_ms = (super::versions(config).wall_clock)();
    let (database, salt) = (&config.database_path, &config.salt_file_path);
    let repaired = repair_versions(database, salt, config.accepted_salt, now_ms, is_trial)?;
    Ok(report(&repaired, is_trial))
}

fn report(repaired: &Repaired, is_trial: bool) -> String {
    let bound_min = CLOCK_AHEAD_MAX.as_secs() / 60;
    if repaired.is_nothing() {
        return format!(
            "no version is more than {bound_min} min ahead of this machine's clock; nothing to repair\n"
        );
    }
    let Repaired { entries_count, deletions_count, ahead_ms, has_horizon } = repaired;
    let mut text = format!(
        "versions more than {bound_min} min ahead of this machine's clock: {entries_count} of entries, \
         {deletions_count} of tombstones; at most {} min ahead\n",
        ahead_ms / 60_000
    );
    let mut line = |what: &str| writeln!(text, "{what}").expect("writing to a String never fails");
    if *has_horizon {
        line("stored times of the last sync or tombstone collection were ahead, too");
    }
    line(match is_trial {
        true => {
            "nothing was changed; without --dry-run they are replaced by current versions, in the same order"
        }
        false => "they were replaced by current versions, in the same order",
    });
    line(
        "repair every node that has such versions before restarting it; `--dry-run` shows whether a node has any",
    );
    text
}
