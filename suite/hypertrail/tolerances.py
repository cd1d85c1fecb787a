"""The tolerance table: one entry for each thing that is compared and each precision, every ε with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Tolerance:
    """epsilon: the largest relative difference that still counts as agreement."""

    epsilon: float
    reason: str


TABLE: dict[tuple[str, str], Tolerance] = {
    ("finite differences", "float64"): Tolerance(
        1e-6,
        "extrapolated central differences lose about half of the 16 digits to cancellation, kinks of relu some more",
    ),
    ("engines", "float64"): Tolerance(
        1e-10,
        "two derivations differ by the order of summation, some 1e-15 a step, and a short training amplifies that",
    ),
    ("engines", "float32"): Tolerance(
        1e-3, "the same with 7 digits in place of 16; for a look only, verify in float64"
    ),
    ("ways back", "float64"): Tolerance(
        1e-10, "the same states by another way: recomputed, undone in integers or carried forward, the same arithmetic"
    ),
    ("runs", "float64"): Tolerance(
        1e-9, "the same command on another machine sums in another order; on the same machine it repeats bit for bit"
    ),
    ("runs", "float32"): Tolerance(
        1e-4, "the same with 7 digits in place of 16; long trainings amplify it until the runs part for good"
    ),
}


def tolerance(comparison: str, precision: str) -> Tolerance:
    """The entry of the table. UsageError for a comparison that is not in it."""
    if (comparison, precision) not in TABLE:
        known = ", ".join(f"{c} in {p}" for c, p in TABLE)
        raise UsageError(f"no tolerance for {comparison} in {precision}, expected one of: {known}")
    return TABLE[comparison, precision]


FILL = 2.0**-36  # what the digits that fill the low end of v change it by in one step, at most: n / 2^52 with n < 2^16


def reversible(steps: int, momentum: float, learning_rate: float) -> Tolerance:
    """Reversible() against states kept at its effective momentum, float64: hypergradients, relative to their largest entry.

        ε = α T 2^-36 / (1 − γ)

    T = steps, γ = momentum, α = learning_rate (the largest of several). This bounds what the fill-in digits of all steps can
    move a weight by. That a hypergradient moves by no more is measured, not proved, and a chaotic run can exceed it. Where
    γ 2^16 has many factors of 2 (.5, .625, .75), "ways back" holds. UsageError for a momentum outside 0 … 1.
    """
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum {momentum}, expected 0 ≤ momentum < 1")
    epsilon = learning_rate * steps * FILL / (1 - momentum)
    return Tolerance(
        epsilon,
        f"digits that fill the low end of v change it by up to 2^-36 a step, so in {steps} steps a weight by up to {epsilon:.1e}",
    )
