"""What lies in the folder of a run, read as if a stranger had written it: one reader for each kind of file.

A file may have been cut off by a kill or a full disk, changed by a bit that flipped, copied from another run, or made up by
somebody. Each reader checks the form of what it reads and, where the file has one, its check sum. It answers with the contents,
with DataError in one line, or (for what a run can compute again) with nothing at all.

    config.json               its own hash of all that decides the numbers
    env.json, parts/*.json    a check sum as their last entry; parts also the name of the part and the identity of the run
    metrics.jsonl             each line a check sum and the identity of the run, and the sha256 of the files that it speaks of
    DONE                      a check sum, and the sha256 of every file with numbers; *.npz: see arrays.py

Runs of release 0.1 have no check sums. They can be looked at; a run of that release that is taken up begins again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypertrail_data import DataError
from hypertrail_data.sealed import check_sum, unseal
from hypertrail_data.untrusted import LARGEST_JSON, json_object, open_regular, read_regular

from ..errors import UsageError
from ..measures import COUNTS
from . import arrays, lock
from .config import Record, hash_of, identity
from .names import (
    CONFIG,
    DONE,
    ENV,
    FAILED,
    FIGURES,
    FILES,
    FOLDERS,
    LOCK,
    LOG,
    METRICS,
    NO_PROGRESS,
    PARTS,
    TRAJECTORY,
)
from .writing import left_over

LARGEST_LINES = 2**30  # bytes of metrics.jsonl
SHOWN_IN = ("report", "tensorboard")  # folders that the commands of these names write
SHOWN = 2000  # characters of a message that a folder may put on the screen
Line = dict[str, Any]


# -- whole files --------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> Record:
    """config.json of a run. UsageError where `folder` is not one, DataError where it is damaged."""
    refuse_links(folder)
    path = folder / CONFIG
    if not path.exists():
        raise UsageError(
            f"{folder} is not the folder of a run (it has no {CONFIG}); runs lie in runs/<experiment>/<time>-…"
        )
    record = read_json(path)
    experiment, config = record.get("experiment"), record.get("config")
    if not (isinstance(experiment, str) and isinstance(config, dict) and isinstance(record.get("hash"), str)):
        raise DataError(f"{path} is damaged: it has no experiment, hash or config; put the original there")
    if hash_of(experiment, config) != record["hash"]:
        raise DataError(f"{path} is damaged: its hash does not fit its settings; put the original there")
    if type(config.get("seed")) is not int:
        raise DataError(f"{path} is damaged: it has no seed; put the original there")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file: a run may have been stopped before it was written. DataError where it is
    damaged or cannot be read."""
    content = content_of(path, LARGEST_JSON)
    return {} if content is None else json_object(content, path)


def content_of(path: Path, at_most: int) -> bytes | None:
    """The bytes of a file of a run; None where there is none. DataError where it cannot be read, is larger than that, or is a
    link."""
    try:
        return read_regular(path, at_most, follow_links=False)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror}); make it readable") from problem


def sealed_object(path: Path, to_look_at: bool = True) -> dict[str, Any]:
    """The same, for a file that `writing.dump_sealed` wrote. Without a check sum it is of release 0.1, which is good enough
    `to_look_at`, and nothing to go on with."""
    record = read_json(path)
    check = record.pop("check", None)
    of_release_0_1 = check is None and to_look_at
    if record and not of_release_0_1 and check != check_sum(record):
        raise DataError(f"{path} is damaged: its check sum does not match; put the original there")
    return record


def read_text(path: Path) -> str:
    """A text for people; '' where there is none. Bytes that are no text are shown as such. DataError for no regular file."""
    return (content_of(path, LARGEST_JSON) or b"").decode(errors="replace").strip()


# -- lines --------------------------------------------------------------------------------------------------------------


def read_lines(path: Path, run: str | None, to_look_at: bool = False) -> tuple[list[Line], int]:
    """The lines of a metrics.jsonl up to the first that is not whole, and the number of line breaks in the file.

    run: the identity that every line must carry; None: it is not known. to_look_at: lines of release 0.1 count, which carry
    neither an identity nor a check sum. DataError where the file cannot be read at all.
    """
    content = content_of(path, LARGEST_LINES) or b""
    lines: list[Line] = []
    for raw in content.split(b"\n")[:-1]:
        line = whole_line(raw + b"\n", run, to_look_at)
        if line is None:
            break
        lines.append(line)
    return lines, content.count(b"\n")


def whole_line(raw: bytes, run: str | None, to_look_at: bool) -> Line | None:
    """The record of a line, without what seals it; None where it is torn, changed, or of another run."""
    try:
        line = unseal(raw)
    except ValueError:
        line = unsealed_line(raw) if to_look_at else None
    if line is None or not plausible(line):
        return None
    of = line.pop("run", None)
    return line if of == run or (to_look_at and None in (of, run)) else None


def unsealed_line(raw: bytes) -> Line | None:
    """A line of release 0.1."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and "check" not in line else None


def plausible(line: Line) -> bool:
    """Whether a line that says it is of a meta-iteration has what everybody looks for in one."""
    if "meta_iteration" not in line:
        return True
    metrics, cost = line.get("metrics"), line.get("cost")
    return (
        type(line["meta_iteration"]) is int
        and type(line.get("steps")) is int
        and number(line.get("hyper_loss"))
        and isinstance(metrics, dict)
        and all(
            has_numbers(one, "loss", *one) and set(one) & set(COUNTS)
            for one in metrics.values()
            if isinstance(one, dict)
        )
        and all(isinstance(one, dict) for one in metrics.values())
        and isinstance(cost, dict)
        and all(has_numbers(one, "seconds", "gradients", "hvps") for one in cost.values())
        and isinstance(line.get("hyper"), dict)
        and all(
            isinstance(line.get(name, {}), dict) for name in ("agreement", "diagnostics", "norm", "memory", "files")
        )
        and isinstance(line.get("data", ""), str)
        and isinstance(line.get("warnings", []), list)
        and all(isinstance(sentence, str) for sentence in line.get("warnings", []))
    )


def has_numbers(found: Any, *names: str) -> bool:
    return isinstance(found, dict) and all(number(found.get(name)) for name in names)


def are_records(found: Any) -> bool:
    """Whether this is {how data were drawn: what `Splits.record` says of them}, as far as a run that goes on looks."""
    records = found.values() if isinstance(found, dict) else [None]
    return all(isinstance(one, dict) and isinstance(one.get("sha256"), str) for one in records)


def number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)


def read_metrics(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl; what follows the last line break (a killed writer) is left out. DataError for a damaged one."""
    path = folder / METRICS
    lines, there = read_lines(path, identity_of(folder), to_look_at=True)
    if len(lines) < there:
        which = f"line {len(lines) + 1} of {there}"
        raise DataError(f"{path} is damaged in {which}, or it is of another run; run the same command again")
    if not as_at_the_end(folder):
        raise DataError(f"{path} is not as the finished run wrote it; run the same command again")
    return lines


def as_at_the_end(folder: Path) -> bool:
    """Whether metrics.jsonl is as it was when the run came to its end; True for a run that did not, and for release 0.1."""
    try:
        files = sealed_object(folder / DONE).get("files")
    except DataError:
        return False
    if files is None:
        return True
    return isinstance(files, dict) and files.get(METRICS, "") == arrays.sha256_of(folder / METRICS)


def identity_of(folder: Path) -> str | None:
    """The identity of the run in a folder; None where its config.json does not say."""
    try:
        return identity(read_config(folder))
    except (UsageError, DataError):
        return None


def files_are_whole(folder: Path, line: Line) -> bool:
    """Whether the files that a line speaks of are those that were written. Costs reading them."""
    files = line.get("files")
    return isinstance(files, dict) and all(
        inside(name) and arrays.sha256_of(folder / name) == sha256 for name, sha256 in files.items()
    )


def files_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """File → sha256, of all the files that some lines speak of."""
    said = [files for line in lines if isinstance(files := line.get("files"), dict)]
    return {name: sha256 for files in said for name, sha256 in files.items() if isinstance(sha256, str)}


def inside(name: Any) -> bool:
    """Whether a name that a file gives is that of a file of the run: 'curve.npz' or 'states/0001.npz'."""
    *folders, file = name.split("/") if isinstance(name, str) else [""]
    return file not in ("", ".", "..") and (not folders or (len(folders) == 1 and folders[0] in FOLDERS))


# -- parts of a study ---------------------------------------------------------------------------------------------------


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """What a part of a study found, to look at it: `part_record` without what is written beside it."""
    record = part_record(folder, name)
    return dict(record["found"]) if "found" in record else record  # a part of release 0.1 is nothing else


def part_record(folder: Path, name: str, run: str | None = None) -> dict[str, Any]:
    """A part of a study, under "found"; "data": how data had been drawn until then, and their sha256. run: the identity that it
    must carry, to be gone on with; None: it is only looked at.

    DataError where it is not there, not whole, of another part or of another run, or a file that it speaks of is; a part of
    release 0.1 is only for looking at.
    """
    path = folder / PARTS / f"{name}.json"
    record = sealed_object(path, to_look_at=run is None)
    if run is None and "found" not in record and record:
        return record  # of release 0.1
    found, files = record.get("found"), record.get("files")
    data = record.get("data", {})
    if not all(isinstance(one, dict) for one in (found, files, data)) or record.get("part") != name:
        raise DataError(f"{path} is not whole; run the same command again")
    words = all(isinstance(sha256, str) for sha256 in data.values())
    if record.get("run") != (run or identity_of(folder)) or not words or not files_are_whole(folder, record):
        raise DataError(f"{path} is of another run, or a file that it speaks of is; run the same command again")
    return record


# -- how it stands ------------------------------------------------------------------------------------------------------


def finished(folder: Path) -> bool:
    """Whether the run came to its end, and every number that it wrote is still as it was. Costs reading its arrays."""
    if not (folder / DONE).is_file():
        return False
    try:
        said = sealed_object(folder / DONE)
        if set(said) in ({"time"}, {"time", "meta_iterations"}):  # release 0.1
            return True
        return files_are_whole(folder, sealed_object(folder / DONE, to_look_at=False))
    except DataError:
        return False


def refuse_changed(folder: Path) -> None:
    """DataError where the arrays of a finished run are not those that it wrote. Costs reading them."""
    if not (folder / DONE).is_file():
        return
    for name, sha256 in files_of([sealed_object(folder / DONE)]).items():
        if name.endswith(".npz") and not (inside(name) and arrays.sha256_of(folder / name) == sha256):
            raise DataError(
                f"{folder / name} is not as the run wrote it; run the same command with --run-dir {folder} again"
            )


def numbers_of(folder: Path) -> list[Path]:
    """The files in which the numbers of a run lie; a stored trajectory vouches for itself, figures are drawn from the numbers."""
    places = (folder, *(folder / name for name in FOLDERS if name not in (FIGURES, TRAJECTORY)))
    found = [one for place in places for one in place.glob("*.npz")] + list((folder / PARTS).glob("*.json"))
    return sorted([*found, *folder.glob(METRICS)])


def status(folder: Path) -> str:
    """'done', 'failed: <message>' or 'unfinished'."""
    if (folder / DONE).is_file():
        return "done"
    if (folder / FAILED).is_file():
        return f"failed: {read_text(folder / FAILED)[:SHOWN]}"
    return "unfinished"


def no_progress(folder: Path) -> str:
    """What the log's last line says of a stop that won nothing; "" where it says nothing of that."""
    try:
        with open(open_regular(folder / LOG, follow_links=False), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - SHOWN))
            *_, last = log.read().decode(errors="replace").splitlines() or [""]
    except (OSError, DataError):
        return ""
    return last[last.index(NO_PROGRESS) :] if NO_PROGRESS in last else ""


def writer(folder: Path) -> lock.Holder | None:
    """Who writes to the folder of a run now; None: nobody."""
    return lock.writer(folder / LOCK)


def identities(folder: Path) -> set[str]:
    """The identities of the runs that the files of a folder say they belong to."""
    found = set()
    for path in (folder / ENV, *(folder / PARTS).glob("*.json")):
        with suppress(DataError):
            found.add(sealed_object(path).get("run"))
    with suppress(DataError):
        for raw in (content_of(folder / METRICS, LARGEST_LINES) or b"").splitlines(keepends=True):
            with suppress(ValueError):
                found.add(unseal(raw).get("run"))
    return {one for one in found if isinstance(one, str)}


def names_in(path: Path) -> set[str]:
    """What lies in a folder, without its lock and what a dying writer left."""
    if not path.is_dir():
        return set()
    return {one.name for one in path.iterdir() if one.name != LOCK and not left_over(one)}


def refuse_links(folder: Path) -> None:
    """DataError where a file or folder of the run is a link, a pipe or a device: what is written there would land elsewhere.

    training.npz is left out: whatever is no training of this run is removed there.
    """
    for name in (*FILES, *FOLDERS, *SHOWN_IN):
        path = folder / name
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, and a run writes into its own folder only; remove the link")
        kind, right = ("folder", path.is_dir()) if name not in FILES else ("regular file", path.is_file())
        if path.exists() and not right:
            raise DataError(f"{path} is not a {kind}, and a run needs it to be one; remove it")
