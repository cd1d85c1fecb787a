"""One integer seed, independent named streams.

Every random choice is a pure function of (seed, stream, step), so that the reverse pass sees what the forward pass saw.
The position of a name in ``STREAMS`` is part of every published result: append new names, never reorder.
"""

from __future__ import annotations

import numpy as np

from . import checks

STREAMS = ("init", "split", "batches", "noise", "hyper", "updates", "held-out", "line")


def _sequence(seed: int, name: str, key: tuple[int, ...]) -> np.random.SeedSequence:
    if name not in STREAMS:
        raise ValueError(f"unknown random stream {name!r}; expected one of {', '.join(STREAMS)}")
    if not checks.is_integer(seed) or seed < 0:
        raise ValueError(f"seed is {checks.shown(seed)}; expected an integer >= 0")
    return np.random.SeedSequence(int(seed), spawn_key=(STREAMS.index(name), *key))


def generator(seed: int, name: str, *key: int) -> np.random.Generator:
    """A fresh generator at the beginning of the stream ``name``, or of its sub-stream ``key`` (an epoch, say).

    Raises ValueError for a seed that is no integer or negative, or a name that is not in ``STREAMS``.
    """
    return np.random.default_rng(_sequence(seed, name, key))


def words(seed: int, name: str, n: int = 2) -> np.ndarray:
    """``n`` words, uint32 (n,), that key a counter-based generator (two of them make a JAX key).

    Raises ValueError for a seed that is no integer or negative, or a name that is not in ``STREAMS``.
    """
    return _sequence(seed, name, ()).generate_state(n, np.uint32)


def derived_seed(seed: int, name: str, *key: int) -> int:
    """A seed of its own, 0 .. 2^63 - 1, for entry ``key`` of the stream ``name``: of one update of a run, say.

    Seeds that are derived from neighbouring seeds have nothing in common, which ``seed + key`` would not give. Raises
    ValueError for a seed that is no integer or negative, or a name that is not in ``STREAMS``.
    """
    return int(_sequence(seed, name, key).generate_state(1, np.uint64)[0] >> np.uint64(1))
