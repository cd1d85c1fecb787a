"""The compiled engine of hypertrail: JAX/XLA on a CPU, one GPU or several devices. See hypertrail.engines for the contract.

`hypertrail_gpu.functional` is the same machinery on plain functions, for people who bring their own model.
"""

from typing import Any

from . import devices
from .evaluation import evaluate, hyper_loss
from .methods import hypergradient
from .online import adapt
from .training import train

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
        "in_use": devices.layout().count,
        "process": devices.process(),
    }


__all__ = ["adapt", "describe", "devices", "evaluate", "hyper_loss", "hypergradient", "name", "train"]
