//! Whether this process may use io_uring, found out by using it.

use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::process::{Resource, getrlimit};

use super::retry_on_enomem;
use super::unavailable::{Facts, UringUnavailable};

/// What glommio looks for, and ends the process if it is not there.
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

/// A ring of so many takes some 400 KiB of locked memory, about as much as an executor does: glommio begins with a
/// probe of its own, which panics when there is none, and cannot be tried again in this process.
const ENTRIES: u32 = 4096;

/// The limit of locked memory below which glommio does not start.
const LOCKED_BYTES_MIN: u64 = 512 * 1024;

const SETUP: &str = "io_uring_setup";
const REGISTER: &str = "io_uring_register";
const ENTER: &str = "io_uring_enter";

/// All three calls, since a filter may allow some of them only.
///
/// # Errors
/// With what is in the way.
pub(super) fn probe() -> Result<(), UringUnavailable> {
    let mut call = SETUP;
    retry_on_enomem(|| round_trip(&mut call)).map_err(|error| obstacle(call, error))?;
    match locked_bytes_max() {
        Some(limit) if limit < LOCKED_BYTES_MIN => Err(UringUnavailable::locked_memory(Some(limit))),
        _ => Ok(()),
    }
}

/// What an error of one of the calls means on this machine.
pub(super) fn obstacle(call: &'static str, error: io::Error) -> UringUnavailable {
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

#[expect(unsafe_code, reason = "the submission queue takes requests that may name memory")]
fn round_trip(call: &mut &'static str) -> io::Result<()> {
    *call = SETUP;
    // One of glommio's rings is for polled files.
    IoUring::<squeue::Entry>::builder().setup_iopoll().build(8)?;
    let mut ring: IoUring = IoUring::new(ENTRIES)?;
    *call = REGISTER;
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known)?;
    if !OPERATIONS.iter().all(|operation| known.is_supported(*operation)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    *call = ENTER;
    // SAFETY: this request names no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.expect("the queue is empty");
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|done| done.result()) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
}
