"""Ending in good order: a signal asks, the loop finishes its step, saves, and stops here (exit code 75).

for block in blocks:
    save(block)
    stopping.here(f"block {block.index}")       # everything is on the disk: the place to stop, if stopping was asked for
"""

from __future__ import annotations

from .errors import Stopped

_asked_by: list[str] = []  # the signals that have asked, in their order


def ask(who: str) -> None:
    """Ask the running loop to stop at its next `here`. `who`: the name of the signal."""
    _asked_by.append(who)


def asked() -> str | None:
    """Who has asked first; None where nobody has."""
    return _asked_by[0] if _asked_by else None


def forget() -> None:
    """Nobody has asked: a new command begins."""
    _asked_by.clear()


def here(where: str) -> None:
    """Raise Stopped where a signal has asked to; called only where all that was computed is on the disk."""
    if _asked_by:
        raise Stopped(f"stopped by {_asked_by[0]} after {where}; run the same command with --run-dir to go on")
