"""What is done with the states while training runs: one small object for each kind of `keep`.

A keeper cuts the run into spans (and says of which the states are wanted), sees the state before each span and the
states of each finished one, and hands over at the end what it has kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.keeping import Checkpoints, Keep, Last
from hypertrail.methods import MEASURED_STEPS
from hypertrail.records import Checkpointed
from hypertrail_data import MemoryTrajectory, StoredTrajectory

from . import devices
from .compiled import Compiled

Tree = Any
SHARE = 0.5  # of the free memory that `auto` lets a trajectory have


class Nothing:
    """keep='ends': nothing but w_0 and w_T, which the training record holds anyway. The others extend it."""

    def spans(self, programs: Compiled) -> Iterator[tuple[int, int, bool]]:
        """(start, stop, whether its states are wanted), in order, without gaps."""
        yield from cut(0, programs.problem.steps, programs.chunk, False)

    def before(self, start: int, state: Tree, w0: Tree) -> tuple[tuple[int, Tree], ...]:
        """See the state before a span; say from where, (a, w_a), distances are measured ((0, w_0) is always the first)."""
        return ((0, w0),)

    def after(self, start: int, kept: dict[str, Any], distances: np.ndarray) -> None:
        """Take the states of a finished span, (k, …) each, and its distances (k, origins), NaN where not measured."""

    def flush(self) -> None:
        """Return when what was taken is as safe as it can be made."""

    def result(self) -> Any:
        return None

    def close(self) -> None:
        """Let go, after a failure: what is durable stays."""


class Temporary(StoredTrajectory):
    """A stored trajectory in a folder that nobody named, which goes when it is closed or let go of."""

    def __init__(self, folder: Path, *rest: Any) -> None:
        # Before the store's own, which waits for its writer: of an object's finalizers the last one is called first.
        weakref.finalize(self, shutil.rmtree, folder.parent, ignore_errors=True)
        super().__init__(folder, *rest)

    def close(self) -> None:
        try:
            super().close()
        finally:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


class States(Nothing):
    """Every state from step `first` on, in a trajectory: on the device, in the host's RAM or in HDF5 segments."""

    def __init__(self, trajectory: MemoryTrajectory | StoredTrajectory, on_host: bool = False, first: int = 0) -> None:
        self.trajectory, self.on_host, self.first = trajectory, on_host, first

    def spans(self, programs: Compiled) -> Iterator[tuple[int, int, bool]]:
        stored = isinstance(self.trajectory, StoredTrajectory)
        yield from cut(0, self.first, programs.chunk, False)
        yield from cut(self.first, programs.problem.steps, programs.disk_chunk if stored else programs.chunk, True)

    def after(self, start: int, kept: dict[str, Any], distances: np.ndarray) -> None:
        if kept:
            self.trajectory.append(start, jax.tree.map(np.asarray, kept) if self.on_host else kept)

    def flush(self) -> None:
        self.trajectory.flush()

    def result(self) -> MemoryTrajectory | StoredTrajectory:
        self.trajectory.hand_over()  # the reverse pass may begin while the last of it is being written
        return self.trajectory

    def close(self) -> None:
        self.trajectory.close()


class Starts(Nothing):
    """The states before the steps `at`, velocities with them: training can start again from each."""

    def __init__(self, at: list[int]) -> None:
        self.kept = Checkpointed(at, [], [])

    def spans(self, programs: Compiled) -> Iterator[tuple[int, int, bool]]:
        for start, stop in stretches(self.kept.at, programs.problem.steps):
            yield start, stop, False

    def before(self, start: int, state: Tree, w0: Tree) -> tuple[tuple[int, Tree], ...]:
        w, v, _ = state
        self.kept.states.append({"w/" + k: one for k, one in w.items()} | {"v/" + k: one for k, one in v.items()})
        return (0, w0), (start, w)

    def after(self, start: int, kept: dict[str, Any], distances: np.ndarray) -> None:
        self.kept.distances.append(distances[:MEASURED_STEPS, 1].astype(np.float64))

    def result(self) -> Checkpointed:
        return self.kept


def keeper(keep: Keep, programs: Compiled, begun: int = 0, about: Mapping[str, Any] = {}) -> Nothing:
    """The keeper of one run. begun: the steps whose states an earlier start has left in the folder; about: what the folder
    remembers of this training. The folder above must be there: one that was deleted meanwhile is not made again."""
    if isinstance(keep, Checkpoints):
        return Starts(keep.at(programs.problem.steps))
    if isinstance(keep, Last):
        return States(MemoryTrajectory(), first=max(programs.problem.steps - keep.steps, 0))
    processes = devices.process()[1]
    if processes > 1 and (keep == "auto" or isinstance(keep, Path)):
        raise UsageError(
            f"keep={str(keep)!r} with {processes} processes: one of them would have to hand every segment to the others; keep "
            "'memory' (on each device), 'host' (in each process' RAM) or Checkpoints()"
        )
    place = room_for(programs.state_bytes * programs.problem.steps) if keep == "auto" else keep
    if isinstance(place, Path):
        store = Temporary if keep == "auto" else StoredTrajectory
        trajectory = store.open(place, "a", begun) if begun else store.create(place, meta=dict(about), parents=False)
        return States(trajectory, on_host=True)
    return Nothing() if place == "ends" else States(MemoryTrajectory(), on_host=place == "host")


def cut(start: int, stop: int, length: int, states: bool) -> Iterator[tuple[int, int, bool]]:
    for first in range(start, stop, length):
        yield first, min(first + length, stop), states


def stretches(at: list[int], steps: int) -> list[tuple[int, int]]:
    """The stretches between checkpoints, the last one ending at T."""
    return list(zip(at, [*at[1:], steps], strict=True))


def free_memory() -> tuple[int, int]:
    """Free bytes (of this process' first device, of the host); the same where the device is the processor."""
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else host, host


def room_for(needed: int) -> str | Path:
    """'memory', 'host' or a temporary folder: the first that half of whose free memory holds `needed` bytes, all T states.

    Raises UsageError where even the disk has no room.
    """
    device, host = free_memory()
    if needed <= SHARE * device:
        return "memory"
    if needed <= SHARE * host:
        return "host"
    folder = Path(tempfile.mkdtemp(prefix="hypertrail-"))
    free = shutil.disk_usage(folder).free
    if needed > SHARE * free:
        folder.rmdir()
        raise UsageError(
            f"a trajectory of {needed / 1e9:.1f} GB has no room on device, host ({host / 1e9:.1f} GB free) or disk "
            f"({free / 1e9:.1f} GB free); use keep=Checkpoints()"
        )
    return folder / "trajectory"
