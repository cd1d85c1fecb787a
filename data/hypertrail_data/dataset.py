"""A labelled set of images, as it was published: no split, no scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in their published order.

    Attributes
    ----------
    name : str
    x : uint8 (N, H, W, C), 0 .. scale
    y : int32 (N,), 0 .. classes - 1
    classes : int
    official_test : int
        The last that many rows are the published test set; 0 where none was published.
    scale : int
        The largest value a pixel can have: x / scale lies in [0, 1].
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: int
    official_test: int = 0
    scale: int = 255

    def __len__(self) -> int:
        return len(self.y)
