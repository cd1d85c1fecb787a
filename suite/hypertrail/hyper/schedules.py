"""How a hyperparameter depends on the step: T numbers, or few that T are made of. A schedule is a linear map of u, so the
representation and its bounds hold for every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """T numbers made of `count(T)` ones: u_t = Σ_k matrix[t, k] u_k."""

    def count(self, steps: int) -> int:
        raise NotImplementedError

    def matrix(self, steps: int) -> np.ndarray | None:
        """(T, count), float64; None: u_t = u_k itself."""
        raise NotImplementedError

    def pieces(self, steps: int) -> np.ndarray | None:
        """(T,) the k of each step, where every row of the matrix holds a single 1; None: it does not."""
        return None


@dataclass(frozen=True)
class EachStep(Schedule):
    """One number for each step."""

    def count(self, steps: int) -> int:
        return steps

    def matrix(self, steps: int) -> None:
        return None


@dataclass(frozen=True)
class Bins(Schedule):
    """Piecewise constant: `bins` stretches whose lengths differ by one step at most."""

    bins: int

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise UsageError(f"Bins({self.bins}), expected at least 1")

    def count(self, steps: int) -> int:
        if self.bins > steps:
            raise UsageError(f"Bins({self.bins}) for {steps} steps, expected at most one bin for each step")
        return self.bins

    def pieces(self, steps: int) -> np.ndarray:
        return (np.arange(steps) * self.count(steps)) // steps

    def matrix(self, steps: int) -> np.ndarray:
        return np.eye(self.count(steps))[self.pieces(steps)]


@dataclass(frozen=True)
class Spline(Schedule):
    """A natural cubic spline through `knots` numbers at equal distances, the first at step 0 and the last at step T − 1.

    With two knots it is a straight line in u, so a geometric decay of a `Log`. u may overshoot its knots in between; bounds hold
    for the knots alone.
    """

    knots: int

    def __post_init__(self) -> None:
        if self.knots < 2:
            raise UsageError(f"Spline({self.knots}), expected at least 2 knots")

    def count(self, steps: int) -> int:
        if self.knots > steps:
            raise UsageError(f"Spline({self.knots}) for {steps} steps, expected at most one knot for each step")
        return self.knots

    def matrix(self, steps: int) -> np.ndarray:
        from scipy.interpolate import CubicSpline  # scipy costs a third of a second, and no other schedule needs it

        at = np.linspace(0.0, steps - 1.0, self.count(steps))
        matrix: np.ndarray = CubicSpline(at, np.eye(self.knots), bc_type="natural")(np.arange(steps))
        return matrix
