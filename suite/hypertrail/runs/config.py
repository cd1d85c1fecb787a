"""What a run was asked to compute: the record in config.json, its hash, and how two records differ."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .names import CONFIG, DONE, GROWS, WHERE

Record = dict[str, Any]


def config_record(experiment: str, config: Any, more: Mapping[str, str] = {}) -> Record:
    """config.json: experiment, hash and every field of the config dataclass, as JSON holds them. more: further fields."""
    fields = json.loads(json.dumps(dataclasses.asdict(config), default=str)) | dict(more)
    return {"experiment": experiment, "hash": hash_of(experiment, fields), "config": fields}


def hash_of(experiment: str, fields: dict[str, Any], without: Sequence[str] = WHERE) -> str:
    """Eight hexadecimal digits of the sha256 of what is asked for."""
    decisive = {key: value for key, value in fields.items() if key not in without}
    text = json.dumps([experiment, decisive], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def identity(record: Record) -> str:
    """The hash without the settings that may grow: the lines and parts of a run carry it all its life."""
    return hash_of(record["experiment"], record["config"], (*WHERE, *GROWS))


def folder_for(record: Record, now: datetime.datetime) -> Path:
    """The folder of a run that was given no --run-dir; a second one within the same second gets a number behind."""
    config = record["config"]
    base = Path(config["runs_dir"]) / record["experiment"]
    name = f"{now:%Y%m%d-%H%M%S}-{record['hash']}-s{config['seed']}"
    path, n = base / name, 1
    while path.exists():
        n += 1
        path = base / f"{name}-{n}"
    return path


def grown(folder: Path, there: Record, record: Record, may_grow: Sequence[str]) -> list[str]:
    """The fields of `may_grow` that are larger than in the run that lies in `folder`; UsageError where anything else differs."""
    old, new = there["config"], record["config"]
    changed = [key for key in {**old, **new} if key not in WHERE and old.get(key) != new.get(key)]
    more = [key for key in changed if key in may_grow and type(old.get(key)) is int and old[key] < new[key]]
    if there["experiment"] != record["experiment"] or len(changed) > len(more):
        state = "a finished run" if (folder / DONE).is_file() else "a run"
        less = [key for key in changed if key in may_grow and key not in more]
        hint = f" ({less[0]} may only grow)" if less == changed else ""
        raise UsageError(
            f"{folder} holds {state} of another config ({differences(there, record)}); ask for the same{hint}, or name "
            "another --run-dir"
        )
    return more


def differences(a: Record, b: Record) -> str:
    """The fields in which two config records differ, in words."""
    words = [] if a["experiment"] == b["experiment"] else [f"experiment {a['experiment']}, not {b['experiment']}"]
    one, two = a["config"], b["config"]
    for key in sorted((set(one) | set(two)) - set(WHERE)):
        if key == "source_sha256" and one.get(key) != two.get(key):
            words.append(
                f"another file: {one.get('source')} has the sha256 {two.get(key)!s:.12}.., not {one.get(key)!s:.12}.."
            )
        elif one.get(key) != two.get(key):
            words.append(f"{key} {one.get(key)}, not {two.get(key)}")
    return "; ".join(words) or "no difference"


def of_another_run(folder: Path) -> UsageError:
    """The error to raise where the files of a folder speak of another run than the one that is asked for."""
    return UsageError(
        f"{folder / CONFIG} is damaged, and the other files of that folder belong to another run; name another --run-dir"
    )
