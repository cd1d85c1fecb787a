"""Arrays from a .npz file that anybody may have made. Nothing is unpickled, nothing is allocated on its word alone."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from .bounded import Bounded
from .checks import DENSEST, listed, refuse_large, text
from .errors import DataError

DIRECTORY_AT_MOST = 2**20  # bytes that zipfile may read at once: its list of members, of about 15,000 at most
HEADER_AT_MOST = 10_000  # bytes of an array's header; that of a plain array has about 120
BLOCK = 2**20  # bytes


def arrays(file: IO[bytes], path: Path, keys: Sequence[str], at_most: int) -> list[np.ndarray]:
    """The arrays of these names from an open .npz file. Raises DataError, and whatever zipfile and NumPy raise."""
    with zipfile.ZipFile(Bounded(file, path, DIRECTORY_AT_MOST)) as archive:
        return [_array(archive, path, key, at_most) for key in keys]


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
