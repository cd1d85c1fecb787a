"""Section 2: the same training three times in one process, and its hypergradient three times: equal to the bit?

A DenseNet: gradients of convolutions, sums over batch and pixels. A perceptron with a weight for each example: a scatter-add in
the reverse pass. All states of the training are compared: a gradient that differs in one bit moves the next state. Further
processes with the same flags compile anew; they tell whether the bits outlive the process.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from typing import Any

import problems
import processes
from plan import Part
from sizes import Sizes


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    from hypertrail import L2, ExampleWeight

    size = sizes.small
    networks = {
        size.words: problems.densenet(size, (L2("parameter", 1e-4),)),
        f"perceptron 64-{sizes.hidden}-10, a weight for each example": problems.perceptron(
            sizes.hidden, size.steps, (L2("parameter", 1e-4), ExampleWeight(init=0.9))
        ),
    }
    for words, problem in networks.items():
        say({"network": words, "XLA flags": part.flags or "none", "compiled": "anew" if part.fresh else "with the cache"}
            | repeated(problem, sizes.repeats))  # fmt: skip


def repeated(problem: Any, repeats: int) -> dict[str, Any]:
    import hypertrail_gpu as engine
    from hypertrail import Exact

    hyper = problem.initial_hyper()
    trainings, seconds = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        trainings.append(engine.train(problem, hyper, "memory"))
        seconds.append((time.perf_counter() - begun) / problem.steps)
    results, back = [], []
    for _ in range(repeats):  # of the first training's states: only what the reverse pass itself does can differ
        begun = time.perf_counter()
        results.append(engine.hypergradient(problem, hyper, trainings[0], Exact()).gradient)
        back.append((time.perf_counter() - begun) / problem.steps)
    differing = [first_difference(trainings[0], other) for other in trainings[1:]]
    steps = [step for step in differing if step is not None]
    return {
        "T, steps": problem.steps,
        "repeats": repeats,
        "states of all steps equal to the bit": not steps,
        "first state that differs": min(steps, default=None),
        "hypergradients equal to the bit": all(problems.same_bits(results[0], other) for other in results[1:]),
        "largest difference of hypergradients (norm)": max(problems.difference(one, results[0]) for one in results[1:]),
        "training, s a step": statistics.median(seconds[1:]),
        "reverse pass, s a step": statistics.median(back[1:]),
        "digest of w_T and hypergradient": digest(trainings[0].final, results[0]),
    }


def first_difference(a: Any, b: Any) -> int | None:
    """The first step whose state differs, T for the state at the end; None where all are equal to the bit."""
    for t in range(a.steps):
        if not problems.same_bits(a.trajectory.read(t), b.trajectory.read(t)):
            return t
    return None if problems.same_bits(a.final, b.final) else a.steps


def digest(*trees: Any) -> str:
    return hashlib.sha256(b"".join(problems.flat(tree).tobytes() for tree in trees)).hexdigest()[:12]


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """For each network, which flags gave equal bits, in one process and in two, and what they cost beside no flags."""
    items = []
    for network in dict.fromkeys(row["network"] for row in rows):
        here = [row for row in rows if row["network"] == network]
        plain = next((row for row in here if row["XLA flags"] == "none"), None)
        for flags in dict.fromkeys(row["XLA flags"] for row in here):
            items.append(f"- {network}: {sentence([row for row in here if row['XLA flags'] == flags], plain)}")
    return items


def sentence(same: list[dict[str, Any]], plain: dict[str, Any] | None) -> str:
    first = same[0]
    repeat = all(row["states of all steps equal to the bit"] and row["hypergradients equal to the bit"] for row in same)
    words = f"XLA flags {first['XLA flags']}: bits {'repeat' if repeat else 'DO NOT repeat'} in one process"
    if len(same) > 1:
        digests = {row["digest of w_T and hypergradient"] for row in same}
        words += f", {'and are' if len(digests) == 1 else 'but are NOT'} those of a process that compiled anew"
    if plain is not None and first is not plain:
        cost = [first[key] / plain[key] for key in ("training, s a step", "reverse pass, s a step")]
        words += f"; training takes {cost[0]:.2f} times as long as without flags, the reverse pass {cost[1]:.2f} times"
    return words + "."
