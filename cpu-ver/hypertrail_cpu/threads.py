"""How many threads of the processor NumPy's matrix products use: the bits of a result depend on it.

Measured with numpy 2.4.6 and its OpenBLAS 0.3.31: products, dot products and norms of more than some thousand numbers round
differently with one thread and with two. OpenBLAS reads the variables below when NumPy is imported, and takes no more threads
than there are cores that this process may use. Nothing here can change the number afterwards.
"""

from __future__ import annotations

import os

import numpy as np

VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # the first that holds a number counts
WAY_OUT = f"NumPy reads this number when it is imported: set {VARIABLES[0]}, with at least as many cores, and run again"


def ask(wanted: int) -> None:
    """Without effect: NumPy has been imported already; see `count`."""


def count() -> int | None:
    """How many threads OpenBLAS was started with, by the variables and the cores; None for a NumPy with another BLAS."""
    if "openblas" not in blas():
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = [int(os.environ[name]) for name in VARIABLES if os.environ.get(name, "").strip().isdigit()]
    return min([cores, *[number for number in said if number > 0][:1]])


def blas() -> str:
    """The name of the BLAS that this NumPy was built with, or ''."""
    return str(np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {}).get("name", ""))
