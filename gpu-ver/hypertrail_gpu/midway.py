"""The middle of a training on the disk: a State as `hypertrail.runs.midway` keeps it, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from hypertrail.runs.arrays import alike
from hypertrail.runs.midway import Middle, Midway

from .inner import State
from .trees import from_stored, stored

PARTS = ("w", "v", "running")  # of a file; the last is the state that the loss hands on


@dataclass(frozen=True)
class Here:
    """A training before step `step`. losses, distances: of the steps before; seconds: spent so far, over all starts."""

    step: int
    state: State
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    distances: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: float = 0.0


def taken_up(midway: Midway, start: State) -> Here:
    """Where the training goes on; the beginning where the file holds no middle of a training with such a state."""
    middle = midway.read()
    if middle is None or not alike({part: getattr(middle, part) for part in PARTS}, as_dicts(start)):
        return Here(0, start)
    parts = [restored(getattr(middle, part), like) for part, like in zip(PARTS, start, strict=True)]
    return Here(middle.step, State(*parts), middle.losses, middle.distances, middle.seconds)


def write(midway: Midway, here: Here) -> None:
    midway.write(
        Middle(here.step, **as_dicts(here.state), losses=here.losses, distances=here.distances, seconds=here.seconds)
    )


def as_dicts(state: State) -> dict[str, dict[str, np.ndarray]]:
    return {part: stored(tree) for part, tree in zip(PARTS, state, strict=True)}


def restored(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The tree whose arrays these are."""
    leaves = [arrays[name] for name in stored(like)]
    return jax.tree.map(from_stored, jax.tree.unflatten(jax.tree.structure(like), leaves), like)
