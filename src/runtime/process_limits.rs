//! Process limits: raised as far as possible, and a startup error that names each one that is too low.

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
use crate::limits::{ADDRESS_SPACE_BYTES_MIN, MEMORY_BYTES_MIN, SPARE_THREADS};

/// Stack size of a probe thread, about the minimum on Linux.
const PROBE_STACK_BYTES: usize = 16 * 1024;

/// Process limits that are too low, one message each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct LimitError(Vec<String>);

/// Installs a handler of SIGXFSZ: a write beyond the file size limit then fails with `EFBIG` instead of killing the
/// process.
///
/// # Errors
/// Fails if the handler cannot be installed.
pub fn survive_file_size_limit() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map(|_| ())
}

/// Restricts the umask, so that new files are accessible at most to their user and group.
pub fn restrict_umask() {
    let inherited = umask(Mode::empty());
    umask(inherited | Mode::from_raw_mode(0o027));
}

/// Raises the soft limits of file descriptors, for many connections, and of locked memory, for rings, to the hard
/// limits.
pub(super) fn raise() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(resource, limit) {
            tracing::debug!(%error, ?resource, "cannot raise the soft limit");
        }
    }
}

/// Checks that the server can run within the limits of file descriptors, memory and threads.
///
/// # Errors
/// Fails with every limit that is too low.
pub(super) fn check(descriptors: Descriptors, threads: usize) -> Result<(), LimitError> {
    let (needed, available) = (descriptors.needed(), descriptors.available);
    let descriptors = (available < needed).then(|| {
        format!(
            "the limit on open files is {available}, but the server needs {needed}: raise it with `ulimit -n`, \
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
                "the memory limit of {what} is {} MiB, but the server needs {} MiB: raise it ({names})",
                mib(bytes),
                mib(least)
            )
        });
    let mut errors: Vec<String> = descriptors.into_iter().chain(memory).collect();
    if errors.is_empty() {
        // Only then: with too little memory, threads cannot be started either, and their limit is not the cause.
        errors.extend(probe_threads(threads + SPARE_THREADS).err());
    }
    if errors.is_empty() { Ok(()) } else { Err(LimitError(errors)) }
}

/// Returns the soft limit in its unit; `u64::MAX` without one.
fn limit(resource: Resource) -> u64 {
    getrlimit(resource).current.unwrap_or(u64::MAX)
}

/// Starts as many threads as the server needs, and ends them. Otherwise a library that cannot start a thread would
/// panic, or hide the cause.
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
            "only {started} of {count} threads can be started ({error}): raise the process limit (`ulimit -u`, \
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
        check(many, 1).expect("the limits of the tests suffice for a server");
    }

    #[test]
    fn probe_threads_end() {
        for _ in 0..50 {
            probe_threads(8).expect("threads can be started");
        }
    }
}
