"""What the code of a user raises, in one line with the place."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError

OURS = ("hypertrail", "hypertrail_gpu", "hypertrail_cpu", "hypertrail_data", "hypertrail_nets")


@contextmanager
def told(where: str) -> Iterator[None]:
    """What a user's code raises, as a UsageError in one line with the place; HYPERTRAIL_TRACEBACK=1 shows all of it."""
    try:
        yield
    except SystemExit as end:
        raise UsageError(f"{where}: it ends the program (SystemExit: {end.code})") from end
    except Exception as problem:
        if hasattr(problem, "exit_code"):
            raise
        raise UsageError(f"{where}: {in_one_line(problem)}") from problem


def in_one_line(problem: Exception) -> str:
    """The kind of an error, its words, and the last place of it that is no library's."""
    words = " ".join(str(problem).split())[:300]
    if isinstance(problem, SyntaxError):
        return f"{type(problem).__name__}: {problem.msg} (line {problem.lineno})"
    frames = [one for one in traceback.extract_tb(problem.__traceback__) if not in_library(one.filename)]
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {words}{at}"


def in_library(filename: str) -> bool:
    parts = Path(filename).parts
    return filename.startswith("<") or "site-packages" in parts or any(part in OURS for part in parts)
