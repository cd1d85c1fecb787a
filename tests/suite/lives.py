"""Not a test: runs the command line on one folder, kills it with SIGKILL, runs it again, until it ends by itself.

    python lives.py FOLDER SEED LONGEST MOST WORD …

FOLDER: of the run. LONGEST: seconds; the first life ends at a random moment before that, each later one may last a twentieth
longer, so that on any machine one comes to the end; one in three ends as soon as a half written file of the trajectory is
seen. MOST: so many are killed at most. WORD …: the command. Says in the end, as JSON, how many lives were ended how. A life is
a fork of this process, which has imported everything but computed nothing: it is at work at once.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401

import hypertrail.report
import hypertrail.tuning  # noqa: F401
import hypertrail_cpu  # noqa: F401
from hypertrail import cli


def main(folder: Path, seed: int, longest: float, most: int, words: list[str]) -> dict[str, int]:
    moments, count = random.Random(seed), {"killed": 0, "while writing": 0}
    while True:
        child = os.fork()
        if child == 0:
            live(words)
        watched = folder / "trajectory" if moments.random() < 1 / 3 else None
        end = time.monotonic() + moments.uniform(0, longest) if count["killed"] < most else math.inf
        code = wait(child, end, watched if end < math.inf else None)
        longest *= 1.05
        if code == 0:
            return count
        if code != -signal.SIGKILL:
            raise SystemExit(f"a life ended with {code}")
        count["killed"] += 1
        count["while writing"] += bool(watched and half_written(watched))


def live(words: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    code = 1
    try:
        code = cli.main(words)
    finally:
        os._exit(code)


def wait(child: int, end: float, watched: Path | None) -> int:
    """The exit code of a life, which is killed at its end or once something half written is seen."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end or (watched and half_written(watched)):
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.0005)


def half_written(trajectory: Path) -> bool:
    try:
        return any(one.name.endswith(".tmp") for one in os.scandir(trajectory))
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])))
