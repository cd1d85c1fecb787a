"""How much memory this process has held, and a setting of the C library that keeps it from growing."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST_KEPT, MOST_KEPT = 32 << 20, 256 << 20  # bytes of a block (the most that can be asked for), and of all free ones


def peak() -> int:
    """Most bytes of RAM that this process has held at once so far (its largest resident set).

    Linux: from /proc, as what getrusage tells of a process begins with what its parent held when it was started.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB elsewhere


def one_pool() -> bool:
    """Let all threads of this process share one pool of freed memory, and keep what is freed for the next block.
    Call it before other threads start.

    The GNU C library gives each thread a pool of its own. States that one thread makes, another writes and a third reads
    back then leave a chunk in every pool: a long HDF5 trajectory took more and more memory. And it gives large blocks back
    to the system, which hands out fresh pages for the next one: some milliseconds for each chunk of states. Linux with the
    GNU library only; elsewhere nothing happens. Returns whether it was set. The same from outside:
    MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=268435456.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGEST_KEPT), (M_TRIM_THRESHOLD, MOST_KEPT)
    return all([mallopt(*one) for one in settings])
