"""Four disjoint splits: train (elementary), valid (hyper), select (choices between runs), test (reported only)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from . import checks
from .dataset import MOST_CLASSES, Dataset
from .errors import DataError
from .streams import generator
from .used import announce

NAMES = ("train", "valid", "select", "test")
MOST_ROWS = 2**63 - 1  # a row is an int64


@dataclass(frozen=True, eq=False)
class Split:
    """x float32 (n, H, W, C) scaled and standardised; y int32 (n,); rows int64 (n,): where in the data set they come from.

    x may be float64, for quadratics in double precision. A split is checked where it becomes part of Splits.
    """

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Splits:
    """The four splits, and what was done to their pixels: x = (pixel / scale - mean) / std.

    Engines take their images and labels from here alone, so all of them are checked whenever one is made, be it by
    make_splits, by hand or by ``dataclasses.replace``: x finite, of one image shape in every split that has rows; y in
    0 .. classes - 1; as many of both, and of rows; mean and std of a shape that fits an image, std above 0. Integer labels
    and rows of another dtype are converted.

    Attributes
    ----------
    train, valid, select, test : Split
        ``train`` has at least one row.
    mean, std : arrays
        (C,) from make_splits: float32 for images of one byte per pixel, float64 for all others. An image is allowed, too.
    classes : int
        At least 1.
    name : str
    notes : tuple of str
        Those of the data set.

    Raises DataError that names the split, the first bad row and its value.
    """

    train: Split
    valid: Split
    select: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    classes: int
    name: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        classes = checks.whole(self.classes, "classes", 1, MOST_CLASSES)
        checked: dict[str, Any] = {name: _checked(getattr(self, name), name, classes) for name in NAMES}
        if not len(checked["train"]):
            raise DataError("the train split is empty, expected at least one row; give it some")
        _one_shape(checked)
        shape = checked["train"].x.shape[1:]
        checked |= {name: _of_pixels(getattr(self, name), name, shape) for name in ("mean", "std")}
        if not (checked["std"] > 0).all():
            raise DataError(
                f"std of the pixels is {checks.shown(self.std)}, expected numbers above 0; give 1 where nothing is divided"
            )
        checked |= {"classes": classes, "name": checks.text(self.name, "name"), "notes": checks.sentences(self.notes)}
        for field, value in checked.items():
            object.__setattr__(self, field, value)

    @cached_property
    def digest(self) -> str:
        """sha256, in hexadecimal, of all that is used: name, classes, and the shape, dtype and bytes of every x and y."""
        digest = hashlib.sha256(json.dumps([self.name, self.classes]).encode())
        for name in NAMES:
            split = getattr(self, name)
            for what, array in (("x", split.x), ("y", split.y)):
                little = array.dtype.newbyteorder("<")
                digest.update(json.dumps([name, what, array.shape, little.str]).encode())
                for _, block in checks.blocks(array):
                    digest.update(np.ascontiguousarray(block, little).data)
        return digest.hexdigest()

    @cached_property
    def seen(self) -> dict[str, list[float]]:
        """Mean and std per channel of the images of ``train`` as a network sees them, measured from these very arrays."""
        mean, std = _moments_of_floats(self.train.x, np.arange(len(self.train)), 1)
        return {"mean": mean.tolist(), "std": std.tolist()}

    def record(self) -> dict[str, Any]:
        """What a run should keep of its data, ready for JSON. Costs one pass over all splits, once.

        mean and std are what was taken from the pixels, per channel; of a mean image, its average.
        """
        return {
            "name": self.name,
            "classes": self.classes,
            "image": list(self.train.x.shape[1:]),
            "sizes": {name: len(getattr(self, name)) for name in NAMES},
            "sha256": self.digest,
            "mean": _of_channels(self.mean),
            "std": _of_channels(self.std),
            "seen": self.seen,
            "notes": list(self.notes),
        }


def _of_channels(values: np.ndarray) -> list[float]:
    flat = np.atleast_1d(values).astype(np.float64)
    averages: list[float] = flat.reshape(-1, flat.shape[-1]).mean(axis=0).tolist()
    return averages


def _checked(split: Any, name: str, classes: int) -> Split:
    """The split itself where nothing has to be converted, so that one split in two places stays one."""
    if not isinstance(split, Split):
        raise DataError(f"{name} is a {type(split).__name__}, expected a Split(x, y, rows); make one")
    x, y, rows = (checks.as_array(getattr(split, field), f"{name}.{field}") for field in ("x", "y", "rows"))
    if x.dtype.type not in (np.float32, np.float64) or x.ndim != 4 or not all(x.shape[1:]):
        raise DataError(
            f"{name}.x is {x.dtype} {x.shape}, expected float32 (n, H, W, C); use make_splits or convert it"
        )
    for field, array in (("y", y), ("rows", rows)):
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise DataError(
                f"{name}.{field} is {array.dtype} {array.shape}, expected integers of shape (n,); convert it"
            )
    if len(x) != len(y):
        raise DataError(f"{name} has {len(x)} images and {len(y)} labels, expected as many of both; match them up")
    if len(rows) != len(y):
        raise DataError(f"{name} has {len(y)} labels and {len(rows)} rows, expected as many of both; match them up")
    checks.refuse_beyond(y, classes, name)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) <= MOST_ROWS:
        raise DataError(f"{name}.rows are {rows.min()} .. {rows.max()}, expected row numbers from 0 on; correct them")
    if (bad := checks.not_finite(x)) is not None:
        raise DataError(f"{name}: {bad}; correct what made these values")
    found = Split(_native(x, x.dtype), _native(y, np.int32), _native(rows, np.int64))
    return split if all(getattr(found, f) is getattr(split, f) for f in ("x", "y", "rows")) else found


def _native(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(np.dtype(dtype).newbyteorder("="), copy=False)


def _one_shape(splits: dict[str, Split]) -> None:
    """An empty split may have any shape: nothing is ever taken from it."""
    shapes = {name: split.x.shape[1:] for name, split in splits.items() if len(split)}
    other = next((name for name in shapes if shapes[name] != shapes["train"]), None)
    if other is not None:
        raise DataError(
            f"images of train are {shapes['train']}, of {other} {shapes[other]}, expected one shape; correct one"
        )


def _of_pixels(values: Any, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """The finite numbers that were subtracted from the pixels of an image, or by which they were divided."""
    array = checks.as_array(values, what)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise DataError(f"{what} of the pixels is {checks.shown(array.tolist())}, expected finite numbers; correct it")
    try:
        np.broadcast_to(array, shape)
    except ValueError as error:
        raise DataError(
            f"{what} of the pixels has the shape {array.shape}, expected one that fits images {shape}; "
            "give one number per channel"
        ) from error
    return array


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

    mean and std are those of the train split, per channel; a channel that never changes gets std 1. Those of integer images
    are summed exactly in integers. Those of float images are summed in float64, as differences from the first pixel so that a
    large mean costs no digits. From images of one byte per pixel x is computed in float32; from all others it is computed in
    float64 and rounded to float32 once. With ``standardise=False`` pixels are only divided by the scale, and mean is 0, std 1.

    Raises ValueError where more rows are asked for than there are, a size is no integer or negative, ``train`` is 0, or a
    seed is no integer; DataError where an x is not finite in float32 or the std of a channel is too small to divide by.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(f"the data set is a {type(dataset).__name__}, expected a Dataset; make one of its x and y")
    sizes = {"train": train, "valid": valid, "select": select, "test": test}
    asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
    if not all(map(checks.is_integer, sizes.values())) or train < 1 or min(sizes.values()) < 0:
        raise ValueError(f"split sizes are {asked}; expected integers, train >= 1 and the others >= 0")
    for what, value in (("seed", seed), ("test_seed", test_seed)):
        if not checks.is_integer(value) and not (what == "test_seed" and value is None):
            raise ValueError(f"{what} is {checks.shown(value)}; expected an integer >= 0")

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
    dtype = np.float32 if dataset.x.dtype.itemsize == 1 else np.float64
    _refuse_scale(dataset, dtype)
    mean, std = np.zeros(dataset.x.shape[-1], dtype), np.ones(dataset.x.shape[-1], dtype)
    if standardise:
        mean, std = _moments(dataset, rows_train)
        with np.errstate(over="ignore", under="ignore"):
            mean, std = mean.astype(dtype), np.where(std == 0, 1, std).astype(dtype)
        _refuse_tiny(std, dataset.name)

    def take(rows: np.ndarray) -> Split:
        return Split(_standardised(dataset, rows, mean, std), dataset.y[rows], rows.astype(np.int64))

    splits = Splits(
        train=take(rows_train),
        valid=take(rows_valid),
        select=take(rows_select),
        test=take(held_out[:test]),
        mean=mean,
        std=std,
        classes=dataset.classes,
        name=dataset.name,
        notes=dataset.notes,
    )
    own_test = "" if test_seed is None else f", test seed {test_seed}"
    announce(f"{dataset.name}: {asked}, seed {seed}{'' if standardise else ', standardise=False'}{own_test}", splits)
    return splits


def _enough(name: str, what: str, asked: int, available: int, kind: str) -> None:
    if asked > available:
        raise ValueError(f"{what} asks for {asked} rows, but {name} has {available} {kind}; ask for fewer")


def _standardised(dataset: Dataset, rows: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(pixel / scale - mean) / std of these rows, float32, computed in the dtype of ``mean``. Raises DataError if not finite."""
    x = np.empty((len(rows), *dataset.x.shape[1:]), np.float32)
    scale = mean.dtype.type(dataset.scale)
    for begin, out in checks.blocks(x):
        pixels = dataset.x[rows[begin : begin + len(out)]].astype(mean.dtype)
        with np.errstate(all="ignore"):
            pixels /= scale
            pixels -= mean
            pixels /= std
            out[...] = pixels
    if (bad := checks.not_finite(x)) is not None:
        raise DataError(
            f"{dataset.name}: after (pixel / {dataset.scale} - mean) / std in float32, with mean {mean.tolist()} and std "
            f"{std.tolist()}, {bad}; give images whose values float32 can hold, or another scale"
        )
    return x


def _refuse_scale(dataset: Dataset, dtype: Any) -> None:
    smallest, largest = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    if not smallest <= dataset.scale <= largest:
        raise DataError(
            f"{dataset.name}: scale is {dataset.scale}, expected a number in {smallest:.3g} .. {largest:.3g} for "
            f"{dataset.x.dtype} images; give the largest value of a pixel"
        )


def _refuse_tiny(std: np.ndarray, name: str) -> None:
    """A subnormal number has lost digits: divided by it, pixels would not come out with deviation 1."""
    small = np.flatnonzero(std < np.finfo(std.dtype).tiny)
    if len(small):
        channel = int(small[0])
        raise DataError(
            f"{name}: the std of channel {channel} in train is {std[channel]}, too small to divide by in {std.dtype}; "
            "multiply the images by a larger number"
        )


def _moments(dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the scaled pixels per channel, float64 (C,)."""
    if dataset.x.dtype.kind == "f":
        return _moments_of_floats(dataset.x, rows, dataset.scale)
    if dataset.x.dtype.itemsize == 1:
        return _moments_of_integers(dataset.x, rows, dataset.scale)
    # Scaled last: any float64 may be the scale here, and its square may be none. A channel that never changes gives 0 pixels.
    mean, std = _moments_of_integers(dataset.x, rows, 1)
    with np.errstate(all="ignore"):
        return mean / dataset.scale, std / dataset.scale


def _moments_of_integers(x: np.ndarray, rows: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of x[rows] / scale per channel, float64 (C,); exact until the last operation.

    Integer sums make them the same on every machine, whatever the order of summation. Blocks bound the memory; the sums of
    all blocks are Python integers, which cannot overflow.
    """
    channels = x.shape[-1]
    total, squares = [0] * channels, [0] * channels
    for block in _pixels(x, rows, np.int64):
        total = [s + int(more) for s, more in zip(total, block.sum(axis=1), strict=True)]
        squares = [q + int(more) for q, more in zip(squares, (block * block).sum(axis=1), strict=True)]
    n = len(rows) * x[0, ..., 0].size
    unit = n * Fraction(scale)
    mean = np.array([float(s / unit) for s in total])
    # n*q - s*s in Python integers: no cancellation, so a constant channel gives exactly zero.
    variance = [float((n * q - s**2) / unit**2) for s, q in zip(total, squares, strict=True)]
    return mean, np.sqrt(variance)


def _moments_of_floats(x: np.ndarray, rows: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of x[rows] / scale per channel, float64 (C,), in two passes by blocks.

    The first sums differences from the first pixel: sums of the pixels themselves would lose the digits in which pixels of
    mean 1e9 and deviation 1 differ. The second sums squares of deviations as parts of the range, which cannot overflow.
    """
    n = len(rows) * x[0, ..., 0].size
    with np.errstate(all="ignore"):  # values near 1e308 may give an infinite mean, which the caller refuses
        first = x[rows[0], 0, 0].astype(np.float64)[:, None] / scale
        low, high, total, squares = first, first, 0.0, 0.0
        for block in _pixels(x, rows, np.float64):
            block /= scale
            low = np.minimum(low, block.min(axis=1, keepdims=True))
            high = np.maximum(high, block.max(axis=1, keepdims=True))
            total += (block - first).sum(axis=1, keepdims=True)
        mean, changes = first + total / n, low < high
        mean, unit = np.where(changes, mean, low), np.where(changes, high - low, 1.0)
        for block in _pixels(x, rows, np.float64):
            squares += (((block / scale - mean) / unit) ** 2).sum(axis=1, keepdims=True)
        # At least the smallest number there is, which the caller refuses: 0 is the std of a channel that never changes.
        std = np.where(changes, np.maximum(unit * np.sqrt(squares / n), np.nextafter(0, 1)), 0.0)
    return mean[:, 0], std[:, 0]


def _pixels(x: np.ndarray, rows: np.ndarray, dtype: Any) -> Iterator[np.ndarray]:
    """x[rows] by blocks, each (C, values)."""
    some = max(1, checks.BLOCK // x[0].size)
    for begin in range(0, len(rows), some):
        block = x[rows[begin : begin + some]].reshape(-1, x.shape[-1])
        yield np.ascontiguousarray(block.T, dtype)
