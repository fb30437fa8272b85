//! Memory budgets, based on the memory that this process may use.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::limits::{
    ENTRY_CACHE_BYTES_MAX, ENTRY_CACHE_BYTES_MIN, ENTRY_CACHE_MEMORY_PART, RESPONSES_BYTES_MAX,
    RESPONSES_BYTES_MIN, RESPONSES_MEMORY_PART,
};

/// Returns the size limit of the entry cache in bytes: a fraction of the usable memory, so that the cache of a large
/// store does not exhaust it.
pub(super) fn entry_cache_bytes_max() -> usize {
    entry_cache_bytes_of(usable())
}

/// Returns the byte budget for responses that wait for their clients.
pub(super) fn answers_bytes_max() -> usize {
    responses_bytes_of(usable())
}

fn entry_cache_bytes_of(memory: u64) -> usize {
    part_of(memory, ENTRY_CACHE_MEMORY_PART).clamp(ENTRY_CACHE_BYTES_MIN, ENTRY_CACHE_BYTES_MAX)
}

fn responses_bytes_of(memory: u64) -> usize {
    part_of(memory, RESPONSES_MEMORY_PART).clamp(RESPONSES_BYTES_MIN, RESPONSES_BYTES_MAX)
}

/// Returns the memory limit of the control group in bytes; `u64::MAX` without one.
pub(super) fn control_group() -> u64 {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_limit(Path::new("/sys/fs/cgroup"), &membership)
}

fn usable() -> u64 {
    let info = rustix::system::sysinfo();
    let memory = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
    let limits =
        [Resource::Data, Resource::As].into_iter().filter_map(|resource| getrlimit(resource).current);
    limits.fold(memory.min(control_group()), u64::min)
}

fn part_of(memory: u64, part: u64) -> usize {
    usize::try_from(memory / part).unwrap_or(usize::MAX)
}

/// Returns the lowest limit of the control group and its ancestors. In a container, the group of the container is the
/// root.
fn group_limit(root: &Path, membership: &str) -> u64 {
    let unified = membership.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let unified = root.join(unified);
    let groups = unified.ancestors().take_while(|directory| directory.starts_with(root));
    let files = groups.map(|directory| directory.join("memory.max"));
    let version_1 = root.join("memory/memory.limit_in_bytes");
    files
        .chain([version_1])
        // "max" and a missing file mean no limit.
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .min()
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_all_ancestors_applies() {
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
    fn budgets_are_a_clamped_fraction_of_the_memory() {
        let mib = 1024 * 1024;
        for (memory, entries, responses) in
            [(64, 16, 32), (128, 16, 32), (2048, 256, 128), (1 << 20, 1024, 256)]
        {
            assert_eq!(entry_cache_bytes_of(memory * mib), entries * 1024 * 1024);
            assert_eq!(responses_bytes_of(memory * mib), responses * 1024 * 1024);
        }
    }
}
