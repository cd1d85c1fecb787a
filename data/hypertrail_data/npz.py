"""Images and labels from a .npz file that anybody may have made. Nothing is unpickled, nothing is allocated on its word alone."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from . import checks
from .bounded import Bounded
from .checks import DENSEST, GIB, listed, reason, text
from .dataset import Dataset
from .errors import DataError
from .places import Place, as_path, open_bytes

DIRECTORY_AT_MOST = 2**20  # bytes that zipfile may read at once: its list of members, of about 15,000 at most
HEADER_AT_MOST = 10_000  # bytes of an array's header; that of a plain array has about 120
BLOCK = 2**20  # bytes
MOST_BYTES = 2**63 - 1  # the length of an array in memory is a signed number of 64 bits


def read_npz(
    path: Place,
    classes: int,
    x: str = "x",
    y: str = "y",
    official_test: int = 0,
    scale: float | None = None,
    name: str | None = None,
    at_most: int = 8 * GIB,
) -> Dataset:
    """The images ``x`` and the labels ``y`` of a file that np.savez or np.savez_compressed has written.

    The other arguments are those of Dataset; ``name`` is the file's unless it is given. No other array of the file is read.
    at_most: bytes of one array. Raises DataError for whatever is wrong with the file or with what it holds,
    and for an ``at_most`` that is no integer above 0.
    """
    path, at_most = as_path(path, "path"), checks.whole(at_most, "at_most", 1, MOST_BYTES)
    with open_bytes(path) as file:
        try:
            with zipfile.ZipFile(Bounded(file, path, DIRECTORY_AT_MOST)) as archive:
                arrays = [_array(archive, path, key, at_most) for key in (x, y)]
        except DataError:
            raise
        except Exception as error:  # zipfile and NumPy can raise nearly anything on what was made to mislead them
            raise DataError(f"{path} is damaged, or no .npz file ({reason(error)}); write it anew") from error
    return named_dataset(path, name, arrays, classes, official_test, scale)


def named_dataset(
    path: Path, name: str | None, arrays: list[np.ndarray], classes: int, official_test: int, scale: float | None
) -> Dataset:
    """The Dataset of what was read from ``path``, which stands in every message. Raises DataError."""
    try:
        return Dataset(path.stem if name is None else name, arrays[0], arrays[1], classes, official_test, scale)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _array(archive: zipfile.ZipFile, path: Path, key: str, at_most: int) -> np.ndarray:
    member = _member(archive, path, key)
    packed = max(member.compress_size, 1)
    with archive.open(member) as file:
        shape, by_columns, dtype, header = _header(file, path, key)
        expected = math.prod(shape) * dtype.itemsize
        if member.file_size != header + expected or member.file_size > DENSEST * packed:
            raise DataError(
                f"{path}: {key!r} has {member.file_size} bytes, packed {packed}; its header tells of {dtype} {shape}, "
                f"{header + expected} bytes; write the file anew"
            )
        refuse_large(path, key, shape, dtype, at_most)
        array = np.empty(shape[::-1] if by_columns else shape, dtype)
        _fill(array, file, path, key)
    return array.T if by_columns else array


def refuse_large(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype, at_most: int) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if expected > at_most:
        raise DataError(
            f"{path}: {key!r} is {dtype} {shape}, {expected} bytes, expected at most {at_most}; pass a larger at_most "
            "if it is meant to be so large"
        )


def _member(archive: zipfile.ZipFile, path: Path, key: str) -> zipfile.ZipInfo:
    """The one member that np.savez makes of the array ``key``."""
    wanted = f"{text(key, 'the name of an array')}.npy"
    members = [member for member in archive.infolist() if member.filename == wanted]
    if not members:
        names = (name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        raise DataError(f"{path} has no array {key!r}; it has {listed(names)}: pass one of these names")
    found = ""
    if len(members) > 1:
        found = f"is there {len(members)} times"
    elif members[0].flag_bits & 1:
        found = "is encrypted"
    elif members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        found = f"is packed by method {members[0].compress_type}"
    if found:
        raise DataError(f"{path}: {key!r} {found}, expected what np.savez or np.savez_compressed writes; write it anew")
    return members[0]


def _header(file: IO[bytes], path: Path, key: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is in Fortran order, dtype, and the bytes of the header itself."""
    begin = file.read(8)
    if begin[:7] not in (b"\x93NUMPY\x01", b"\x93NUMPY\x02"):
        raise DataError(f"{path}: {key!r} begins with {begin!r}, expected a plain NumPy array; write the file anew")
    length = file.read(2 if begin[6] == 1 else 4)
    size = int.from_bytes(length, "little")
    if size > HEADER_AT_MOST:
        raise DataError(
            f"{path}: the header of {key!r} has {size} bytes, expected at most {HEADER_AT_MOST}; write the file anew"
        )
    read = np.lib.format.read_array_header_1_0 if begin[6] == 1 else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(io.BytesIO(length + file.read(size)), max_header_size=HEADER_AT_MOST)
    if dtype.kind not in "biuf" or not all(type(length) is int and length >= 0 for length in shape):
        raise DataError(f"{path}: {key!r} is {dtype} {shape}, expected a plain array of numbers; convert it")
    return shape, by_columns, dtype, len(begin) + len(length) + size


def _fill(array: np.ndarray, file: IO[bytes], path: Path, key: str) -> None:
    room = array.reshape(-1).view(np.uint8).data
    done = 0
    while block := file.read(BLOCK):  # to the end, where the check sum is compared
        room[done : done + len(block)] = block
        done += len(block)
    if done != len(room):
        raise DataError(f"{path}: {key!r} is cut short after {done} of {len(room)} bytes; write the file anew")
