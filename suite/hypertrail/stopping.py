"""Ending in good order: a signal asks, the loop finishes its step, saves, and stops here (exit code 75).

for block in blocks:
    save(block)
    stopping.here(f"block {block.index}")       # everything is on the disk: the place to stop, if stopping was asked for

What is too large to be saved every time is saved where `coming` says that the next `here` will stop.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import Stopped

_asked_by: list[str] = []  # the signals that have asked, in their order
_anyone: Callable[[bool], bool] = bool
_coming: bool | None = None  # what `coming` has said, until `here` has acted on it


def together(anyone: Callable[[bool], bool]) -> None:
    """Several processes make one run and stop at the same place: anyone(mine) tells whether one of them was asked."""
    global _anyone
    _anyone = anyone


def ask(who: str) -> None:
    """Ask the running loop to stop at its next `here`. `who`: the name of the signal."""
    _asked_by.append(who)


def asked() -> str | None:
    """Who has asked first; None where nobody has."""
    return _asked_by[0] if _asked_by else None


def forget() -> None:
    """Nobody has asked: a new command begins."""
    global _coming
    _asked_by.clear()
    _coming = None


def coming() -> bool:
    """Whether the `here` that follows will stop. Several processes ask together, once for the two; a signal that comes between
    them is for the next ones, as what it would stop has not been saved."""
    global _coming
    _coming = _anyone(bool(_asked_by))
    return _coming


def here(where: str, save: Callable[[], None] | None = None) -> None:
    """Raise Stopped where a signal has asked to; called only where all that was computed is on the disk.

    save: puts it there, where that is not done at every call: called before the stop, and only then.
    """
    global _coming
    stop, _coming = _anyone(bool(_asked_by)) if _coming is None else _coming, None
    if stop:
        if save is not None:
            save()
        who = asked() or "a signal to another process"
        raise Stopped(f"stopped by {who} after {where}; run the same command with --run-dir to go on")
