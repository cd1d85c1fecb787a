"""The reference engine: NumPy and HIPS autograd, float64, adjoints written by hand. See README.md beside this package."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from . import threads
from .evaluation import evaluate, hyper_loss
from .methods import hypergradient
from .online import adapt
from .training import train

__all__ = ["adapt", "describe", "device_memory", "evaluate", "hyper_loss", "hypergradient", "name", "threads", "train"]

name = "cpu"


def describe() -> dict[str, Any]:
    """Versions and device, for env.json."""
    return {
        "engine": name,
        "precision": "float64",
        "device": f"CPU ({platform.machine()})",
        "threads": threads.count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "autograd": version("autograd"),
    }


def device_memory() -> int | None:
    """None: everything lies in the memory of the process."""
    return None
