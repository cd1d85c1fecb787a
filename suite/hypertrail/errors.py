"""What can go wrong, with the exit code that the command line gives it (0 ok, 2 usage, 3 numerical, 4 data, 75 run again, 76 run
again with more time).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypertrail_data.errors import DataError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, file size limit: make room, and run again


class UsageError(ValueError):
    """Something was asked for that cannot be: the message gives the value, the expectation and the way out."""

    exit_code = 2


class NumericalFailure(ArithmeticError):
    """A quantity became NaN or infinite. Names the quantity and the step; nothing is computed from it."""

    exit_code = 3
    what = "is not finite"

    def __init__(self, quantity: str, step: int, hint: str = "") -> None:
        self.quantity, self.step, self.hint = quantity, step, hint
        super().__init__(f"{quantity} {self.what} at step {step}" + (f"; {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.quantity, self.step, self.hint)


class OutOfRange(NumericalFailure):
    """A number of a run in fixed point is too large for it (or not one at all)."""

    what = "left the fixed point range"


class NotSolved(NumericalFailure):
    """A linear solve that did not arrive. The message says how far it came and what to do; step: its iterations."""

    def __init__(self, message: str, iterations: int) -> None:
        ArithmeticError.__init__(self, message)
        self.quantity, self.step, self.hint = "implicit solve", iterations, ""

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self), self.step)


class VerificationFailure(Exception):
    """Two derivations of one number disagree beyond the tolerance table."""

    exit_code = 4


class FolderLost(DataError):
    """The folder that is being written was moved, replaced or deleted by somebody else. Nothing is written from then on."""


class OtherData(DataError):
    """A run would go on with other data than it began with. The run is as it was, and goes on with the first data."""


class Stopped(Exception):
    """A signal asked for an end; all that was computed is on the disk. The same command on the same folder goes on from there."""

    exit_code = 75


class NoProgress(Stopped):
    """Its time was up, and the run is where it was when it was started: with the same time it would be there for ever."""

    exit_code = 76


@contextmanager
def looking_at(folder: Path | str) -> Iterator[None]:
    """What goes wrong inside, while the files of a run are looked at, becomes a DataError: they are not as we write them."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        AssertionError,
        RecursionError,
    ) as problem:
        if hasattr(problem, "exit_code") or os.environ.get("HYPERTRAIL_TRACEBACK", "0") not in ("", "0"):
            raise
        raise DataError(
            f"the files of {folder} are not as this version writes them ({type(problem).__name__}: {problem}); run it again"
        ) from problem
