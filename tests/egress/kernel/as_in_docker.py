"""Runs a program without the system calls that Docker's default profile withholds: `as_in_docker.py PROGRAM ARGS...`."""

from __future__ import annotations

import errno
import os
import sys

from agentguard.egress.kernel import abi, install
from agentguard.egress.kernel.bpf import NUMBER, Program

# Without CAP_SYS_PTRACE or CAP_SYS_ADMIN, by moby's default.json: pidfd_getfd, unshare, setns, mount.
WITHHELD = {"x86_64": (438, 272, 308, 165), "aarch64": (438, 97, 268, 40)}


def main() -> None:
    program = Program()
    program.load(NUMBER)
    for number in WITHHELD[os.uname().machine]:
        program.if_equal(number, then="withheld")
    program.end(abi.SECCOMP_RET_ALLOW)
    program.label("withheld")
    program.end(abi.SECCOMP_RET_ERRNO | errno.EPERM)
    abi.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    install._put_on(program.assemble(), 0)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
