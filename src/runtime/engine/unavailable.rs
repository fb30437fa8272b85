//! Causes of a failed io_uring probe, and their remedies.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Reason why io_uring is unavailable; displayed with the remedy.
#[derive(Debug, thiserror::Error)]
pub struct UringUnavailable {
    cause: Cause,
    /// System call that failed, and its error; `None` if the limit alone is too low.
    failure: Option<(&'static str, io::Error)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// The sysctl `kernel.io_uring_disabled`, with its value.
    Sysctl(u8),
    /// A seccomp filter on this process.
    Filter,
    /// Something that a process cannot detect, such as SELinux.
    Module,
    /// A kernel without io_uring.
    Absent,
    /// A kernel whose io_uring lacks required features, with its release.
    OldKernel(String),
    /// A lack of locked memory, with the limit in bytes, if there is one.
    LockedMemory(Option<u64>),
    Other,
}

/// Facts about this machine that tell the causes apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Whether a seccomp filter is active.
    pub(super) is_filtered: bool,
    /// Value of `kernel.io_uring_disabled`; 0 on kernels without it.
    pub(super) disabled: u8,
    /// Kernel release.
    pub(super) release: String,
    /// Limit of locked memory in bytes; `None` without one.
    pub(super) locked_bytes_max: Option<u64>,
}

impl UringUnavailable {
    pub(super) fn new(call: &'static str, error: io::Error, facts: Facts) -> Self {
        let cause = match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) if facts.disabled > 0 => Cause::Sysctl(facts.disabled),
            // The profiles of Docker and containerd return EPERM, that of Podman ENOSYS.
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

    /// Returns whether the cause persists across restarts until an operator removes it.
    pub(super) fn is_permanent(&self) -> bool {
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
            Cause::Module => {
                f.write_str("io_uring is forbidden on this machine, perhaps by a security module")?
            }
            Cause::Absent => f.write_str("this kernel does not support io_uring")?,
            Cause::OldKernel(release) => write!(f, "io_uring of kernel {release} is too old")?,
            Cause::LockedMemory(_) => f.write_str("io_uring cannot lock memory")?,
            Cause::Other => f.write_str("io_uring failed")?,
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
            Cause::Module => f.write_str("; check its log (SELinux: ausearch -m AVC)"),
            Cause::Absent | Cause::OldKernel(_) => {
                f.write_str("; Linux 5.15 or later with CONFIG_IO_URING is required")
            }
            Cause::LockedMemory(limit) => {
                match limit {
                    Some(bytes) => write!(f, "; the limit is {} KiB", bytes / 1024)?,
                    None => f.write_str("; there is no limit")?,
                }
                f.write_str(
                    " for all processes of this user, and each executor needs 512 KiB: raise it with `ulimit -l`, \
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
            (Errno::NOSYS, &plain, true, ["does not support io_uring", "CONFIG_IO_URING"]),
            (Errno::INVAL, &plain, true, ["5.4.0", "Linux 5.15"]),
            (Errno::NOMEM, &limited, false, ["the limit is 64 KiB", "LimitMEMLOCK="]),
            (Errno::NOMEM, &plain, false, ["there is no limit", "OSC_ENGINE=epoll"]),
            (Errno::MFILE, &filtered, false, ["io_uring failed", "Too many open files"]),
        ] {
            let reason = UringUnavailable::new("io_uring_enter", error.into(), facts.clone());
            let text = reason.to_string();
            assert_eq!(reason.is_permanent(), is_lasting, "{text}");
            assert!(text.contains("io_uring_enter: "), "{text}");
            assert!(words.iter().all(|words| text.contains(words)), "{text}");
        }
    }
}
