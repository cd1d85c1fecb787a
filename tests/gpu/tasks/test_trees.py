"""The names of arrays in files."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail_gpu.inner import State
from hypertrail_gpu.midway import as_dicts, restored
from hypertrail_gpu.trees import names, stored


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (np.zeros(1), ["value"]),
        ({"hidden": {"W": np.zeros(1)}, "b": np.zeros(1)}, ["b", "hidden/W"]),
        ([np.zeros(1), (np.zeros(1),)], ["0", "1/0"]),
        (State({"a/W": np.zeros(1)}, {"a/W": np.zeros(1)}, None), ["w/a/W", "v/a/W"]),
        ({"a b": np.zeros(1), "a.b": np.zeros(1)}, ["a.b", "a.b.1"]),
        ({"../x": np.zeros(1), "λ": np.zeros(1)}, ["x", "value"]),
    ],
)
def test_names(tree: object, expected: list[str]) -> None:
    assert names(tree) == expected


def test_every_dtype_comes_back(tmp_path: object) -> None:
    tree = {
        "half": jnp.asarray([1.5, -2.0], jnp.bfloat16),
        "flag": jnp.asarray([True, False]),
        "word": jnp.asarray([2**32 - 1], jnp.uint32),
        "small": jnp.asarray([-3], jnp.int8),
        "key": jax.random.key(7),
        "double": jnp.asarray([1e-300]),
    }
    kept = stored(tree)
    assert {array.dtype.name for array in kept.values()} <= {"float32", "float64", "int32", "int64"}
    back = restored(kept, tree)
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert one.dtype == two.dtype
        assert jnp.array_equal(one, two)
    assert set(as_dicts(State(tree, None, None))) == {"w", "v", "running"}
