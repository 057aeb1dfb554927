"""What the processes of a decoding pool run in tests: imported by each of them, so it imports next to nothing."""

from __future__ import annotations

import os
import time


def decode_or_crash(number: int) -> tuple[int, int]:
    """Return number and process; take longest for 0, and take the process down for 3."""
    if number == 3:
        os._exit(1)
    time.sleep(0.05 if number == 0 else 0)
    return number, os.getpid()


def crashed(number: int) -> tuple[int, int]:
    return number, -1
