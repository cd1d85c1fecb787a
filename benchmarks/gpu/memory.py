"""Section 7: what XLA plans to hold for each program of section 5, and the most that the device has held, method by method.

Each method has a process of its own. Section 5 has compiled the programs, and here they come from the cache: the compiler takes
memory of its own while it tries out kernels.
"""

from __future__ import annotations

from typing import Any

import processes
from plan import Part
from sizes import Sizes
from watching import Watched

import densenet
from hypertrail.memory import peak as process_peak

MEGABYTE = 1e6


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    contender = densenet.CONTENDERS[part.name](sizes)
    contender.run()
    for program in contender.programs:
        if program.calls:
            say(row(contender.label, program))


def row(label: str, program: Watched) -> dict[str, Any]:
    plan, before, after = program.analysis, program.seen["peak before"], program.seen["peak after"]
    planned = plan["arguments"] + plan["results"] + plan["temporary"] - plan["shared"]
    return {
        "method": label,
        "program": program.name,
        "from the cache": program.seen["from cache"],
        "XLA's plan: arguments, MB": plan["arguments"] / MEGABYTE,
        "results, MB": plan["results"] / MEGABYTE,
        "temporary, MB": plan["temporary"] / MEGABYTE,
        "all, MB": planned / MEGABYTE,
        "peak of the device before its first call, MB": None if before is None else before / MEGABYTE,
        "and after it, MB": None if after is None else after / MEGABYTE,
        "peak of the process in RAM, MB": None if after is not None else process_peak() / MEGABYTE,
        "counted, GFLOP a call": plan["operations"] / 1e9,
        "XLA's count, GFLOP": plan["xla"] / 1e9,
    }
