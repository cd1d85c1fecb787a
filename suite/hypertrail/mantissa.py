"""How far back steps can be undone in floating point: until the digits of a number are used up.

Undoing v ← γ v − (1−γ) g divides by γ, and so multiplies the rounding error by 1/γ: each step loses log2(1/γ) bits. Once more
bits are lost than the mantissa has, the velocity is noise, and so is every derivative that is taken with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from .errors import UsageError, VerificationFailure

BITS = {"float32": 24, "float64": 53}  # of the mantissa, the implied one included
ARRIVES = 0.01  # how far from the known start a pass may arrive, as a fraction of the size of what it compares


def horizon(gamma: float, precision: str = "float32") -> float:
    """mantissa / log2(1/γ): after so many steps at one momentum 0 < γ < 1 all is lost. float32: 158, 324, 823 at .9, .95, .98."""
    return BITS[precision] / -float(np.log2(gamma))


def undoable_steps(momenta: Iterable[np.ndarray], steps: int, precision: str) -> int:
    """The largest K for which undoing the last K of `steps` steps loses no more bits than the mantissa has.

    momenta: γ of each tensor, shape () or, per step, (steps,), all above 0; at each step the smallest of them counts.
    """
    smallest = np.min([np.broadcast_to(np.asarray(gamma, np.float64), (steps,)) for gamma in momenta], axis=0)
    lost = np.cumsum(-np.log2(smallest[::-1]))
    return int(np.searchsorted(lost, BITS[precision], side="right"))


def refuse_beyond(
    name: str, last: int, momenta: Iterable[np.ndarray], steps: int, precision: str, way_out: str
) -> None:
    """Raise UsageError where undoing the last `last` of `steps` steps loses more than the mantissa."""
    most = undoable_steps(momenta, steps, precision)
    if last > most:
        raise UsageError(
            f"{name} would undo {last} steps in {precision}, whose {BITS[precision]} bits are lost after {most} at this "
            f"momentum (each step loses log2(1/γ) bits): what came back would be noise; {way_out}"
        )


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def arrival(
    w: Mapping[str, np.ndarray],
    v: Mapping[str, np.ndarray],
    initial: Mapping[str, np.ndarray],
    final: Mapping[str, np.ndarray],
    velocity: Mapping[str, np.ndarray],
) -> float:
    """How far from the known start, w_0 = initial and v_0 = 0, a pass arrived at (w, v); 0 is exact, NaN where it overflowed.

    max(‖w − w_0‖ / max(‖w_0‖, ‖w_T‖),  ‖v‖ / ‖v_T‖)
    """
    weights = size({name: w[name] - np.asarray(one, np.float64) for name, one in initial.items()})
    scale = max(size(initial), size(final))
    return float(np.max([weights / max(scale, 1e-300), size(v) / max(size(velocity), 1e-300)]))


def refuse_arrival(name: str, distance: float, precision: str, way_out: str) -> None:
    """Raise VerificationFailure for a pass that arrived further from (w_0, v_0) than ARRIVES."""
    if not distance <= ARRIVES:
        raise VerificationFailure(
            f"{name} undid every step in {precision} and arrived {distance:.1e} (relative) away from w_0 and v_0 = 0, "
            f"allowed {ARRIVES:g}: too many digits were lost on the way; {way_out}"
        )


def size(arrays: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm of all arrays together, summed in float64."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(one, np.float64))) for one in arrays.values())))
