"""Everything that a GPU can answer, in one command and at most 8 minutes.

    make gpu                                     on whatever device JAX finds
    make gpu ARGS=--tiny                         the same at tiny sizes, for a processor: shows that every part runs
    python3 benchmarks/gpu/run.py                without .venv: needs Python 3.11 or newer, jax, numpy, h5py and optax alone
    python3 benchmarks/gpu/run.py --only verify reversal

Writes benchmarks/results/gpu/<date and time>.json and .md (…-tiny with --tiny). Both are written anew after every row: a run that
is cut off keeps what it had. A part that fails says why in its section, and the next one goes on. A part for which too little of
the budget is left is skipped, and the report says so. The sections and their parts stand in plan.py, in the order of importance.

Exit code 0: every part that was started is done and every verdict is met; 1: the last lines say what is not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import roots

roots.put_on_path()

import machine  # noqa: E402
import processes  # noqa: E402
from notes import notes  # noqa: E402
from plan import BUDGET, PARTS, Part  # noqa: E402
from results import Report  # noqa: E402
from sizes import FULL, TINY  # noqa: E402

RESULTS = roots.ROOT / "benchmarks" / "results" / "gpu"
RESERVE = 3.0  # seconds of the budget that are kept for ending in good order


def work(job: dict[str, Any], say: processes.Say) -> None:
    """What the process of one part does."""
    part = Part(**job["part"])
    section = importlib.import_module(part.section)
    section.measure(part, TINY if job["tiny"] else FULL, job["machine"], say)


def run(report: Report, parts: Sequence[Part], tiny: bool, budget: float, cache: Path) -> None:
    """All parts, one after the other, as far as the budget goes."""
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    for part in parts:
        left = budget - RESERVE - (time.monotonic() - started)
        scale = budget / BUDGET
        needed = part.least * min(scale, 1)
        if left < needed:
            report.start(part, f"skipped: {max(left, 0):.0f} s of the budget are left, it needs about {needed:.0f} s")
            continue
        print(f"{time.monotonic() - started:5.0f} s  {part.section}, {part.name}", flush=True)
        record, begun = report.start(part), time.monotonic()

        def hear(message: dict[str, Any], part: Part = part) -> None:
            if "row" in message:
                report.row(part.section, message["row"])
            report.data["machine"].update(message.get("machine", {}))

        job = {"part": vars(part), "tiny": tiny, "machine": report.data["machine"]}
        environment = processes.environment(part, cache)
        status = processes.run(command, job, environment, min(left, part.most * scale), hear)
        report.end(record, status, time.monotonic() - begun)
        if status != "done":
            print(f"         {status}")
    report.data.update(budget=budget, seconds=time.monotonic() - started)


def conclude(report: Report) -> None:
    for name, section in report.data["sections"].items():
        if section["rows"]:
            section["notes"] = notes(name, section["rows"])
    report.data["finished"] = True
    report.write()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which a processor can do in a few minutes")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all of it (default %(default)g)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=sorted({part.section for part in PARTS}),
        help="these sections alone, after the device",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the report (default benchmarks/results/gpu)"
    )
    parser.add_argument(
        "--cache", type=Path, help="compilation cache to go on with (default: a new one, removed at the end)"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        processes.serve(work)
        return 0
    wanted = [part for part in PARTS if not arguments.only or part.section in ("device", *arguments.only)]
    command = " ".join(["python", "benchmarks/gpu/run.py", *sys.argv[1:]])
    name = datetime.now(UTC).strftime("%Y-%m-%d-%H%M") + ("-tiny" if arguments.tiny else "")
    title = "What a GPU can answer" + (
        ", at tiny sizes: the numbers only show that every part runs" if arguments.tiny else ""
    )
    report = Report(arguments.out, name, title, machine.environment(command))
    with tempfile.TemporaryDirectory(prefix="hypertrail-gpu-") as folder:
        run(report, wanted, arguments.tiny, arguments.budget, arguments.cache or Path(folder))
    conclude(report)
    wrong = report.wrong()
    print(f"{arguments.out / name}.md", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
