"""Euclidean projections: the array of a set that is nearest to a given one, for hyperparameters held as the numbers they are.

    BudgetSum(30).project(a)      argmin ‖x − a‖²  over  0 ≤ x ≤ 1,  Σ x ≤ 30

Each is exact up to rounding and costs one sort of the n numbers. They act on all numbers of an array together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .errors import UsageError


@dataclass(frozen=True)
class Box:
    """0 ≤ x ≤ 1: each number is clipped for itself."""

    couples: ClassVar[bool] = False  # whether a number's projection depends on the others

    def project(self, a: np.ndarray) -> np.ndarray:
        return np.clip(a, 0.0, 1.0)


@dataclass(frozen=True)
class BudgetSum:
    """0 ≤ x ≤ 1 and Σ x ≤ limit: at most so many examples' worth of weight.

        x = clip(a − τ, 0, 1) with the smallest τ ≥ 0 for which Σ x ≤ limit

    Source: Franceschi, Donini, Frasconi, Pontil 2017, section 5.1 (data hyper-cleaning, Σ ≤ R).
    """

    limit: float
    couples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.limit < np.inf:
            raise UsageError(f"BudgetSum limit {self.limit}, expected a number ≥ 0")

    def project(self, a: np.ndarray) -> np.ndarray:
        clipped = np.clip(a, 0.0, 1.0)
        return clipped if clipped.sum() <= self.limit else np.clip(a - shift_to(a, self.limit), 0.0, 1.0)


@dataclass(frozen=True)
class Simplex:
    """x ≥ 0 and Σ x = total: how a fixed amount of weight is shared out.

        x = max(a − τ, 0) with the τ for which Σ x = total

    Source: Held, Wolfe, Crowder 1974; Duchi, Shalev-Shwartz, Singer, Chandra 2008, figure 1.
    """

    total: float = 1.0
    couples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.total < np.inf:
            raise UsageError(f"Simplex total {self.total}, expected a positive number")

    def project(self, a: np.ndarray) -> np.ndarray:
        falling = np.sort(a, axis=None)[::-1]
        shifts = (np.cumsum(falling) - self.total) / np.arange(1, falling.size + 1)
        tau = shifts[np.flatnonzero(falling >= shifts)[-1]]
        return np.maximum(a - tau, 0.0)


Projection = Box | BudgetSum | Simplex


def shift_to(a: np.ndarray, total: float) -> float:
    """The τ with Σ clip(a − τ, 0, 1) = total, for 0 ≤ total ≤ n.

    The sum falls with τ along straight lines that break where a number arrives at 1 or at 0: the piece that holds the total is
    found among the sorted breaks, and τ within it by interpolation.
    """
    rising = np.sort(a, axis=None)
    below = np.concatenate([[0.0], np.cumsum(rising)])  # below[i]: the sum of the i smallest
    breaks = np.sort(np.concatenate([rising - 1.0, rising]))
    inside, full = np.searchsorted(rising, breaks, side="right"), np.searchsorted(rising, breaks + 1.0, side="right")
    sums = (rising.size - full) + (below[full] - below[inside]) - (full - inside) * breaks
    right = min(max(int(np.searchsorted(-sums, -total, side="left")), 1), breaks.size - 1)  # the first sum ≤ total
    fall = sums[right - 1] - sums[right]
    part = (sums[right - 1] - total) / fall if fall > 0 else 0.0
    return float(breaks[right - 1] + part * (breaks[right] - breaks[right - 1]))
