"""What of a block must be finite, and in which order it was computed."""

from __future__ import annotations

import numpy as np

from hypertrail.errors import NumericalFailure
from hypertrail.online import Online

from .block import Report


def refuse_nonfinite(report: Report, start: int, method: Online) -> None:
    """NumericalFailure for the first quantity of a block that is not finite, in the order in which they were computed."""
    n = method.block_steps
    found = []
    for i in np.flatnonzero(~np.isfinite(report.losses))[:1]:  # of the n batches, moves may take some from the steps
        found.append((start + int(i) * n // len(report.losses), 2, "elementary loss"))
    for order, what, numbers in ((0, "hyper loss", report.hyper_losses), (1, "hypergradient", report.sizes)):
        for i in np.flatnonzero(~np.isfinite(numbers))[:1]:
            found.append((start + (int(i) + 1) * n // len(numbers), order, what))
    if not np.isfinite(report.weights):
        found.append((start + n, 3, "elementary weights"))
    if report.lost:
        found.append((start + n, 4, "hyperparameters"))
    if found:
        step, _, quantity = min(found)
        raise NumericalFailure(quantity, step, "lower the learning rate, its bounds or the method's step")
