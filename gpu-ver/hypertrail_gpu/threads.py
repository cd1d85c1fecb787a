"""How many threads of the processor XLA computes with: the bits of a result depend on it.

Measured with jaxlib 0.10.2 on a processor: one, two and four threads round differently (sums of matrix products are cut into as
many parts, and so are the loops of a program when it is compiled); with as many threads the bits are the same on one core and
on two. XLA starts its threads with the first use of JAX: as many as the variable NPROC says, else one for each core that this
process may use, and at least one for each device that the processor is made into.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import jax

VARIABLE = "NPROC"
NAME = "tf_XLAEigen"  # of these threads, as Linux shows it
PATIENCE = 2.0  # seconds in which a thread that was started has a name
WAY_OUT = "XLA takes this number at its first use in a process, and at least one for each device"


def ask(wanted: int) -> None:
    """Let XLA start `wanted` threads; without effect once it has started them: see `count`."""
    if not named_threads():
        os.environ[VARIABLE] = str(wanted)


def count() -> int | None:
    """How many there are, of which JAX is started if it was not; None where a GPU computes, whose bits do not depend on it."""
    if jax.default_backend() != "cpu":
        return None
    wanted, end = max(asked_for(), jax.local_device_count()), time.monotonic() + PATIENCE
    while (threads := named_threads()) != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return threads or wanted


def asked_for() -> int:
    """What XLA would read now from the environment."""
    with contextlib.suppress(ValueError):
        return int(os.environ.get(VARIABLE, ""))
    return visible_cores()


def visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def named_threads() -> int:
    """The threads of this process that carry XLA's name; 0 before they are started, and where there is no /proc."""
    threads = 0
    for comm in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            threads += comm.read_text().strip() == NAME
    return threads
