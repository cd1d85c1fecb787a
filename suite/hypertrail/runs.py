"""The folder of one run: what was asked, where it ran, what came out. One writer at a time; nothing is overwritten.

runs/<experiment>/<time>-<config hash>-s<seed>/
    config.json  env.json  command.txt      written before the first step; what later starts differ in is added
    metrics.jsonl  log.txt                  one line per meta-iteration; what was printed, and every start and stop
    states/0000.npz …                       hyperparameters and outer state BEFORE each meta-iteration (the last: after all)
    hypergradients/0000.npz …               the hypergradient of each meta-iteration ("exact" beside it where compared)
    steps/0000.npz …                        elementary loss of every step, ‖dw‖ of every step back
    trajectory/                             only with --trajectory disk: that of the last hypergradient
    training.npz                            the middle of the training that is at work, or its end while its hypergradient is,
                                            if that takes minutes (midway.py)
    figures/  report.html                   one page that needs nothing but itself, made at the end
    report/  tensorboard/                   where `hypertrail report` and `export-tensorboard` were asked for
    lock                                    who writes here (lock.py); empty: nobody
    DONE or FAILED                          the last file of all; neither: interrupted, or still at work

A study writes lines of its own into metrics.jsonl and .npz files of its own instead of states/, hypergradients/ and steps/; what
its parts found lies in parts/.

The same command with --run-dir on the folder of

    nothing, or an empty folder    begins
    an unfinished run              goes on: a meta loop from its last good state (tuning.py), a study after its last part; what is
                                   computed again is told in midway.py
    a FAILED run                   removes FAILED, says so in log.txt, and tries again from the last good state
    a finished run                 does nothing; with more meta-iterations (a meta loop): goes on from the last update
    a run of another config        is refused, with every field that differs; fields that say where things lie may differ
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypertrail_data import DataError

from . import lock, midway, stopping
from .arrays import write_atomic
from .errors import NO_ROOM, UsageError

DONE, FAILED, LOCK, TRAINING = "DONE", "FAILED", "lock", "training.npz"
CONFIG, ENV, COMMAND, METRICS, LOG, REPORT = (
    "config.json",
    "env.json",
    "command.txt",
    "metrics.jsonl",
    "log.txt",
    "report.html",
)
GROWS = ("meta_iterations",)  # fields of a meta loop that may be larger than they were when its run is taken up again
NO_PROGRESS = "no progress since the last start"  # in log.txt, where the time of a job was up
STUDY = ("parts", "arms")  # the folders of what a study has computed for good
META_LOOP = ("states", "hypergradients", "steps", "figures")  # the folders that a meta loop writes to
# Fields that are no part of what is asked for: where things lie, and how the machine is used (threads: see threads.py).
WHERE = ("runs_dir", "run_dir", "data_dir", "compilation_cache", "threads")
PACKAGES = ("numpy", "jax", "jaxlib", "autograd", "h5py", "tyro", "matplotlib", "optax")
VARIABLES = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "CUDA_VISIBLE_DEVICES",
    "NPROC",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "HYPERTRAIL_DATA",
)


def config_record(experiment: str, config: Any) -> dict[str, Any]:
    """config.json: experiment, hash and every field of the config dataclass, as JSON holds them."""
    fields = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    decisive = {key: value for key, value in fields.items() if key not in WHERE}
    text = json.dumps([experiment, decisive], sort_keys=True)
    return {"experiment": experiment, "hash": hashlib.sha256(text.encode()).hexdigest()[:8], "config": fields}


def folder_for(record: dict[str, Any], now: datetime.datetime) -> Path:
    """The folder of a run that was given no --run-dir; a second one within the same second gets a number behind."""
    config = record["config"]
    base = Path(config["runs_dir"]) / record["experiment"]
    name = f"{now:%Y%m%d-%H%M%S}-{record['hash']}-s{config['seed']}"
    path, n = base / name, 1
    while path.exists():
        n += 1
        path = base / f"{name}-{n}"
    return path


def is_done(folder: Path, record: dict[str, Any], may_grow: Sequence[str] = ()) -> bool:
    """Whether `folder` holds this very run, finished. UsageError where it holds a finished run of another config."""
    return (folder / DONE).is_file() and not grown(folder, read_config(folder), record, may_grow)


def grown(folder: Path, there: dict[str, Any], record: dict[str, Any], may_grow: Sequence[str]) -> list[str]:
    """The fields of `may_grow` that are larger than in the run that lies in `folder`; UsageError where anything else differs."""
    old, new = there["config"], record["config"]
    changed = [key for key in {**old, **new} if key not in WHERE and old.get(key) != new.get(key)]
    more = [key for key in changed if key in may_grow and old.get(key) is not None and old[key] < new[key]]
    if there["experiment"] != record["experiment"] or len(changed) > len(more):
        state = "a finished run" if (folder / DONE).is_file() else "a run"
        less = [key for key in changed if key in may_grow and key not in more]
        hint = f" ({less[0]} may only grow)" if less == changed else ""
        raise UsageError(
            f"{folder} holds {state} of another config ({differences(there, record)}); ask for the same{hint}, or name "
            "another --run-dir"
        )
    return more


def differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The fields in which two config records differ, in words."""
    words = [] if a["experiment"] == b["experiment"] else [f"experiment {a['experiment']}, not {b['experiment']}"]
    one, two = a["config"], b["config"]
    for key in sorted((set(one) | set(two)) - set(WHERE)):
        if one.get(key) != two.get(key):
            words.append(f"{key} {one.get(key)}, not {two.get(key)}")
    return "; ".join(words) or "no difference"


class Run:
    """The open folder of a run, locked by this process until `close`.

    fresh: nothing was there. finished: this very run is there and at its end; nothing is to be done. Neither: what is there is to
    be gone on with.
    """

    def __init__(self, path: Path, record: dict[str, Any], may_grow: Sequence[str] = ()) -> None:
        """Take the folder, and make an unfinished or failed run in it ready to be gone on with.

        may_grow: the fields that may be larger than they were. UsageError where another process writes to it, where it holds
        something else than a run, or a run of another config; nothing is changed then.
        """
        self.path, self.record = path, record
        there = names_in(path)
        if there and CONFIG not in there:
            raise UsageError(f"{path} is not empty and is not a run; name an empty or a new folder with --run-dir")
        if there:
            grown(path, read_config(path), record, may_grow)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.Lock(path / LOCK)
        except OSError as problem:
            if problem.errno in NO_ROOM:
                raise
            raise UsageError(f"cannot write to {path}: {problem.strerror}; name another --runs-dir") from problem
        try:
            self.fresh = CONFIG not in names_in(path)  # asked again: another writer may just have ended
            self.finished = False
            if not self.fresh:
                self._take_up(grown(path, read_config(path), record, may_grow))
        except BaseException:
            self.close()
            raise

    def _take_up(self, more: list[str]) -> None:
        old = read_config(self.path)["config"]
        self.finished = (self.path / DONE).is_file() and not more
        if self.finished:
            return
        sweep(self.path)
        mend(self.path / LOG)
        if (
            more or (self.path / FAILED).is_file()
        ):  # another training now, or one that may have gone wrong before its middle
            (self.path / TRAINING).unlink(missing_ok=True)
        before = self._lock.took_over
        if before is not None:
            self.log(f"the last writer, {before}, is gone without a word")
        failed = self.path / FAILED
        if failed.is_file():
            self.log(f"tried again after: {failed.read_text(encoding='utf-8').strip()}")
            failed.unlink()
        if more:
            self.log("; ".join(f"{key} {old[key]} before, now {self.record['config'][key]}" for key in more))
            (self.path / DONE).unlink(missing_ok=True)  # first: an old config without DONE can be gone on with as well
            write_atomic(self.path / CONFIG, dump(self.record))

    def describe(self, argv: list[str], engine: dict[str, Any], folders: Sequence[str] = META_LOOP) -> None:
        """Write config.json, env.json and command.txt, make the folders. To be called before anything is computed.

        A run that is taken up keeps these files: another command is added to command.txt, and what differs in the environment
        to env.json under "later".
        """
        command, env = shlex.join(["hypertrail", *argv]) + "\n", environment(engine)
        if self.fresh:
            write_atomic(self.path / CONFIG, dump(self.record))
        else:
            self.log(f"taken up by process {os.getpid()} on {socket.gethostname()}")
        known = self.path / COMMAND
        said = known.read_text(encoding="utf-8") if known.is_file() else ""
        if command not in said:
            write_atomic(known, said + command)
        first = read_json(self.path / ENV)
        if first:
            different = {key: value for key, value in env.items() if value != first.get(key)}
            if set(different) - {"time"}:
                self.log(f"the environment differs from that of the first start: {', '.join(sorted(different))}")
            env = first | {"later": [*first.get("later", []), different]}
        write_atomic(self.path / ENV, dump(env))
        for folder in folders:
            (self.path / folder).mkdir(exist_ok=True)

    def keep_lines(self, n: int) -> list[dict[str, Any]]:
        """Cut metrics.jsonl behind its first n whole lines, which are returned; what is cut is computed again."""
        path = self.path / METRICS
        kept = whole_lines(path)[:n]
        text = "".join(line + "\n" for line in kept)
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            write_atomic(path, text)
        return [json.loads(line) for line in kept]

    def append(self, line: dict[str, Any]) -> None:
        """One line onto metrics.jsonl, on the disk when this returns."""
        append(self.path / METRICS, json.dumps(line, allow_nan=False))

    def log(self, line: str) -> None:
        """One line, with the time in front, onto log.txt."""
        append(self.path / LOG, f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {line}")

    def state(self, meta_iteration: int) -> Path:
        return self.path / "states" / f"{meta_iteration:04d}.npz"

    def hypergradient(self, meta_iteration: int) -> Path:
        return self.path / "hypergradients" / f"{meta_iteration:04d}.npz"

    def steps(self, meta_iteration: int) -> Path:
        return self.path / "steps" / f"{meta_iteration:04d}.npz"

    def reached(self) -> Reached:
        """How far it is, as far as its folder tells."""
        files = (one for folder in STUDY for one in (self.path / folder).glob("*"))
        newest = max((one.stat().st_mtime_ns for one in files), default=0)
        updates = sum('"method"' in line for line in whole_lines(self.path / METRICS))  # not the closing line
        return Reached(updates, midway.place(self.path / TRAINING), newest)

    def part(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One part of a study, as JSON holds it: computed and kept in parts/<name>.json, or read where an earlier start did so.

        name: letters, digits, '.', '-', '_'. After it, a run that was asked to stop stops (`stopping.here`). A study whose
        every number comes through its parts can be stopped and taken up again anywhere. parts/ is there while `compute` works:
        arrays that belong to the part go there as .npz, before it returns.
        """
        path = self.path / "parts" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            found = compute()
            write_atomic(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
            stopping.here(f"part {name}")
        return json.loads(path.read_text(encoding="utf-8"))

    def done(self, summary: dict[str, Any]) -> None:
        """The last file of a run that came to its end."""
        write_atomic(self.path / DONE, dump(summary))

    def failed(self, message: str) -> None:
        """The last file of a run that could not go on."""
        write_atomic(self.path / FAILED, message + "\n")

    def close(self) -> None:
        """Let the folder go. The lock file stays, empty."""
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class Reached:
    """How far a run is. lines: of updates, in metrics.jsonl; training: meta-iteration and step of the middle of its training;
    newest: when a study last wrote what it will not compute again, in ns."""

    lines: int
    training: tuple[int, int]
    newest: int

    def beyond(self, before: Reached) -> bool:
        """Whether something was won. What is cut off at a start and computed again to where it was is nothing."""
        return self.lines > before.lines or self.training > before.training or self.newest > before.newest


def no_progress(folder: Path) -> str:
    """What the log's last line says of a stop that won nothing; "" where it says nothing of that."""
    path = folder / LOG
    *_, last = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""] if path.is_file() else [""]
    return last[last.index(NO_PROGRESS) :] if NO_PROGRESS in last else ""


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def names_in(path: Path) -> set[str]:
    """What lies in a folder, without its lock and what a dying writer left."""
    if not path.is_dir():
        return set()
    return {one.name for one in path.iterdir() if one.name != LOCK and not left_over(one)}


def left_over(path: Path) -> bool:
    """Whether this is a file that a writer had not yet given its name (arrays.write_atomic)."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def sweep(folder: Path) -> None:
    """Remove what a dying writer left in the folder of a run and in those below it."""
    for one in folder.rglob(".*.tmp"):
        one.unlink(missing_ok=True)


def mend(path: Path) -> None:
    """End a torn last line, so that the next one begins a line."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with open(path, "ab") as f:
            f.write(b"\n")


def whole_lines(path: Path) -> list[str]:
    """The lines of a .jsonl file up to the first that is torn."""
    out: list[str] = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        try:
            json.loads(line)
            out.append(line.decode())
        except ValueError:
            break
    return out


def writer(folder: Path) -> lock.Holder | None:
    """Who writes to the folder of a run now; None: nobody."""
    return lock.writer(folder / LOCK)


def append(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(line + "\n")
        f.flush()
        os.fsync(f.fileno())


def dump(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, default=str) + "\n"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run. UsageError where `folder` is not one."""
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(
            f"{folder} is not the folder of a run (it has no {CONFIG}); runs lie in runs/<experiment>/<time>-…"
        )
    record = read_json(path)
    if not ({"experiment", "hash", "config"} <= set(record) and isinstance(record["config"], dict)):
        raise DataError(f"{path} is damaged: it has no experiment, hash or config; put the original there")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, or {} where a run was stopped before it was written. DataError where it is damaged."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as damage:
        raise DataError(f"{path} is damaged ({damage}); put the original there") from damage
    if not isinstance(record, dict):
        raise DataError(f"{path} is damaged: expected an object in JSON; put the original there")
    return record


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a torn last line (a killed writer) is left out. DataError where another one is damaged."""
    path = folder / METRICS
    lines = [json.loads(line) for line in whole_lines(path)]
    there = path.read_bytes().count(b"\n") if path.is_file() else 0
    if len(lines) < there - 1 or not all(isinstance(line, dict) for line in lines):
        raise DataError(f"{path} is damaged in line {len(lines) + 1} of {there}; run it again, or cut it off there")
    return lines


def status(folder: Path) -> str:
    """'done', 'failed: <message>' or 'unfinished'."""
    if (folder / DONE).is_file():
        return "done"
    if (folder / FAILED).is_file():
        return "failed: " + (folder / FAILED).read_text(encoding="utf-8").strip()
    return "unfinished"


def environment(engine: dict[str, Any]) -> dict[str, Any]:
    """env.json: time, machine, versions, the engine's own words on its devices, and the commit of our code."""
    return {
        "time": now(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": sys.version.split()[0],
        "hypertrail": importlib.metadata.version("hypertrail"),
        "packages": {name: version(name) for name in PACKAGES},
        "engine": engine,
        "git": git_commit(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> dict[str, Any] | None:
    """{"commit", "changed": whether the tree differs from it}; None where our code lies in no git checkout of its own."""
    here = Path(__file__).resolve()
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        answer = subprocess.run([git, "-C", str(here.parent), *words], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(ask("status", "--porcelain"))}
