"""A process of the same user outside of the guarded tree. It holds a connection, and says what its memory says."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time

import world

if __name__ == "__main__":
    said = ctypes.create_string_buffer(64)
    opened = socket.create_connection((world.DENIED4, world.BANNER))
    sys.stdout.write(repr((os.getpid(), opened.fileno(), ctypes.addressof(said))))
    sys.stdout.flush()
    os.close(1)  # whoever has started us reads to the end
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while os.getppid():
        time.sleep(0.03)
        if said.value:
            other.sendto(said.value, (world.DENIED4, world.UDP))
