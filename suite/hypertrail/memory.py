"""How much memory this process has held, and a setting of the C library that lets freed memory be used again."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

M_ARENA_MAX = -8


def peak() -> int:
    """Most bytes of RAM that this process has held at once so far (its largest resident set).

    Linux: from /proc, as what getrusage tells of a process begins with what its parent held when it was started.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB elsewhere


def one_arena() -> bool:
    """Let all threads of this process share one pool of freed memory. Call it before other threads start.

    The GNU C library gives each thread a pool of its own. States that one thread makes, another writes and a third reads back
    then leave up to a chunk in every pool: a long HDF5 trajectory took twice the memory of a short one. Linux with
    the GNU library only; elsewhere nothing happens. Returns whether it was set. The same from outside:
    MALLOC_ARENA_MAX=1.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1))
    except (AttributeError, OSError):
        return False
