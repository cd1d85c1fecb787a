"""The data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .dataset import Dataset

NAMES = ("digits", "mnist", "cifar10")


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Dataset:
    """Load ``digits``, ``mnist`` or ``cifar10``.

    Places, in this order: ``data_dir``; the folder named by HYPERTRAIL_DATA; the cache folder (``cache_dir``, else
    HYPERTRAIL_CACHE, else the user's cache); a download into the cache. A named folder that does not hold the set is
    passed over; one that does not exist, or holds only part of the set, is an error. ``progress`` reports a download on
    stderr. ``digits`` is embedded in the package and looks nowhere.

    Warns UnverifiedData for a file that loads but is not the published original. Raises ValueError for an unknown name,
    DataError where the set cannot be had or is damaged, DiskFull where the cache has no room.
    """
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "mnist": lambda: _mnist(_path(data_dir), _path(cache_dir), progress),
        "cifar10": lambda: _cifar10(_path(data_dir), _path(cache_dir), progress),
    }
    if name not in loaders:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(NAMES)}")
    return loaders[name]()


def _path(folder: str | os.PathLike[str] | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser()


# Imported where they are used: a run on the digits should not pay for archives, hashes and sockets.


def _digits() -> Dataset:
    from .digits import load_digits

    return load_digits()


def _mnist(data_dir: Path | None, cache_dir: Path | None, progress: bool) -> Dataset:
    from .mnist import load_mnist

    return load_mnist(data_dir, cache_dir, progress)


def _cifar10(data_dir: Path | None, cache_dir: Path | None, progress: bool) -> Dataset:
    from .cifar10 import load_cifar10

    return load_cifar10(data_dir, cache_dir, progress)
