"""A derivative by differences alone, with an estimate of its error: what hypergradients are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class Measured(NamedTuple):
    """A derivative, and how far it may be from the true one; (nan, inf) where no difference was finite."""

    value: float
    error: float


def measured(f: Callable[[float], float], step: float, levels: int, enough: float) -> Measured:
    """df/dx at 0 by Ridders' method: central differences at steps halved again and again, extrapolated to step 0.

        D_{i,0} = (f(h_i) − f(−h_i)) / 2h_i,   D_{i,j} = D_{i,j−1} + (D_{i,j−1} − D_{i−1,j−1}) / (4ʲ − 1),   h_i = h / 2ⁱ

    Returns the entry with the smallest estimated error, as soon as one is below `enough`. Cost: 2 evaluations a level.
    Source: Ridders 1982, Advances in Engineering Software 4; Press et al., Numerical Recipes, section 5.7.
    """
    best = Measured(math.nan, math.inf)
    before: list[float] = []
    for i in range(levels):
        h = step / 2**i
        row = [(f(h) - f(-h)) / (2 * h)]
        for j, older in enumerate(before, 1):
            row.append(row[-1] + (row[-1] - older) / (4**j - 1))
            estimate = max(abs(row[j] - row[j - 1]), abs(row[j] - older))
            if estimate < best.error:
                best = Measured(row[j], estimate)
        if best.error <= enough:
            return best
        before = row
    return best
