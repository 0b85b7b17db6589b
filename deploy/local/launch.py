"""Start one program so that it cannot outlive the supervisor (standard library only).

`python -I -S launch.py <parent pid> <signal on its death> <user or -> <program> [arguments…]`

A preexec function would run between fork and exec of a process with threads, which may deadlock;
this small program runs after its exec instead, and then becomes the real one.
"""

import ctypes
import os
import pwd
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


class CapabilityHeader(ctypes.Structure):
    """`struct __user_cap_header_struct` of capset(2)."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class CapabilityData(ctypes.Structure):
    """`struct __user_cap_data_struct` of capset(2)."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become(user: str) -> None:
    """Give up root for a user who may still read every file.

    PostgreSQL refuses to run as root, and a checkout below /root is closed to everyone else: the
    one capability kept is reading (and passing) folders, so that no permission has to be changed.
    """
    entry = pwd.getpwnam(user)
    _checked(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    mask = 1 << CAP_DAC_READ_SEARCH
    data = (CapabilityData * 2)(CapabilityData(mask, mask, mask), CapabilityData(0, 0, 0))
    header = CapabilityHeader(CAPABILITY_VERSION_3, 0)
    _checked(libc.capset(ctypes.byref(header), data), "set capabilities")
    _checked(
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0),
        "raise the ambient capability",
    )


def main(arguments: list[str]) -> None:
    """Prepare this process, then become the program."""
    parent_pid, death_signal, user, *command = arguments
    if user != "-":
        become(user)
    # after the change of user: that change clears the signal
    _checked(libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0), "set the death signal")
    if os.getppid() != int(parent_pid):
        sys.exit("the supervisor is gone")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606 - becoming the program is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
