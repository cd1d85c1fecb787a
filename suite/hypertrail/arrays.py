"""Nested dicts of arrays to .npz files and back; files appear whole or not at all."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hypertrail_data import DataError

from .errors import UsageError
from .hyperparameters import Hyper
from .outer import State


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name beside `path`, fsync, rename: a reader (or a crash) sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, nested: Mapping[str, Any]) -> None:
    """Nested dicts of arrays (any depth) → one .npz whose names join the keys with '//', atomically."""
    image = io.BytesIO()
    np.savez(image, **dict(flatten(nested)))  # type: ignore[arg-type]
    write_atomic(path, image.getvalue())


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, nested again. UsageError where the file is missing, DataError where it is damaged."""
    if not path.is_file():
        raise UsageError(f"{path} is not there; is this the folder of a run?")
    nested: dict[str, Any] = {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                *front, last = name.split(SEPARATOR)
                inner = nested
                for key in front:
                    inner = inner.setdefault(key, {})
                inner[last] = archive[name]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as damage:
        raise DataError(f"{path} is damaged ({damage}); run it again") from damage
    return nested


SEPARATOR = "//"  # parameter names hold single slashes


def flatten(nested: Mapping[str, Any], front: str = "") -> list[tuple[str, np.ndarray]]:
    out = []
    for key, value in nested.items():
        name = front + key
        out += flatten(value, name + SEPARATOR) if isinstance(value, Mapping) else [(name, np.asarray(value))]
    return out


def save_state(path: Path, hyper: Hyper, state: State) -> None:
    """Hyperparameters and outer state, all that the next meta-iteration starts from, into one file."""
    save(path, {"hyper": hyper, "count": np.array(state.count), "slots": state.slots})


def load_state(path: Path) -> tuple[Hyper, State]:
    """What `save_state` wrote."""
    nested = load(path)
    return nested["hyper"], State(int(nested["count"]), nested.get("slots", {}))
