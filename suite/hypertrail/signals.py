"""SIGTERM and SIGUSR2 while a run is at work: the first asks it to stop (stopping.py), a second one ends it at once.

What comes within SAME seconds of the first belongs to it: Slurm's srun and its step daemon both hand on the same SIGTERM. What a
cluster sends before it takes a node away is one of the two. "At once" holds inside a long computation too, where Python
gets no turn: the signal's number goes down a pipe, and a thread that waits at its other end ends the process, with code
143 (SIGTERM) or 140 (SIGUSR2). Nothing is lost by that: a run folder can be taken up whenever its writer was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from . import stopping

ASKING = (signal.SIGTERM, signal.SIGUSR2)
SAME = 1.0


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Within it, the two signals ask; afterwards they do what they did before. Nothing changes outside the main thread."""
    if threading.current_thread() is not threading.main_thread():  # somebody else's process
        yield
        return
    stopping.forget()
    out, into = os.pipe()
    os.set_blocking(into, False)
    before = [signal.signal(one, nothing) for one in ASKING]
    pipe_before = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, args=(out,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe_before)
        for one, handler in zip(ASKING, before, strict=True):
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        os.close(into)  # the end of what the thread reads
        thread.join()
        os.close(out)


def nothing(number: int, frame: Any) -> None:
    """A handler of Python's must be there for the pipe to be written to."""


def listen(pipe: int) -> None:
    first = 0.0
    while numbers := os.read(pipe, 1):
        if numbers[0] not in ASKING:
            continue
        if stopping.asked():
            if time.monotonic() - first < SAME:
                continue
            name = signal.Signals(numbers[0]).name
            os.write(2, f"hypertrail: ended at once by a second signal ({name})\n".encode())
            os._exit(128 + numbers[0])
        first = time.monotonic()
        stopping.ask(signal.Signals(numbers[0]).name)
