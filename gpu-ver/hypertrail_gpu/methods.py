"""Each method's way to a hypergradient (`hypertrail.methods` names them): which provider feeds the reverse kernel, or which
other derivation takes its place."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure
from hypertrail.hyperparameters import Hyper
from hypertrail.mantissa import arrival, refuse_arrival
from hypertrail.methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Method, Truncated, ends_at, tail_of
from hypertrail.outer import refuse_nonfinite
from hypertrail.problem import Problem
from hypertrail.records import Checkpointed, Hypergradient, Training, Undoable, hypergradient_cost
from hypertrail.refusals import refuse
from hypertrail_data import StoredTrajectory

from .compiled import Compiled, compiled, of_the_start
from .drmad import distance, first_distances, line, line_before_tail, pieces
from .forward import forward_mode
from .implicit import implicit
from .providers import Recomputed, Stored
from .reversal import reverse_undone, with_effective_momentum
from .reverse import DIVERGED, finite_end, reverse_lines, reverse_states, undo
from .tuned import TunedTask

Tree = Any


def hypergradient(
    problem: Problem, hyper: Hyper, training: Training, method: Method, progress: Progress | None = None
) -> Hypergradient:
    """Gradient of the hyper loss f(w_T) with respect to every unconstrained hyperparameter array (float64 arrays).

    Cost: `records.hypergradient_cost`: N products (N = T for Exact), and one gradient for each validation batch.
    Memory: one chunk of states and the adjoint. Source: Maclaurin et al. 2015, algorithm 2; Fu et al. 2016, algorithm 2;
    other methods: see hypertrail.methods.
    Raises UsageError for a combination that cannot work, NumericalFailure when the adjoint stops being finite.
    """
    if isinstance(problem, TunedTask):
        return problem.hypergradient(training, method, progress)
    refuse(problem, training, method, hyper)
    end = ends_at(method, problem.steps)
    if isinstance(method, Forward):
        result = forward_mode(problem, hyper, training, method, progress)
        check(result.gradient, end)
        return result
    if isinstance(method, Implicit):
        result = implicit(problem, hyper, training, method)
        check(result.gradient, end)
        return result
    started = time.perf_counter()
    undone = isinstance(training.trajectory, Undoable) and isinstance(method, Exact | Truncated)
    with jax.enable_x64(undone or problem.precision == "float64"):
        programs = compiled(problem)
        hyper = jax.tree.map(lambda u: np.asarray(u, problem.dtype), hyper)
        values = programs.values(hyper)
        if isinstance(training.trajectory, Undoable):
            hyper, values = with_effective_momentum(problem, hyper, values, training.trajectory)
        wT = jax.tree.map(jnp.asarray, training.final)
        f, dw, dvalues = programs.hyper_gradient(wT, values, programs.valid_data)
        if not np.isfinite(f):
            raise NumericalFailure("hyper loss", problem.steps)
        adjoint = (dw, jax.tree.map(jnp.asarray, problem.initial_velocity()), dvalues)
        adjoint, norms, more = walk(programs, adjoint, training, method, values, progress)
        dw, dv, dvalues = adjoint
        if of_the_start(values):
            dvalues = programs.pull_start(dvalues, values, problem.initial_weights(), dw)
        gradient = jax.tree.map(lambda a: np.asarray(a, np.float64), programs.pull_back(hyper, dvalues))
        dw, dv = jax.tree.map(np.asarray, (dw, dv))
    finite_end(dw, end)
    check(gradient, end)
    return Hypergradient(
        gradient=gradient,
        initial_weights=dw,
        initial_velocity=dv,
        hyper_loss=float(f),
        adjoint_norms=norms[::-1].astype(np.float64),
        method=method.name,
        cost=hypergradient_cost(problem, training, method, len(norms), time.perf_counter() - started),
        diagnostics={
            "N": len(norms),
            "zero": [kind for kind, one in gradient.items() if not any(map(np.any, one.values()))],
        }
        | more,
    )


def walk(
    programs: Compiled, adjoint: Tree, training: Training, method: Method, values: Tree, progress: Progress | None
) -> tuple[Tree, np.ndarray, dict[str, Any]]:
    """From w_T back, by the provider that method and trajectory call for. (dw, dv, dvalues), ‖dw‖ in the order of steps, and the
    method's own diagnostics: 'drift' for FloatReversed, ‖w − w_0‖ / ‖w_0‖ where it arrived; 'tail' for C5, K; 'pieces' for C6,
    the N of each stretch."""
    problem = programs.problem
    T = problem.steps
    if isinstance(method, DrMAD):
        if method.completion == "C5":
            return tail_then_line(programs, adjoint, training, method, values, progress)
        more: dict[str, Any] = {}
        if method.completion == "C6":
            lines = pieces(problem, training, method)
            more["pieces"] = [N for _, N in lines]
        else:
            lines = [line(problem, training, method, first_distances(programs, training, values, method))]
        return *reverse_lines(programs, adjoint, lines, values, method.step, progress), more
    if isinstance(method, FloatReversed):
        w, v, adjoint, norms = undo(programs, adjoint, training, values, 0, progress)
        if not method.beyond:
            check_arrival(problem, w, v, training, method)
        zero = {name: np.zeros(()) for name in training.initial}
        with np.errstate(over="ignore", invalid="ignore"):  # it may be anywhere
            drift = distance(training.initial, w) / max(distance(zero, training.initial), 1e-300)
        return adjoint, norms, {"drift": drift}
    first = max(T - method.steps, 0) if isinstance(method, Truncated) else 0
    if isinstance(training.trajectory, Undoable):
        return *reverse_undone(programs, adjoint, training, values, first, progress), {}
    if isinstance(training.trajectory, Checkpointed):
        provider: Recomputed | Stored = Recomputed(training, programs, values)
    else:
        stored = isinstance(training.trajectory, StoredTrajectory)
        provider = Stored(training, programs.disk_chunk if stored else programs.chunk, problem.dtype)
    return *reverse_states(programs, adjoint, provider, training, values, first, progress), {}


def tail_then_line(
    programs: Compiled, adjoint: Tree, training: Training, method: DrMAD, values: Tree, progress: Progress | None
) -> tuple[Tree, np.ndarray, dict[str, Any]]:
    """Completion C5 (DrMAD2): the last K steps undone with the full dynamics, then C4 on the line from w_0 to w_{T−K}."""
    T = programs.problem.steps
    gammas = programs.complete(values)["momentum"].values()
    first = T - tail_of(method, map(np.asarray, gammas), T)
    w, v, adjoint, tail_norms = undo(programs, adjoint, training, values, first, progress)
    if first == 0:
        check_arrival(programs.problem, w, v, training, method)
        return adjoint, tail_norms, {"tail": T}
    speeds = first_distances(programs, training, values, method)
    lines = [line_before_tail(programs.problem, training, method, jax.tree.map(np.asarray, w), T - first, speeds)]
    adjoint, line_norms = reverse_lines(programs, adjoint, lines, values, method.step, progress)
    return adjoint, np.concatenate([line_norms, tail_norms]), {"tail": T - first}


def check_arrival(problem: Problem, w: Tree, v: Tree, training: Training, method: Method) -> None:
    """VerificationFailure where steps that were undone in floats did not lead back to (w_0, 0)."""
    w, v = jax.tree.map(np.asarray, (w, v))
    distance = arrival(w, v, training.initial, training.final, training.velocity)
    refuse_arrival(method.name, distance, problem.precision, "use exact, or take fewer steps")


def check(gradient: Hyper, step: int = 0) -> None:
    refuse_nonfinite(gradient, step, DIVERGED)
