"""Images and labels from a file of arrays that anybody may have made: .npz or HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from .checks import GIB, reason, shown, whole
from .dataset import Dataset
from .errors import DataError
from .places import Place, as_path, open_bytes

MOST_BYTES = 2**63 - 1  # the length of an array in memory is a signed number of 64 bits
ZIP, HDF5 = b"PK", b"\x89HDF\r\n\x1a\n"
LONGEST_USER_BLOCK = 2**20  # bytes in front of an HDF5 file that belong to whoever wrote it, as MATLAB does


def read_dataset(
    path: Place,
    classes: int,
    x: str = "x",
    y: str = "y",
    official_test: int = 0,
    scale: float | None = None,
    name: str | None = None,
    at_most: int = 8 * GIB,
) -> Dataset:
    """The images ``x`` and the labels ``y`` of an HDF5 file, or of a .npz that np.savez or np.savez_compressed has written.

    The content of the file says which of the two it is. ``"group/images"`` names a data set in a group of HDF5. ``name`` is the
    file's unless it is given; classes, official_test and scale are those of Dataset. at_most: bytes of one array.

    Nothing is unpickled, and no other array of the file is read. In HDF5 both must lie in this very file, and wholly: links to
    other files, external storage and virtual data sets are refused, and so are chunks that were never written, or that unpack
    to more than they should. Raises DataError for whatever is wrong with the file or with what it holds, and for an
    ``at_most`` that is no integer above 0.
    """
    path, at_most = as_path(path, "path"), whole(at_most, "at_most", 1, MOST_BYTES)
    with open_bytes(path) as file:
        images, labels = _arrays(file, path, (x, y), at_most)
    try:
        return Dataset(path.stem if name is None else name, images, labels, classes, official_test, scale)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _arrays(file: IO[bytes], path: Path, keys: Sequence[str], at_most: int) -> list[np.ndarray]:
    begin = file.read(len(HDF5))
    if begin.startswith(ZIP):
        from .npz import arrays
    elif _is_hdf5(file):
        from .hdf5 import arrays  # h5py: only where such a file is read
    else:
        raise DataError(f"{path} begins with {shown(begin)}, expected a .npz or an HDF5 file; write it anew")
    file.seek(0)
    try:
        return arrays(file, path, keys, at_most)
    except DataError:
        raise
    except Exception as error:  # zipfile, NumPy and HDF5 can raise nearly anything on what was made to mislead them
        raise DataError(f"{path} is damaged ({reason(error)}); write it anew") from error


def _is_hdf5(file: IO[bytes]) -> bool:
    """Whether the mark of HDF5 stands at the beginning, or behind a user block of 512, 1024, 2048 … bytes."""
    places = [0, *(512 * 2**i for i in range(12))]
    assert places[-1] == LONGEST_USER_BLOCK
    for place in places:
        file.seek(place)
        if file.read(len(HDF5)) == HDF5:
            return True
    return False
