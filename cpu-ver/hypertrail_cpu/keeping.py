"""What a run keeps of its trajectory while it goes (`hypertrail.keeping` names the kinds). float64 on the host.

A keeper is shown every step (`take`), may write between blocks of steps (`save`), and hands over what it has (`finish`).
"device" and "host" are the same place here: 'memory' and 'host' do the same thing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import hypertrail_data
from hypertrail.keeping import Checkpoints, Keep, Last, Reversible
from hypertrail.methods import MEASURED_STEPS
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed
from hypertrail_data import MemoryTrajectory, Trajectory

if TYPE_CHECKING:
    from .training import Step


@dataclass
class Nothing:
    """w_0 and w_T are in the record of the run; nothing else is kept. (A reversible run keeps its digits by itself.)"""

    def take(self, one: Step) -> None:
        pass

    def save(self) -> None:
        pass

    def flush(self) -> None:
        """Return when what was saved is as safe as it can be made."""

    def finish(self) -> None:
        return None

    def abandon(self) -> None:
        pass


@dataclass
class States:
    """The states before the steps first … T−1, 'w/<parameter>' and, where velocity is set, 'v/<parameter>', in a trajectory."""

    trajectory: Trajectory
    velocity: bool
    first: int = 0
    pending: list[Step] = field(default_factory=list)

    def take(self, one: Step) -> None:
        if one.t >= self.first:
            self.pending.append(one)

    def save(self) -> None:
        block, self.pending = self.pending, []  # first: a block whose writing failed must not be appended a second time
        if block:
            states = {f"w/{name}": np.stack([one.w[name] for one in block]) for name in block[0].w}
            if self.velocity:
                states |= {f"v/{name}": np.stack([one.v[name] for one in block]) for name in block[0].v}
            self.trajectory.append(block[0].t, states)

    def flush(self) -> None:
        self.trajectory.flush()

    def finish(self) -> Trajectory:
        self.trajectory.hand_over()  # the reverse pass may begin while the last of it is being written
        return self.trajectory

    def abandon(self) -> None:
        """The run failed or was interrupted: the states of all finished steps are put into safety."""
        try:
            self.save()
        finally:
            self.trajectory.close()


@dataclass
class Starts:
    """The states before the steps `at`, w and v always: from each of them training can go on.

    distances: ‖w_{t+1} − w_a‖ for the first 20 steps t of the stretch that begins at a.
    """

    at: list[int]
    states: list[dict[str, Any]] = field(default_factory=list)
    distances: list[list[float]] = field(default_factory=list)

    def take(self, one: Step) -> None:
        if len(self.states) < len(self.at) and one.t == self.at[len(self.states)]:
            w, v = ({f"{front}/{name}": a for name, a in p.items()} for front, p in (("w", one.w), ("v", one.v)))
            self.states.append(w | v)
            self.distances.append([])
        if len(self.distances[-1]) == MEASURED_STEPS:
            return
        moved = (np.sum((a - self.states[-1][f"w/{name}"]) ** 2) for name, a in one.w_next.items())
        self.distances[-1].append(float(np.sqrt(sum(moved))))

    def save(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def finish(self) -> Checkpointed:
        return Checkpointed(self.at, self.states, [np.array(d) for d in self.distances])

    def abandon(self) -> None:
        pass


def keeper(
    keep: Keep, problem: Problem, state_bytes: int, begun: int = 0, about: Mapping[str, Any] = {}
) -> Nothing | States | Starts:
    """The keeper of one run. state_bytes: of the arrays that one stored state holds; begun: the steps whose states an earlier
    start has left in the folder; about: what the folder remembers of this training. The folder above must be there: one that was
    deleted meanwhile is not made again.

    'auto' takes memory if T states fit into half of what `available_memory` finds, else a new folder of HDF5 segments where
    temporary files go, removed when the trajectory is closed or let go of, and at the latest when Python ends.
    Raises what `Checkpoints.at` and the store raise.
    """
    velocity = problem.needs_velocity()
    if isinstance(keep, Path):
        store = hypertrail_data.StoredTrajectory
        about = {**meta(problem), **about}
        return States(
            store.open(keep, "a", begun) if begun else store.create(keep, meta=about, parents=False), velocity
        )
    if isinstance(keep, Checkpoints):
        return Starts(keep.at(problem.steps))
    if isinstance(keep, Last):
        return States(MemoryTrajectory(), velocity, first=max(0, problem.steps - keep.steps))
    if isinstance(keep, Reversible) or keep == "ends":
        return Nothing()
    if keep == "auto" and problem.steps * state_bytes > available_memory() / 2:
        return States(temporary(problem), velocity)
    return States(MemoryTrajectory(), velocity)


def available_memory() -> int:
    """Bytes of RAM that are free (what the file cache uses does not count as free); where the system does not tell, all."""
    known = os.sysconf_names
    pages = next(name for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES") if name in known)
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def temporary(problem: Problem) -> Trajectory:
    """A stored trajectory whose folder goes with it."""
    from hypertrail_data.store import StoredTrajectory

    class Temporary(StoredTrajectory):
        def __init__(self, folder: Path, *rest: Any) -> None:
            # Before the store's own, which waits for its writer: of an object's finalizers the last one is called first.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            super().__init__(folder, *rest)

        def close(self) -> None:
            try:
                super().close()
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)

    return Temporary.create(Path(tempfile.mkdtemp(prefix="hypertrail-")), meta=meta(problem))


def meta(problem: Problem) -> dict[str, Any]:
    return {"engine": "cpu", "steps": problem.steps, "seed": problem.seed}
