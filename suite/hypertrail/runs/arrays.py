"""Nested dicts of arrays to .npz files and back. Files appear whole or not at all, and what is read back is not trusted.

A file is what `numpy.savez` writes: a zip archive of .npy members that are stored as they are, without compression. `load` takes
exactly this and nothing else that the two formats know (pickles, compression, encryption, several volumes). Each member has a
check sum of 32 bits in the archive; whoever must know that a file is the very one that was written keeps the sha256 that `save`
returns, and hands it to `load`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hypertrail_data import DataError
from hypertrail_data.untrusted import open_regular, read_regular

from ..errors import UsageError
from ..hyperparameters import Hyper
from ..outer import State
from .writing import write_atomic

SEPARATOR = "//"  # parameter names hold single slashes
LARGEST = 2**40  # bytes of one file


def save(path: Path, nested: Mapping[str, Any]) -> str:
    """Nested dicts of arrays (any depth) → one .npz whose names join the keys with '//', atomically. Returns its sha256."""
    image = io.BytesIO()
    np.savez(image, **dict(flatten(nested)))  # type: ignore[arg-type]
    content = image.getvalue()
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def load(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """What `save` wrote, nested again. Memory: the file and its arrays.

    sha256: of the file that was written. UsageError where the file is missing, DataError where it cannot be read, is damaged, or
    is another one.
    """
    if not os.path.lexists(path):
        raise UsageError(f"{path} is not there; is this the folder of a run?")
    try:
        content = read_regular(path, LARGEST, follow_links=False)
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror}); make it readable") from problem
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} is not the file that was written there (its sha256 differs); put the original there")
    try:
        return nested_arrays(content)
    except Exception as damage:  # zipfile and NumPy raise nearly anything where bytes are not theirs
        raise DataError(f"{path} is damaged ({damage}); put the original there, or run it again") from damage


def sha256_of(path: Path) -> str:
    """Of a regular file; '' where it is missing or cannot be read."""
    try:
        with open(open_regular(path, follow_links=False), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, DataError):
        return ""


def nested_arrays(content: bytes) -> dict[str, Any]:
    """The arrays of an archive, by the nested keys of their names. Raises whatever is wrong with it."""
    nested: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename!r} is compressed")
            name = member.filename.removesuffix(".npy")
            *front, last = name.split(SEPARATOR)
            inner = nested
            for key in front:
                inner = inner.setdefault(key, {})
            if last in inner:
                raise ValueError(f"{name!r} is there twice")
            inner[last] = one_array(archive.read(member))
    return nested


def one_array(content: bytes) -> np.ndarray:
    """The array of a .npy file, of which nothing is believed: its header must say as many bytes as follow it."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read_header(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or size != len(content) - file.tell():
        raise ValueError(f"an array of {dtype} {shape} does not fit into its {len(content)} bytes")
    flat = np.frombuffer(content, dtype, math.prod(shape), file.tell()) if size else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="K")


def flatten(nested: Mapping[str, Any], front: str = "") -> list[tuple[str, np.ndarray]]:
    out = []
    for key, value in nested.items():
        name = front + key
        out += flatten(value, name + SEPARATOR) if isinstance(value, Mapping) else [(name, np.asarray(value))]
    return out


def digest(nested: Mapping[str, Any]) -> str:
    """sha256 over the name, dtype, shape and bytes of every array, whatever the order of the keys."""
    out = hashlib.sha256()
    for name, one in sorted(flatten(nested), key=lambda pair: pair[0]):
        out.update(f"{name} {one.dtype} {one.shape} ".encode())
        out.update(np.ascontiguousarray(one).tobytes())
    return out.hexdigest()


def alike(nested: Any, like: Any) -> bool:
    """Whether two nested dicts have the same keys, and arrays of the same dtypes and shapes."""
    if isinstance(nested, Mapping) and isinstance(like, Mapping):
        return set(nested) == set(like) and all(alike(nested[key], like[key]) for key in like)
    if isinstance(nested, Mapping) or isinstance(like, Mapping):
        return False
    one, two = np.asarray(nested), np.asarray(like)
    return one.dtype == two.dtype and one.shape == two.shape


def save_state(path: Path, hyper: Hyper, state: State) -> str:
    """Hyperparameters and outer state, all that the next meta-iteration starts from, into one file. Returns its sha256."""
    return save(path, as_nested(hyper, state))


def as_nested(hyper: Hyper, state: State) -> dict[str, Any]:
    return {"hyper": hyper, "count": np.array(state.count), "slots": state.slots}


def load_state(path: Path, sha256: str | None = None) -> tuple[Hyper, State]:
    """What `save_state` wrote. Raises what `load` raises, DataError also for a file that holds something else."""
    nested = load(path, sha256)
    try:
        hyper, state = nested["hyper"], State(int(nested["count"]), nested.get("slots", {}))
    except (KeyError, TypeError, ValueError) as damage:
        raise DataError(f"{path} holds no state of a run ({damage!r}); put the original there") from damage
    if not is_hyper(hyper) or not isinstance(state.slots, dict):
        raise DataError(f"{path} holds no state of a run; put the original there")
    return hyper, state


def is_hyper(found: Any) -> bool:
    """Whether this is {kind: {tensor: array of floats}}."""
    kinds = found.values() if isinstance(found, dict) else [None]
    tensors = [one for kind in kinds for one in (kind.values() if isinstance(kind, dict) else [None])]
    return all(isinstance(one, np.ndarray) and one.dtype.kind == "f" for one in tensors)
