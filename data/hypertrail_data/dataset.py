"""A labelled set of images, as it was published: no split, no scaling. Every image and every label enters here."""

from __future__ import annotations

import numbers
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import checks
from .errors import DataError

MOST_CLASSES = 2**31 - 1  # a label is an int32


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in their published order. What is made of them is checked, once, when it is made.

    ``x`` and ``y`` may be anything that NumPy can make an array of: arrays of any byte order, lists, an h5py.Dataset (which is
    read whole). They are kept as read-only views, copied only where their dtype or byte order changes: the caller leaves the
    arrays as they are from then on.

    Attributes
    ----------
    name : str
    x : (N, H, W, C), of integers in -65535 .. 65535, float16, float32 or float64, all finite; bool becomes uint8
    y : int32 (N,), 0 .. classes - 1; given as integers of any dtype
    classes : int
        At least 2.
    official_test : int
        The last that many rows are the published test set; 0 where none was published.
    scale : int or float
        What pixels are divided by before anything else. None means 255 for uint8, 65535 for uint16, and 1 for every other
        dtype (bool, other integers, floats). The scale does not change what a network sees of standardised pixels.
    notes : tuple of str
        What is to be known of the files, in sentences: that one of them is not the published original, for instance.

    Raises DataError for everything else, naming the first value that does not belong and the way out.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: int
    official_test: int = 0
    scale: float = None  # type: ignore[assignment]  # None becomes a number in __post_init__
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        classes = checks.whole(self.classes, "classes", 2, MOST_CLASSES)
        x, scale = checks.images(self.x)
        y = checks.labels(self.y, classes)
        if len(x) != len(y):
            raise DataError(f"x has {len(x)} images and y has {len(y)} labels, expected as many of both; match them up")
        checked = {
            "name": checks.text(self.name, "name"),
            "x": x,
            "y": y,
            "classes": classes,
            "official_test": checks.whole(self.official_test, "official_test", 0, len(x)),
            "scale": scale if self.scale is None else _positive(self.scale),
            "notes": checks.sentences(self.notes),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.y)


def _positive(scale: Any) -> float:
    """The scale as a Python number: an int where it is one, else a float."""
    if isinstance(scale, numbers.Real) and not isinstance(scale, bool):
        number = int(scale) if isinstance(scale, numbers.Integral) else float(scale)
        if 0 < number <= sys.float_info.max:
            return number
    raise DataError(
        f"scale is {checks.shown(scale)}, expected None or a finite number above 0; give the largest value of a pixel"
    )
