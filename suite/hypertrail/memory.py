"""How much memory this process has held."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path


def of_machine() -> int:
    """Bytes of RAM of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Most bytes of RAM that this process has held at once so far (its largest resident set).

    Linux: from /proc, as what getrusage tells of a process begins with what its parent held when it was started.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB elsewhere
