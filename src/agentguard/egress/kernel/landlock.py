"""Landlock as a shield: what it is put on can neither signal nor look into processes that do not bear it."""

from __future__ import annotations

import ctypes
import os
import struct

from agentguard.egress.kernel import abi

_VERSION = 1  # the flag that asks for the version of the interface
SCOPED_SINCE = 6  # before, only with rules on files, which would forbid to move them between folders
_SCOPE_ABSTRACT_UNIX = 1
_SCOPE_SIGNAL = 2


def version() -> int:
    """The version of Landlock's interface; 0 where there is none."""
    try:
        return abi.syscall("landlock_create_ruleset", 0, 0, _VERSION)
    except OSError:
        return 0


def restrict_this_thread() -> bool:
    """Shield every process outside of what this thread and its children will be; False where Landlock is not to be had."""
    if version() < SCOPED_SINCE:
        return False
    attributes = struct.pack("QQQ", 0, 0, _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL)
    ruleset = abi.syscall("landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    try:
        abi.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return True
