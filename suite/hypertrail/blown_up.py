"""When is a training that stayed finite nevertheless lost? A criterion, and the words for it.

Weights of norm 4e28 are finite in float32, and so is their loss: the run ends, and its numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

NORM_FACTOR = 1e4
"""How far ‖w‖ may grow. In 76 trainings of t1t2-mnist it ends at 0.3 to 1.1 times its start. At 10⁴ times its size
a float32 weight is rounded to 6e-4 of its old size, as coarse as the steps that once moved it."""
LOSS_FACTOR = 1e3
"""How far the loss may rise above where it began: a thousand nats for each example are no opinion about ten classes."""


def blown_up(first_norm: float, last_norm: float, first_loss: float, last_loss: float) -> str | None:
    """In words what has grown beyond measure between the start and the end of a training; None where nothing has.

    Norms are ‖w_0‖ and ‖w_T‖ of all weights together, losses are means over examples in nats. A start below 1 counts as 1:
    weights that begin at 0 and a loss that begins near 0 may grow by any factor.
    """
    if last_norm > NORM_FACTOR * max(first_norm, 1.0):
        return f"‖w‖ grew from {first_norm:.3g} to {last_norm:.3g}, more than {NORM_FACTOR:g} times"
    if last_loss > LOSS_FACTOR * max(first_loss, 1.0):
        return f"the loss rose from {first_loss:.3g} to {last_loss:.3g}, more than {LOSS_FACTOR:g} times"
    return None


def norm(weights: Mapping[str, Any]) -> float:
    """‖w‖ over all arrays together, in float64."""
    flat = [np.asarray(one, dtype=np.float64).reshape(-1) for one in weights.values()]
    return float(np.sqrt(sum(float(x @ x) for x in flat)))
