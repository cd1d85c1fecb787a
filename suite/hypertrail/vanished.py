"""Values that are positive where they are declared and 0 in the precision of the computation: found here, and named.

A learning rate of 1e-50 is 0 in float32. Training then moves nothing, its hypergradient is 0 as well, and no step says why.
Compiled programs also take for 0 what lies below the smallest normal number (1.2e-38 in float32), so that is the limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import UsageError
from .hyperparameters import Hyper, Hyperparameter


def refuse_vanished(constants: Mapping[str, float], declared: Sequence[Hyperparameter], dtype: np.dtype) -> None:
    """UsageError for a constant of the training, or a declared init, that is positive and 0 in this dtype.

    constants: {name, as the error says it: value}.
    """
    for name, value in constants.items():
        if value != 0 and vanishes(value, dtype):
            raise UsageError(f"{name} {words(value, dtype)}")
    for one in declared:
        if one.init != 0 and holds_no_zero(one) and vanishes(value_of(one, one.free(one.init), dtype), dtype):
            raise UsageError(f"{one.kind}: init {words(one.init, dtype)}")


def vanished(declared: Sequence[Hyperparameter], hyper: Hyper, dtype: np.dtype) -> Iterator[str]:
    """A sentence for each kind of which a value is 0 in this dtype, though its representation is a finite number.

    Cost: one pass over the hyperparameters, in NumPy.
    """
    for one in declared:
        if not holds_no_zero(one):
            continue
        for name, u in hyper[one.kind].items():
            u = np.asarray(u)
            lost = np.isfinite(u) & vanishes(value_of(one, u, dtype), dtype)
            if lost.any():
                yield f"{one.kind} of {name}: {int(lost.sum()):,} of {u.size:,} values are 0 in {dtype}"
                break


def holds_no_zero(one: Hyperparameter) -> bool:
    """Whether 0 has no finite representation, as for what is held as its logarithm: then a value of 0 is a loss of digits."""
    with np.errstate(all="ignore"):
        return not np.isfinite(one.free(np.float64(0.0)))


def value_of(one: Hyperparameter, u: Any, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(one.value(np.asarray(u, dtype)))


def vanishes(value: Any, dtype: np.dtype) -> Any:
    """Whether the value is below the smallest normal number."""
    return np.abs(np.asarray(value, np.float64)) < float(np.finfo(dtype).tiny)


def words(value: float, dtype: np.dtype) -> str:
    way_out = "; use a larger one, or float64" if dtype == np.float32 else "; use a larger one"
    return f"{value:g} is 0 in {dtype}, whose smallest number is {np.finfo(dtype).tiny:.1e}{way_out}"
