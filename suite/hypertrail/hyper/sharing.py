"""How one hyperparameter is shared by many weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UsageError

Where = Callable[[str, tuple[int, ...]], bool]
LEVELS = ("network", "layer", "unit", "parameter")
NETWORK = "network"


@dataclass(frozen=True)
class Shared:
    """Which weights have a number of their own.

    by: 'network', one number for all weights; 'layer', one for each array of weights; 'unit', one for each entry of an array's
    last axis, which is the output unit of a layer; 'parameter', one for each weight; or a function (name, shape) → the name of a
    group, one number for each group. The name of an array is its path in the tree of the weights: "['hidden']['W']".
    where: (name, shape) → whether the array has a number at all, such as `lambda name, shape: len(shape) > 1` for a penalty
    that leaves biases alone. elsewhere: the value of the other arrays.
    """

    by: str | Callable[[str, tuple[int, ...]], str] = "layer"
    where: Where | None = None
    elsewhere: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.by) and self.by not in LEVELS:
            raise UsageError(
                f"Shared({self.by!r}), expected one of {', '.join(LEVELS)}, or a function (name, shape) → group"
            )

    def reaches(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.where is None or bool(self.where(name, shape))

    def group(self, name: str, shape: tuple[int, ...]) -> str:
        """The name of the number, or of the array of numbers, that these weights have."""
        if callable(self.by):
            return str(self.by(name, shape))
        return NETWORK if self.by == NETWORK else name

    def held(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of that array."""
        if self.by == "unit":
            return shape[-1:]
        return shape if self.by == "parameter" else ()
