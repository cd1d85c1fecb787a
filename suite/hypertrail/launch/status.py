"""How far runs are: one line each, from what lies in their folders, and from Slurm where it is at hand.

waiting   in the queue of Slurm, or behind others of a local launch      running   somebody writes to its folder
stopped   let go in good order, unfinished: launch it again,             done
          with more time where it says so
failed    with its message: it could not go on                           lost      its process is gone, its job too
damaged   a file of it (or the record of a launch) cannot be read, or is not as it was written: launch it again
(empty)   launched, but never started
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from hypertrail_data import DataError

from .. import experiments
from ..errors import UsageError, looking_at
from ..measures import LOSS, measures, shown
from ..runs import CONFIG, DONE, FAILED, LOCK, lock, no_progress, read_metrics, read_text, writer
from ..runs.names import PARTS
from ..runs.reading import as_at_the_end
from ..terminal import visible
from . import gathering, grid, launches, submitting
from .gathering import Found
from .launches import Launch

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
DAY = 86_400  # seconds
COLUMNS = ("run", "seed", "settings", "state", "progress", "last metrics", "job")


@dataclass(frozen=True)
class State:
    """kind: a word of the table above; message: what is to be known beside it."""

    kind: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.kind or 'not started'}{': ' if self.message else ''}{self.message}"


@dataclass(frozen=True)
class Options:
    """Settings of status."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """A folder of runs, a launch (runs/launches/…), or one run."""
    watch: float | None = None
    """Show it again every so many seconds, until nothing is waiting or running."""


def main(options: Options) -> int:
    """`hypertrail status`: a table on a terminal, plain lines elsewhere."""
    if options.watch is not None and not 0 < options.watch <= DAY:
        raise UsageError(f"watch {options.watch:g}, expected a positive number of seconds, at most {DAY} (a day)")
    from rich.live import Live

    from ..display import console

    out = console()
    if options.watch is None:
        rows = look(options.folder)
        if out.is_terminal:
            out.print(as_table(rows))
        else:
            print(as_text(rows))
        return 0
    if not out.is_terminal:
        while busy(rows := look(options.folder)):
            print(as_text(rows), end="\n\n", flush=True)
            time.sleep(options.watch)
        print(as_text(rows))
        return 0
    with Live(as_table(rows := look(options.folder)), console=out, auto_refresh=False) as live:
        while busy(rows):
            time.sleep(options.watch)
            rows = look(options.folder)
            live.update(as_table(rows), refresh=True)
    return 0


# -- the state of one run -----------------------------------------------------------------------------------------------


def state(folder: Path, jobs: Sequence[str], queue: dict[str, str] | None, launching: bool = False) -> State:
    """What its folder says, and the queue (job → state; None: Slurm does not answer). jobs: all that were asked to do it;
    launching: somebody is starting the runs of its launch one after the other.
    """
    if (folder / DONE).is_file():
        whole = (folder / CONFIG).is_file() and as_at_the_end(folder)
        return (
            State("done") if whole else State("damaged", "it was finished, and a file of it has changed: run it again")
        )
    if writer(folder) is not None:
        return State("running")
    there = [queue[job] for job in jobs if job in queue] if queue else []
    if there:
        return State("waiting" if there[-1] in WAITING else "running")
    if (folder / FAILED).is_file():
        return State("failed", read_text(folder / FAILED))
    if (folder / CONFIG).is_file():
        gone = lock.read(folder / LOCK)
        return State("stopped", no_progress(folder)) if gone is None else State("lost", f"{gone} is gone")
    if launching or not jobs:
        return State("waiting" if launching else "")
    if queue is None:
        return State("waiting", "as far as is known: Slurm does not answer")
    return State("lost", f"job {jobs[-1]} ended before the run began")


def states(launch: Launch) -> list[State]:
    """Of every run of a launch that nobody is at with starting its runs."""
    jobs = launches.jobs(launch.path.parent.parent)
    known = [jobs.get(run.folder.resolve(), run.jobs) for run in launch.runs]
    queue = submitting.queue(job for one in known for job in one)
    return [state(run.folder, one, queue) for run, one in zip(launch.runs, known, strict=True)]


# -- the table ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One run, in words."""

    experiment: str
    name: str
    seed: int | None
    settings: str
    state: State
    progress: str
    metrics: str
    job: str

    def cells(self) -> list[str]:
        seed = "" if self.seed is None else str(self.seed)
        cells = [self.name, seed, self.settings, str(self.state), self.progress, self.metrics, self.job]
        return [" ".join(visible(cell).split()) for cell in cells]


def look(folder: Path) -> list[Row]:
    """A row for every run that the folder stands for."""
    found = gathering.gather([folder])
    launched = [one.launch for one in found if one.launch is not None]
    queue = submitting.queue(job for one in found for job in one.jobs)
    busy = {one.path: lock.writer(one.path / LOCK) is not None for one in launched}
    fields = gathering.varying([one for one in found if one.launch is None])
    return [row(one, queue, one.launch is not None and busy[one.launch.path], fields) for one in found]


def row(one: Found, queue: dict[str, str] | None, launching: bool, fields: dict[str, list[str]]) -> Row:
    """A row, whatever lies in the folder of the run: one that cannot be read is of no concern to the others."""
    try:
        with looking_at(one.folder):
            return row_of_whole(one, queue, launching, fields)
    except (DataError, UsageError, OSError) as damage:
        name = f"{one.experiment}/{one.folder.name}"
        return Row(one.experiment, name, one.seed, "", State("damaged", str(damage)), "", "", "")


def row_of_whole(one: Found, queue: dict[str, str] | None, launching: bool, fields: dict[str, list[str]]) -> Row:
    if one.planned:
        cell: dict[str, Any] = one.planned.cell
    else:
        cell = {key: one.record["config"].get(key) for key in fields[one.experiment]} if one.record else {}
    try:
        lines, found = read_metrics(one.folder), None
    except DataError as damage:  # of one run; the others are of interest all the same
        lines, found = [], str(damage)
    now = State("damaged", one.damage) if one.damage else state(one.folder, one.jobs, queue, launching)
    job = next((job for job in reversed(one.jobs) if job in (queue or {})), one.jobs[-1] if one.jobs else "")
    if now.kind == "lost" and one.planned and one.launch and one.record is None and job in one.planned.jobs:
        log = f"{job.removeprefix(launches.PID)}_0_log.err"
        now = State("lost", f"{now.message}; see {one.launch.path / launches.JOBS / log}")
    name = f"{one.experiment}/{one.folder.name}"
    return Row(
        one.experiment,
        name,
        one.seed,
        grid.words_of(cell),
        now,
        progress(one, lines),
        found or metrics(lines),
        job,
    )


def progress(one: Found, lines: Sequence[dict[str, Any]]) -> str:
    """Trainings of how many (a meta loop makes one more than its updates); parts or lines of a study."""
    if one.record is None:
        return ""
    if "meta_iterations" in one.record["config"] and not is_study(one.experiment):
        return f"{len(lines)}/{one.record['config']['meta_iterations'] + 1}"
    parts = len(list((one.folder / PARTS).glob("*.json")))
    return f"{parts} parts" if parts else f"{len(lines)} lines" if lines else ""


def is_study(name: str) -> bool:
    return name in experiments.names() and experiments.is_study(experiments.load(name))


def metrics(lines: Sequence[dict[str, Any]]) -> str:
    """Of the last line: of a meta loop the hyper loss and the test error (or what a task measured first beside its loss, or its
    test loss), of a study the first numbers."""
    if not lines:
        return ""
    last = lines[-1]
    if "meta_iteration" in last:
        splits = last["metrics"]
        split = next((name for name in ("test", "select", "valid") if name in splits), None)
        found = f"hyper loss {last['hyper_loss']:.4f}"
        if split is None:
            return found
        what = next((name for name in measures(splits[split]) if name != LOSS), LOSS)
        return f"{found}, {split} {what} {shown(what, splits[split][what])}"
    numbers = [(key, value) for key, value in last.items() if isinstance(value, float)]
    return ", ".join(f"{key} {value:.4g}" for key, value in numbers[:3])


def busy(rows: Sequence[Row]) -> bool:
    return any(one.state.kind in ("waiting", "running") for one in rows)


def counted(rows: Sequence[Row]) -> str:
    """How many there are of each kind."""
    kinds = [one.state.kind or "not started" for one in rows]
    return f"{len(rows)} runs: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


COLOURS = {"running": "blue", "done": "green", "failed": "red", "lost": "red", "damaged": "red", "stopped": "yellow"}


def as_table(rows: Sequence[Row]) -> Any:
    """For a terminal; columns in which nothing stands are left out."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    out = Table(caption=counted(rows), caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [i for i in range(len(COLUMNS)) if any(one.cells()[i] for one in rows)]
    for i in shown:
        out.add_column(COLUMNS[i], justify="right" if COLUMNS[i] in ("seed", "progress") else "left", overflow="fold")
    for one in rows:
        cells = [escape(cell) for cell in one.cells()]
        colour = COLOURS.get(one.state.kind)
        if colour:
            cells[3] = f"[{colour}]{cells[3]}[/]"
        out.add_row(*(cells[i] for i in shown))
    return out


def as_text(rows: Sequence[Row]) -> str:
    """The same in plain aligned lines, none of them cut."""
    table = [list(COLUMNS), *(one.cells() for one in rows)]
    shown = [i for i in range(len(COLUMNS)) if any(line[i] for line in table[1:])]
    width = {i: max(len(line[i]) for line in table) for i in shown}
    lines = ["  ".join(line[i].ljust(width[i]) for i in shown).rstrip() for line in table]
    return "\n".join([*lines, counted(rows)])
