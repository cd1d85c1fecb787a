"""Each method's way to a hypergradient (`hypertrail.methods` names them): which provider feeds the reverse kernel, or which
other derivation takes its place. float64."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hypertrail.engines import Progress
from hypertrail.errors import VerificationFailure
from hypertrail.hyperparameters import Hyper, collapse
from hypertrail.mantissa import arrival, refuse_arrival
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated, ends_at, tail_of
from hypertrail.outer import refuse_nonfinite
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Hypergradient, Params, Training, Undoable, hypergradient_cost
from hypertrail.refusals import refuse

from .drmad import float64, line, line_before_tail, pieces
from .forward import forward_mode
from .implicit import implicit
from .losses import in_float64
from .providers import ExactlyReversed, Provider, Recomputed, Stored, Undone
from .reversal import rounded
from .reverse import Adjoint, add, reverse
from .training import norm

DIVERGED = "the pass diverged; lower the learning rate, or take fewer steps"


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what overflows is caught by name, not by a warning
def hypergradient(
    problem: Problem, hyper: Hyper, training: Training, method: Method, progress: Progress | None = None
) -> Hypergradient:
    """Gradient of f(w_T) with respect to every unconstrained hyperparameter array, float64, shapes as in `hyper`.

    Where the run was in fixed point (Reversible), it is the gradient of the run with its effective, rounded γ, by any method.
    initial_weights and initial_velocity: df/dw and df/dv where the walk ended: at w_0, but at w_{T−K} for Truncated; {} for
    Forward, which has no adjoint, and 0 for Implicit.
    Failures: see `reverse`. Cost: `records.hypergradient_cost`, by the method and not by what is evaluated here.
    Raises UsageError before anything is computed for a combination that cannot work, VerificationFailure where states
    do not lead back to the w_0 of this training. diagnostics: N, and 'zero', the kinds whose hypergradient is exactly
    zero everywhere, which is suspicious; and what `walk` adds.
    """
    clock = time.perf_counter()
    refuse(problem, training, method, hyper)
    problem = in_float64(problem)
    if isinstance(training.trajectory, Undoable):
        problem, hyper = rounded(problem, hyper)
    if isinstance(method, Forward):
        finished = forward_mode(problem, hyper, training, method, progress)
        refuse_nonfinite(finished.gradient, ends_at(method, training.steps), DIVERGED)
        return finished
    if isinstance(method, Implicit):
        result, more = implicit(problem, hyper, training, method)
    else:
        result, more = walk(problem, hyper, training, method, progress)
        at_start(problem, result)
    gradient = collapsed(problem, hyper, result.dvalues)
    refuse_nonfinite(gradient, ends_at(method, training.steps), DIVERGED)
    products = more["iterations"] + 2 if isinstance(method, Implicit) else len(result.norms)
    return Hypergradient(
        gradient=gradient,
        initial_weights=result.dw,
        initial_velocity=result.dv,
        hyper_loss=result.hyper_loss,
        adjoint_norms=result.norms,
        method=method.name,
        cost=hypergradient_cost(problem, training, method, products, time.perf_counter() - clock),
        diagnostics={"N": len(result.norms), "zero": zero(gradient)} | more,
    )


def walk(
    problem: Problem, hyper: Hyper, training: Training, method: Method, progress: Progress | None
) -> tuple[Adjoint, dict[str, Any]]:
    """The reverse pass of a method, and its own diagnostics: 'drift' for FloatReversed, ‖w − w_0‖ / ‖w_0‖ where it arrived;
    'tail' for C5, K; 'pieces' for C6, the N of each stretch."""
    T, final = training.steps, float64(training.final)

    def go(provider: Provider, N: int, **more: Any) -> Adjoint:
        return reverse(problem, hyper, provider, N, **{"final": final, "progress": progress} | more)

    def undone() -> Undone:
        return Undone(problem, problem.values(hyper), final, float64(training.velocity))

    if isinstance(method, Exact):
        result = go(true_states(problem, hyper, training), T)
        check_begin(result.w, training)
        return result, {}
    if isinstance(method, Truncated):
        K = min(method.steps, T)
        result = go(true_states(problem, hyper, training), K, to=T - K)
        if K == T:
            check_begin(result.w, training)
        return result, {}
    if isinstance(method, FloatReversed):
        result = go(undone(), T)
        if not method.beyond:
            check_arrival(result, training, method)
        begin = float64(training.initial)
        drift = norm({p: result.w[p] - begin[p] for p in begin}) / max(norm(begin), 1e-300)
        return result, {"drift": drift}
    assert isinstance(method, DrMAD)
    if method.completion == "C5":
        K = tail_of(method, problem.values(hyper)["momentum"].values(), T)
        tail = go(undone(), K, to=T - K) if K else None
        if tail and K == T:
            check_arrival(tail, training, method)
            return tail, {"tail": K}
        w = tail.w if tail else final
        rest = line_before_tail(problem, hyper, training, method, w, T - K)
        return go(rest, len(rest), begun=tail, how=method.step), {"tail": K}
    if method.completion == "C6":
        several = pieces(problem, hyper, training, method)
        return go(several, len(several)), {"pieces": [len(one) for one in several.lines]}
    one = line(problem, hyper, training, method)
    return go(one, len(one), how=method.step), {}


def check_arrival(result: Adjoint, training: Training, method: Method) -> None:
    """VerificationFailure where steps that were undone in floats did not lead back to (w_0, 0)."""
    distance = arrival(result.w, result.v, training.initial, training.final, training.velocity)
    refuse_arrival(method.name, distance, "float64", "use exact, or take fewer steps")


def at_start(problem: Problem, result: Adjoint) -> None:
    """What w_0 = σ · (drawn w_0) + u says of σ and u, once the walk is at w_0: dσ += dw_0 · (drawn w_0), du += dw_0."""
    if problem.declared("initial_scale"):
        drawn = problem.initial_weights()
        add(result.dvalues, {"initial_scale": {p: result.dw[p] * one for p, one in drawn.items()}})
    if problem.declared("initial_weight"):
        add(result.dvalues, {"initial_weight": result.dw})


def true_states(problem: Problem, hyper: Hyper, training: Training) -> Provider:
    """The provider that fits what the run kept."""
    kept = training.trajectory
    if isinstance(kept, Undoable):
        return ExactlyReversed(problem, problem.values(hyper), kept, float64(training.initial))
    if isinstance(kept, Checkpointed):
        return Recomputed(problem, problem.values(hyper), kept, float64(training.final))
    assert kept is not None  # refused before
    return Stored(kept, problem.needs_velocity())


def check_begin(w: Params, training: Training) -> None:
    begin = float64(training.initial)
    if not all(np.array_equal(w[name], begin[name]) for name in begin):
        raise VerificationFailure("the trajectory does not begin at the w_0 of this training; pass the two of one run")


def collapsed(problem: Problem, hyper: Hyper, dvalues: dict[str, Params]) -> Hyper:
    """{kind: {name: d/d value}} → the gradient in the unconstrained arrays."""
    gradient: Hyper = {}
    for one in problem.hyperparameters:
        arrays = {key: np.asarray(u, dtype=np.float64) for key, u in hyper[one.kind].items()}
        found = collapse(one, arrays, dvalues[one.kind])
        gradient[one.kind] = {key: np.asarray(d) for key, d in found.items()}
    return gradient


def zero(gradient: Hyper) -> list[str]:
    """The kinds whose hypergradient is exactly zero everywhere."""
    return [kind for kind, arrays in gradient.items() if not any(np.any(d) for d in arrays.values())]
