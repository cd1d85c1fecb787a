"""The problems that are trained, made of random images or of the embedded digits: no file is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from sizes import DenseNetSize

CLASSES = 10


def images(shape: tuple[int, int, int], train: int, valid: int, seed: int = 0) -> Any:
    """Splits of normally distributed images with random labels."""
    from hypertrail_data import Splits
    from hypertrail_data.splits import Split

    rng = np.random.default_rng(seed)

    def split(n: int) -> Split:
        x, y = rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, CLASSES, n, dtype=np.int32)
        return Split(x, y, np.arange(n))

    channels = shape[-1]
    return Splits(
        split(train), split(valid), split(1), split(1), np.zeros(channels), np.ones(channels), CLASSES, "random images"
    )


def densenet(size: DenseNetSize, declared: tuple[Any, ...], steps: int | None = None, **changes: Any) -> Any:
    """A DenseNet with dropout .2, damped momentum α .1, γ .9, and 10 validation batches. float32 unless it is changed."""
    from hypertrail import Dynamics, Problem
    from hypertrail_data import BatchSchedule
    from hypertrail_nets import densenet as network

    shape = (size.image, size.image, 3)
    train = 32 * size.batch
    settings = {
        "network": network(shape, CLASSES, size.depth, size.growth, size.blocks),
        "splits": images(shape, train, 10 * size.batch),
        "schedule": BatchSchedule(train, size.batch, seed=0),
        "steps": steps or size.steps,
        "hyperparameters": declared,
        "dynamics": Dynamics("damped", learning_rate=0.1, momentum=0.9),
        "valid_batch": size.batch,
    }
    return Problem(**(settings | changes))


def perceptron(hidden: int, steps: int, declared: tuple[Any, ...], **changes: Any) -> Any:
    """A tanh perceptron 64-hidden-10 on the digits, batch 64, damped momentum α .1, γ .9. float32 unless it is changed."""
    from hypertrail import Dynamics, Problem
    from hypertrail_data import BatchSchedule, load, make_splits
    from hypertrail_nets import mlp

    settings = {
        "network": mlp((8, 8, 1), (hidden,)),
        "splits": make_splits(load("digits"), 1200, 400, 0, 197, seed=0),
        "schedule": BatchSchedule(1200, 64, seed=0),
        "steps": steps,
        "hyperparameters": declared,
        "dynamics": Dynamics("damped", learning_rate=0.1, momentum=0.9),
    }
    return Problem(**(settings | changes))


def flat(tree: Any) -> np.ndarray:
    """All numbers of nested dicts of arrays, in the order of the sorted names."""
    if isinstance(tree, dict):
        return np.concatenate([flat(tree[name]) for name in sorted(tree)])
    return np.ravel(np.asarray(tree))


def difference(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖ over all numbers of two nested dicts of arrays."""
    x, y = (flat(tree).astype(np.float64) for tree in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def same_bits(a: Any, b: Any) -> bool:
    """Whether all numbers of two nested dicts of arrays are equal to the bit (a NaN equals itself)."""
    return flat(a).tobytes() == flat(b).tobytes()
