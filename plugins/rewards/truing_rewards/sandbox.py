"""The program in which model-written code runs: it gives up what it may do, and becomes the interpreter that runs the code.

Run as a script, with no more than the standard library: `python -I sandbox.py LIMITS HARNESS`, LIMITS in JSON. Its namespaces
have no network, see no process of the machine and can write nothing but an empty folder in memory; what runs in them can start no
process or thread. What cannot be given up ends the program with UNISOLATED, and nothing is run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

UNISOLATED = 97
"""The exit code that says that this machine cannot isolate."""
_LIBC = ctypes.CDLL(None, use_errno=True)

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USERS, _NEW_PIDS, _NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RECURSIVE, _PRIVATE, _NO_SUID, _NO_DEVICES = 0x4000, 1 << 18, 2, 4
_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY = 442, 0x8000, 1
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES, _SET_SECCOMP, _SECCOMP_FILTER = 1, 38, 22, 2
_INSIDE = 1000
"""The user id within: not 0, so that the interpreter that is started has no capability left."""

# by machine: its number for seccomp, and clone, fork, vfork, clone3, which make a process or thread, with setpgid and setsid, by
# which one would leave those that are killed together
_MACHINES = {"x86_64": (0xC000003E, (56, 57, 58, 435, 109, 112)), "aarch64": (0xC00000B7, (220, 435, 154, 157))}
_X32 = 0x40000000
"""System calls from here on are x86_64's second set of numbers."""


def main() -> None:
    """Isolate, limit, and run the harness."""
    limits, harness = json.loads(sys.argv[1]), sys.argv[2]
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    folder: str = limits["folder"]
    if not limits["allow_unisolated"]:
        try:
            _isolate(folder, limits["file_mb"])
        except (OSError, KeyError) as error:
            print(error, file=sys.stderr)
            os._exit(UNISOLATED)
    os.chdir(folder)
    _limit(limits)
    try:
        _forbid_processes()
    except (OSError, KeyError) as error:
        print(error, file=sys.stderr)
        os._exit(UNISOLATED)
    variables = {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.execve(sys.executable, [sys.executable, "-I", "-B", harness], {**variables, **threads})


def _isolate(folder: str, megabytes: int) -> None:
    """Enter namespaces of its own; return in the process that is the first of them."""
    user, group = os.getuid(), os.getgid()
    _require(_LIBC.unshare(_NEW_USERS | _NEW_MOUNTS | _NEW_NETWORK | _NEW_PIDS | _NEW_IPC | _NEW_UTS))
    for file, text in (("setgroups", "deny"), ("uid_map", f"{_INSIDE} {user} 1"), ("gid_map", f"{_INSIDE} {group} 1")):
        descriptor = os.open(f"/proc/self/{file}", os.O_WRONLY)
        os.write(descriptor, text.encode())
        os.close(descriptor)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _require(_LIBC.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
    read_only = struct.pack("QQQQ", _READ_ONLY, 0, 0, 0)
    _require(_LIBC.syscall(_MOUNT_SETATTR, -100, b"/", _AT_RECURSIVE, read_only, len(read_only)))
    _mount_memory(folder, f"size={4 * megabytes}m,nr_inodes=1000,mode=700,uid={_INSIDE},gid={_INSIDE}")
    with contextlib.suppress(FileNotFoundError):  # other processes' environments are in /proc
        _mount_memory("/proc", "size=0,nr_inodes=1,mode=555")


def _mount_memory(folder: str, options: str) -> None:
    _require(_LIBC.mount(b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, options.encode()))


def _limit(limits: dict[str, int]) -> None:
    megabyte = 2**20
    for kind, amount in (
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_AS, limits["memory_mb"] * megabyte),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))


def _forbid_processes() -> None:
    """Let these system calls fail with EPERM, for good; RLIMIT_NPROC, which would do for others, does not bind root."""
    machine, forbidden = _MACHINES[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # BPF: load a word, compare, return
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | 1
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (answer, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, _X32), (answer, 0, 0, kill)]
    for number in forbidden:
        program += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    program.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    _require(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _require(_LIBC.prctl(_SET_SECCOMP, _SECCOMP_FILTER, header, 0, 0))


def _require(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
