"""Does the best point of a grid lie on its edge? Then the grid was too small to contain its best point, and a verdict says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SIGNS = {"learning_rate": "α", "momentum": "μ", "l2": "λ", "noise": "σ", "rate": "α", "every": "Δ"}


def edge(points: Sequence[Mapping[str, float]], best: Mapping[str, float]) -> str:
    """'α 0.3 and λ 0.001 at the edge of the grid' for every axis on whose first or last value `best` lies; '' where none.

    points: all that the choice was made from, {axis: value}. An axis is what takes several values; one of two has no inside.
    """
    ends = []
    for axis, value in best.items():
        values = {point[axis] for point in points if axis in point}
        if len(values) > 1 and (close(value, min(values)) or close(value, max(values))):
            ends.append(f"{SIGNS.get(axis, axis)} {value:g}")
    return f"{' and '.join(ends)} at the edge of the grid" if ends else ""


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
