"""What a trained network is worth: the hyper loss, and loss and error on a whole split."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.problem import Problem
from hypertrail.records import Metrics, Training
from hypertrail.refusals import refuse_without_valid

from . import devices
from .compiled import compiled, precision
from .tuned import TunedTask

EVALUATION_BATCH = 500


def hyper_loss(problem: Problem, training: Training) -> float:
    """f(w_T): mean cross-entropy on the validation batches, batch statistics. Cost: a forward pass over them."""
    if isinstance(problem, TunedTask):
        return problem.hyper_loss(training)
    refuse_without_valid(problem)
    with precision(problem):
        programs = compiled(problem)
        return float(programs.hyper_loss(training.weights, programs.valid_data))


def evaluate(problem: Problem, training: Training, split: str) -> Metrics:
    """Mean loss (nats) and error rate on a whole split with the deterministic forward and running averages.

    Where training images are learned, 'train' has these, with the split's labels.
    split: 'train', 'valid', 'select' or 'test'; an empty or unknown one raises UsageError. Cost: one forward pass.
    """
    if isinstance(problem, TunedTask):
        return problem.evaluate(training, split)
    with precision(problem):
        batches, examples = batches_of(problem, training, split)
        out = np.asarray(compiled(problem).metrics(training.weights, training.running, batches), np.float64)
    loss, error = jax.tree.map(lambda a: float(a.reshape(-1)[:examples].mean()), (out[:, 0], out[:, 1]))
    return Metrics(loss=loss, error=error, examples=examples)


def batches_of(problem: Problem, training: Training, split: str) -> tuple[tuple[jax.Array, jax.Array], int]:
    """The split as equal batches, x (n, B, …), y (n, B), the last one filled up, and how many examples it has."""
    data = getattr(problem.splits, split, None) if split in ("train", "valid", "select", "test") else None
    if data is None or len(data) == 0:
        raise UsageError(
            f"split {split!r} is unknown or empty; expected one with examples of train, valid, select, test"
        )
    images = training.inputs if split == "train" and training.inputs is not None else data.x
    size = devices.layout().rounded(min(EVALUATION_BATCH, len(data)))
    n = -(-len(data) // size)
    rows = np.minimum(np.arange(n * size), len(data) - 1).reshape(n, size)  # the last batch is filled up, then cut
    return (jnp.asarray(images[rows], problem.dtype), jnp.asarray(data.y[rows])), len(data)
