"""Data sets, splits, the batch schedule, and the trajectory store.

Names are imported when they are first used: ``import hypertrail_data`` costs neither h5py nor pooch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import Dataset
    from .errors import DataError, DiskFull, TrajectoryError, UnverifiedData
    from .hdf5 import read_hdf5
    from .npz import read_npz
    from .registry import NAMES, load
    from .schedule import BatchSchedule
    from .splits import Split, Splits, make_splits
    from .store import StoredTrajectory
    from .streams import STREAMS, derived_seed, generator, words
    from .trajectory import MemoryTrajectory, Segment, Trajectory
    from .used import recording

__all__ = [
    "NAMES",
    "STREAMS",
    "BatchSchedule",
    "DataError",
    "Dataset",
    "DiskFull",
    "MemoryTrajectory",
    "Segment",
    "Split",
    "Splits",
    "StoredTrajectory",
    "Trajectory",
    "TrajectoryError",
    "UnverifiedData",
    "derived_seed",
    "generator",
    "load",
    "make_splits",
    "read_hdf5",
    "read_npz",
    "recording",
    "words",
]

_HOME = {
    "dataset": ("Dataset",),
    "errors": ("DataError", "DiskFull", "TrajectoryError", "UnverifiedData"),
    "hdf5": ("read_hdf5",),
    "npz": ("read_npz",),
    "registry": ("NAMES", "load"),
    "schedule": ("BatchSchedule",),
    "splits": ("Split", "Splits", "make_splits"),
    "store": ("StoredTrajectory",),
    "streams": ("STREAMS", "derived_seed", "generator", "words"),
    "trajectory": ("MemoryTrajectory", "Segment", "Trajectory"),
    "used": ("recording",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
