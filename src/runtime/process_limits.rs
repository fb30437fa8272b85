//! Limits of the process: raised as far as they go, and a refusal to start that names each one that is too low.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;

use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, setrlimit, umask};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

use super::cache_size;
use super::fd_budget::Descriptors;
use crate::limits::{ADDRESS_SPACE_BYTES_MIN, MEMORY_BYTES_MIN};

/// Threads beyond those of the plan: the check of a large file, and what libraries start for a moment.
const SPARE_THREADS: usize = 2;
/// The least that Linux allows, about.
const PROBE_STACK_BYTES: usize = 16 * 1024;

/// Limits within which the server cannot run, one text for each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct LimitError(Vec<String>);

/// A write beyond the limit of file sizes fails with `EFBIG` from now on, instead of ending the process.
///
/// # Errors
/// When the handler cannot be installed.
pub fn survive_file_size_limit() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map(|_| ())
}

/// New files are for the user and its group at most from now on, whatever the umask was.
pub fn deny_others() {
    let given = umask(Mode::empty());
    umask(given | Mode::from_raw_mode(0o027));
}

/// Many connections need many descriptors, and rings need locked memory: the soft limits go up to the hard ones.
pub(super) fn raise() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(resource, limit) {
            tracing::debug!(%error, ?resource, "a limit stays as it is");
        }
    }
}

/// Whether the server can run within the limits of descriptors, memory and threads.
///
/// # Errors
/// [`LimitError`] with each limit that is too low.
pub(super) fn check(descriptors: Descriptors, threads: usize) -> Result<(), LimitError> {
    let (needed, available) = (descriptors.needed(), descriptors.available);
    let descriptors = (available < needed).then(|| {
        format!(
            "the limit of open files is {available}, and the server needs {needed}: raise it by `ulimit -n`, \
             `--ulimit nofile=` or systemd's LimitNOFILE="
        )
    });
    let memory = [
        (
            cache_size::control_group(),
            MEMORY_BYTES_MIN,
            "the control group",
            "memory.max, `--memory`, MemoryMax=",
        ),
        (limit(Resource::Data), MEMORY_BYTES_MIN, "data segments", "`ulimit -d`, LimitDATA="),
        (limit(Resource::As), ADDRESS_SPACE_BYTES_MIN, "the address space", "`ulimit -v`, LimitAS="),
    ];
    let memory =
        memory.into_iter().filter(|(bytes, least, ..)| bytes < least).map(|(bytes, least, what, names)| {
            let mib = |bytes: u64| bytes / (1024 * 1024);
            format!(
                "the memory limit of {what} is {} MiB, and the server needs {} MiB: raise it ({names})",
                mib(bytes),
                mib(least)
            )
        });
    let mut faults: Vec<String> = descriptors.into_iter().chain(memory).collect();
    if faults.is_empty() {
        // With too little memory there are too few threads as well, and it is not their limit.
        faults.extend(probe_threads(threads + SPARE_THREADS).err());
    }
    if faults.is_empty() { Ok(()) } else { Err(LimitError(faults)) }
}

/// The soft limit in its unit; the greatest number without one.
fn limit(resource: Resource) -> u64 {
    getrlimit(resource).current.unwrap_or(u64::MAX)
}

/// Starts as many threads as will be needed, and ends them: libraries panic, or say nothing of the cause, when one of
/// theirs cannot be started.
fn probe_threads(count: usize) -> Result<(), String> {
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(std::sync::Mutex::new(released));
    let start = |_| {
        let released = Arc::clone(&released);
        let wait = move || drop(released.lock().map(|released| released.recv()));
        thread::Builder::new().stack_size(PROBE_STACK_BYTES).spawn(wait)
    };
    let mut threads = Vec::with_capacity(count);
    let outcome = (0..count).try_for_each(|index| start(index).map(|thread| threads.push(thread)));
    drop(release);
    let started = threads.len();
    for thread in threads {
        thread.join().ok();
    }
    outcome.map_err(|error| {
        format!(
            "only {started} of {count} threads can be started ({error}): raise the limit of processes (`ulimit -u`, \
             `--pids-limit`, systemd's TasksMax= or LimitNPROC=), or lower OSC_WORKERS"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_that_is_too_low_is_named() {
        let few = Descriptors { available: 10, executors: 2, peers: 0 };
        let error = check(few, 1).expect_err("too few").to_string();
        assert!(error.contains("open files is 10") && error.contains("LimitNOFILE="), "{error}");
        let many = Descriptors { available: usize::MAX, ..few };
        check(many, 1).expect("the tests run within the limits of a server");
    }

    #[test]
    fn threads_of_a_probe_end() {
        for _ in 0..50 {
            probe_threads(8).expect("there are some");
        }
    }
}
