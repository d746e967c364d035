"""Becomes the program named on its command line, after tying its life to the parent's and dropping to another user.

Run as a script (`python -I -S launch.py PARENT SIGNAL UID GID PROGRAM ARGUMENT...`), so that the caller needs no
`preexec_fn`, which is not safe in a process with threads. The death signal is set after the change of user, which would
clear it. Only Linux has it; elsewhere the pid files of stack.process find what a killed run left behind.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when the thread that started it ends."""
KEEP_USER = -1


def main(arguments: list[str]) -> None:
    parent, death_signal, uid, gid = (int(argument) for argument in arguments[:4])
    program = arguments[4:]
    os.umask(0o077)
    if uid != KEEP_USER:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that wanted this one is gone")
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
