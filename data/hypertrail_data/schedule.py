"""Which examples each elementary step sees: a pure function of (seed, step), so that it can be replayed backwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from . import checks
from .streams import generator

MOST_EXAMPLES = 2**31 - 1  # a row of the train split is an int32 here


@dataclass(frozen=True)
class BatchSchedule:
    """Batches of constant size, drawn without replacement within an epoch, or ("replacement") with it.

    ``order="fixed"`` draws one permutation and walks through it again in every epoch; ``order="reshuffled"`` draws a fresh
    one per epoch. The ``examples % batch`` last entries of an epoch's permutation are left out, so that every batch has
    the same shape and a compiled step is compiled once: with ``"fixed"`` the same few examples are never seen, with
    ``"reshuffled"`` others are left out each time. ``order="replacement"`` draws every entry of every batch from all
    examples, so that one may come twice in a batch and others never; an epoch is then a number of steps only.

    Raises ValueError for numbers that are no integers, more than 2^31 - 1 examples, ``batch`` outside 1 .. examples, an
    unknown order, or a negative seed.
    """

    examples: int
    batch: int
    seed: int
    order: Literal["fixed", "reshuffled", "replacement"] = "fixed"

    def __post_init__(self) -> None:
        for name in ("examples", "batch", "seed"):
            value = getattr(self, name)
            if not checks.is_integer(value):
                raise ValueError(f"{name} is {checks.shown(value)}; expected an integer")
        if self.examples > MOST_EXAMPLES:
            raise ValueError(f"examples is {self.examples}; expected at most {MOST_EXAMPLES}, as indices are int32")
        if not 1 <= self.batch <= self.examples:
            raise ValueError(f"batch is {self.batch}; expected 1 .. {self.examples}, the number of examples")
        if self.order not in ("fixed", "reshuffled", "replacement"):
            raise ValueError(f"order is {self.order!r}; expected 'fixed', 'reshuffled' or 'replacement'")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected an integer >= 0")

    @property
    def steps_per_epoch(self) -> int:
        """examples // batch."""
        return self.examples // self.batch

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Rows of the train split for the steps start .. stop - 1, int32 (stop - start, batch).

        Costs O(stop - start) batches, plus one permutation for each epoch not met lately. Raises ValueError unless
        0 <= start <= stop are integers.
        """
        if not checks.is_integer(start) or not checks.is_integer(stop):
            raise ValueError(f"steps {checks.shown(start)} .. {checks.shown(stop)}; expected two integers")
        if not 0 <= start <= stop:
            raise ValueError(f"steps {start} .. {stop}; expected 0 <= start <= stop")
        epochs, places = np.divmod(np.arange(start, stop), self.steps_per_epoch)
        if self.order == "fixed":
            return self._epoch(None)[places]
        out = np.empty((stop - start, self.batch), np.int32)
        for epoch in np.unique(epochs):
            out[epochs == epoch] = self._epoch(int(epoch))[places[epochs == epoch]]
        return out

    def _epoch(self, epoch: int | None) -> np.ndarray:
        """All batches of one epoch, int32 (steps_per_epoch, batch), read-only."""
        if self.order == "replacement":
            assert epoch is not None  # only a fixed order has one epoch for all
            return _with_replacement(self.examples, self.seed, epoch, self.steps_per_epoch, self.batch)
        order = _permutation(self.examples, self.seed, epoch)
        return order[: self.steps_per_epoch * self.batch].reshape(self.steps_per_epoch, self.batch)


@lru_cache(maxsize=8)  # a walk, forwards or backwards, meets one epoch after the other
def _permutation(examples: int, seed: int, epoch: int | None) -> np.ndarray:
    rng = generator(seed, "batches") if epoch is None else generator(seed, "batches", epoch)
    order = rng.permutation(examples).astype(np.int32)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=8)
def _with_replacement(examples: int, seed: int, epoch: int, steps: int, batch: int) -> np.ndarray:
    rows = generator(seed, "batches", epoch).integers(0, examples, (steps, batch), dtype=np.int32)
    rows.flags.writeable = False
    return rows
