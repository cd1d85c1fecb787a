"""Section 6: digits perceptrons that differ in the seed, side by side in one program (`hypertrail_gpu.many`) and one by one."""

from __future__ import annotations

import statistics
import time
from typing import Any

import problems
import processes
import watching
from plan import Part
from sizes import Sizes


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    import hypertrail_gpu as engine
    from hypertrail import L2, Exact, UsageError
    from hypertrail_gpu import many

    problem = problems.perceptron(sizes.hidden, sizes.seeds_steps, (L2("parameter", 1e-4),))
    hyper = problem.initial_hyper()
    front = {"network": f"perceptron 64-{sizes.hidden}-10, batch 64, T = {sizes.seeds_steps}"}

    def alone() -> None:
        engine.hypergradient(problem, hyper, engine.train(problem, hyper, "memory"), Exact())

    first, single, told = timed(alone, sizes)
    say(front | {"how": "one by one", "runs": 1} | columns(first, single, told, 1, single))
    for count in sizes.seeds[:-1] if part.name == "few seeds" else sizes.seeds[-1:]:
        problems_of_seeds = many.seeds(problem, range(count))
        hypers = [hyper] * count

        def together(seeded: Any = problems_of_seeds, hypers: Any = hypers) -> None:
            many.hypergradient(seeded, hypers, many.train(seeded, hypers, "memory"), Exact())

        try:
            first, seconds, told = timed(together, sizes)
        except UsageError as refusal:
            say(front | {"how": f"refused: {refusal}", "runs": count})
            continue
        say(front | {"how": "side by side", "runs": count} | columns(first, seconds, told, count, single))


def timed(run: Any, sizes: Sizes) -> tuple[float, float, watching.Compiling]:
    """(seconds of the first call, median of the later ones, what compiling took of the first)."""
    begun = time.perf_counter()
    with watching.compiling() as told:
        run()
    first = time.perf_counter() - begun
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < sizes.rounds and sum(seconds) < sizes.round_seconds):
        clock = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - clock)
    return first, statistics.median(seconds), told


def columns(first: float, seconds: float, told: watching.Compiling, runs: int, single: float) -> dict[str, Any]:
    peak = watching.device_peak()
    return {
        "all runs, s": seconds,
        "a run, s": seconds / runs,
        "ratio to one by one": seconds / runs / single,
        "first call, s": first,
        "of it tracing and compiling, s": told.seconds,
        "peak of the device until then, MB": None if peak is None else peak / 1e6,
    }
