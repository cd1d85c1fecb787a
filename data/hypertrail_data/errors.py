"""What can go wrong with data on disk, with the exit code a command line should end with."""

from __future__ import annotations


class DataError(Exception):
    """A data set or a stored trajectory cannot be used as it is. The message names the value, the expectation, the way out."""

    exit_code = 4


class TrajectoryError(DataError):
    """A trajectory is damaged, incomplete or used against its rules.

    Attributes
    ----------
    segment : str or None
        File name of the damaged segment, where one is to blame.
    resume_step : int or None
        States with a step below this one are intact: open with ``mode="a", until=resume_step`` and train on from there.
    """

    def __init__(self, message: str, *, segment: str | None = None, resume_step: int | None = None) -> None:
        super().__init__(message)
        self.segment = segment
        self.resume_step = resume_step


class DiskFull(Exception):
    """No room left (disk, quota or file size limit). What was acknowledged is safe; run again when there is room."""

    exit_code = 75


class UnverifiedData(UserWarning):
    """A file that a data set was read from is not, byte for byte, the published original."""
