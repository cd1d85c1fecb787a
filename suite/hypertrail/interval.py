"""Mean and interval of a few numbers, and what may be concluded from them. Every "mean ± half" of the project comes from here.

Four rules hold in code, for every table, figure and verdict:

- the half width of an interval is at least one example: an error rate on N examples cannot tell 1/N apart from 0;
- an interval does not leave the values that the quantity can take: percentages stay within 0 … 100;
- numbers have a fixed count of decimals, the same for a mean and its interval;
- fewer than three seeds give no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
# Seeds for a verdict. Two have one difference between them, and an interval of 12.7 standard errors on each side.
FEWEST = 3


@dataclass(frozen=True)
class Unit:
    """What the numbers of a table are: which values they can take and how they are written.

    digits: decimals; None: as many as the size of the numbers asks for. resolution: the smallest difference that one example can
    make (0: any). low, high: the least and the greatest possible value. signed: written with its sign.
    """

    digits: int | None = None
    resolution: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    signed: bool = False

    @property
    def difference(self) -> Unit:
        """The unit of differences between two such numbers."""
        return replace(self, low=self.low - self.high, high=self.high - self.low, signed=True)


def percent(examples: int, digits: int = 2) -> Unit:
    """Error rates on so many examples, in percent."""
    return Unit(digits, 100 / examples, 0.0, 100.0)


@dataclass(frozen=True)
class Estimate:
    """low … high is the interval in which the mean of all seeds lies with probability 95 %, if they scatter like a normal
    distribution: mean ± half, cut to the values that are possible. n = 1: no interval (sd, half, low and high are None).
    """

    n: int
    mean: float
    sd: float | None
    half: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], unit: Unit = Unit()) -> Estimate:
    """mean ← Σ x / n,  sd² ← Σ (x − mean)² / (n − 1),  half ← max(t(.975, n − 1) sd / √n, resolution).

    t: the quantile of Student's distribution, from SciPy. ValueError where there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an estimate of no values at all; expected at least one")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None, None, None)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    half = max(quantile(n - 1) * sd / math.sqrt(n), unit.resolution)
    return Estimate(n, mean, sd, half, max(mean - half, unit.low), min(mean + half, unit.high))


def quantile(degrees: int, level: float = LEVEL) -> float:
    """The t ≥ 0 with P(|T| ≤ t) = level, for T of Student's distribution with so many degrees of freedom (≥ 1)."""
    # What scipy.stats.t.ppf calls, without the second that scipy.stats takes to import.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def with_half(values: Iterable[float], unit: Unit) -> str:
    """'1.23 ± 0.04'; of a single value the value alone; '80.32 (0.00 to 100.00)' where the interval is cut."""
    return in_words(estimate([float(x) for x in values], unit), unit)


def in_words(found: Estimate, unit: Unit) -> str:
    """An estimate as `with_half` writes it."""
    digits = decimals(found) if unit.digits is None else unit.digits
    plain, signed = f".{digits}f", f"{'+' if unit.signed else ''}.{digits}f"
    if unit.digits is None and extreme(found):
        plain, signed = ".2e", f"{'+' if unit.signed else ''}.3e"
    if found.half is None or found.low is None or found.high is None:
        return f"{found.mean:{signed}}"
    if found.mean - found.half < found.low or found.mean + found.half > found.high:
        return f"{found.mean:{signed}} ({found.low:{signed}} to {found.high:{signed}})"
    return f"{found.mean:{signed}} ± {found.half:{plain}}"


def decimals(found: Estimate) -> int:
    """So many that the half width and the mean have two digits each, or a mean without interval four."""
    sizes = [(abs(found.mean), 2), (found.half, 2)] if found.half else [(abs(found.mean), 4)]
    wanted = [digits - 1 - math.floor(math.log10(size)) for size, digits in sizes if size and math.isfinite(size)]
    return min(max([0, *wanted] if wanted else [2]), 12)


def extreme(found: Estimate) -> bool:
    """Whether a number with a point would be unreadable: above ten millions, or mostly zeros."""
    largest = max(abs(found.mean), found.half or 0.0)
    return largest >= 1e7 or 0 < largest < 1e-4


def too_few(n: int, word: str = "seed") -> str:
    """'2 seeds: no verdict' where n is too few for one; else ''."""
    return f"{n} {word}{'s' if n > 1 else ''}: no verdict" if n < FEWEST else ""


def verdict(differences: Sequence[float], unit: Unit = Unit()) -> str:
    """helps, loses or ties: where the 95 % interval of paired differences lies (all below 0: helps).

    unit: of the differences. 'n seeds: no verdict' where there are fewer than three.
    """
    n = len(differences)
    if n < FEWEST:
        return too_few(n)
    found = estimate([float(x) for x in differences], unit)
    if found.half is None:
        raise ValueError(f"{n} differences without an interval")
    return "helps" if found.mean + found.half < 0 else "loses" if found.mean - found.half > 0 else "ties"
