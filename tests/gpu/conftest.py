"""Small problems for the compiled engine, in float64. Compiling costs seconds, so problems are shared by a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import hypertrail_data
from hypertrail import L1, L2, Dynamics, LearningRate, Momentum, Problem, WeightTransform
from hypertrail_nets import densenet, lenet, mlp

NETWORKS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: mlp((8, 8, 1), (12,), dropout=0.2, init_scale=0.3),
    "lenet": lambda: lenet((8, 8, 1), maps=(3, 4), hidden=(10,), size=3, dropout=0.2),
    "densenet": lambda: densenet((8, 8, 1), depth=5, growth=3, blocks=2, first_output=4, dropout=0.2),
}
# Between them: every kind at every level that makes a difference, per step and not, both dynamics.
DECLARED = {
    "everything": (
        L2("parameter", 1e-2),
        L1("unit", 1e-3),
        LearningRate("layer", 0.3),
        Momentum("network", 0.8),
        WeightTransform("input", 0.1),
    ),
    "per-step": (
        L2("layer", 1e-2),
        LearningRate("parameter", 0.05, per_step=True),
        Momentum("layer", 0.8, per_step=True),
    ),
    "penalties": (L2("parameter", 1e-2), L1("network", 1e-3)),
}


@pytest.fixture(scope="session")
def make() -> Callable[..., Problem]:
    """make(network, declared, **changes) → the same Problem object for the same arguments, so that it compiles once."""
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=160, valid=60, select=0, test=45, seed=1)

    @cache
    def make(network: str = "mlp", declared: str = "penalties", **changes: Any) -> Problem:
        settings: dict[str, Any] = {
            "network": NETWORKS[network](),
            "splits": splits,
            "schedule": hypertrail_data.BatchSchedule(160, 16, seed=2),
            "steps": 7,
            "hyperparameters": DECLARED[declared],
            "dynamics": Dynamics("damped", 0.3, 0.8, schedule=((4, 0.5),)),
            "valid_batch": 30,
            "seed": 3,
            "precision": "float64",
        }
        return Problem(**(settings | changes))

    return make


def flat(arrays: dict[str, Any]) -> np.ndarray:
    """All numbers of a nested dict of arrays, in the order of the sorted names."""
    parts = [flat(one) if isinstance(one, dict) else np.ravel(one) for _, one in sorted(arrays.items())]
    return np.concatenate(parts).astype(np.float64)


@pytest.fixture(scope="session")
def relative() -> Callable[[Any, Any], float]:
    """relative(a, b) = ‖a − b‖ / ‖b‖ over all numbers of two nested dicts of arrays."""

    def relative(a: Any, b: Any) -> float:
        x, y = flat(a), flat(b)
        return float(np.linalg.norm(x - y) / np.linalg.norm(y))

    return relative
