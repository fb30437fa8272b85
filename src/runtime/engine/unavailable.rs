//! Why there is no io_uring, and what to do about it.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// What is in the way of io_uring.
#[derive(Debug, thiserror::Error)]
pub struct UringUnavailable {
    cause: Cause,
    /// Which call, and how it failed, if it was one.
    failure: Option<(&'static str, io::Error)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// `kernel.io_uring_disabled`, and its value.
    Sysctl(u8),
    /// A seccomp filter of this process.
    Filter,
    /// Something that leaves no trace here: SELinux, for example.
    Module,
    /// A kernel without it.
    Absent,
    /// A kernel whose io_uring cannot do enough, and its release.
    OldKernel(String),
    /// The limit, if there is one.
    LockedMemory(Option<u64>),
    Other,
}

/// What tells one cause from another.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Whether a seccomp filter is in force.
    pub(super) is_filtered: bool,
    /// The value of `kernel.io_uring_disabled`; zero on kernels that do not have it.
    pub(super) disabled: u8,
    /// The release of the kernel.
    pub(super) release: String,
    /// The limit of locked memory.
    pub(super) locked_bytes_max: Option<u64>,
}

impl UringUnavailable {
    pub(super) fn new(call: &'static str, error: io::Error, facts: Facts) -> Self {
        let cause = match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) if facts.disabled > 0 => Cause::Sysctl(facts.disabled),
            // Docker and containerd answer EPERM, Podman ENOSYS.
            Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS) if facts.is_filtered => Cause::Filter,
            Some(Errno::PERM | Errno::ACCESS) => Cause::Module,
            Some(Errno::NOSYS) => Cause::Absent,
            Some(Errno::INVAL) => Cause::OldKernel(facts.release),
            None if error.kind() == io::ErrorKind::Unsupported => Cause::OldKernel(facts.release),
            Some(Errno::NOMEM) => Cause::LockedMemory(facts.locked_bytes_max),
            _ => Cause::Other,
        };
        Self { cause, failure: Some((call, error)) }
    }

    pub(super) fn locked_memory(bytes_max: Option<u64>) -> Self {
        Self { cause: Cause::LockedMemory(bytes_max), failure: None }
    }

    /// Whether it is there again at the next start, unless somebody does something about it.
    pub(super) fn is_lasting(&self) -> bool {
        !matches!(self.cause, Cause::LockedMemory(_) | Cause::Other)
    }
}

impl fmt::Display for UringUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Sysctl(value) => {
                write!(f, "the sysctl kernel.io_uring_disabled={value} forbids io_uring")?
            }
            Cause::Filter => f.write_str("a seccomp filter forbids io_uring")?,
            Cause::Module => f.write_str("io_uring is forbidden here, perhaps by a security module")?,
            Cause::Absent => f.write_str("this kernel has no io_uring")?,
            Cause::OldKernel(release) => write!(f, "the io_uring of this kernel, {release}, is too old")?,
            Cause::LockedMemory(_) => f.write_str("io_uring gets no locked memory")?,
            Cause::Other => f.write_str("io_uring cannot be used")?,
        }
        if let Some((call, error)) = &self.failure {
            write!(f, " ({call}: {error})")?;
        }
        match &self.cause {
            Cause::Sysctl(_) => f.write_str("; set it to 0"),
            Cause::Filter => f.write_str(
                "; allow io_uring_setup, io_uring_enter and io_uring_register, in a container by a profile such as \
                 deploy/seccomp-io_uring.json",
            ),
            Cause::Module => f.write_str("; its log says more (SELinux: ausearch -m AVC)"),
            Cause::Absent | Cause::OldKernel(_) => f.write_str("; Linux 5.15 or later with CONFIG_IO_URING is needed"),
            Cause::LockedMemory(limit) => {
                match limit {
                    Some(bytes) => write!(f, "; the limit is {} KiB", bytes / 1024)?,
                    None => f.write_str("; there is no limit")?,
                }
                f.write_str(
                    " for all processes of this user, and each executor needs 512 KiB: raise it by `ulimit -l`, \
                     `--ulimit memlock=` or systemd's LimitMEMLOCK=, or set OSC_ENGINE=epoll",
                )
            }
            Cause::Other => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_remedy() {
        let plain = Facts { release: "5.4.0".to_owned(), ..Facts::default() };
        let filtered = Facts { is_filtered: true, ..plain.clone() };
        let disabled = Facts { disabled: 2, ..filtered.clone() };
        let limited = Facts { locked_bytes_max: Some(65536), ..plain.clone() };
        for (error, facts, is_lasting, words) in [
            (Errno::PERM, &disabled, true, ["kernel.io_uring_disabled=2", "set it to 0"]),
            (Errno::PERM, &filtered, true, ["seccomp filter", "deploy/seccomp-io_uring.json"]),
            (Errno::ACCESS, &filtered, true, ["seccomp filter", "deploy/seccomp-io_uring.json"]),
            (Errno::NOSYS, &filtered, true, ["seccomp filter", "deploy/seccomp-io_uring.json"]),
            (Errno::PERM, &plain, true, ["a security module", "SELinux"]),
            (Errno::NOSYS, &plain, true, ["has no io_uring", "CONFIG_IO_URING"]),
            (Errno::INVAL, &plain, true, ["5.4.0", "Linux 5.15"]),
            (Errno::NOMEM, &limited, false, ["the limit is 64 KiB", "LimitMEMLOCK="]),
            (Errno::NOMEM, &plain, false, ["there is no limit", "OSC_ENGINE=epoll"]),
            (Errno::MFILE, &filtered, false, ["cannot be used", "Too many open files"]),
        ] {
            let obstacle = UringUnavailable::new("io_uring_enter", error.into(), facts.clone());
            let text = obstacle.to_string();
            assert_eq!(obstacle.is_lasting(), is_lasting, "{text}");
            assert!(text.contains("io_uring_enter: "), "{text}");
            assert!(words.iter().all(|words| text.contains(words)), "{text}");
        }
    }
}
