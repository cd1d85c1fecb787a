"""The state of a run between two blocks as a flat dict of arrays, which can be saved, and taken up again to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError

from ..inner import State
from ..trees import named, on_device
from .block import Place

Array = Any
Tree = Any
Saved = dict[str, Any]

WAY_OUT = "go on with the task, method and precision that saved it"


def parts(place: Place) -> dict[str, Tree]:
    return {**place.s._asdict(), "hyper": place.hyper, "memory": place.memory}


def flat(place: Place, step: int, block: int) -> Saved:
    """{name: array}: "w['hidden']['W']", "v…", "carried…", "hyper['rate']", "memory…" on the device, and the whole numbers "step"
    and "block". No copy is made. A typed random key is given as its words."""
    arrays = {part + name: words(leaf) for part, tree in parts(place).items() for name, leaf in named(tree).items()}
    return arrays | {"step": np.array(step), "block": np.array(block)}


def words(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def taken_up(first: Place, state: Mapping[str, Any]) -> tuple[Place, int, int]:
    """(the place, step, block) that `flat` described. first: a place of the same run.

    Raises UsageError where an array is missing, is one too many, or has another shape or dtype.
    """
    expected = flat(first, 0, 0)
    surplus, missing = sorted(set(state) - set(expected)), sorted(set(expected) - set(state))
    if surplus or missing:
        raise UsageError(f"state has {surplus or 'nothing'} too many and lacks {missing or 'nothing'}; {WAY_OUT}")

    def of_leaf(name: str, like: Array) -> Array:
        array, true = state[name], expected[name]
        if getattr(array, "dtype", None) == np.dtype("V2") and true.dtype.itemsize == 2:
            array = np.asarray(array).view(true.dtype)  # .npz gives bfloat16 back as raw bytes
        if np.shape(array) != true.shape or array.dtype != true.dtype:
            raise UsageError(f"state {name} is {shown(array)}, this run has {shown(true)}; {WAY_OUT}")
        return on_device(array, like)

    found = {
        part: jax.tree_util.tree_map_with_path(
            lambda path, like, part=part: of_leaf(part + jax.tree_util.keystr(path), like), tree
        )
        for part, tree in parts(first).items()
    }
    place = Place(State(found["w"], found["v"], found["carried"]), found["hyper"], found["memory"])
    return place, int(state["step"]), int(state["block"])


def shown(array: Any) -> str:
    return f"{getattr(array, 'dtype', type(array).__name__)}{list(np.shape(array))}"
