"""Four disjoint splits: train (elementary), valid (hyper), select (choices between runs), test (reported only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dataset import Dataset
from .streams import generator


@dataclass(frozen=True, eq=False)
class Split:
    """x float32 (n, H, W, C) scaled and standardised; y int32 (n,); rows int64 (n,): where in the data set they come from."""

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Splits:
    """The four splits, and what was done to their pixels: x = (pixel / scale - mean) / std, mean and std float32 (C,)."""

    train: Split
    valid: Split
    select: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    classes: int
    name: str


def make_splits(
    dataset: Dataset,
    train: int,
    valid: int,
    select: int,
    test: int,
    seed: int,
    standardise: bool = True,
    test_seed: int | None = None,
) -> Splits:
    """Draw that many rows for each split, without overlap, from the ``split`` stream of ``seed``.

    Where the data set has an official test set, ``test`` is drawn from it alone and the other three from the rest;
    otherwise all four come from one permutation. The rows of ``train`` depend on its size and the seed alone.

    ``test_seed`` draws ``test`` by a seed of its own, before the others, which come from the rest: several ``seed`` then have
    the same test rows, so that what is chosen on the ``select`` of all of them has not seen the test rows of any. The rows of
    ``train`` then depend on ``test`` and ``test_seed``, too.

    mean and std are those of the train split, per channel, summed exactly in integers (a channel that never changes gets
    std 1). With ``standardise=False`` pixels are only scaled to [0, 1], and mean is 0, std 1.

    Raises ValueError where more rows are asked for than there are, or a size is negative, or ``train`` is 0.
    """
    sizes = {"train": train, "valid": valid, "select": select, "test": test}
    if train < 1 or min(sizes.values()) < 0:
        asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"split sizes are {asked}; expected train >= 1 and the others >= 0")

    rng = generator(seed, "split")
    rest = len(dataset) - dataset.official_test
    own = None if test_seed is None else generator(test_seed, "split")
    if dataset.official_test:
        order, held_out = rng.permutation(rest), rest + (own or rng).permutation(dataset.official_test)
        _enough(
            dataset.name, "train + valid + select", train + valid + select, rest, "rows outside its official test set"
        )
        _enough(dataset.name, "test", test, dataset.official_test, "rows in its official test set")
    else:
        _enough(dataset.name, "train + valid + select + test", sum(sizes.values()), rest, "rows")
        if own is None:
            order = rng.permutation(rest)
            held_out = order[train + valid + select :]
        else:
            held_out = own.permutation(rest)[:test]
            order = rng.permutation(np.setdiff1d(np.arange(rest), held_out))

    rows_train, rows_valid, rows_select = np.split(order[: train + valid + select], [train, train + valid])
    mean, std = np.zeros(dataset.x.shape[-1]), np.ones(dataset.x.shape[-1])
    if standardise:
        mean, std = _moments(dataset.x, rows_train, dataset.scale)
    mean, std = mean.astype(np.float32), std.astype(np.float32)

    def take(rows: np.ndarray) -> Split:
        x = dataset.x[rows].astype(np.float32)
        x /= np.float32(dataset.scale)
        x -= mean
        x /= std
        return Split(x, dataset.y[rows].astype(np.int32), rows.astype(np.int64))

    return Splits(
        train=take(rows_train),
        valid=take(rows_valid),
        select=take(rows_select),
        test=take(held_out[:test]),
        mean=mean,
        std=std,
        classes=dataset.classes,
        name=dataset.name,
    )


def _enough(name: str, what: str, asked: int, available: int, kind: str) -> None:
    if asked > available:
        raise ValueError(f"{what} asks for {asked} rows, but {name} has {available} {kind}; ask for fewer")


def _moments(x: np.ndarray, rows: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of x[rows] / scale per channel, float64 (C,); exact until the last division.

    Integer sums make them the same on every machine, whatever the order of summation. Blocks bound the memory.
    """
    channels = x.shape[-1]
    total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for begin in range(0, len(rows), 1024):
        block = x[rows[begin : begin + 1024]].astype(np.int64).reshape(-1, channels)
        total += block.sum(axis=0)
        squares += (block * block).sum(axis=0)
    n = len(rows) * x[0, ..., 0].size
    mean = np.array([int(s) / (n * scale) for s in total])
    # n*q - s*s in Python integers: no cancellation, so a constant channel gives exactly zero.
    variance = [(n * int(q) - int(s) ** 2) / (n * scale) ** 2 for s, q in zip(total, squares, strict=True)]
    std = np.sqrt(variance)
    std[std == 0.0] = 1.0
    return mean, std
