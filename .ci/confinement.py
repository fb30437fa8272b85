"""Restricts a new process to a list of system calls, as container runtimes and systemd do."""
import ctypes
import errno
import json
import sys

from checking import DEPLOY, expect

PROFILE = DEPLOY / "seccomp-io_uring.json"
IO_URING = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
ERRNO, ALLOW = 0x0005_0000, 0x7FFF_0000
COMPARISONS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def check_profile():
    profile = json.loads(PROFILE.read_text())
    expect(profile["defaultAction"] == "SCMP_ACT_ERRNO", "the profile allows system calls that it does not list")
    allowed = {name for rule in profile["syscalls"] if "args" not in rule for name in rule["names"]}
    expect(IO_URING <= allowed, "the profile forbids io_uring")
    # containerd parses the file as an OCI profile and would ignore the conditions that Docker adds.
    used = set(profile) | {key for rule in profile["syscalls"] for key in rule}
    unknown = used - {"defaultAction", "defaultErrnoRet", "syscalls", "comment", "names", "action", "args"}
    expect(not unknown, f"the profile has fields that not every container runtime supports: {unknown}")
    return profile


def confinement(profile, forbidden=frozenset()):
    """Returns a function that applies the profile in a new process before it executes its program."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ERRNO | profile["defaultErrnoRet"])))
    for rule in profile["syscalls"]:
        arguments = rule.get("args", [])
        comparisons = (Comparison * len(arguments))(
            *((one["index"], COMPARISONS[one["op"]], one["value"], one["valueTwo"]) for one in arguments)
        )
        for name in rule["names"]:
            action = ERRNO | errno.EPERM if name in forbidden else ALLOW
            number = library.seccomp_syscall_resolve_name(name.encode())
            # -1 means a system call unknown to this version of the library; container runtimes ignore those, too.
            if number != -1:
                status = library.seccomp_rule_add_array(
                    context, ctypes.c_uint32(action), number, len(arguments), comparisons
                )
                if status != 0:
                    sys.exit(f"libseccomp rejects {name}: {status}")

    def confine():
        status = library.seccomp_load(context)
        if status != 0:
            raise OSError(-status, "cannot load the seccomp profile")

    return confine
