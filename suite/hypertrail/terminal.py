"""What goes to the screen. Printing is a courtesy: a screen that is closed, full or cannot show a letter stops nothing.

Text that comes from elsewhere (names of folders, messages of other programs) may hold characters that move the cursor or change
the window. `visible` shows them as escapes; everything that prints such text calls it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any


def prepare() -> None:
    """Let both streams show '?' for a letter that their encoding lacks, whatever PYTHONIOENCODING or the locale say."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or not a stream of Python's
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def visible(text: str) -> str:
    r"""The text with everything that is no printable character, space, tab or line break as an escape such as \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def say(line: object = "") -> None:
    """One line on the screen, while there is one. Nothing is raised."""
    try:
        print(visible(str(line)), flush=True)
    except (OSError, ValueError):  # nobody reads any more, or the disk behind it is full
        leave(sys.stdout)


def complain(message: str) -> None:
    """One line on stderr. Nothing is raised."""
    try:
        if sys.stderr is not None:  # closed: `2>&-`
            print(f"hypertrail: {visible(' '.join(message.split()))}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        leave(sys.stderr)


def leave(stream: Any) -> None:
    """Let all that is still to be written to a stream go nowhere, also what Python writes at its end."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Every warning inside is one line on stderr. It ends nothing, whatever PYTHONWARNINGS says."""

    def show(message: Any, category: type[Warning], filename: str, *rest: Any) -> None:
        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        if any(option.startswith("error") for option in sys.warnoptions):
            warnings.simplefilter("default")
        yield
