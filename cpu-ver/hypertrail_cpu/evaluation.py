"""What a finished run is worth: the hyper loss, and loss and error on a whole split. float64."""

from __future__ import annotations

import numpy as np

from hypertrail.errors import UsageError
from hypertrail.measures import SPLITS
from hypertrail.problem import Problem
from hypertrail.records import Metrics, Training
from hypertrail.refusals import refuse_without_valid

from . import losses
from .drmad import float64
from .ops import OPS

BATCH = 500  # examples at a time: bounds the memory, changes nothing (the deterministic forward sees each one alone)


def hyper_loss(problem: Problem, training: Training) -> float:
    """f(w_T), the loss that hypergradients are of. Cost: one forward pass over the validation batches."""
    refuse_without_valid(problem)
    return losses.hyper_loss(losses.in_float64(problem), float64(training.weights))


def evaluate(problem: Problem, training: Training, split: str) -> Metrics:
    """Mean loss (nats) and error rate (0 … 1) on a whole split: dropout off, batch norm with the running averages.

    Where training images are learned, 'train' has these, with the split's labels.
    split: 'train', 'valid', 'select' or 'test'. Cost: one forward pass. Raises UsageError for another or an empty split.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r}, expected one of {', '.join(SPLITS)}")
    problem = losses.in_float64(problem)
    examples = getattr(problem.splits, split)
    if len(examples) == 0:
        raise UsageError(f"the {split} split is empty; give it examples in make_splits or evaluate another")
    images = training.inputs if split == "train" and training.inputs is not None else examples.x
    weights, running = float64(training.weights), float64(training.running)
    total = np.zeros(2)
    for begin in range(0, len(examples), BATCH):
        x, y = images[begin : begin + BATCH].astype(np.float64), examples.y[begin : begin + BATCH]
        total += problem.metrics(OPS, weights, running, x, y).sum(axis=1)  # type: ignore[arg-type]  # autograd has no types
    loss, error = total / len(examples)
    return Metrics(float(loss), float(error), len(examples))
