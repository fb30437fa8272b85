//! How much memory this process may use.

use std::fs;
use std::path::Path;

use crate::limits::{ENTRY_CACHE_BYTES_MAX, ENTRY_CACHE_BYTES_MIN, ENTRY_CACHE_MEMORY_PART};

/// A part of what may be used: the cache is for stores that do not fit it otherwise, not a reason to end
/// for lack of memory.
pub(super) fn entry_cache_bytes_max() -> usize {
    let info = rustix::system::sysinfo();
    let memory = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
    let own_group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    part_of(memory.min(group_limit(Path::new("/sys/fs/cgroup"), &own_group)))
}

fn part_of(memory: u64) -> usize {
    let part = usize::try_from(memory / ENTRY_CACHE_MEMORY_PART).unwrap_or(usize::MAX);
    part.clamp(ENTRY_CACHE_BYTES_MIN, ENTRY_CACHE_BYTES_MAX)
}

/// The least limit of the control group and of those around it. In a container its own is at the root.
fn group_limit(root: &Path, own_group: &str) -> u64 {
    let unified = own_group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let unified = root.join(unified);
    let within = unified.ancestors().take_while(|directory| directory.starts_with(root));
    let files = within.map(|directory| directory.join("memory.max"));
    let version_1 = root.join("memory/memory.limit_in_bytes");
    files
        .chain([version_1])
        // "max", or no such file, is no limit.
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .min()
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_around_this_process_counts() {
        let root = tempfile::tempdir().expect("temporary directory");
        let limit = || group_limit(root.path(), "1:name=systemd:/\n0::/outer/inner\n");
        assert_eq!(limit(), u64::MAX);
        fs::create_dir_all(root.path().join("outer/inner")).expect("writable");
        for (name, text, expected) in [
            ("outer/inner/memory.max", "max\n", u64::MAX),
            ("outer/memory.max", "3000000000\n", 3_000_000_000),
            ("memory.max", "4000000000\n", 3_000_000_000),
            ("outer/inner/memory.max", "2000000000\n", 2_000_000_000),
        ] {
            fs::write(root.path().join(name), text).expect("writable");
            assert_eq!(limit(), expected, "{name}");
        }
    }

    #[test]
    fn the_cache_takes_a_part_between_two_bounds() {
        let mib = 1024 * 1024;
        let parts = [128, 4096, 1 << 20].map(|memory| part_of(memory * mib) / 1024 / 1024);
        assert_eq!(parts, [64, 512, 1024]);
    }
}
