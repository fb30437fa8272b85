//! Probe of whether this process may use io_uring, by using it.

use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::process::{Resource, getrlimit};

use super::retry_on_enomem;
use super::unavailable::{Facts, UringUnavailable};
use crate::limits::LOCKED_MEMORY_BYTES_MIN;

/// Operations that glommio requires; it aborts the process if one is missing.
const OPERATIONS: [u8; 23] = [
    opcode::Nop::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::SendMsg::CODE,
    opcode::RecvMsg::CODE,
    opcode::Timeout::CODE,
    opcode::TimeoutRemove::CODE,
    opcode::Accept::CODE,
    opcode::LinkTimeout::CODE,
    opcode::Connect::CODE,
    opcode::Fallocate::CODE,
    opcode::OpenAt::CODE,
    opcode::Close::CODE,
    opcode::Statx::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Send::CODE,
    opcode::Recv::CODE,
];

/// Entries of the probe ring, which needs about 400 KiB of locked memory, like an executor: glommio starts with its own
/// probe, which panics if memory is short, and cannot be repeated in the same process.
const ENTRIES: u32 = 4096;

const SETUP: &str = "io_uring_setup";
const REGISTER: &str = "io_uring_register";
const ENTER: &str = "io_uring_enter";

/// Probes all three system calls, since a filter may allow only some of them.
///
/// # Errors
/// Fails with the reason if io_uring is unavailable.
pub(super) fn probe() -> Result<(), UringUnavailable> {
    let mut call = SETUP;
    retry_on_enomem(|| round_trip(&mut call)).map_err(|error| unavailable_reason(call, error))?;
    match locked_bytes_max() {
        Some(limit) if limit < LOCKED_MEMORY_BYTES_MIN => Err(UringUnavailable::locked_memory(Some(limit))),
        _ => Ok(()),
    }
}

/// Determines the cause of a failed system call on this machine.
pub(super) fn unavailable_reason(call: &'static str, error: io::Error) -> UringUnavailable {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let facts = Facts {
        is_filtered: status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
        disabled: sysctl.trim().parse().unwrap_or_default(),
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        locked_bytes_max: locked_bytes_max(),
    };
    UringUnavailable::new(call, error, facts)
}

fn locked_bytes_max() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

#[expect(unsafe_code, reason = "submission queue entries may point to memory")]
fn round_trip(call: &mut &'static str) -> io::Result<()> {
    *call = SETUP;
    // One of glommio's rings polls for I/O completions.
    IoUring::<squeue::Entry>::builder().setup_iopoll().build(8)?;
    let mut ring: IoUring = IoUring::new(ENTRIES)?;
    *call = REGISTER;
    let mut supported = Probe::new();
    ring.submitter().register_probe(&mut supported)?;
    if !OPERATIONS.iter().all(|operation| supported.is_supported(*operation)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    *call = ENTER;
    // SAFETY: a no-op does not point to memory.
    let result = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    result.expect("the queue is empty");
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|completion| completion.result()) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
}
