"""What a step does to a large tensor, some rows at a time: each row is read from memory once.

XLA on a processor writes one loop for each array that is computed: a penalty's value, v' and w' are three, and each of them reads
its arrays from memory again. `sweep` walks once over blocks of rows that fit the second cache, and does all of it there. The same
numbers as the loops over whole tensors, but for the order in which sums are taken.

Arrays are written in place. XLA copies an array that is written in a loop wherever something that reads the old numbers is not
known to come first: `later` makes it known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = Any
Tree = Any
Blocks = Mapping[str, Array]

BLOCK_BYTES = 64 << 10  # of one array in a block: five or six of them are in the cache together
LEAST_BYTES = 1 << 20  # smaller tensors stay in the cache from one loop to the next


def rows_of_block(shape: tuple[int, ...], itemsize: int) -> int:
    """How many rows (all axes but the last taken together) a block of this tensor has: a divisor of their number; 0 for a tensor
    that is small, has no rows, or no divisor of a useful size."""
    if len(shape) < 2:
        return 0
    row = shape[-1] * itemsize
    rows = 1
    for n in shape[:-1]:
        rows *= n
    most = BLOCK_BYTES // row
    if rows * row < LEAST_BYTES or not most:
        return 0
    best = next(k for k in range(min(most, rows), 0, -1) if rows % k == 0)
    return best if 4 * best >= most else 0


def later(x: Any, those: Iterable[Array]) -> Any:
    """x, but not before `those` have been computed. (No number is greater than infinity; the compiler does not know.)"""
    dtype = jnp.result_type(x)
    return x + sum(jnp.asarray(one[(0,) * one.ndim] > jnp.inf, dtype) for one in those)


def sweep(
    w: Array,
    v: Array,
    others: Blocks,
    terms: Callable[[Array, Array, Blocks], tuple[Array, ...]],
    velocity: Callable[[Array, Array, Blocks], Array],
    move: Callable[[Array, Array, Blocks], Array] | None,
    start: Array,
) -> tuple[Array, Array, tuple[Array, ...]]:
    """One walk over the rows of a tensor, w and v (…, n):

        for each block of rows:   s += terms(w, v, others);   v ← velocity(w, v, others);   w ← move(w, v, others)

    others: what else is read, of the tensor's shape or broadcasting against it, g among it. All three functions are elementwise.
    start: 0, an int32 that the walk waits for. → w', v' and for each term its sum over blocks, (rows of a block, n): what is left
    is to add these up. Cost: one pass over the arrays.
    """
    shape, k = w.shape, rows_of_block(w.shape, w.dtype.itemsize)
    table = (-1, shape[-1])
    w, v = w.reshape(table), v.reshape(table)
    others = {
        key: x if jnp.ndim(x) < 2 else jnp.broadcast_to(x, (*shape[:-1], x.shape[-1])).reshape(-1, x.shape[-1])
        for key, x in others.items()
    }

    def at(i: Array, *arrays: Array) -> tuple:
        """Block i of w, v and the others."""
        blocks = [lax.dynamic_slice_in_dim(x, i * k, k) for x in arrays]
        cut = {key: x if x.ndim < 2 else lax.dynamic_slice_in_dim(x, i * k, k) for key, x in others.items()}
        return *blocks, cut

    def put(x: Array, block: Array, i: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, block, i * k, 0)

    def block(i: Array, state: tuple) -> tuple:
        w, v, sums = state
        i = i + start
        sums = jax.tree.map(jnp.add, sums, terms(*at(i, w, v)))
        i = later(i, sums)
        v = put(v, velocity(*at(i, w, v)), i)
        if move:
            i = later(i, [v])
            w = put(w, move(*at(i, w, v)), i)
        return w, v, sums

    sums = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(lambda: terms(*at(start, w, v))))
    w, v, sums = lax.fori_loop(0, len(w) // k, block, (w, v, sums))
    return w.reshape(shape), v.reshape(shape), sums
