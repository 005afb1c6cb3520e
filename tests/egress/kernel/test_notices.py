"""The listener's own calls, where the kernel answers otherwise than the newest does."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")


def test_a_kernel_that_cannot_be_told_where_to_wake_us_is_listened_to_all_the_same():
    from agentguard.egress.kernel.notices import Listener

    descriptor = os.open(os.devnull, os.O_RDONLY)  # it knows none of a listener's calls
    try:
        assert Listener(descriptor).descriptor == descriptor
    finally:
        os.close(descriptor)
