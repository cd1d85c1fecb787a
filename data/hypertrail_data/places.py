"""Where data files may lie: folders the user names, then the cache. And whether a file is the published original."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from .errors import DataError, UnverifiedData


def named_folders(data_dir: Path | None) -> list[Path]:
    """``data_dir`` and the folder of HYPERTRAIL_DATA, those of them that are given. Raises DataError if one is no folder."""
    folders = [(data_dir, "data_dir")] if data_dir else []
    if variable := os.environ.get("HYPERTRAIL_DATA"):
        folders.append((Path(variable).expanduser(), "HYPERTRAIL_DATA"))
    for folder, origin in folders:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "missing"
            raise DataError(
                f"{origin} names {folder}, which is {found}; expected an existing folder: correct or unset it"
            )
    return [folder for folder, _ in folders]


def cache_folder(cache_dir: Path | None) -> Path:
    """``cache_dir``, else HYPERTRAIL_CACHE, else the user's cache folder as pooch has it."""
    if cache_dir:
        return cache_dir
    if variable := os.environ.get("HYPERTRAIL_CACHE"):
        return Path(variable).expanduser()
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            "the data set is in no named folder, and downloading it needs pooch; install pooch, or name the folder that "
            "holds it with data_dir or HYPERTRAIL_DATA"
        ) from error
    return Path(pooch.os_cache("hypertrail"))


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable or put it there anew") from error


def warn_unless_original(path: Path, content: bytes, sha256: str) -> None:
    """Warn UnverifiedData unless ``content``, unpacked from ``path``, has the published sha256."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        warnings.warn(
            f"{path} loads, but is not the published original (sha256 {found[:12]}.., expected {sha256[:12]}..): "
            "results may differ from published ones",
            UnverifiedData,
            stacklevel=2,
        )
