"""Hyperparameters that move while the network trains. The loop here does not know which method it runs. float64.

A rule is a small object made of a problem and a declaration (`hypertrail.online`): `start` gives its memory, `block` takes a
state to the next one. One file per method; the compiled engine has the same names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from hypertrail.adapting import Block, State, blocks_asked, numpy_state, refuse, taken_up
from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.online import MARTHE, RTHO, T1T2, Adaptive, Almeida, HypergradientDescent, Online, Plain
from hypertrail.problem import Problem

from ..losses import in_float64
from ..training import norm
from . import adaptive, almeida, descent, plain, t1t2, tangents
from .rule import Rule

RULES: dict[type[Online], type[Rule]] = {
    Plain: plain.PlainRule,
    Adaptive: adaptive.AdaptiveRule,
    T1T2: t1t2.T1T2Rule,
    HypergradientDescent: descent.DescentRule,
    Almeida: almeida.AlmeidaRule,
    RTHO: tangents.TangentRule,
    MARTHE: tangents.TangentRule,
}


def adapt(
    problem: Problem,
    hyper: Hyper,
    method: Online,
    state: State | None = None,
    blocks: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Block]:
    """Train while `method` moves the hyperparameters, block by block, in float64: a generator of `Block` records.

    state: what an earlier block left, to go on from (`hyper` is then not looked at); None: w_0, v_0 = 0 and `hyper`.
    blocks: how many; None: all that fit into the T steps of the problem. progress(steps done, T) after each block.
    Cost: see the method. Raises UsageError at once for a combination that cannot work or a state of another run; then
    NumericalFailure (quantity, step) in the block where a loss, a weight or a hypergradient is not finite: what was
    handed out before stays as it is.
    """
    refuse(problem, method)
    if type(method) not in RULES:
        raise UsageError(f"the reference engine has no {method.name}; use the compiled engine (gpu)")
    problem = in_float64(problem)
    rule = RULES[type(method)](problem, method)
    first = first_state(problem, hyper if state is None else problem.initial_hyper(), rule)
    here = first if state is None else taken_up(first, numpy_state(state))
    return walk(rule, here, blocks_asked(problem, method, int(here["step"]), blocks), progress)


def first_state(problem: Problem, hyper: Hyper, rule: Rule) -> State:
    w, v = problem.scaled(problem.initial_weights(), problem.values(hyper)), problem.initial_velocity()
    hyper = {kind: {key: np.array(u, dtype=np.float64) for key, u in arrays.items()} for kind, arrays in hyper.items()}
    return {
        "w": w,
        "v": v,
        "running": problem.initial_running(),
        "hyper": hyper,
        "memory": rule.start(hyper, w, v),
        "step": np.array(0, dtype=np.int64),
        "block": np.array(0, dtype=np.int64),
    }


def walk(rule: Rule, state: State, blocks: int, progress: Progress | None) -> Iterator[Block]:
    for _ in range(blocks):
        clock = time.perf_counter()
        start, index = int(state["step"]), int(state["block"])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what overflows is caught by name
            moved, report = rule.block(state)
            size = norm(moved["w"])
        if not np.isfinite(size):
            raise NumericalFailure(
                "elementary weights", start + rule.method.block_steps, "lower the learning rate's bounds"
            )
        if any(np.isnan(u).any() for arrays in moved["hyper"].values() for u in arrays.values()):
            raise NumericalFailure("hyperparameters", start + rule.method.block_steps, "lower the method's step")
        state = moved | {"step": np.array(start + rule.method.advance), "block": np.array(index + 1)}
        cost = rule.method.cost(rule.problem)
        cost.seconds = time.perf_counter() - clock
        yield Block(
            index=index,
            start=start,
            stop=start + rule.method.block_steps,
            losses=np.array(report.losses),
            hyper_losses=np.array(report.hyper_losses, dtype=np.float64),
            gradient=report.gradient,
            state=state,
            cost=cost,
            skipped=report.skipped,
        )
        if progress:
            progress(int(state["step"]), rule.problem.steps)


__all__ = ["RULES", "adapt"]
