"""One process for each part: what it says comes line by line, and it ends when its time is up or when the parent is gone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from plan import Part, Row

MARK = "\x1e"  # before each line of JSON; what else a library may print goes through to the terminal
Say = Callable[[Row], None]  # a finished row
Hear = Callable[[dict[str, Any]], None]


# -- the parent's side ----------------------------------------------------------------------------------------------------


def environment(part: Part, cache: Path) -> dict[str, str]:
    """Memory is taken when it is needed, so that peaks mean something; what was compiled once is read by the next processes."""
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    caching = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {
        **inherited,
        **({} if part.fresh else caching),
        "XLA_FLAGS": " ".join(filter(None, (os.environ.get("XLA_FLAGS", ""), part.flags))),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
    }


def run(command: list[str], job: dict[str, Any], env: dict[str, str], seconds: float, hear: Hear) -> str:
    """Start a process, give it its job, hear what it says. Returns "done", or in words why it is not.

    The process is ended after so many seconds. It ends by itself when this one is gone: its standard input is then closed.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            status = listen(process.stdout, time.monotonic() + seconds, hear)
            if status is None:
                return f"cut off after {seconds:.0f} s, its time was up; the rows until then are kept"
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            process.stdout.close()
            errors.seek(0)
            said = errors.read()
            sys.stderr.write(said[-4000:])
    return status or f"failed: the process ended with code {code}; {last_words(said)}"


def listen(lines: TextIO, deadline: float, hear: Hear) -> str | None:
    """Hear all lines until the end, and return the status that the process gave itself, "" for none; None where time is up."""
    heard: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in lines:
                heard.put(line)
        heard.put(None)

    threading.Thread(target=read, daemon=True).start()
    status = ""
    while True:
        try:
            line = heard.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            return None
        if line is None:
            return status
        if not line.startswith(MARK):
            print(line, end="", flush=True)
            continue
        message = json.loads(line[len(MARK) :])
        status = message.get("status", status)
        hear(message)


def last_words(errors: str) -> str:
    """What a process that died without a word of its own left on standard error: the line that names a fault, else the last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if "Unknown flag" in line or "rror:" in line] or lines[-1:]
    return telling[0][:300] if telling else "it left no message"


# -- the side of the part -------------------------------------------------------------------------------------------------


def serve(work: Callable[[dict[str, Any], Say], None]) -> None:
    """Read the job, do it, say each row as soon as it is there, and at the end whether all went well, or else what did not."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()

    def say(row: Row) -> None:
        tell({"row": row})

    try:
        work(job, say)
    except Exception as problem:
        traceback.print_exc()
        words = " ".join(str(problem).split())[:300]
        tell({"status": f"failed: {type(problem).__name__}: {words}"})
    else:
        tell({"status": "done"})


def tell(message: dict[str, Any]) -> None:
    print(MARK + json.dumps(message, default=plain), flush=True)


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item()


def end_with_parent() -> None:
    sys.stdin.read()  # until the parent closes it, or is gone
    os._exit(1)
