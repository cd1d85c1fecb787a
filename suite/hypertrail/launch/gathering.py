"""Which runs a folder stands for: one run, a launch, the runs of an experiment, or all that a runs folder holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypertrail_data import DataError

from ..errors import UsageError
from ..runs import CONFIG, DONE, METRICS, WHERE, read_config
from . import launches
from .launches import Launch, Planned


@dataclass(frozen=True)
class Found:
    """A run that was begun (record: its config.json) or only launched (record: None). jobs: of every launch that asked for it.

    damage: why its config.json cannot be read, or the record of the launch that `folder` is (seed and record: None).
    """

    folder: Path
    experiment: str
    seed: int | None
    record: dict[str, Any] | None
    launch: Launch | None = None
    planned: Planned | None = None
    jobs: Sequence[str] = ()
    damage: str = ""


def gather(folders: Iterable[Path]) -> list[Found]:
    """The runs that the folders stand for, each once, in order. UsageError where one stands for none."""
    out: dict[Path, Found] = {}
    for folder in folders:
        found = runs_of(folder)
        if not found:
            raise UsageError(f"{folder} holds no run; name a run, a launch, or a folder of runs such as runs")
        for one in found:
            out.setdefault(one.folder.resolve(), one)
    return list(out.values())


def runs_of(folder: Path) -> list[Found]:
    if (folder / launches.LAUNCH).is_file():
        try:
            launch = launches.read(folder)
        except DataError as damage:
            return [damaged(folder, damage)]
        return of_launch(launch, launches.jobs(folder.parent.parent))
    if (folder / CONFIG).is_file():
        return [begun(folder)]
    out: dict[Path, Found] = {}
    broken: dict[Path, DataError] = {}
    jobs = launches.jobs(folder, broken.__setitem__)
    for launch in launches.all_in(folder, broken.__setitem__):
        for one in of_launch(launch, jobs):
            out.setdefault(one.folder.resolve(), one)
    signs = (f"{depth}/{name}" for depth in ("*", "*/*") for name in (CONFIG, METRICS, DONE))
    for place in sorted({file.parent for sign in signs for file in folder.glob(sign)}):
        if place.resolve() not in out:
            out[place.resolve()] = begun(place)
    found = [*out.values(), *(damaged(path, damage) for path, damage in broken.items())]
    return sorted(found, key=lambda one: one.experiment)


def of_launch(launch: Launch, jobs: dict[Path, list[str]]) -> list[Found]:
    out = []
    for run in launch.runs:
        there = any((run.folder / name).exists() for name in (CONFIG, METRICS, DONE))
        one = begun(run.folder) if there else Found(run.folder, "", None, None)
        known = jobs.get(run.folder.resolve(), run.jobs)
        out.append(Found(run.folder, launch.experiment, run.seed, one.record, launch, run, known, one.damage))
    return out


def begun(folder: Path) -> Found:
    try:
        record = read_config(folder)
        return Found(folder, record["experiment"], record["config"]["seed"], record)
    except (DataError, UsageError, OSError) as damage:  # UsageError: it went away while we looked
        return damaged(folder, damage)


def damaged(folder: Path, damage: Exception) -> Found:
    """A run or a launch whose record cannot be read: it stands beside the others, which are of interest all the same."""
    return Found(folder, folder.resolve().parent.name, None, None, damage=str(damage))


def varying(found: Sequence[Found]) -> dict[str, list[str]]:
    """Experiment → the settings in which its runs differ: the grid, whether it was asked for as one or not."""
    out: dict[str, list[str]] = {}
    for name in dict.fromkeys(one.experiment for one in found):
        configs = [one.record["config"] for one in found if one.experiment == name and one.record is not None]
        fields = dict.fromkeys(key for config in configs for key in config if key not in ("seed", *WHERE))
        out[name] = [key for key in fields if any(one.get(key) != configs[0].get(key) for one in configs)]
    return out
