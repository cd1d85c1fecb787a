"""Mean and interval of a few numbers, by Student's t, whose distribution for whole degrees of freedom is a short sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """mean ± half is the interval in which the mean of all seeds lies with probability 95 %, if they scatter like a normal
    distribution. n = 1: no interval (sd and half are None).
    """

    n: int
    mean: float
    sd: float | None
    half: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """mean ← Σ x / n,  sd² ← Σ (x − mean)² / (n − 1),  half ← t(.975, n − 1) sd / √n."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    return Estimate(n, mean, sd, quantile(n - 1) * sd / math.sqrt(n))


def with_half(values: Iterable[float], form: str) -> str:
    """'1.23 ± .04' in this format ('.2f'; '+.2f': the mean with its sign); of a single value the value alone."""
    found = estimate([float(x) for x in values])
    return f"{found.mean:{form}}" + ("" if found.half is None else f" ± {found.half:{form.replace('+', '')}}")


def quantile(ν: int, level: float = LEVEL) -> float:
    """The t ≥ 0 with P(|T| ≤ t) = level for ν ≥ 1 degrees of freedom, by bisection of `inside`."""
    low, high = 0.0, 1.0
    while inside(high, ν) < level:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle, ν) < level else (low, middle)
    return high


def inside(t: float, ν: int) -> float:
    """P(|T| ≤ t) for ν whole degrees of freedom, with θ = arctan(t / √ν): Abramowitz and Stegun 26.7.3 (odd), 26.7.4 (even)."""
    θ = math.atan(t / math.sqrt(ν))
    s, c = math.sin(θ), math.cos(θ)
    if ν % 2:
        term, total = c, c if ν > 1 else 0.0
        for k in range(3, ν - 1, 2):
            term *= c * c * (k - 1) / k
            total += term
        return 2 / math.pi * (θ + s * total)
    term = total = 1.0
    for k in range(2, ν - 1, 2):
        term *= c * c * (k - 1) / k
        total += term
    return s * total
