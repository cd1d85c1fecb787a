"""The threads of the processor: the bits of a run depend on their number, so it is recorded, kept and, where it differs, told.

env.json holds the number as `engine.threads` (None: a GPU computes, or it is not known). A run that goes on asks for the number
that it began with. Nothing here imports an engine: one that can tell brings a module `threads` with `ask`, `count` and `WAY_OUT`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypertrail_data import DataError

from . import runs
from .errors import UsageError
from .runs.reading import sealed_object


@contextlib.contextmanager
def fixed(engine: Any, wanted: int | None, began: int | None = None) -> Iterator[None]:
    """A with-block in which the engine starts its devices; `wanted` threads (--threads), else as many as a run `began` with.

    Raises UsageError where `wanted` differs from what the run began with, or where the engine cannot do it.
    """
    if not hasattr(engine, "threads"):
        yield
        return
    if wanted and began and wanted != began:
        raise UsageError(
            f"threads {wanted}: this run began with {began}, and its bits depend on it; leave out --threads, or name another "
            "--run-dir"
        )
    if wanted or began:
        engine.threads.ask(wanted or began)
    yield
    if wanted and engine.threads.count() not in (wanted, None):
        raise UsageError(
            f"threads {wanted}: the {engine.name} engine has {engine.threads.count()}; {engine.threads.WAY_OUT}"
        )


def recorded(folder: Path | None) -> int | None:
    """How many threads the run in this folder began with; None where none lies there, or where it does not say."""
    try:
        engine = sealed_object(folder / runs.ENV).get("engine") if folder else None
    except DataError:
        return None
    number = engine.get("threads") if isinstance(engine, dict) else None
    return number if type(number) is int and number > 0 else None


def on_going_on(engine: Any, began: int | None) -> str:
    """What is to be said of a run that goes on: '' where it has as many threads as at its beginning."""
    count = engine.threads.count() if hasattr(engine, "threads") else None
    if count is None or count == began:
        return ""
    if began is None:
        return f"how many threads this run began with is not recorded; it goes on with {count}: its bits may differ"
    return (
        f"this run began with {began} threads and goes on with {count}: its bits may differ ({engine.threads.WAY_OUT})"
    )


def difference(a: Path, b: Path) -> str:
    """What is to be said of two runs beside each other: '' where both have as many threads, or where one does not know."""
    one, two = recorded(a), recorded(b)
    if one is None or two is None or one == two:
        return ""
    return f"threads: {one}, not {two}; the same command rounds differently, so bits may differ"
