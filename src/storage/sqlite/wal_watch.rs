//! Reports of a write-ahead log that cannot be emptied, with the processes whose transactions prevent it.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::getpid;

use crate::storage::counts::EngineCounts;
use crate::storage::paths::sibling;

/// Bytes of the `-shm` file that SQLite locks for transactions: one for a writer, the last five for readers, see
/// <https://sqlite.org/walformat.html#wal_locks>.
const TRANSACTION_LOCKS: RangeInclusive<u64> = 120..=127;

/// Reporter of blocked checkpoints, once per episode.
#[derive(Debug)]
pub(super) struct WalWatch {
    index: PathBuf,
}

impl WalWatch {
    pub(super) fn of(database: &Path) -> Self {
        Self { index: sibling(database, "-shm") }
    }

    /// Records a checkpoint that another transaction prevented.
    pub(super) fn note_blocked(&self, counts: &EngineCounts) {
        let holders = holders(&self.index);
        // A read of this server ends on its own.
        let is_own = holders.as_ref().is_some_and(|pids| pids.iter().all(|pid| *pid == own_pid()));
        if is_own || counts.is_checkpoint_blocked() {
            return;
        }
        counts.set_checkpoint_blocked(true);
        tracing::warn!(
            wal_bytes = counts.wal_bytes(),
            holders = describe(&holders.unwrap_or_default()),
            "the write-ahead log grows: a transaction of another program blocks the checkpoint"
        );
    }

    /// Records a checkpoint that emptied the WAL.
    pub(super) fn note_emptied(&self, counts: &EngineCounts) {
        counts.set_wal_bytes(0);
        if counts.is_checkpoint_blocked() {
            counts.set_checkpoint_blocked(false);
            tracing::info!("the write-ahead log is emptied again");
        }
    }
}

/// Returns the processes that have a transaction, this one included; `None` if `/proc/locks` names none.
fn holders(index: &Path) -> Option<Vec<u32>> {
    let inode = fs::metadata(index).ok()?.ino();
    let pids = pids(&fs::read_to_string("/proc/locks").ok()?, inode);
    (!pids.is_empty()).then_some(pids)
}

/// Parses lines such as `1: POSIX  ADVISORY  READ 1234 08:01:5678 123 123`, see proc_locks(5). The device may differ
/// from that of `stat` (btrfs, overlayfs), so lines are matched by the inode and the locked bytes.
fn pids(locks: &str, inode: u64) -> Vec<u32> {
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "POSIX" | "OFDLCK", _, _, pid, file, start, end] = fields[..] else { return None };
        let (start, end) = (start.parse::<u64>().ok()?, end.parse().unwrap_or(u64::MAX));
        let is_transaction = start <= *TRANSACTION_LOCKS.end() && end >= *TRANSACTION_LOCKS.start();
        let is_index = file.rsplit(':').next()?.parse() == Ok(inode);
        (is_index && is_transaction).then(|| pid.parse().ok()).flatten()
    };
    let mut pids: Vec<u32> = locks.lines().filter_map(holder).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn own_pid() -> u32 {
    getpid().as_raw_nonzero().get().cast_unsigned()
}

fn describe(pids: &[u32]) -> String {
    let named = pids.iter().filter(|pid| **pid != own_pid()).map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        match name.trim_end() {
            "" => format!("process {pid}"),
            name => format!("{} (pid {pid})", name.escape_default()),
        }
    });
    let named: Vec<String> = named.collect();
    if named.is_empty() { "unknown".to_owned() } else { named.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_have_transactions_on_this_file() {
        let locks = "\
1: POSIX  ADVISORY  READ 100 fe:00:77 123 123
2: POSIX  ADVISORY  READ 101 fe:00:77 128 128
3: POSIX  ADVISORY  READ 102 fe:00:78 123 123
4: FLOCK  ADVISORY  WRITE 103 fe:00:77 0 EOF
5: POSIX  ADVISORY  WRITE 104 00:2c:77 120 120
5: -> POSIX  ADVISORY  WRITE 105 00:2c:77 120 120
6: POSIX  ADVISORY  READ 100 fe:00:77 126 128
7: OFDLCK ADVISORY  READ -1 fe:00:77 124 124
8: POSIX  ADVISORY  WRITE 106 fe:00:77 0 EOF
9: POSIX
";
        assert_eq!(pids(locks, 77), [100, 104, 106]);
        assert!(pids(locks, 79).is_empty());
        assert!(pids("", 77).is_empty());
    }

    #[test]
    fn holders_are_described_without_this_process() {
        assert_eq!(describe(&[]), "unknown");
        assert_eq!(describe(&[own_pid()]), "unknown");
        assert_eq!(describe(&[u32::MAX, own_pid()]), format!("process {}", u32::MAX));
    }
}
