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
    arrays: Blocks,
    writes: Mapping[str, Callable[[Blocks], Array]],
    terms: Callable[[Blocks], tuple[Array, ...]],
    start: Array,
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    """One walk over the rows of a tensor:

        for each block of rows:   s += terms(arrays);   for each name, f of writes, in order:  arrays[name] ← f(arrays)

    arrays: all that is read or written, by name. What is written has the tensor's shape (…, n), the rest has it too or broadcasts
    against it. All functions are elementwise. start: 0, an int32 that the walk waits for. → the written arrays, and for each term
    its sum over blocks, (rows of a block, n): what is left is to add these up. Cost: one pass over the arrays.
    """
    one = arrays[next(iter(writes))]
    shape, n, k = one.shape, one.shape[-1], rows_of_block(one.shape, one.dtype.itemsize)
    tables = {
        key: x if jnp.ndim(x) < 2 else jnp.broadcast_to(x, (*shape[:-1], x.shape[-1])).reshape(-1, x.shape[-1])
        for key, x in arrays.items()
    }
    read = {key: x for key, x in tables.items() if key not in writes}

    def block(i: Array, state: tuple) -> tuple:
        written, sums = state
        i = i + start

        def blocks() -> Blocks:
            """Block i of every array, as they are now."""
            cut = {key: lax.dynamic_slice_in_dim(x, i * k, k) if x.ndim > 1 else x for key, x in read.items()}
            return cut | {key: lax.dynamic_slice_in_dim(x, i * k, k) for key, x in written.items()}

        sums = jax.tree.map(jnp.add, sums, terms(blocks()))
        i = later(i, sums)
        for key, f in writes.items():
            written = written | {key: lax.dynamic_update_slice_in_dim(written[key], f(blocks()), i * k, 0)}
            i = later(i, [written[key]])
        return written, sums

    like = jax.eval_shape(terms, {key: x[:k] if x.ndim > 1 else x for key, x in tables.items()})
    sums = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), like)
    written = {key: tables[key] for key in writes}
    written, sums = lax.fori_loop(0, len(one.reshape(-1, n)) // k, block, (written, sums))
    return {key: x.reshape(shape) for key, x in written.items()}, sums
