//! `opensecureconf repair`: what is put right while no server runs.

use std::fmt::Write;

use crate::config::Config;
use crate::limits::CLOCK_AHEAD_MAX;
use crate::store::{OpenError, Repaired, repair_versions};

/// Repairs versions that are ahead of the clock, or only says what would be changed.
///
/// # Errors
/// When a server runs, or the files cannot be used.
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
    let Repaired { entries_count, deletions_count, ahead_ms, has_clock, has_horizon } = repaired;
    let mut text = format!(
        "versions more than {bound_min} min ahead of this machine's clock: {entries_count} of entries, \
         {deletions_count} of deletions; the furthest by {} min\n",
        ahead_ms / 60_000
    );
    let mut line = |what: &str| writeln!(text, "{what}").expect("a String takes all");
    if *has_clock {
        line("the clock of this node was kept ahead, too");
    }
    if *has_horizon {
        line("times of comparisons with other nodes were kept ahead, too");
    }
    line(match is_trial {
        true => "nothing was changed; without --dry-run they get versions of now, in the same order",
        false => "they have versions of now, in the same order",
    });
    line(
        "every node that has such versions needs this before it is started again: `--dry-run` tells which do",
    );
    text
}
