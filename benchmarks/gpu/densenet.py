"""Section 5: what a training step of DenseNet-40-12, batch 64, costs: plain, exact, DrMAD C4, adaptive; each beside JAX by hand.

Each method has a process of its own. There its first call is made, then that of the hand-written training, and then both are
timed by turns; the ratio is the median over the turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import peaks
import problems
import processes
import watching
from plan import Part
from sizes import DenseNetSize, Sizes
from watching import Watched

LIMIT = "engines"  # the tolerance of the check


@dataclass
class Contender:
    """run: does all `steps` steps, returns when they are done, and says what belongs into the row. programs: it consists of."""

    label: str
    steps: int
    run: Callable[[], dict[str, Any]]
    programs: list[Watched]


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    if part.name == "by hand":
        say(checked())
    contender = CONTENDERS[part.name](sizes)
    first = first_call(contender)
    partner = None if part.name == "by hand" else by_hand(sizes)
    if partner:
        first_call(partner)
    seconds, ratios, extra = timed(contender, partner, sizes)
    say(row(contender, seconds, ratios, first | extra, machine))


def first_call(one: Contender) -> dict[str, Any]:
    begun = time.perf_counter()
    with watching.compiling() as told:
        one.run()
    seconds, peak = time.perf_counter() - begun, watching.device_peak()
    return {"first call": seconds, "compile": told.seconds, "from cache": told.from_cache, "peak": peak}


def timed(contender: Contender, partner: Contender | None, sizes: Sizes) -> tuple[float, list[float], dict[str, Any]]:
    """(seconds a step, median; ratios to the partner turn by turn; what the last run said of itself)."""
    seconds, ratios, begun, extra = [], [], time.perf_counter(), {}
    for turn in range(sizes.rounds):
        if turn >= 2 and time.perf_counter() - begun > 2 * sizes.round_seconds:
            break
        both = [one for one in (partner, contender) if one]
        took = {}
        for one in both if turn % 2 == 0 else both[::-1]:
            for program in one.programs:
                program.again()
            clock = time.perf_counter()
            said = one.run()
            took[one.label] = (time.perf_counter() - clock) / one.steps
            extra = said if one is contender else extra
        seconds.append(took[contender.label])
        if partner:
            ratios.append(took[contender.label] / took[partner.label])
    return statistics.median(seconds), ratios, extra


def row(
    one: Contender, seconds: float, ratios: list[float], about: dict[str, Any], machine: dict[str, Any]
) -> dict[str, Any]:
    """A row of the table. The arithmetic is that of the programs of the last timed run."""
    used = [watched for watched in one.programs if watched.turned]
    work = sum(watched.turned * watched.operations for watched in used) / one.steps
    most, source = peaks.peak(machine)
    return {
        "method": one.label,
        "T, steps": one.steps,
        "s a step": seconds,
        "ratio to JAX by hand": statistics.median(ratios) if ratios else 1.0,
        "lowest ratio": min(ratios, default=None),
        "highest ratio": max(ratios, default=None),
        "first call, s": about["first call"],
        "of it tracing and compiling, s": about["compile"],
        "programs from the cache": about["from cache"],
        "peak of the device, compiling included, MB": None if about["peak"] is None else about["peak"] / 1e6,
        "arithmetic, GFLOP a step": work / 1e9,
        "TFLOP/s": work / seconds / 1e12,
        "share of the peak, %": 100 * work / seconds / most,
        "peak": source,
        "line steps N": about.get("N"),
    }


# -- the contenders -------------------------------------------------------------------------------------------------------


def by_hand(sizes: Sizes) -> Contender:
    """Plain training as a JAX user writes it."""
    size = sizes.large
    one = problem(sizes)
    train = Watched("JAX by hand: T steps", handwritten.trainer(size, one.noise_key, 0.1, 0.9))
    w, v = jax.tree.map(jnp.asarray, (one.initial_weights(), one.initial_velocity()))
    x, y = jnp.asarray(one.splits.train.x), jnp.asarray(one.splits.train.y)
    batches = one.schedule.indices(0, size.steps)

    def run() -> dict[str, Any]:
        _, _, losses = train(w, v, x, y, batches)
        assert np.isfinite(np.asarray(losses)).all()
        return {}

    return Contender("plain training, JAX by hand", size.steps, run, [train])


def problem(sizes: Sizes) -> Any:
    from hypertrail import L2

    return problems.densenet(sizes.large, (L2("parameter", handwritten.L2),))


def of_the_engine(sizes: Sizes, label: str, keep: str, word: str | None) -> Contender:
    """Training, and where a method is named, its hypergradient."""
    import hypertrail_gpu as engine
    from hypertrail.methods import parse_method
    from hypertrail_gpu.compiled import compiled, precision

    one = problem(sizes)
    hyper = one.initial_hyper()
    with precision(one):
        programs = compiled(one)
    train = programs.train_chunk = Watched(f"hypertrail: {programs.chunk} training steps", programs.train_chunk)
    back = programs.reverse_chunk = Watched(f"hypertrail: {programs.chunk} reverse steps", programs.reverse_chunk)
    line = programs.reverse_line = Watched(
        "hypertrail: steps along the line",
        programs.reverse_line,
        turns=lambda arguments: float(arguments[-1][1] - arguments[-1][0]),
    )
    top = programs.hyper_gradient = Watched("hypertrail: gradient of the hyper loss", programs.hyper_gradient)

    def run() -> dict[str, Any]:
        training = engine.train(one, hyper, keep)
        if word is None:
            return {}
        result = engine.hypergradient(one, hyper, training, parse_method(word))
        return {"N": result.diagnostics["N"]} if word.startswith("drmad") else {}

    return Contender(label, one.steps, run, [train, top, back, line])


def adaptive(sizes: Sizes) -> Contender:
    """One block of the adaptive method."""
    import hypertrail_gpu as engine
    from hypertrail import L2, Adaptive, LearningRate
    from hypertrail_gpu.compiled import compiled, precision
    from hypertrail_gpu.online import RULES

    n, K, M = sizes.adaptive
    method = Adaptive(n, M, K)
    declared = (
        LearningRate("parameter", 0.1, bounds=(1e-5, 1.0)),
        L2("parameter", handwritten.L2, bounds=(1e-7, 1e-2)),
    )
    one = problems.densenet(sizes.large, declared, steps=1_000_000)
    with precision(one):
        programs = compiled(one)
        rule = programs.program(f"online {method}", lambda: RULES[Adaptive](programs, method))
    rule.forward = Watched(f"hypertrail: {n} steps of the adaptive method", rule.forward)
    rule.backward = Watched(f"hypertrail: {M} validation batches and {K} steps back", rule.backward)
    blocks = engine.adapt(one, one.initial_hyper(), method)

    def run() -> dict[str, Any]:
        jax.block_until_ready(next(blocks).state)
        return {}

    return Contender(f"hypertrail, adaptive {n}-{K}-{M}", n, run, [rule.forward, rule.backward])


CONTENDERS: dict[str, Callable[[Sizes], Contender]] = {
    "by hand": by_hand,
    "plain": lambda sizes: of_the_engine(sizes, "hypertrail, plain training", "ends", None),
    "exact": lambda sizes: of_the_engine(
        sizes, "hypertrail, training and exact hypergradient, states on the device", "memory", "exact"
    ),
    "drmad-C4": lambda sizes: of_the_engine(sizes, "hypertrail, training and DrMAD C4", "ends", "drmad-C4"),
    "adaptive": adaptive,
}


# -- the check ------------------------------------------------------------------------------------------------------------


def checked() -> dict[str, Any]:
    """That the hand-written gradient is the engine's, in float64, dropout on, on a small net of two blocks."""
    from hypertrail import L2
    from hypertrail.tolerances import tolerance
    from hypertrail_gpu import losses

    size = DenseNetSize(depth=5, growth=3, image=8, batch=8, steps=4, blocks=2)
    one = problems.densenet(size, (L2("parameter", handwritten.L2),), precision="float64")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        # Not the initial weights: with biases of 0 and scales of 1 a mistake in either would not show.
        w = {name: jnp.asarray(x + 0.1 * rng.normal(size=x.shape)) for name, x in one.initial_weights().items()}
        values = jax.tree.map(jnp.asarray, one.values(one.initial_hyper()))
        x, y = jnp.asarray(one.splits.train.x[:8], float), jnp.asarray(one.splits.train.y[:8])
        step = jnp.int32(3)
        loss, g, _ = jax.jit(lambda w: losses.elementary_gradient(one, w, values, x, y, step))(w)
        other_loss, other = jax.jit(handwritten.gradient(size, one.noise_key))(w, x, y, step)
        off = max(problems.difference(g, other), abs(float(loss - other_loss)))
    limit = tolerance(LIMIT, "float64").epsilon
    return {
        "method": "check in float64: gradient by hand and by hypertrail",
        "relative difference": off,
        "tolerance": limit,
        "ok": off <= limit,
    }
