"""Runs to jobs, by submitit: one job array for Slurm, or processes of this machine, a few at a time. Both run the same `Job`.

What Slurm does to a job, and what becomes of the run in it (seen with Slurm 22.05):

    time is up                            SIGUSR2 `notice` seconds before: the run stops in order, its job is requeued, unless the
                                          run is where it was when the job began (exit code 76): more time is needed then
    preempted, with time of grace         SIGTERM: the same
    preempted without it, or requeued     SIGTERM and soon SIGKILL: the run stops in order or is cut off; Slurm requeues by itself
    cancelled (scancel)                   SIGTERM: the run stops in order and is not requeued

A requeued job waits for two minutes at least, then does the same command again: its run goes on where it was.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import gpus
from .launches import PID

STOPPED = (75, 128 + signal.SIGUSR2, 128 + signal.SIGTERM)  # in order; before the run began
LOG_LEVEL = "SUBMITIT_LOG_LEVEL"  # submitit's own variable, read when it is imported
FOREVER = 10 * 366 * 24 * 60  # minutes: submitit wants a number
POLL = 0.1


@dataclass(frozen=True)
class Resources:
    """What every job of a launch is given. minutes: None for as long as it takes (not on Slurm). at_once: None for all."""

    name: str
    minutes: int | None
    partition: str | None
    gpus: int
    cpus: int
    memory: float | None
    at_once: int | None
    notice: int
    requeues: int
    setup: tuple[str, ...]
    more: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run, as submitit calls it: `hypertrail run …` in the job's own process, which the signals reach.

    requeues: how often Slurm may start the job again because it asked for it; 0: never. gpus: CUDA_VISIBLE_DEVICES of the run
    (launch/gpus.py); None: as the job finds it.
    """

    words: tuple[str, ...]
    requeues: int = 0
    gpus: str | None = None

    def __call__(self) -> None:
        """Ends the process with the exit code of the run; asks to be requeued first where the run was stopped."""
        from .. import cli

        if self.gpus is not None:
            os.environ[gpus.VARIABLE] = self.gpus
        code = cli.main(list(self.words))
        if code in STOPPED and self.requeues > int(os.environ.get("SLURM_RESTART_COUNT", 0)) and still_ours():
            # To submitit, which keeps `checkpoint()`, calls scontrol requeue and ends the process.
            signal.raise_signal(signal.SIGUSR2)
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """What the requeued job does: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def still_ours() -> bool:
    """Whether this Slurm job may go on running. One that Slurm is taking away (cancelled, preempted) must not be requeued:
    Slurm would start a cancelled job again.
    """
    said = ask("squeue", "--noheader", "--jobs", os.environ.get("SLURM_JOB_ID", "0"), "--format", "%T")
    return said is not None and said.strip() in ("RUNNING", "SIGNALING")


def ask(*words: str) -> str | None:
    """What a program of Slurm answers; None where it is not there or fails."""
    if shutil.which(words[0]) is None:
        return None
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def queue(jobs: Iterable[str]) -> dict[str, str] | None:
    """Job id → state, of all our jobs that Slurm has not done with; None where Slurm does not answer. It is not asked where
    none of `jobs` is of Slurm.
    """
    if all(job.startswith(PID) for job in jobs):
        return {}
    said = ask("squeue", "--me", "--noheader", "--array", "--format", "%i %T")
    return None if said is None else dict(line.split() for line in said.splitlines())


def refuse_missing(cluster: str) -> None:
    """UsageError where this machine cannot launch."""
    imported()
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UsageError(
            "there is no Slurm here (sbatch is not on the PATH); name --cluster local, or look with --dry-run"
        )


# -- Slurm --------------------------------------------------------------------------------------------------------------


def parameters(resources: Resources) -> dict[str, Any]:
    """In submitit's words."""
    r = resources
    optional = {"partition": r.partition, "gpus_per_node": r.gpus or None, "setup": list(r.setup) or None,
                "mem": None if r.memory is None else f"{max(1, round(1024 * r.memory))}MB"}  # fmt: skip
    return {
        "job_name": r.name,
        "time": r.minutes,
        "cpus_per_task": r.cpus,
        "array_parallelism": r.at_once or 10_000,
        "signal_delay_s": r.notice,
        "srun_args": [f"--cpus-per-task={r.cpus}"],  # from Slurm 22.05 on srun does not take it from the job
        "additional_parameters": {"requeue" if r.requeues else "no-requeue": True, **r.more},
    } | {key: value for key, value in optional.items() if value is not None}


def slurm_executor(folder: Path, resources: Resources) -> Any:
    """submitit's executor; made without Slurm at hand too, for a dry run."""
    submitit = imported()

    class Anywhere(submitit.SlurmExecutor):  # type: ignore[misc, name-defined]
        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Anywhere(folder, max_num_timeout=resources.requeues)
    executor.update_parameters(**parameters(resources))
    return executor


def script(folder: Path, resources: Resources, jobs: int) -> str:
    """The sbatch file that would be submitted for so many jobs. submitit has no public word for it."""
    executor = slurm_executor(folder, resources)
    if jobs > 1:
        executor.parameters["map_count"] = jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def to_slurm(folder: Path, resources: Resources, jobs: Sequence[Job]) -> list[str]:
    """Submit them as one array; their ids. UsageError with Slurm's words where it refuses."""
    submitit = imported()
    try:
        with redirect_stderr(io.StringIO()):  # submitit says it there as well
            submitted = slurm_executor(folder, resources).submit_array(list(jobs))
    except submitit.core.utils.FailedJobError as refused:
        raise UsageError(f"Slurm refused the jobs: {' '.join(str(refused).split())}") from refused
    return [job.job_id for job in submitted]


# -- this machine -------------------------------------------------------------------------------------------------------


def to_processes(
    folder: Path, resources: Resources, jobs: Sequence[Job], started: Callable[[int, str], None]
) -> str | None:
    """Run them here, `at_once` at a time, and wait; the name of the signal that stopped them, or None.

    started: called with a job's place and its id. SIGINT, SIGTERM and SIGUSR2 stop the runs in order (a second one: at once)
    and no more are started. A job that stopped is not started again here. GPUs: each of the jobs at work
    has its own, of those that this process sees; UsageError, before anything is started, for more than there are.
    """
    submitit = imported()
    executor = submitit.LocalExecutor(folder)
    slots: list[Any] = [None] * min(resources.at_once or 1, len(jobs))
    shares = gpus.shares(len(slots), resources.gpus)
    waiting = list(enumerate(jobs))

    def start(slot: int) -> None:
        executor.update_parameters(timeout_min=resources.minutes or FOREVER, signal_delay_s=resources.notice)
        place, one = waiting.pop(0)
        with deaf_to_sigint():
            slots[slot] = executor.submit(replace(one, gpus=shares[slot]))  # submitit knows GPUs by their numbers only
        started(place, PID + slots[slot].job_id)

    def stop() -> None:
        for job in filter(None, slots):
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller, which hands it on

    with asked() as by:
        told = 0
        try:
            while any(slots) or (waiting and not by):
                for slot, job in enumerate(slots):
                    if job is not None and job.done():
                        slots[slot] = None
                    if slots[slot] is None and waiting and not by:
                        start(slot)
                for _ in range(told, len(by)):
                    stop()
                    told += 1
                time.sleep(POLL)
        except BaseException:  # a full disk, say: nobody would be told when they end
            stop()
            raise
    return by[0] if by else None


@contextmanager
def asked() -> Iterator[list[str]]:
    """The signals that come while it lasts, by name."""
    by: list[str] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.signal(one, lambda number, frame: by.append(signal.Signals(number).name)) for one in numbers]
    try:
        yield by
    finally:
        for one, handler in zip(numbers, before, strict=True):
            signal.signal(one, handler)


@contextmanager
def deaf_to_sigint() -> Iterator[None]:
    """What is started meanwhile does not hear Ctrl-C, which reaches every process of a terminal: we hand on what we hear."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def imported() -> Any:
    """submitit, without its configuration of logging: that closes the handlers of everybody else in this process.

    In the jobs, which are processes of their own, it logs as it likes.
    """
    before = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = "NOCONFIG"
    try:
        import submitit
    except ImportError as missing:
        raise UsageError("launching needs submitit: pip install 'hypertrail[slurm]'") from missing
    finally:
        if before is None:
            del os.environ[LOG_LEVEL]
        else:
            os.environ[LOG_LEVEL] = before
    return submitit
