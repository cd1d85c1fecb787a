"""Whether a hypergradient is asked of the training that was run: the same functions, hyperparameters and batches.

The same objects pass without being looked at, and so do equal values. Everything else is a UsageError that names what differs,
because the states of one training and the numbers of another make a hypergradient of nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.task import Arrays, Rows, Stream

from .batches import Memory, refuse_no_arrays
from .refusals import refuse_leaves
from .trees import is_float, named, on_host

Tree = Any

AGAIN = "train again, or give what the training was given"


class Given(NamedTuple):
    """What a caller gave to a training, by reference, and JAX's x64 mode at the time."""

    inner: Any
    batches: Any
    x64: bool


def refuse_other_inner(inner: Any, given: Any) -> None:
    for field in ("loss", "update", "has_aux"):
        now, was = getattr(inner, field), getattr(given, field)
        if now is not was and now != was:
            raise UsageError(f"inner: {field} is not the one of this training; {AGAIN}")


def refuse_other_hyper(hyper: Tree, trained: Tree) -> None:
    """trained: the training's own copy. Arrays of JAX are compared as objects first, which is free. A NumPy array is read,
    because it may have been changed in place since."""
    a, b = jax.tree.leaves(hyper), jax.tree.leaves(trained)
    if len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)):
        return
    refuse_leaves("hyper", hyper)
    now, was = named(hyper), named(trained)
    refuse_other_names("hyper", now, was)
    for name, leaf in now.items():
        if leaf is not was[name] and (
            np.shape(leaf) != np.shape(was[name]) or first_other(leaf, was[name]) is not None
        ):
            numbers = f" ({on_host(was[name]):g}, now {on_host(leaf):g})" if is_number(leaf, was[name]) else ""
            raise UsageError(f"hyper{name} is not the one of this training{numbers}; {AGAIN}")


def refuse_other_batches(batches: Any, given: Any, trained: Memory) -> None:
    """trained: the training's own copies, by which it goes back. Costs nothing for arrays that are the objects that were given,
    and one look at the values for others."""
    if batches is given:
        return
    steps = steps_of(batches)
    if kind_of(batches) != kind_of(given):
        raise UsageError(f"batches: {kind_of(batches)}, this training had {kind_of(given)}; {AGAIN}")
    now, was = arrays_of(batches), arrays_of(given)
    refuse_other_names("batches", now, was)
    if steps != trained.steps:
        raise UsageError(f"batches: {steps} steps, this training took {trained.steps}; {AGAIN}")
    if isinstance(batches, Stream):
        if batches.read != given.read:
            raise UsageError(f"batches.read is not the one of this training; {AGAIN}")
        return
    copies = jax.tree.leaves(trained.tree)
    for (name, leaf), original, copy in zip(now.items(), was.values(), copies, strict=True):
        if leaf is original:
            continue
        if np.shape(leaf) != copy.shape:
            raise UsageError(
                f"batches{name}: arrays of shape {list(np.shape(leaf))}, this training had {list(copy.shape)}; {AGAIN}"
            )
        row = first_other(leaf, copy)
        if row is not None:
            which = f"row {row}" if name.startswith(".data") else f"the batch of step {trained.first + row}"
            raise UsageError(f"batches{name}: {which} is not the one of this training; {AGAIN}")


def refuse_other_names(what: str, now: dict[str, Any], was: dict[str, Any]) -> None:
    new = [name for name in now if name not in was]
    missing = [name for name in was if name not in now]
    if new:
        raise UsageError(f"{what}{new[0]} is new, this training did not have it; {AGAIN}")
    if missing:
        raise UsageError(f"{what}{missing[0]} is missing, this training had it; {AGAIN}")


def kind_of(batches: Any) -> str:
    return type(batches).__name__ if isinstance(batches, Rows | Stream) else "Arrays"


def arrays_of(batches: Any) -> dict[str, Any]:
    """{name: array}, in the order in which `Memory` has its copies."""
    if isinstance(batches, Stream):
        return {}
    if isinstance(batches, Rows):
        return {f".data{name}": leaf for name, leaf in named(batches.data).items()} | {".indices": batches.indices}
    return named(batches.tree if isinstance(batches, Arrays) else batches)


def steps_of(batches: Any) -> int:
    """How many batches there are; UsageError for what are no batches."""
    if isinstance(batches, Stream):
        return batches.steps
    if isinstance(batches, Rows):
        return len(batches.indices)
    refuse_no_arrays(batches.tree if isinstance(batches, Arrays) else batches, "batches")
    first = next(iter(arrays_of(batches).values()))
    return int(first.shape[0]) if first.ndim else 0


def first_other(leaf: Any, copy: Any) -> int | None:
    """The first row whose values differ (0 for a number); None: all are equal. NaN equals NaN."""
    a, b = on_host(leaf), on_host(copy)
    a = a.astype(b.dtype, copy=False)
    other = a != b
    if is_float(b):
        other &= ~(np.isnan(a) & np.isnan(b))
    rows = np.atleast_1d(other).any(axis=tuple(range(1, other.ndim)))
    return int(np.argmax(rows)) if rows.any() else None


def is_number(*leaves: Any) -> bool:
    return all(on_host(leaf).ndim == 0 and np.issubdtype(on_host(leaf).dtype, np.number) for leaf in leaves)
