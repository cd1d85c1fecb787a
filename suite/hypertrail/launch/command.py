"""Launch an experiment many times: every seed with every cell of a grid, each run in a folder of its own.

    hypertrail launch drmad-digits --seeds 0:10 --grid method=exact,drmad-C4 --partition gpu --gpus 1 --time 2:00:00
    hypertrail launch rosenbrock --grid steps=25,50 outer-rate=0.01,0.02 --cluster local --at-once 2
    hypertrail launch drmad-digits --seeds 0:10 --dry-run

What is no option of the launch is a setting of the experiment, for all of its runs. Every setting is read before anything is
submitted. The same launch again submits what was stopped or lost, and leaves what is finished, at work or waiting; it is the same
wherever its data and runs lie: a wrong --data-dir is put right by launching again, and --runs-dir names a runs folder that moved.
`hypertrail status` shows how far they are, `hypertrail collect` what they found.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from .. import experiments, own, runs
from ..checks import shortened
from ..errors import NoProgress, Stopped, UsageError
from ..terminal import say, visible
from . import gpus, grid, launches, submitting
from .launches import Launch, Planned

MOST = 10**6  # of GPUs, cores, GiB, runs, restarts, seconds of notice
Words = tuple[tuple[str, ...], ...]
Several = Annotated[Words, tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Options:
    """Settings of a launch."""

    seeds: str = "0"
    """0:10 are the seeds 0 … 9; 3 is one; 0:4,7 are five."""
    grid: Several = ()
    """field=value,value …: every combination of these settings. A value of several words is quoted: "methods=a b,c"."""
    cluster: Literal["slurm", "local"] = "slurm"
    """slurm: a job array. local: processes of this machine; the command waits for them."""
    dry_run: bool = False
    """Print the runs and the script that would be submitted; write nothing."""
    retry_failed: bool = False
    """Try failed runs again as well, from their last good state."""
    time: str | None = None
    """Limit of one job: 90 (minutes), 2:30:00 or 1-12:00:00. A run that needs longer stops in order, is requeued and goes on,
    unless it has won nothing in that time (a hypergradient must fit into it, and its training where the states lie in memory).
    On Slurm an hour where nothing is said; local: no limit."""
    partition: str | None = None
    """Where the jobs are submitted to."""
    gpus: int = 0
    """GPUs of one run; without any it computes on the processor. Local: of those that CUDA_VISIBLE_DEVICES names, or else all."""
    cpus: int = 1
    """Processor cores of one run, on Slurm."""
    memory: float | None = None
    """Memory of one run in GiB, on Slurm; otherwise what the partition gives."""
    at_once: int | None = None
    """How many runs may be at work at a time. Slurm: all of them where nothing is said; local: one."""
    requeue: bool = True
    """Put a job that was stopped (time is up, preempted) back into the queue."""
    requeues: int = 100
    """How many restarts of a job, preemptions counted, are enough."""
    notice: int = 120
    """Seconds between the signal to stop and the end of a job's time: longer than a chunk of steps takes."""
    setup: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A line of the script before the run, such as "module load cuda"; may be given several times. Slurm only."""
    sbatch: Several = ()
    """Any other option of sbatch, key=value or key: account=me qos=long exclusive."""


def main(word: str, words: Sequence[str], command: Sequence[str]) -> int:
    """`hypertrail launch`: what is asked for is checked, shown or submitted; waits for local runs. UsageError before anything is
    written. Exit code 0; of local runs (`here`) 1 where one failed or was lost, 75 where one was stopped, whatever became of the
    others, 76 where those that were stopped had won nothing.
    """
    options, settings = read(word, words)
    found = own.find(word)
    experiment = found.title
    refuse_seeds(experiment, found.module, options.seeds)
    planned = plan(found, options, settings)
    asked = resources(options, experiment)
    base = runs_dir(planned)
    if options.dry_run:
        return show(experiment, base, planned, options, asked)
    submitting.refuse_missing(options.cluster)
    if options.cluster == "local":
        gpus.shares(min(asked.at_once or 1, len(planned)), asked.gpus)
    before = launches.same(base, experiment, [run.hash for run in planned])
    if before is not None:
        with launches.submitting(before.path):
            return submit(launches.read(before.path).asked_again(planned), options, asked)
    new = Launch(new_folder(base, experiment), experiment, shlex.join(["hypertrail", *command]), planned)
    with launches.submitting(new.path):
        try:
            return submit(new, options, asked)
        except UsageError:  # refused: nothing has begun
            shutil.rmtree(new.path)
            raise


def read(experiment: str, words: Sequence[str]) -> tuple[Options, list[str]]:
    """The launch's own options, and what is left for the experiment."""
    from ..cli import parse_known

    refuse_control_characters(words)
    options, settings = parse_known(Options, words, f"hypertrail launch {experiment}", __doc__)
    for name, least in (("gpus", 0), ("cpus", 1), ("at_once", 1), ("requeues", 0), ("notice", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value <= MOST:
            raise UsageError(f"{name.replace('_', '-')} {shortened(value)}, expected {least} to {MOST:,}")
    if options.memory is not None and not 1 / 1024 <= options.memory <= MOST:
        raise UsageError(f"memory {options.memory:g}, expected {1 / 1024:.4f} (1 MiB) to {MOST:,} GiB")
    if options.cluster == "local":
        theirs = [f"--{name}" for name in ("partition", "memory", "setup", "sbatch") if getattr(options, name)]
        if theirs:
            raise UsageError(f"{theirs[0]} is for Slurm; leave it out, or name --cluster slurm")
    return options, settings


def refuse_control_characters(words: Sequence[str]) -> None:
    """UsageError for a line break or the like: it would end a line of the script that Slurm runs, and begin another."""
    for word in (*words, os.getcwd()):
        if not visible(word) == word or "\n" in word or "\t" in word:
            raise UsageError(
                f"{word!r} holds a line break or another character that cannot be printed, and it would stand in a script; "
                "leave it out"
            )


def plan(found: own.Found, options: Options, settings: list[str]) -> list[Planned]:
    """Every run, cell by cell; each cell's settings read by the experiment's own parser, which refuses what it does not know."""
    from ..cli import parse

    experiment, config = found.title, found.module.Config
    seeds = grid.seeds(options.seeds)
    axes = grid.axes([word for words in options.grid for word in words], config, experiment)
    grid.refuse_twice(axes, settings)
    cells = grid.cells(axes)
    grid.refuse_many(len(cells) * len(seeds))
    planned = []
    for cell in cells:
        words = [*settings, *grid.as_words(cell, config)]
        try:
            one = parse(config, words, f"hypertrail launch {experiment} --help or hypertrail run {experiment}", None)
        except UsageError as refused:
            raise UsageError(f"{grid.words_of(cell)}: {refused}" if cell else str(refused)) from None
        for seed in seeds:
            record = runs.config_record(experiment, dataclasses.replace(one, seed=seed), found.settings)
            folder = Path(one.runs_dir) / experiment / f"launched-{record['hash']}-s{seed}"
            call = ["run", found.word, *words, "--seed", str(seed), "--run-dir", str(folder.absolute())]
            planned.append(Planned(folder, record["hash"], seed, cell, call))
    first: dict[str, Planned] = {}
    for run in planned:
        if run.hash in first:
            raise UsageError(f"grid: {title(first[run.hash])} and {title(run)} are the same run; leave one out")
        first[run.hash] = run
    return planned


def refuse_seeds(experiment: str, module: ModuleType, text: str) -> None:
    """UsageError for several seeds of an experiment that draws nothing at random: its runs would all be equal."""
    if len(grid.seeds(text)) > 1 and not experiments.draws(module):
        raise UsageError(
            f"seeds {text!r}: {experiment} draws nothing at random, its runs would be equal; expected one seed"
        )


def title(run: Planned) -> str:
    return f"{grid.words_of(run.cell)} seed={run.seed}".strip()


def runs_dir(planned: Sequence[Planned]) -> Path:
    return planned[0].folder.parent.parent


def new_folder(base: Path, experiment: str) -> Path:
    """A second one within the same second gets a number behind."""
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{experiment}"
    path, n = base / launches.LAUNCHES / name, 1
    while path.exists():
        n += 1
        path = base / launches.LAUNCHES / f"{name}-{n}"
    return path


def resources(options: Options, experiment: str) -> submitting.Resources:
    more: dict[str, Any] = {}
    for word in (word for words in options.sbatch for word in words):
        key, equals, value = word.lstrip("-").partition("=")
        if not re.fullmatch(r"[A-Za-z][A-Za-z-]*", key):
            raise UsageError(f"sbatch {word!r}, expected an option of sbatch such as account=me or exclusive")
        more[key] = value if equals else True
    limit = None if options.time is None else minutes(options.time)
    if limit is None and options.cluster == "slurm":
        limit = 60
    if limit is not None and 60 * limit <= options.notice:
        raise UsageError(f"notice {options.notice}, expected fewer seconds than the job has, {60 * limit}; see --time")
    return submitting.Resources(
        name=f"hypertrail-{experiment}",
        minutes=limit,
        partition=options.partition,
        gpus=options.gpus,
        cpus=options.cpus,
        memory=options.memory,
        at_once=options.at_once,
        notice=options.notice,
        requeues=options.requeues if options.requeue and options.cluster == "slurm" else 0,
        setup=options.setup,
        more=more,
    )


def minutes(text: str) -> int:
    """Slurm's ways to write a time → whole minutes, rounded up: m, m:s, h:m:s, d-h, d-h:m, d-h:m:s."""
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text.strip(), flags=re.ASCII)
    if match is None:
        raise UsageError(
            f"time {text!r}, expected minutes, hours:minutes:seconds or days-hours such as 90, 2:30:00 or 1-12"
        )
    days, *rest = match.groups()
    a, b, c = (int(one or 0) for one in rest)
    if days is None and rest[2] is None:
        seconds = 60 * a + b
    else:
        seconds = 86400 * int(days or 0) + 3600 * a + 60 * b + c
    if not seconds:
        raise UsageError(f"time {text!r} is none at all; expected such as 90 (minutes) or 2:30:00")
    return -(-seconds // 60)


# -- doing it -----------------------------------------------------------------------------------------------------------


def job_of(run: Planned, asked: submitting.Resources) -> submitting.Job:
    return submitting.Job(tuple(run.words), asked.requeues)


def show(experiment: str, base: Path, planned: Sequence[Planned], options: Options, asked: submitting.Resources) -> int:
    """The runs and the script."""
    say(f"{len(planned)} runs of {experiment}:")
    for run in planned:
        say(f"  {shlex.join(['hypertrail', *run.words])}")
    if options.cluster == "local":
        say(f"on this machine, {options.at_once or 1} at a time; nothing was written")
        return 0
    folder = base / launches.LAUNCHES / f"<time>-{experiment}" / launches.JOBS
    say(f"\n{submitting.script(folder, asked, len(planned))}\nnothing was submitted or written (--dry-run)")
    return 0


def submit(launch: Launch, options: Options, asked: submitting.Resources) -> int:
    """Submit what is to be done, and say what is left alone."""
    from . import status

    if not (launch.path / launches.LAUNCH).is_file():
        launch.write()
    states = status.states(launch)
    again = ("", "stopped", "lost", "damaged", *(("failed",) if options.retry_failed else ()))
    todo = [run for run, one in zip(launch.runs, states, strict=True) if one.kind in again]
    left = [one.kind for one in states if one.kind not in again]
    for kind in dict.fromkeys(left):
        hint = "; try them again with --retry-failed" if kind == "failed" else ""
        say(f"{left.count(kind)} of {len(states)} runs: {kind}{hint}")
    if not todo:
        say(f"nothing to submit; hypertrail status {launch.path}")
        return 0
    launch.write()  # as it is asked for now
    jobs = [job_of(run, asked) for run in todo]
    folder = launch.path / launches.JOBS
    if options.cluster == "local":
        return here(launch, todo, jobs, asked)
    for run, job in zip(todo, submitting.to_slurm(folder, asked, jobs), strict=True):
        run.jobs.append(job)
    launch.write()
    say(f"submitted {len(todo)} runs as {todo[0].jobs[-1].partition('_')[0]}; hypertrail status {launch.path}")
    return 0


def here(launch: Launch, todo: Sequence[Planned], jobs: Sequence[submitting.Job], asked: submitting.Resources) -> int:
    """On this machine, to the end: 0 where every run is done, 1 where one failed or was lost, each in a line of its own. Raises
    Stopped where one was stopped, by a signal to us or for a reason of its own: the same launch again goes on (NoProgress: with
    more time only).
    """
    from . import status

    def started(place: int, job: str) -> None:
        todo[place].jobs.append(job)
        launch.write()
        say(f"started {title(todo[place])}: {todo[place].folder}")

    say(f"{len(todo)} runs, {asked.at_once or 1} at a time; hypertrail status {launch.path}")
    by = submitting.to_processes(launch.path / launches.JOBS, asked, jobs, started)
    states = status.states(launch)
    kinds = [one.kind or "not started" for one in states]
    say(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))
    wrong = ("failed", "lost") if by else ("failed", "lost", "")  # after a signal no more are started
    bad = [one for one in states if one.kind in wrong]
    for run, one in zip(launch.runs, states, strict=True):
        if one.kind in wrong or (one.kind == "stopped" and one.message):
            say(f"{title(run)}: {one}")
    if by:
        raise Stopped(f"stopped by {by}; the same launch again goes on")
    stopped = [one for one in states if one.kind == "stopped"]
    if stopped and all(one.message for one in stopped):
        raise NoProgress("runs were stopped with nothing won; the same launch again with a longer --time goes on")
    if stopped:
        raise Stopped("runs were stopped; the same launch again goes on")
    return 1 if bad else 0
