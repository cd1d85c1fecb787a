"""The open folder of a run: what one process writes while it works. See the room's docstring for what lies in it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypertrail_data import DataError
from hypertrail_data.sealed import seal

from .. import stopping
from ..errors import NO_ROOM, OtherData, UsageError
from . import lock, midway, reading
from .arrays import sha256_of
from .config import Record, grown, identity, of_another_run
from .environment import environment
from .names import (
    COMMAND,
    CONFIG,
    DONE,
    ENV,
    FAILED,
    HYPERGRADIENTS,
    LOCK,
    LOG,
    META_LOOP,
    METRICS,
    PARTS,
    SOURCE,
    STATES,
    STEPS,
    STUDY,
    TRAINING,
)
from .writing import append, dump, dump_sealed, log_line, make_folder, mend, sweep, write_atomic

if TYPE_CHECKING:
    from hypertrail_data import Splits


def is_done(folder: Path, record: Record, may_grow: Sequence[str] = ()) -> bool:
    """Whether `folder` holds this very run, finished and whole. UsageError where it holds a finished run of another config.

    A run whose config.json is damaged is not finished: `Run` sees to it. Costs reading the arrays of a finished run.
    """
    if not (folder / DONE).is_file():
        return False
    try:
        there = reading.read_config(folder)
    except (DataError, UsageError):
        return False
    return not grown(folder, there, record, may_grow) and reading.finished(folder)


class Run:
    """The open folder of a run, locked by this process until `close`.

    fresh: nothing was there. finished: this very run is there and at its end; nothing is to be done. Neither: what is there is to
    be gone on with. identity: what every line and part of this run carries.
    """

    def __init__(self, path: Path, record: Record, may_grow: Sequence[str] = ()) -> None:
        """Take the folder, and make an unfinished or failed run in it ready to be gone on with.

        may_grow: the fields that may be larger than they were. UsageError where another process writes to it, where it holds
        something else than a run, or a run of another config; DataError where something of it is a link, or no file or folder
        where a run has one. Nothing is changed then.
        """
        self.path, self.record, self.identity = path, record, identity(record)
        self._env: dict[str, Any] = {}
        self._lacks_parts = False  # whether this is a study that has computed or read no part yet
        there = reading.names_in(path)
        if there and CONFIG not in there and self.identity not in reading.identities(path):
            raise UsageError(f"{path} is not empty and is not a run; name an empty or a new folder with --run-dir")
        if there:
            reading.refuse_links(path)
            self._grown(may_grow)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.Lock(path / LOCK)
        except OSError as problem:
            if problem.errno in NO_ROOM:
                raise
            option = "--run-dir" if record["config"].get("run_dir") else "--runs-dir"
            raise UsageError(f"cannot write to {path}: {problem.strerror}; name another {option}") from problem
        try:
            self.fresh = not reading.names_in(path)  # asked again: another writer may just have ended
            self.finished = False
            if not self.fresh:
                self._take_up(self._grown(may_grow))
        except BaseException:
            self.close()
            raise

    def _grown(self, may_grow: Sequence[str]) -> list[str] | None:
        """The settings that are larger than they were; None where config.json is damaged or gone, and all else in the folder is
        of this run. Raises what `grown` raises, and DataError where nothing says which run lies here."""
        try:
            there = reading.read_config(self.path)
        except (DataError, UsageError) as damage:
            others = reading.identities(self.path)
            if not others:
                raise DataError(f"{damage}; nothing else in {self.path} says which run it is") from damage
            if others != {self.identity}:
                raise of_another_run(self.path) from damage
            return None
        return grown(self.path, there, self.record, may_grow)

    def _take_up(self, more: list[str] | None) -> None:
        self.finished = more == [] and reading.finished(self.path)
        if self.finished:
            return
        sweep(self.path)
        mend(self.path / LOG)
        failed = self.path / FAILED
        if more or failed.exists():  # another training now, or one that may have gone wrong before its middle
            (self.path / TRAINING).unlink(missing_ok=True)
        if self._lock.took_over is not None:
            self.log(f"the last writer, {self._lock.took_over}, is gone without a word")
        if failed.exists():
            self.log(f"tried again after: {reading.read_text(failed)}")
            failed.unlink()
        if more is None:
            self.log(f"{CONFIG} was damaged or gone; it is written anew as it is asked for now")
        elif more:
            old = reading.read_config(self.path)["config"]
            self.log("; ".join(f"{key} {old[key]} before, now {self.record['config'][key]}" for key in more))
        elif (self.path / DONE).exists():
            self.log(
                "the run was finished, and a file of it is not as it was written; what follows that file is done again"
            )
        (self.path / DONE).unlink(missing_ok=True)  # first: an old config without DONE can be gone on with as well
        if more is None or more:
            write_atomic(self.path / CONFIG, dump(self.record))

    def describe(
        self, argv: list[str], engine: dict[str, Any], folders: Sequence[str] = META_LOOP, source: bytes | None = None
    ) -> None:
        """Write config.json, env.json and command.txt, make the folders. To be called before anything is computed.

        source: the file of an experiment that its user brought; a copy of it is kept.

        A run that is taken up keeps these files: another command is added to command.txt, and what differs in the environment
        to env.json under "later".
        """
        command, env = shlex.join(["hypertrail", *argv]) + "\n", environment(engine)
        if self.fresh:
            write_atomic(self.path / CONFIG, dump(self.record))
        else:
            self.log(f"taken up by process {os.getpid()} on {socket.gethostname()}")
        if source is not None:
            write_atomic(self.path / SOURCE, source)
        known = self.path / COMMAND
        said = reading.read_text(known) + "\n" if known.is_file() else ""
        if command not in said:
            write_atomic(known, said + command)
        first = self._first_environment()
        if first:
            different = {key: value for key, value in env.items() if value != first.get(key)}
            if set(different) - {"time"}:
                self.log(f"the environment differs from that of the first start: {', '.join(sorted(different))}")
            env = first | {"later": [*first.get("later", []), different]}
        self._env = {**env, "run": self.identity}
        self._write_environment()
        for folder in folders:
            make_folder(self.path / folder)

    def _first_environment(self) -> dict[str, Any]:
        """env.json of the first start; {} where there is none, where it is damaged, or of another run."""
        try:
            first = reading.sealed_object(self.path / ENV, to_look_at=False)
        except DataError as damage:
            self.log(f"written anew: {damage}")
            return {}
        whole = isinstance(first.get("later", []), list) and reading.are_records(first.get("data", {}))
        return first if whole and first.get("run") == self.identity else {}

    def _write_environment(self) -> None:
        write_atomic(self.path / ENV, dump_sealed(self._env))

    def data_used(self, drawn: str, splits: Splits) -> None:
        """Write down in env.json which data are used. drawn: how they were drawn, in words, the same at every start.

        OtherData where an earlier start of this run drew other data in the same way: the files have changed in between.
        """
        record = splits.record()
        known = self._env.setdefault("data", {})
        refuse_other_data(drawn, record["sha256"], known.get(drawn, record)["sha256"])
        if drawn not in known:
            known[drawn] = record
            self._write_environment()
            for sentence in splits.notes:
                self.log(f"warning: {sentence}")

    def keep_lines(self, n: int) -> list[dict[str, Any]]:
        """Cut metrics.jsonl behind its first n whole lines, which are returned; what is cut is computed again."""
        path = self.path / METRICS
        kept = reading.read_lines(path, self.identity)[0][:n]
        content = b"".join(map(self._sealed, kept))
        if path.exists() and path.read_bytes() != content:
            write_atomic(path, content)
        return kept

    def begin_study(self) -> None:
        """A study writes its lines anew at each start, and computes what they say in parts: only after a part can it be stopped.
        So a line that comes before any part is refused (RuntimeError, in `append`)."""
        self.keep_lines(0)
        self._lacks_parts = True

    def append(self, line: dict[str, Any]) -> None:
        """One line onto metrics.jsonl, on the disk when this returns. ValueError for a number that is not finite."""
        if self._lacks_parts:
            raise RuntimeError("a study appended a line before its first part; compute what the line says in run.part")
        json.dumps(line, allow_nan=False)
        append(self.path / METRICS, self._sealed(line))

    def _sealed(self, line: dict[str, Any]) -> bytes:
        return seal({**line, "run": self.identity})

    def log(self, line: str) -> None:
        """One line, with the time in front, onto log.txt."""
        append(self.path / LOG, log_line(line))

    def state(self, meta_iteration: int) -> Path:
        return self.path / STATES / f"{meta_iteration:04d}.npz"

    def hypergradient(self, meta_iteration: int) -> Path:
        return self.path / HYPERGRADIENTS / f"{meta_iteration:04d}.npz"

    def steps(self, meta_iteration: int) -> Path:
        return self.path / STEPS / f"{meta_iteration:04d}.npz"

    def name_of(self, file: Path) -> str:
        """A file of the run as its lines name it: 'states/0001.npz'."""
        return file.relative_to(self.path).as_posix()

    def reached(self) -> Reached:
        """How far it is, as far as its folder tells."""
        files = (one for folder in STUDY for one in (self.path / folder).glob("*"))
        newest = max((one.lstat().st_mtime_ns for one in files), default=0)
        lines, _ = reading.read_lines(self.path / METRICS, self.identity)
        updates = sum("method" in line for line in lines)  # not the closing line
        return Reached(updates, midway.place(self.path / TRAINING), newest)

    def part(self, name: str, compute: Callable[[], dict[str, Any]], files: Sequence[Path] = ()) -> dict[str, Any]:
        """One part of a study, as JSON holds it: computed and kept in parts/<name>.json, or read where an earlier start did so.

        name: letters, digits, '.', '-', '_'. After it, a run that was asked to stop stops (`stopping.here`). A study whose
        every number comes through its parts can be stopped and taken up again anywhere. files: the .npz files in parts/ that
        `compute` writes and that belong to the part; parts/ is there while it works. A part that is not whole, is of another
        run, or whose files are not those that it wrote, is computed again.
        """
        path, self._lacks_parts = self.path / PARTS / f"{name}.json", False
        used = {drawn: record["sha256"] for drawn, record in self._env.get("data", {}).items()}
        try:
            there = reading.part_record(self.path, name, self.identity)
        except DataError as missing:
            if path.exists():
                self.log(f"computed again: {missing}")
        else:
            for drawn, sha256 in there.get("data", {}).items():
                refuse_other_data(drawn, used.get(drawn, sha256), sha256)
            return dict(there["found"])
        make_folder(path.parent)
        found = compute()
        json.dumps(found, allow_nan=False)
        written = {self.name_of(one): sha256_of(one) for one in files if one.exists()}
        write_atomic(
            path, dump_sealed({"part": name, "found": found, "files": written, "data": used, "run": self.identity})
        )
        stopping.here(f"part {name}")
        return dict(reading.part_record(self.path, name, self.identity)["found"])

    def done(self, summary: dict[str, Any]) -> None:
        """The last file of a run that came to its end."""
        files = {self.name_of(one): sha256_of(one) for one in reading.numbers_of(self.path)}
        write_atomic(self.path / DONE, dump_sealed({**summary, "files": files}))

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


def refuse_other_data(drawn: str, sha256: str, expected: str) -> None:
    """OtherData where the data are not those that the run began with. drawn: how they were drawn, in words."""
    if sha256 != expected:
        raise OtherData(
            f"the data of {drawn} are not those that this run began with: sha256 {sha256[:12]}.., expected {expected[:12]}..; "
            "bring the first data back, or name another --run-dir"
        )
