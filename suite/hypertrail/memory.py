"""How much memory this process has held, and a setting of the C library that keeps it from growing."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
LARGE = 2 << 20


def peak() -> int:
    """Most bytes of RAM that this process has held at once so far (its largest resident set).

    Linux: from /proc, as what getrusage tells of a process begins with what its parent held when it was started.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes there, KiB elsewhere


def give_back() -> bool:
    """Let all threads of this process share one pool of freed memory, and large blocks go back to the system when they are freed.
    Call it before other threads start.

    The GNU C library gives each thread a pool of its own, and cuts blocks of up to 32 MB out of it. States that one thread
    makes, another writes and a third reads back then leave a chunk in every pool and holes between the chunks: a long HDF5
    trajectory took up to twice the memory of a short one. Price: fresh pages for every block above LARGE, some milliseconds
    for each chunk of states. Linux with the GNU library only; elsewhere nothing happens. Returns whether it was set.
    The same from outside: MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=2097152.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_ARENA_MAX, 1) and mallopt(M_MMAP_THRESHOLD, LARGE))
