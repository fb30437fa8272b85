//! Process statistics of the operating system, for the standard metrics of Prometheus clients.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Snapshot of the process statistics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessStats {
    /// CPU time of all threads, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Size of the address space.
    pub virtual_bytes: u64,
    /// Start time, in seconds since 1970.
    pub start_seconds: f64,
    /// Number of open file descriptors.
    pub open_fds: u64,
    /// Limit of open file descriptors; `None` without one.
    pub fds_max: Option<u64>,
}

impl ProcessStats {
    /// Reads the statistics from `/proc`; `None` if it is unavailable. Takes milliseconds with many file descriptors.
    pub fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let booted = fs::read_to_string("/proc/stat").ok()?;
        let booted_seconds =
            booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
        // Not counting the directory that is being read.
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64;
        let fds_max = getrlimit(Resource::Nofile).current;
        Self::parse(&stat, booted_seconds, open_fds, fds_max)
    }

    /// Parses the line of proc_pid_stat(5).
    #[expect(clippy::cast_precision_loss, reason = "ticks of thousands of years")]
    fn parse(stat: &str, booted_seconds: f64, open_fds: u64, fds_max: Option<u64>) -> Option<Self> {
        // The second field is a name in parentheses, which may contain any characters.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |number: usize| -> Option<u64> { fields.get(number.checked_sub(3)?)?.parse().ok() };
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: seconds(number(14)? + number(15)?),
            resident_bytes: number(24)? * page_size() as u64,
            virtual_bytes: number(23)?,
            start_seconds: booted_seconds + seconds(number(22)?),
            open_fds,
            fds_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let ticks = clock_ticks_per_second();
        let stat = format!(
            "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 {} {} 0 0 20 0 9 0 {} 4096 3 18446744073709551615 1 1 0\n",
            2 * ticks,
            3 * ticks,
            10 * ticks
        );
        let numbers = ProcessStats::parse(&stat, 1000.0, 5, None).expect("all fields are present");
        let expected = ProcessStats {
            cpu_seconds: 5.0,
            resident_bytes: 3 * page_size() as u64,
            virtual_bytes: 4096,
            start_seconds: 1010.0,
            open_fds: 5,
            fds_max: None,
        };
        assert_eq!(numbers, expected);
        assert_eq!(ProcessStats::parse("7 (a) S 1", 0.0, 5, None), None);
    }
}
