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
    # Reversible() at a momentum that is rounded up to n/2^16, against states kept at that effective momentum. Where n is small
    # (.5, .625, .75) the row above holds.
    ("reversible", "float64"): Tolerance(
        2e-9,
        "the digits that fill the low end of v change it by up to n/2^52 < 2^-36 a step, so a weight by up to α T 2^-36 / (1−γ): "
        "1.7e-9 after 40 steps with α = .3, γ = .9; a hypergradient moves as the weights do (measured: 7e-10)",
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
