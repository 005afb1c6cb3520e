"""A process of the same user outside of the guarded tree: it holds a connection, and says what its memory and a terminal say."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import sys

import world

if __name__ == "__main__":
    said = ctypes.create_string_buffer(64)
    opened = socket.create_connection((world.DENIED4, world.BANNER))
    _, terminal = os.openpty()
    sys.stdout.write(repr((os.getpid(), opened.fileno(), ctypes.addressof(said), os.ttyname(terminal))))
    sys.stdout.flush()
    os.close(1)  # whoever has started us reads to the end
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while os.getppid():
        if select.select([terminal], [], [], 0.03)[0]:
            other.sendto(os.read(terminal, 100), (world.DENIED4, world.UDP))
        if said.value:
            other.sendto(said.value, (world.DENIED4, world.UDP))
