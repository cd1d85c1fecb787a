"""One run on several devices, and in several processes: what a run needs to know of it.

Every process makes the same calls and finds the same numbers. Process 0 writes the run's folder; the others write into
a copy of their own that nobody keeps, so that what an earlier start left is there for them too. Nothing here imports an engine:
one that can share its batches brings a module `devices` with `tasks`, `join`, `use`, `layout`, `process` and `gathered`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import stopping
from .errors import UsageError


def share(engine: Any, wanted: str, problem: Any = None) -> None:
    """Let the engine share its batches as `--devices` says: '1', another number of this process' devices, or 'all': those of
    every process that was started together. Before anything is computed.

    Raises UsageError for an engine that has one device only, for more devices than there are, and for a batch that cannot be
    shared by so many.
    """
    if not hasattr(engine, "devices"):
        if wanted == "1":
            return
        raise UsageError(f"devices {wanted}: the {engine.name} engine computes on one processor; use --engine gpu")
    devices = engine.devices
    if wanted == "all" and devices.tasks() > 1:
        devices.join()
        stopping.together(lambda mine: any(devices.gathered(int(mine))))
    else:
        devices.use(wanted)
    if hasattr(problem, "schedule"):
        devices.layout().refuse(problem.schedule.batch)


@contextlib.contextmanager
def folder(engine: Any, path: Path) -> Iterator[Path]:
    """Where this process writes: `path` in process 0 (or the only one), else a temporary copy of it, without a word on the
    terminal. Raises UsageError where the processes do not see the same folder at `path`."""
    process, count = engine.devices.process() if hasattr(engine, "devices") else (0, 1)
    if count == 1:
        yield path
        return
    with contextlib.ExitStack() as stack:
        mine = path
        if process > 0:
            mine = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hypertrail-"))) / "run"
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            if path.is_dir():
                shutil.copytree(path, mine, symlinks=True, ignore=shutil.ignore_patterns("lock", "figures"))
        if len(set(engine.devices.gathered(fingerprint(path if process == 0 else mine)))) > 1:
            raise UsageError(
                f"the {count} processes do not see the same files in {path}; name a --run-dir that all of them share"
            )
        yield mine


def fingerprint(path: Path) -> int:
    """31 bits of the names and sizes of a run's files."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "lock" and p.parent.name != "figures")
    return zlib.crc32(repr([(str(p.relative_to(path)), p.stat().st_size) for p in files]).encode()) & 0x7FFFFFFF
