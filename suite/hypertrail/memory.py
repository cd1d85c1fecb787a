"""How much memory this process has held."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path


def peak() -> int:
    """Most bytes of RAM that this process has held at once so far (its largest resident set).

    Linux: from /proc, as what getrusage tells of a process begins with what its parent held when it was started.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB elsewhere
