"""The folder of a launch: which runs it is made of, where they lie, and which jobs were asked to do them.

runs/launches/<time>-<experiment>/
    launch.json     the runs: folder, seed, cell of the grid, command (the last one asked for), jobs so far; written before and
                    after each submission
    jobs/           submitit's own: what was submitted, and what the jobs printed (<job>_0_log.out, .err)
    lock            who submits now

A run lies where its configuration says, runs/<experiment>/launched-<config hash>-s<seed>/, whichever launch asked for it. So the
same launch again finds what is finished, and a larger one begins with what the smaller one did.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hypertrail_data import DataError

from ..errors import UsageError
from ..runs import lock
from ..runs.reading import sealed_object
from ..runs.writing import dump_sealed, write_atomic

LAUNCH, LAUNCHES, JOBS, LOCK = "launch.json", "launches", "jobs", "lock"
PID = "pid "  # in front of the number of a process of this machine


@dataclass
class Planned:
    """One run of a launch. words: what `hypertrail` is called with; jobs: ids of Slurm, or 'pid 4711' of this machine."""

    folder: Path
    hash: str
    seed: int
    cell: dict[str, str]
    words: list[str]
    jobs: list[str] = field(default_factory=list)


@dataclass
class Launch:
    """command: what was typed when it was new."""

    path: Path
    experiment: str
    command: str
    runs: list[Planned]

    def write(self) -> None:
        """launch.json, whole or not at all. Folders of runs stand in it as seen from here: the tree may be moved."""
        self.path.mkdir(parents=True, exist_ok=True)
        runs = [asdict(one) | {"folder": os.path.relpath(one.folder, self.path)} for one in self.runs]
        record = {"experiment": self.experiment, "command": self.command, "runs": runs}
        write_atomic(self.path / LAUNCH, dump_sealed(record))

    def asked_again(self, planned: Sequence[Planned]) -> Launch:
        """The same runs as they are asked for now. What they are called with may say that data or runs lie elsewhere, which is no
        part of their hash; the jobs so far stay known.
        """
        jobs = {run.hash: run.jobs for run in self.runs}
        return replace(self, runs=[replace(run, jobs=list(jobs[run.hash])) for run in planned])


def read(path: Path) -> Launch:
    """What `write` wrote. UsageError where `path` is not the folder of a launch, DataError where its record is damaged."""
    if not (path / LAUNCH).is_file():
        raise UsageError(f"{path} is not the folder of a launch (it has no {LAUNCH})")
    record = sealed_object(path / LAUNCH)
    try:
        runs = [planned(path, one) for one in record["runs"]]
        experiment, command = record["experiment"], record["command"]
        if not (isinstance(experiment, str) and isinstance(command, str)):
            raise TypeError("its experiment or command is no text")
    except (KeyError, TypeError, ValueError) as damage:
        raise DataError(f"{path / LAUNCH} is damaged ({damage}); put the original there, or launch anew") from damage
    return Launch(path, experiment, command, runs)


def planned(path: Path, record: dict[str, Any]) -> Planned:
    """A run of the launch in `path`, as its record says. Raises KeyError, TypeError or ValueError for anything else than `write`
    writes: also for a run outside the runs folder that the launch lies in."""
    one = Planned(**record | {"folder": Path(os.path.normpath(path / record["folder"]))})
    words = [one.hash, *one.cell, *one.cell.values(), *one.words, *one.jobs]
    if not (isinstance(one.cell, dict) and isinstance(one.jobs, list) and type(one.seed) is int):
        raise TypeError("a run has a cell, jobs or seed of another type")
    if not all(isinstance(word, str) for word in words):
        raise TypeError("a run has a word that is no text")
    if not Path(os.path.abspath(one.folder)).is_relative_to(os.path.abspath(path.parent.parent)):
        raise ValueError(f"the run {one.folder} is not in the runs folder of the launch")
    return one


def say_damage(path: Path, damage: DataError) -> None:
    """The default of `all_in`: a warning. Its runs may be in the queue unknown to us; a second job for one of them does no harm,
    as a run has one writer and is finished once."""
    warnings.warn(f"a launch is left out: {damage}", stacklevel=2)


def all_in(runs_dir: Path, tell: Callable[[Path, DataError], None] = say_damage) -> Iterator[Launch]:
    """Every launch of a runs folder, the newest first; `tell` hears of those whose record is damaged."""
    for file in sorted((runs_dir / LAUNCHES).glob(f"*/{LAUNCH}"), reverse=True):
        try:
            one = read(file.parent)
        except DataError as damage:
            tell(file.parent, damage)
        else:
            yield one


def same(runs_dir: Path, experiment: str, hashes: Sequence[str]) -> Launch | None:
    """The newest launch of the very same runs."""
    for one in all_in(runs_dir):
        if one.experiment == experiment and sorted(run.hash for run in one.runs) == sorted(hashes):
            return one
    return None


def jobs(runs_dir: Path, tell: Callable[[Path, DataError], None] = say_damage) -> dict[Path, list[str]]:
    """Resolved folder of a run → the jobs that any launch has asked to do it, those of the newest launch last."""
    out: dict[Path, list[str]] = {}
    for launch in reversed(list(all_in(runs_dir, tell))):
        for run in launch.runs:
            out.setdefault(run.folder.resolve(), []).extend(run.jobs)
    return out


@contextmanager
def submitting(path: Path) -> Iterator[None]:
    """Nobody else submits this launch meanwhile. UsageError where somebody does."""
    path.mkdir(parents=True, exist_ok=True)
    holder = lock.writer(path / LOCK)
    if holder is not None:
        raise UsageError(f"{path} is being launched by {holder}; wait for it, or look with hypertrail status {path}")
    held = lock.Lock(path / LOCK)
    try:
        yield
    finally:
        held.release()
