"""A training that was stopped in its middle goes on there: what it needs, in one file, put there between two chunks of steps.

    engine.train(problem, hyper, keep, progress, Midway(folder / "training.npz", k))

It is looked at by trainings that keep nothing but the ends, or every state in a folder; others begin again (their states lie in
memory and are gone). While the reverse passes of such a training are at work, the file holds its end: a run that is stopped there
goes on with the training done. Of a reverse pass itself nothing is kept. So what is done again after a stop is

    in a training         the steps since the last write: none after a signal, those of EVERY seconds after a kill
    in a reverse pass     the reverse passes of this meta-iteration, from their beginning
    either, where the states lie in memory (also checkpoints, the last K, or integers)     the whole meta-iteration

The file says which training it is of, by a mark (tuning.py). A file that cannot be read, or is of another training, is as good as
none: the training begins at its beginning.

A job must therefore last longer than the hypergradient of one meta-iteration takes (with its training, in the last case).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypertrail_data import DataError

from .. import stopping
from ..errors import UsageError
from ..methods import MEASURED_STEPS
from ..records import Params
from . import arrays

EVERY = 60.0  # seconds between two writes: what is lost at most, and a training that is shorter writes nothing


@dataclass(frozen=True)
class Middle:
    """A training before step `step`: its state, and what its record needs of the steps before.

    w, v, running: as the engine holds them. losses: (step,) float64; distances: (min(step, 20),) float64, ‖w_{t+1} − w_0‖;
    seconds: spent so far, over all starts.
    """

    step: int
    w: Params
    v: Params
    running: Params
    losses: np.ndarray
    distances: np.ndarray
    seconds: float


class Midway:
    """The file of one training. index: of the meta-iteration; mark: a word that no other training has. A file of another
    training is not looked at."""

    def __init__(self, path: Path, index: int, mark: str = "") -> None:
        self.path, self.index, self.mark = path, index, mark
        self._last = time.monotonic()
        self.ended = False  # whether it holds the end of the training

    @property
    def about(self) -> dict[str, Any]:
        """What a folder of states remembers of the training that they are of."""
        return {"meta_iteration": self.index, "mark": self.mark}

    def read(self) -> Middle | None:
        """Where to go on; None: at the beginning (nothing is there, or not whole, or another training's)."""
        try:
            one = arrays.load(self.path)
            if (int(one["index"]), str(one["mark"])) != (self.index, self.mark):
                return None
            middle = Middle(
                step=int(one["step"]),
                losses=one["losses"],
                distances=one["distances"],
                seconds=float(one["seconds"]),
                **{name: one.get(name, {}) for name in ("w", "v", "running")},
            )
        except (DataError, UsageError, KeyError, TypeError, ValueError):
            return None
        return middle if plausible(middle) else None

    def due(self) -> bool:
        """Whether it is time to write: after EVERY seconds, or because the `stopping.here` that follows will stop."""
        stops = stopping.coming()  # first: every process asks, whatever its clock says
        return stops or time.monotonic() - self._last >= EVERY

    def write(self, one: Middle, ended: bool = False) -> None:
        """On the disk when this returns; states that are kept in a folder must be there before. Raises OSError."""
        arrays.save(self.path, {"index": np.array(self.index), "mark": np.array(self.mark), **vars(one)})
        self._last, self.ended = time.monotonic(), ended

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def plausible(middle: Middle) -> bool:
    """Whether the numbers of a file can be those of a training."""
    n = middle.step
    measured = {"losses": n, "distances": min(n, MEASURED_STEPS)}
    return n > 0 and all(
        isinstance(one := getattr(middle, name), np.ndarray) and one.shape == (count,) and one.dtype == np.float64
        for name, count in measured.items()
    )


def place(path: Path) -> tuple[int, int]:
    """The meta-iteration and the step that a file speaks of; (-1, -1), which is before everything else, where there is none."""
    try:
        one = arrays.load(path)
        return int(one["index"]), int(one["step"])
    except (DataError, UsageError, KeyError, TypeError, ValueError):
        return -1, -1
