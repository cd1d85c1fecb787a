"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from .dataset import Dataset
from .places import Place

NAMES = ("digits", "mnist", "cifar10")


def load(
    name: str,
    data_dir: Place | None = None,
    cache_dir: Place | None = None,
    progress: bool = True,
) -> Dataset:
    """Load ``digits``, ``mnist`` or ``cifar10``.

    Places, in this order: ``data_dir``; the folder named by HYPERTRAIL_DATA; the cache folder (``cache_dir``, else
    HYPERTRAIL_CACHE, else the user's cache); a download into the cache. A named folder that does not hold the set is
    passed over; one that does not exist, or holds only part of the set, is an error. ``progress`` reports a download on
    stderr. ``digits`` is embedded in the package and looks nowhere.

    Warns UnverifiedData for a file that loads but is not the published original, and keeps the sentence in ``notes``. Raises
    ValueError for an unknown name, DataError where the set cannot be had or is damaged, DiskFull where the cache has no room.
    """
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": _digits,
        "mnist": lambda: _mnist(data_dir, cache_dir, progress),
        "cifar10": lambda: _cifar10(data_dir, cache_dir, progress),
    }
    if name not in loaders:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(NAMES)}")
    return loaders[name]()


# Imported where they are used: a run on the digits should not pay for archives, hashes and sockets.


def _digits() -> Dataset:
    from .digits import load_digits

    return load_digits()


def _mnist(data_dir: Place | None, cache_dir: Place | None, progress: bool) -> Dataset:
    from .mnist import load_mnist

    return load_mnist(data_dir, cache_dir, progress)


def _cifar10(data_dir: Place | None, cache_dir: Place | None, progress: bool) -> Dataset:
    from .cifar10 import load_cifar10

    return load_cifar10(data_dir, cache_dir, progress)
