"""What goes to the screen. Printing is a courtesy: a screen that is closed, full or cannot show a letter stops nothing.

Text that comes from elsewhere (names of folders, messages of other programs) may hold characters that move the cursor or change
the window. `visible` shows them as escapes; everything that prints such text calls it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# Characters of a complaint: a path fits, a number of thousands of digits does not.
LONGEST_WORD, LONGEST_LINE = 240, 1500


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


def shortened(text: str, most: int) -> str:
    """A text of more than `most` characters without its middle, and how long it was."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}… ({len(text):,} characters) …{text[-most // 4 :]}"


def complain(message: str) -> None:
    """One line on stderr, in which no word and no list of words is endless. Nothing is raised."""
    words = [shortened(word, LONGEST_WORD) for word in visible(message).split()]
    try:
        if sys.stderr is not None:  # closed: `2>&-`
            print(f"hypertrail: {shortened(' '.join(words), LONGEST_LINE)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        leave(sys.stderr)


@contextlib.contextmanager
def bounded_width() -> Iterator[None]:
    """A with-block in which the terminal says that it has 60 to 1,000 columns. In fewer tyro wraps its help without an end, and
    a box of billions of columns (COLUMNS is any number) fills the memory."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(max(shutil.get_terminal_size().columns, 60), 1000))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


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
