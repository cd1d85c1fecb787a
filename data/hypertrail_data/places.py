"""Where data files may lie: folders the user names, then the cache. And whether a file is the published original."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import IO

from .checks import on_one_line, reason, shown
from .errors import DataError, UnverifiedData
from .untrusted import open_regular, read_regular

Place = str | os.PathLike[str]


def as_path(named: Place, origin: str) -> Path:
    """The path that ``origin`` names, with ~ resolved. Raises DataError for one that no message could show or no call take."""
    try:
        path = Path(named).expanduser()
        if not on_one_line(str(path)):
            raise ValueError("it holds control characters, or is no text in UTF-8")
        return path
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: there is no such user as in ~nobody
        raise DataError(
            f"{origin} is {shown(named)}, expected a path ({reason(error)}); correct or unset it"
        ) from error


def named_folders(data_dir: Place | None) -> list[Path]:
    """``data_dir`` and the folder of HYPERTRAIL_DATA, those of them that are given. Raises DataError if one is no folder."""
    folders = [(as_path(data_dir, "data_dir"), "data_dir")] if data_dir else []
    if variable := os.environ.get("HYPERTRAIL_DATA"):
        folders.append((as_path(variable, "HYPERTRAIL_DATA"), "HYPERTRAIL_DATA"))
    for folder, origin in folders:
        found = "missing"
        # Path.is_dir would raise for a path that is too long, or in a folder that is not ours to look at.
        if os.path.isdir(folder):
            found = "" if os.access(folder, os.R_OK | os.X_OK) else "a folder that cannot be read"
        elif os.path.lexists(folder):
            found = "a file" if os.path.isfile(folder) else "no folder"
        if found:
            raise DataError(
                f"{origin} names {folder}, which is {found}; expected an existing folder: correct or unset it"
            )
    return [folder for folder, _ in folders]


def cache_folder(cache_dir: Place | None) -> Path:
    """``cache_dir``, else HYPERTRAIL_CACHE, else the user's cache folder as pooch has it."""
    if cache_dir:
        return as_path(cache_dir, "cache_dir")
    if variable := os.environ.get("HYPERTRAIL_CACHE"):
        return as_path(variable, "HYPERTRAIL_CACHE")
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            "the data set is in no named folder, and downloading it needs pooch; install pooch, or name the folder that "
            "holds it with data_dir or HYPERTRAIL_DATA"
        ) from error
    return as_path(pooch.os_cache("hypertrail"), "the user's cache folder")


def read_bytes(path: Path, at_most: int) -> bytes:
    try:
        return read_regular(path, at_most)
    except OSError as error:
        raise _unreadable(path, error) from error


def open_bytes(path: Path) -> IO[bytes]:
    try:
        return open(open_regular(path), "rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}); make it readable or put it there anew")


def warn_unless_original(path: Path, content: bytes, sha256: str) -> tuple[str, ...]:
    """Warn UnverifiedData unless ``content``, unpacked from ``path``, has the published sha256; and return what was said."""
    found = hashlib.sha256(content).hexdigest()
    if found == sha256:
        return ()
    said = (
        f"{path} loads, but is not the published original (sha256 {found[:12]}.., expected {sha256[:12]}..): "
        "results may differ from published ones"
    )
    warnings.warn(said, UnverifiedData, stacklevel=2)
    return (said,)
