"""Which runs a folder stands for: one run, a launch, the runs of an experiment, or all that a runs folder holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..runs import CONFIG, WHERE, read_config
from . import launches
from .launches import Launch, Planned


@dataclass(frozen=True)
class Found:
    """A run that was begun (record: its config.json) or only launched (record: None). jobs: of every launch that asked for it."""

    folder: Path
    experiment: str
    seed: int
    record: dict[str, Any] | None
    launch: Launch | None = None
    planned: Planned | None = None
    jobs: Sequence[str] = ()


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
        return of_launch(launches.read(folder), launches.jobs(folder.parent.parent))
    if (folder / CONFIG).is_file():
        return [begun(folder)]
    out: dict[Path, Found] = {}
    jobs = launches.jobs(folder)
    for launch in launches.all_in(folder):
        for one in of_launch(launch, jobs):
            out.setdefault(one.folder.resolve(), one)
    for file in sorted((*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}"))):
        if file.parent.resolve() not in out:
            out[file.parent.resolve()] = begun(file.parent)
    return sorted(out.values(), key=lambda one: one.experiment)


def of_launch(launch: Launch, jobs: dict[Path, list[str]]) -> list[Found]:
    out = []
    for run in launch.runs:
        record = read_config(run.folder) if (run.folder / CONFIG).is_file() else None
        known = jobs.get(run.folder.resolve(), run.jobs)
        out.append(Found(run.folder, launch.experiment, run.seed, record, launch, run, known))
    return out


def begun(folder: Path) -> Found:
    record = read_config(folder)
    return Found(folder, record["experiment"], record["config"]["seed"], record)


def varying(found: Sequence[Found]) -> dict[str, list[str]]:
    """Experiment → the settings in which its runs differ: the grid, whether it was asked for as one or not."""
    out: dict[str, list[str]] = {}
    for name in dict.fromkeys(one.experiment for one in found):
        configs = [one.record["config"] for one in found if one.experiment == name and one.record is not None]
        fields = dict.fromkeys(key for config in configs for key in config if key not in ("seed", *WHERE))
        out[name] = [key for key in fields if any(one.get(key) != configs[0].get(key) for one in configs)]
    return out
