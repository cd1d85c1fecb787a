"""The folder of one run: what was asked, where it ran, what came out. One writer at a time; nothing is overwritten.

runs/<experiment>/<time>-<config hash>-s<seed>/
    config.json  env.json  command.txt      written before the first step
    metrics.jsonl  log.txt                  one line per meta-iteration; what was printed
    states/0000.npz …                       hyperparameters and outer state BEFORE each meta-iteration (the last: after all)
    hypergradients/0000.npz …               the hypergradient of each meta-iteration ("exact" beside it where compared)
    steps/0000.npz …                        elementary loss of every step, ‖dw‖ of every step back
    trajectory/                             only with --trajectory disk: that of the last hypergradient
    figures/  report.html                   one page that needs nothing but itself, made at the end
    report/  tensorboard/                   where `hypertrail report` and `export-tensorboard` were asked for
    lock                                    held while a process writes here
    DONE or FAILED                          the last file of all; neither: interrupted, or still at work

A study writes lines of its own into metrics.jsonl and .npz files of its own instead of states/, hypergradients/ and steps/; what
its parts found lies in parts/.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import stopping
from .arrays import write_atomic
from .errors import UsageError

DONE, FAILED, LOCK = "DONE", "FAILED", "lock"
CONFIG, ENV, COMMAND, METRICS, LOG, REPORT = (
    "config.json",
    "env.json",
    "command.txt",
    "metrics.jsonl",
    "log.txt",
    "report.html",
)
META_LOOP = ("states", "hypergradients", "steps", "figures")  # the folders that a meta loop writes to
WHERE = ("runs_dir", "run_dir", "data_dir")  # fields that say where things lie; they do not change a run's numbers
PACKAGES = ("numpy", "jax", "jaxlib", "autograd", "h5py", "tyro", "matplotlib", "optax")
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HYPERTRAIL_DATA")


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


def is_done(folder: Path, record: dict[str, Any]) -> bool:
    """Whether `folder` holds this very run, finished. UsageError where it holds a finished run of another config."""
    if not (folder / DONE).is_file():
        return False
    there = read_config(folder)
    if there["hash"] != record["hash"]:
        changed = differences(there, record)
        raise UsageError(f"{folder} holds a finished run of another config ({changed}); name another --run-dir")
    return True


def differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The fields in which two config records differ, in words."""
    words = [] if a["experiment"] == b["experiment"] else [f"experiment {a['experiment']}, not {b['experiment']}"]
    one, two = a["config"], b["config"]
    for key in sorted((set(one) | set(two)) - set(WHERE)):
        if one.get(key) != two.get(key):
            words.append(f"{key} {one.get(key)}, not {two.get(key)}")
    return "; ".join(words) or "no difference"


class Run:
    """The open folder of a run, locked by this process until `close`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        """Take the folder. UsageError where another process writes to it, or where it holds anything already."""
        self.path, self.record = path, record
        there = {p.name for p in path.iterdir()} - {LOCK} if path.is_dir() else set()
        if there and CONFIG not in there:
            raise UsageError(f"{path} is not empty and is not a run; name an empty or a new folder with --run-dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / LOCK, "a+")  # noqa: SIM115  (held open: the lock lives as long as the handle)
        except OSError as problem:
            raise UsageError(f"cannot write to {path}: {problem.strerror}; name another --runs-dir") from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as taken:
            self._lock.seek(0)
            who = self._lock.read().strip() or "another process"
            self._lock.close()
            raise UsageError(f"{path} is being written by {who}; wait for it or name another --run-dir") from taken
        if there:
            self._lock.close()
            state = "failed" if FAILED in there else "finished" if DONE in there else "unfinished"
            raise UsageError(
                f"{path} holds a run that is {state}; it is not overwritten: name another --run-dir, or remove it"
            )
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def describe(self, argv: list[str], engine: dict[str, Any], folders: Sequence[str] = META_LOOP) -> None:
        """Write config.json, env.json and command.txt, make the folders. To be called before anything is computed."""
        import shlex

        write_atomic(self.path / CONFIG, dump(self.record))
        write_atomic(self.path / COMMAND, shlex.join(["hypertrail", *argv]) + "\n")
        write_atomic(self.path / ENV, dump(environment(engine)))
        for folder in folders:
            (self.path / folder).mkdir()

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

    def part(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One part of a study, as JSON holds it: computed and kept in parts/<name>.json, or read where an earlier start did so.

        name: letters, digits, '.', '-', '_'. After it, a run that was asked to stop stops (`stopping.here`). A study whose
        every number comes through its parts can be stopped and taken up again anywhere.
        """
        path = self.path / "parts" / f"{name}.json"
        if not path.is_file():
            found = compute()
            path.parent.mkdir(exist_ok=True)
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
        """Let the folder go. The lock file stays: removing it would let two writers hold two locks."""
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


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
    return json.loads(path.read_text(encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, or {} where a run was stopped before it was written."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a torn last line (a killed writer) is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # what follows the last newline is torn or nothing


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
