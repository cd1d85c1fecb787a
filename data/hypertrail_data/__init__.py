"""Data sets, splits, the batch schedule, and the trajectory store.

Names are imported when they are first used: ``import hypertrail_data`` costs neither h5py nor pooch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .array_files import read_dataset
    from .dataset import Dataset
    from .errors import DataError, DiskFull, TrajectoryError, UnverifiedData
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
    "read_dataset",
    "recording",
    "words",
]

_HOME = {
    "array_files": ("read_dataset",),
    "dataset": ("Dataset",),
    "errors": ("DataError", "DiskFull", "TrajectoryError", "UnverifiedData"),
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
