"""Arrays from an HDF5 file that anybody may have made: no other file is reached, nothing unpacked on its word."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from . import checks
from .checks import DENSEST, refuse_large
from .errors import DataError

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, LZF)  # others may be loaded from plug-ins, and run them
CHECKSUM = 4  # bytes of Fletcher-32 behind a chunk


def arrays(file: IO[bytes], path: Path, keys: Sequence[str], at_most: int) -> list[np.ndarray]:
    """The data sets of these names from an open HDF5 file. Raises DataError, and whatever h5py raises."""
    size = os.fstat(file.fileno()).st_size
    with h5py.File(file, "r") as opened:  # the open file, not the path, which may be another's by now
        return [_array(opened, path, key, size, at_most) for key in keys]


def _array(file: h5py.File, path: Path, key: str, size: int, at_most: int) -> np.ndarray:
    found = _reached(file, path, key)
    if found.is_virtual or found.external:
        raise DataError(f"{path}: {key!r} keeps its values in other files, which are not read; copy them into this one")
    if found.shape is None or found.dtype.kind not in "biuf" or found.dtype.hasobject:
        raise DataError(
            f"{path}: {key!r} is {found.dtype!s:.60} {found.shape}, expected a plain array of numbers; convert it"
        )
    refuse_large(path, key, found.shape, found.dtype, at_most)
    _refuse_hollow(path, key, found.shape, found.dtype, size)
    if found.chunks:
        _refuse_hollow(path, f"a chunk of {key}", found.chunks, found.dtype, size)
        chunks = _chunks(found, path, key)
        _refuse_bombs(found, chunks, path, key, size)
    elif found.size and not found.id.get_storage_size():
        raise DataError(
            f"{path}: {key!r} of the shape {found.shape} was never written, expected all its values; write the file anew"
        )
    array: np.ndarray = found[()]
    return array


def _reached(file: h5py.File, path: Path, key: str) -> h5py.Dataset:
    """The data set, through hard links alone: a soft link may lead to an external one, and that to any file of the reader's."""
    at: Any = file
    for part in checks.text(key, "the name of a data set").strip("/").split("/"):
        names = checks.listed(iter(at)) if isinstance(at, h5py.Group) else "no groups inside it"
        # The link itself: h5py's own `in` and `get` follow it to see whether something is there.
        if not isinstance(at, h5py.Group) or part in ("", ".") or not at.id.links.exists(part.encode()):
            raise DataError(f"{path} has no data set {key!r}; {at.name!r:.60} has {names}: pass the name of one")
        if at.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise DataError(
                f"{path}: {key!r} is reached by a link, which is not followed; copy the data set in its place"
            )
        at = at[part]
    if not isinstance(at, h5py.Dataset):
        raise DataError(f"{path}: {key!r} is a group with {checks.listed(iter(at))}; pass the name of a data set")
    return at


def _refuse_hollow(path: Path, what: str, shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if expected > DENSEST * size:
        raise DataError(
            f"{path}: {what!r} is {dtype} {shape}, {expected} bytes, more than a file of {size} bytes can hold; write it anew"
        )


def _chunks(found: h5py.Dataset, path: Path, key: str) -> list[Any]:
    """What the file says of each chunk. All must be there: HDF5 would read a missing one as zeros or another fill value."""
    chunks: list[Any] = []
    found.id.chunk_iter(chunks.append)
    needed = math.prod(-(-length // part) for length, part in zip(found.shape, found.chunks, strict=True))
    missing = needed - len({chunk.chunk_offset for chunk in chunks})
    if missing > 0:
        raise DataError(
            f"{path}: {missing} of {needed} chunks of {key!r} were never written, expected all of them; write the file anew"
        )
    return chunks


def _refuse_bombs(found: h5py.Dataset, chunks: list[Any], path: Path, key: str, size: int) -> None:
    """HDF5 makes room for a packed chunk as it is declared, and unpacks it to whatever length it has. Look first."""
    properties = found.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not set(filters) <= set(FILTERS) or filters.count(DEFLATE) > 1:
        raise DataError(
            f"{path}: {key!r} is packed by the filters {filters}, expected gzip, lzf, shuffle or a check sum at most; repack it"
        )
    if any(chunk.size > size for chunk in chunks):
        raise DataError(f"{path}: a chunk of {key!r} claims more bytes than the file has; write it anew")
    if DEFLATE not in filters:
        return
    at_most = math.prod(found.chunks) * found.dtype.itemsize + CHECKSUM
    behind = CHECKSUM * (FLETCHER32 in filters[filters.index(DEFLATE) :])
    for chunk in chunks:
        skipped, raw = found.id.read_direct_chunk(chunk.chunk_offset)
        if skipped >> filters.index(DEFLATE) & 1:
            continue
        if len(zlib.decompressobj().decompress(raw[: len(raw) - behind], at_most + 1)) > at_most:
            raise DataError(
                f"{path}: the chunk of {key!r} at {chunk.chunk_offset} unpacks to more than the {at_most} bytes of a chunk; "
                "write it anew"
            )
