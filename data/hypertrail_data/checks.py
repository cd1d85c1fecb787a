"""What images and labels must be like. Each check returns the array to use, or raises DataError with a message of one line.

A message says what was found, with its value, then what was expected, then what to do. Rows, lines, columns and channels are
counted from 0, as NumPy counts them.
"""

from __future__ import annotations

import math
import operator
import unicodedata
from collections.abc import Iterator
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError

BLOCK = 2**18  # values that are looked at together: no check makes a temporary array of the size of the images
LARGEST_INTEGER = 65535  # the largest 16-bit pixel; float32 holds every integer up to it exactly
SCALES = {np.uint8: 255, np.uint16: 65535}  # the largest pixel, for the dtypes whose whole range cameras use
DENSEST = 1100  # bytes that one packed byte can become: deflate gives at most 1032
GIB = 2**30  # bytes
FLOATS = (np.float16, np.float32, np.float64)
POINTER = "for other losses and other kinds of label use hypertrail_gpu.functional, which takes any loss"


def blocks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of x in turn, about BLOCK values at once: (number of the first row, these rows)."""
    rows = max(1, BLOCK // max(1, x[:1].size))
    for begin in range(0, len(x), rows):
        yield begin, x[begin : begin + rows]


def reason(error: object) -> str:
    """What another library or machine says, on one line of a length that can be read, without control characters."""
    said = "".join(character if on_one_line(character) else " " for character in str(error))
    said = " ".join(said.split()) or type(error).__name__
    return said if len(said) <= 200 else f"{said[:200]}.."


def shown(value: Any) -> str:
    """What a value looks like, on one line of a length that can be read."""
    try:
        said = " ".join(repr(value).split())
    except Exception:  # an integer of more than 4300 digits, for one, has no repr
        said = f"a {type(value).__name__}"
    return said if len(said) <= 80 else f"{said[:80]}.."


def listed(names: Iterator[str]) -> str:
    """The first ten of these names, quoted, and whether there are more."""
    first = [f"{name!r:.60}" for name in islice(names, 11)]
    return ", ".join([*first[:10], *(["and more"] if len(first) > 10 else [])]) or "none"


def on_one_line(text: str) -> bool:
    """Whether ``text`` can be printed as part of one line: no line breaks, no control characters, nothing that is not UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer of Python or NumPy. A bool is no number here, and 2.0 is not an integer."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(value: Any, what: str, low: int, high: int) -> int:
    """``value`` as a Python integer, which must lie in low .. high. A bool is no number here, and 2.0 is not an integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)) or not low <= number <= high:
        raise DataError(f"{what} is {shown(value)}, expected an integer in {low} .. {high}; correct it")
    return number


def text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or not on_one_line(value):
        raise DataError(f"{what} is {shown(value)}, expected a non-empty string on one line; correct it")
    return value


def sentences(notes: Any) -> tuple[str, ...]:
    if not isinstance(notes, (tuple, list)):
        raise DataError(f"notes is {shown(notes)}, expected a tuple of sentences; put it in a tuple")
    return tuple(text(note, "a note") for note in notes)


def refuse_large(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype, at_most: int) -> None:
    """DataError for an array of more than ``at_most`` bytes, before room is made for it."""
    expected = math.prod(shape) * dtype.itemsize
    if expected > at_most:
        raise DataError(
            f"{path}: {key!r} is {dtype} {shape}, {expected} bytes, expected at most {at_most}; pass a larger at_most "
            "if it is meant to be so large"
        )


def read_only(array: np.ndarray) -> np.ndarray:
    """A view in native byte order that cannot be written through. Copies only where the byte order is another."""
    view = array.astype(array.dtype.newbyteorder("="), copy=False).view()
    view.flags.writeable = False
    return view


def as_array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        missing = int(np.ma.count_masked(values))
        raise DataError(f"{what} has {missing} masked entries, expected none; leave out the rows that have them")
    try:
        return np.asarray(values)
    except Exception as error:  # an object that says it is an array can fail in any way
        raise DataError(f"{what} cannot be made an array ({reason(error)}); expected numbers in an array") from error


# Images


def images(values: Any) -> tuple[np.ndarray, int]:
    """The images, (N, H, W, C), every pixel finite; and the scale that their dtype suggests. bool becomes uint8 of scale 1."""
    x = as_array(values, "x")
    scale = SCALES.get(x.dtype.type, 1)
    if x.dtype == bool:
        x = x.astype(np.uint8)
    if x.dtype.kind not in "iu" and x.dtype.type not in FLOATS:
        raise DataError(
            f"x has the dtype {x.dtype!s:.60}, expected bool, integers, float16, float32 or float64; convert it to float32"
        )
    _shape(x)
    if x.dtype.kind in "iu":
        _small(x)
    elif (bad := not_finite(x)) is not None:
        raise DataError(f"x: {bad}; replace such values, or leave these rows out")
    return read_only(x), scale


def _shape(x: np.ndarray) -> None:
    if x.ndim == 4 and x.size:
        return
    way_out = "arrange it so"
    if x.ndim == 4 or not x.size:
        way_out = "give at least one image, and images of at least one pixel"
    elif x.ndim == 3:
        way_out = "for images of one channel pass x[..., None]"
    elif x.ndim == 2:
        n, features = x.shape
        way_out = f"for a table pass x.reshape({n}, 1, 1, {features}): each feature is then standardised by itself"
    raise DataError(f"x has the shape {x.shape}, expected (N, H, W, C) with no empty axis; {way_out}")


def _small(x: np.ndarray) -> None:
    """Refuse integers beyond those of 16 bits, whose moments could not be summed exactly."""
    if x.dtype.itemsize <= 2:
        return
    for begin, block in blocks(x):
        if int(block.min()) < -LARGEST_INTEGER or int(block.max()) > LARGEST_INTEGER:
            bad = np.argwhere((block < -LARGEST_INTEGER) | (block > LARGEST_INTEGER))[0]
            raise DataError(
                f"x: row {begin + bad[0]} has the pixel {block[tuple(bad)]}, expected integers in -{LARGEST_INTEGER} .. "
                f"{LARGEST_INTEGER}; for larger values pass x.astype(np.float32)"
            )


def not_finite(x: np.ndarray) -> str | None:
    """Where the first pixel lies that is NaN or infinite, and how many there are, in words. None where there is none."""
    first, count = "", 0
    for begin, block in blocks(x):
        bad = ~np.isfinite(block)
        if bad.any():
            if not count:
                row, line, column, channel = where = tuple(int(i) for i in np.argwhere(bad)[0])
                first = (
                    f"row {begin + row} has the pixel {block[where]} at line {line}, column {column}, channel {channel}"
                )
            count += int(np.count_nonzero(bad))
    return f"{first} ({count} in all are NaN or infinite), expected finite values" if count else None


# Labels


def labels(values: Any, classes: int) -> np.ndarray:
    """The labels as int32 (N,), every one of them in 0 .. classes - 1."""
    y = as_array(values, "y")
    if y.ndim != 1:
        _refuse_shape(y)
    if y.dtype.kind not in "iu":
        _refuse_dtype(y)
    refuse_beyond(y, classes, "y")
    return read_only(y.astype(np.int32, copy=False))


def refuse_beyond(y: np.ndarray, classes: int, what: str) -> None:
    """Raise DataError for integers (N,) that are not all in 0 .. classes - 1, before a conversion could make them fit."""
    if not len(y) or (int(y.min()) >= 0 and int(y.max()) < classes):
        return
    row = int(np.flatnonzero((y < 0) | (y >= classes))[0])
    way_out = "correct the labels or the number of classes"
    if int(y.min()) == 1 and int(y.max()) == classes:
        way_out = f"the labels are 1 .. {classes}: subtract 1 from all of them"
    raise DataError(f"{what}: row {row} has the label {y[row]}, expected 0 .. {classes - 1}; {way_out}")


def _refuse_shape(y: np.ndarray) -> None:
    found = f"y has the shape {y.shape} and the dtype {y.dtype}, expected one integer per image, of shape (N,)"
    if y.ndim == 2 and y.shape[1] == 1:
        raise DataError(f"{found}; pass y[:, 0]")
    if y.ndim == 2 and _one_hot(y):
        raise DataError(f"{found}; the labels are one-hot: pass y.argmax(axis=1)")
    if y.ndim == 2 and y.dtype.kind in "biu":
        raise DataError(f"{found}; several labels per example, tokens for instance, have no form here: {POINTER}")
    if y.ndim == 2 and y.dtype.kind == "f":
        raise DataError(f"{found}; a regression target has no form here: {POINTER}")
    raise DataError(f"{found}; arrange them so, in the order of the images")


def _one_hot(y: np.ndarray) -> bool:
    if y.dtype.kind not in "biuf" or not y.size or y.shape[1] < 2:
        return False
    return bool(((y == 0) | (y == 1)).all() and (np.count_nonzero(y, axis=1) == 1).all())


def _refuse_dtype(y: np.ndarray) -> None:
    found = f"y has the dtype {y.dtype}, expected integers"
    if y.dtype.kind == "b":
        raise DataError(f"{found}; pass y.astype(np.int32), where False is class 0 and True is class 1")
    if y.dtype.kind == "f":
        with np.errstate(all="ignore"):
            fractions = np.flatnonzero(~(np.isfinite(y) & (y == np.floor(y))))
        if not len(fractions):
            raise DataError(f"{found}; the values are whole numbers: pass y.astype(np.int32)")
        row = int(fractions[0])
        raise DataError(f"{found}; row {row} is {y[row]}: a regression target has no form here: {POINTER}")
    if y.dtype.kind in "USOT":
        raise DataError(f"{found}; number the classes: pass np.unique(y, return_inverse=True)[1]")
    raise DataError(f"{found}; number the classes 0 .. K - 1")
