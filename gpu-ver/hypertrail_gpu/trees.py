"""Trees of arrays: the arithmetic on them, what of them can be differentiated, and the names of their leaves.

None stands in the place of a leaf that is not floating point: JAX takes it for an empty tree, so such a tree goes through
vjp, jvp and vmap unharmed, and `filled` puts the leaves back.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
Tree = Any


def add(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    return jax.tree.map(jnp.subtract, a, b)


def scaled(factor: Any, tree: Tree) -> Tree:
    """factor · tree, each leaf in its own dtype."""
    return jax.tree.map(lambda a: jnp.asarray(factor, a.dtype) * a, tree)


def zeros(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)


def is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def floats(tree: Tree) -> Tree:
    """The same tree with None in place of every leaf that is not floating point: what can be differentiated."""
    return jax.tree.map(lambda a: a if is_float(a) else None, tree)


def filled(tree: Tree, moving: Tree) -> Tree:
    """`tree` with the leaves of `moving`, and its own where that has None: undoes `floats`."""
    return jax.tree.map(lambda a, b: a if b is None else b, tree, moving)


def norm(tree: Tree) -> Array:
    """Euclidean norm of all floating point leaves together."""
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(floats(tree))]
    return jnp.sqrt(sum(squares)) if squares else jnp.zeros(())


def dtype_of(tree: Tree) -> Any:
    """The dtype of the first floating point leaf: that of losses and norms."""
    return next(leaf.dtype for leaf in jax.tree.leaves(floats(tree)))


def length(tree: Tree) -> int:
    """The length of the leading axis."""
    return int(jax.tree.leaves(tree)[0].shape[0])


def strong(tree: Tree) -> Tree:
    """On the device, without weak types. `jnp.log(0.1)` is weakly typed and `jnp.float32(-2.3)` is not: without this the same
    number, once it has moved, would compile every program a second time."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, a.dtype) if isinstance(a, jax.Array) else jnp.asarray(np.asarray(a)), tree
    )


def named(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, such as "['hidden'][0]": the names of messages."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def on_host(leaf: Any) -> np.ndarray:
    """A NumPy array; of a typed random key its words."""
    leaf = jnp.asarray(leaf) if not hasattr(leaf, "dtype") else leaf
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def on_device(words: Any, like: Any) -> Array:
    """Undoes `on_host`. like: a leaf of the same dtype."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(like))
    return jnp.asarray(words, like.dtype)


# -- on the disk: float32, float64, int32 and int64 alone, under names that every format has ------------------------------------


def stored(tree: Tree) -> dict[str, np.ndarray]:
    """{name: array} of a tree, in dtypes that the formats have. Every value is kept exactly."""
    return {name: to_stored(leaf) for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)}


def names(tree: Tree) -> list[str]:
    """A name for each leaf, as files have them: its path, such as 'hidden/W'; of a tree that is one leaf, 'value'. Two paths that
    differ in other characters alone get numbers behind."""
    found: list[str] = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(filter(None, map(word_of, path))) or "value"
        found.append(name if name not in found else f"{name}.{len(found)}")
    return found


def word_of(entry: Any) -> str:
    """An entry of a path with letters, digits, '.', '_', '-' and '/' alone."""
    key = str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-/") else "." for c in key)
    return "/".join(filter(None, (part.strip(".") for part in clean.split("/"))))


def to_stored(leaf: Any) -> np.ndarray:
    """bfloat16 and float16 as float32, small integers and booleans as int32, unsigned ones by their bits."""
    array = on_host(leaf)
    if array.dtype in (np.float32, np.float64, np.int32, np.int64):
        return array
    if array.dtype in (np.uint32, np.uint64):
        return array.view(f"int{8 * array.dtype.itemsize}")
    return array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else np.int32)


def from_stored(array: np.ndarray, like: Any) -> Any:
    """Undoes `to_stored` and puts the array on the device."""
    target = on_host(like).dtype
    array = array.view(target) if target in (np.uint32, np.uint64) else array.astype(target, copy=False)
    return on_device(array, like)
