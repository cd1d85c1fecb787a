"""The compiled engine of hypertrail: JAX/XLA on a CPU, one GPU or several devices. See hypertrail.engines for the contract.

`hypertrail_gpu.functional` is the same machinery on plain functions, for people who bring their own model.
"""

from typing import Any

from . import compilation_cache, devices, threads
from .doubts import check, compare, exact
from .evaluation import evaluate, hyper_loss
from .methods import hypergradient
from .online import adapt
from .training import train
from .tuned import TunedTask, tunable
from .unrolled import unrolled

name = "gpu"


def describe() -> dict[str, Any]:
    """Versions and devices, for env.json."""
    import jax
    import jaxlib

    return {
        "engine": name,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
        "threads": threads.count(),
        "in_use": devices.layout().count,
        "process": list(devices.process()),  # as JSON gives it back
        "compilation_cache": compilation_cache.describe(),
    }


def device_memory() -> int | None:
    """Most bytes that the fullest device has held at once so far; None on a processor, which does not tell."""
    import jax

    told = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((one["peak_bytes_in_use"] for one in told if "peak_bytes_in_use" in one), default=None)


__all__ = [
    "TunedTask",
    "adapt",
    "check",
    "compare",
    "compilation_cache",
    "describe",
    "device_memory",
    "devices",
    "evaluate",
    "exact",
    "hyper_loss",
    "hypergradient",
    "name",
    "threads",
    "train",
    "tunable",
    "unrolled",
]
