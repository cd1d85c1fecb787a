"""Hyperparameters that move while the network trains. The loop here does not know which method it runs.

A rule is a small object made of a problem's programs and a declaration (`hypertrail.online`): `start` gives its memory,
`block` takes a state to the next one and is one compiled program (adaptive: two). One file per method; the reference engine
has the same names for those that it has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.adapting import Block, State, blocks_asked, numpy_state, refuse, taken_up
from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.online import MARTHE, OSGM, RTHO, T1T2, Adaptive, Almeida, Clarke, HypergradientDescent, Online, Plain
from hypertrail.problem import Problem

from ..compiled import Compiled, compiled, precision
from . import adaptive, almeida, clarke, descent, osgm, plain, t1t2, tangents
from .rule import Rule

RULES: dict[type[Online], type[Rule]] = {
    Plain: plain.PlainRule,
    Adaptive: adaptive.AdaptiveRule,
    T1T2: t1t2.T1T2Rule,
    HypergradientDescent: descent.DescentRule,
    Almeida: almeida.AlmeidaRule,
    RTHO: tangents.TangentRule,
    MARTHE: tangents.TangentRule,
    OSGM: osgm.OSGMRule,
    Clarke: clarke.ClarkeRule,
}


def adapt(
    problem: Problem,
    hyper: Hyper,
    method: Online,
    state: State | None = None,
    blocks: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Block]:
    """Train while `method` moves the hyperparameters, block by block: a generator of `Block` records.

    state: what an earlier block left, to go on from (`hyper` is then not looked at); None: w_0, v_0 = 0 and `hyper`. Its
    arrays are those of the device; `arrays.save` takes them as they are. dtype: problem.precision.
    blocks: how many; None: all that fit into the T steps of the problem. progress(steps done, T) after each block.
    Cost: see the method; the first block of a problem and method compiles, later ones and later calls do not.
    Raises UsageError at once for a combination that cannot work or a state of another run; then NumericalFailure (quantity,
    step) in the block where a loss, a weight or a hypergradient is not finite: what was handed out before stays as it is.
    """
    refuse(problem, method)
    if type(method) not in RULES:
        raise UsageError(f"the compiled engine has no {method.name}, expected one of {[one.name for one in RULES]}")
    with precision(problem):
        programs = compiled(problem)
        rule = programs.program(f"online {method}", lambda: RULES[type(method)](programs, method))
        first = first_state(programs, hyper if state is None else problem.initial_hyper(), rule)
        here = first if state is None else taken_up(first, state)
    return walk(rule, here, blocks_asked(problem, method, int(here["step"]), blocks), progress)


def first_state(programs: Compiled, hyper: Hyper, rule: Rule) -> State:
    problem = programs.problem
    hyper = jax.tree.map(lambda u: jnp.asarray(u, problem.dtype), hyper)
    w = jax.tree.map(jnp.asarray, programs.initial_weights(programs.values(hyper)))
    v = jax.tree.map(jnp.asarray, problem.initial_velocity())
    return {
        "w": w,
        "v": v,
        "running": jax.tree.map(jnp.asarray, problem.initial_running()),
        "hyper": hyper,
        "memory": rule.start(hyper, w, v),
        "step": np.array(0, dtype=np.int64),
        "block": np.array(0, dtype=np.int64),
    }


def walk(rule: Rule, state: State, blocks: int, progress: Progress | None) -> Iterator[Block]:
    method, programs = rule.method, rule.programs
    for _ in range(blocks):
        clock = time.perf_counter()
        start, index = int(state["step"]), int(state["block"])
        moving = {key: one for key, one in state.items() if key not in ("step", "block")}
        with precision(programs.problem):  # not held while the caller looks at the block
            inputs = rule.inputs(start, index)
            moved, gradient, report = rule.run(moving, inputs, programs.train_data, rule.valid_data)
            report = {key: np.asarray(one) for key, one in report.items()}
            report["lost"] = lost(moved["hyper"])
        judge(report, start, method)
        state = moved | {"step": np.array(start + method.advance), "block": np.array(index + 1)}
        cost = method.cost(programs.problem)
        cost.seconds = time.perf_counter() - clock
        yield Block(
            index=index,
            start=start,
            stop=start + method.block_steps,
            losses=report["losses"].astype(np.float64),
            hyper_losses=report["hyper_losses"].astype(np.float64),
            gradient=numpy_state(gradient),
            state=state,
            cost=cost,
            skipped=int(report["skipped"]),
        )
        if progress:
            progress(int(state["step"]), programs.problem.steps)


@jax.jit
def lost(hyper: Hyper) -> jax.Array:
    """Whether a hyperparameter is NaN. An infinite one may be right: log 0."""
    return jnp.any(jnp.stack([jnp.any(jnp.isnan(u)) for u in jax.tree.leaves(hyper)]))


def judge(report: dict[str, Any], start: int, method: Online) -> None:
    """Raise for the first quantity of a block that is not finite, in the order in which they were computed."""
    hint = "lower the learning rate, its bounds or the method's step"
    n, sizes = method.block_steps, report["sizes"]
    every = n // max(len(sizes), 1)
    found = []
    for i in np.flatnonzero(~np.isfinite(report["losses"]))[:1]:  # of the n batches, moves may take some from the steps
        found.append((start + int(i) * n // len(report["losses"]), 0, "elementary loss"))
    for i in np.flatnonzero(~np.isfinite(report["hyper_losses"]))[:1]:
        found.append((start + (int(i) + 1) * every, 1, "hyper loss"))
    for i in np.flatnonzero(~np.isfinite(sizes))[:1]:
        found.append((start + (int(i) + 1) * every, 2, "hypergradient"))
    if not np.isfinite(report["size"]):
        found.append((start + n, 3, "elementary weights"))
    if report["lost"]:
        found.append((start + n, 4, "hyperparameters"))
    if found:
        step, _, quantity = min(found)
        raise NumericalFailure(quantity, step, hint)


__all__ = ["RULES", "adapt"]
