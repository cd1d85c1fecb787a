"""The elementary training: T steps forward. `reverse.py` is its mirror image. float64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hypertrail import keeping as names
from hypertrail.engines import Progress
from hypertrail.errors import NumericalFailure, UsageError
from hypertrail.hyperparameters import Hyper
from hypertrail.keeping import Keep, Reversible
from hypertrail.methods import MEASURED_STEPS
from hypertrail.problem import Problem, Values
from hypertrail.records import Cost, Params, Training
from hypertrail.refusals import refuse_hyper
from hypertrail.runs.midway import Middle, Midway

from .dynamics import rule
from .keeping import keeper
from .losses import elementary_gradient, in_float64
from .reversal import Integers, fractions, rounded

BLOCK = 50  # at most so many steps between two appends to the trajectory, and between two calls of progress
BLOCK_BYTES = 64 * 2**20  # and at most so many bytes of weights


@dataclass(frozen=True)
class Step:
    """Step t: the state (w, v) BEFORE it, its loss and batch statistics, and the state (w_next, v_next) after it."""

    t: int
    loss: float
    w: Params
    v: Params
    statistics: Params
    w_next: Params
    v_next: Params


def batch(problem: Problem, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The training batch of a step: x float64 (B, …), y int (B,). A pure function of the problem and the step."""
    rows = problem.schedule.indices(step, step + 1)[0]
    return problem.splits.train.x[rows].astype(np.float64), problem.splits.train.y[rows]


def seen(problem: Problem, values: Values, step: int) -> Values:
    """The values as the batch of a step sees them: of what lives on the examples, its rows."""
    return problem.seen(values, problem.schedule.indices(step, step + 1)[0])


def rates(problem: Problem, values: Values, step: int) -> tuple[Params, Params]:
    """(α, γ) in force at a step, {parameter name: array that broadcasts against it}; α includes the schedule's factor."""

    def row(kind: str) -> Params:
        declared = problem.declared(kind)
        per_step = declared is not None and declared.per_step
        return {name: value[step] if per_step else value for name, value in values[kind].items()}

    factor = problem.dynamics.factors(problem.steps)[step]
    return {name: factor * value for name, value in row("learning_rate").items()}, row("momentum")


def norm(a: Params) -> float:
    """Euclidean norm over all tensors."""
    return float(np.sqrt(sum(np.sum(np.square(one)) for one in a.values())))


def forward(
    problem: Problem, values: Values, w: Params, v: Params, start: int = 0, stop: int | None = None
) -> Iterator[Step]:
    """The elementary steps start … stop−1 (all T) from (w, v): the loop that `reverse.reverse` walks back.

        g_t = ∇_w L(w_t, λ, batch_t)
        w_{t+1}, v_{t+1} = dynamics(w_t, v_t, g_t, α_t, γ_t)

    Cost: one gradient a step. Raises NumericalFailure("elementary loss", t) before a step whose loss is not finite.
    """
    for t in range(start, problem.steps if stop is None else stop):
        alpha, gamma = rates(problem, values, t)
        loss, g, statistics = gradient_at(problem, values, w, t)
        w_next, v_next = {}, {}
        for p in w:
            w_next[p], v_next[p] = rule(problem.dynamics, t).advance(w[p], v[p], g[p], alpha[p], gamma[p])
        yield Step(t, loss, w, v, statistics, w_next, v_next)
        w, v = w_next, v_next


def forward_in_integers(problem: Problem, values: Values, state: Integers) -> Iterator[Step]:
    """The same T steps in fixed point; `state` moves along and collects the digits that are lost. Yields floats.

        g_t = ∇_w L(w_t, λ, batch_t)
        v ← γ v − (1−γ) g_t,  w ← w + α v       reversal.py; undone by `providers.ExactlyReversed`

    Cost and failures as `forward`; NumericalFailure too where a number does not fit.
    """
    w, v = state.weights(), state.velocity()
    for t in range(problem.steps):
        loss, g, statistics = gradient_at(problem, values, w, t)
        state.forward(t, g, rates(problem, values, t)[0])
        w_next, v_next = state.weights(), state.velocity()
        yield Step(t, loss, w, v, statistics, w_next, v_next)
        w, v = w_next, v_next


def gradient_at(problem: Problem, values: Values, w: Params, t: int) -> tuple[float, Params, Params]:
    """(loss, g, batch statistics) of step t at w. Cost: one gradient. NumericalFailure("elementary loss", t) where not finite."""
    loss, g, statistics = elementary_gradient(problem, w, seen(problem, values, t), *batch(problem, t), t)
    if not np.isfinite(loss):
        raise NumericalFailure("elementary loss", t, "a smaller learning rate or initial scale may help")
    return loss, g, statistics


def probe(problem: Problem, values: Values, w: Params) -> None:
    """The gradient of step 0 twice: exact reversal needs the same bits. UsageError where they differ. Cost: two gradients.

    That they agree once proves nothing; that the integers come back to where they began, at the end, does.
    """
    (_, one, _), (_, other, _) = (gradient_at(problem, values, w, 0) for _ in range(2))
    if any(not np.array_equal(one[p], other[p]) for p in one):
        raise UsageError(
            "the same batch gave two gradients that differ in their bits, so no step can be undone exactly; "
            "set OPENBLAS_NUM_THREADS=1 (or MKL_NUM_THREADS=1), or keep the states"
        )


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what overflows is caught by name, not by a warning
def train(
    problem: Problem,
    hyper: Hyper,
    keep: Keep = "ends",
    progress: Progress | None = None,
    midway: Midway | None = None,
) -> Training:
    """One training run of T steps in float64 (also where the problem says float32).

    It starts from the scaled w_0 (`Problem.scaled`).
    keep: what is kept of w_0 … w_{T−1} (`hypertrail.keeping`); v_t with it where learning rate or momentum is declared or the
    dynamics are Adam's, at checkpoints always. 'memory' and 'host' are the same here; for 'auto' see `keeping.keeper`.
    Reversible trains in int64 fixed point with the momentum rounded up to a fraction (reversal.py): w_0 and w_T of the record
    are what the integers say. progress(steps done, T) at least every 50 steps.
    midway: where an earlier start left off, and where this one leaves what a later one needs; keep 'ends' or a Path only.
    v_0 = 0. Cost: T gradients (Reversible: and a probe, left out by `Cost`); memory or disk as `hypertrail.keeping` lists.
    Raises NumericalFailure (quantity, step) where a loss or, at the end, a weight is not finite, or does not fit into fixed
    point: what was recorded up to then stays readable in the folder. UsageError for another `keep`, and where a run cannot
    be reversible: dynamics other than damped, γ outside (0, 1), gradients that are not reproducible.
    """
    clock = time.perf_counter()
    names.check(keep)
    refuse_hyper(problem, hyper)
    problem = in_float64(problem)
    integers: Integers | None = None
    if isinstance(keep, Reversible):
        numerators = fractions(problem, hyper)
        problem, hyper = rounded(problem, hyper)
    values = problem.values(hyper)
    initial = problem.scaled(problem.initial_weights(), values)
    if isinstance(keep, Reversible):
        integers = Integers.start(initial, numerators, keep.unbounded)
        initial = integers.weights()
    final, velocity, running = initial, problem.initial_velocity(), problem.initial_running()
    losses, distances = np.empty(problem.steps), np.empty(min(problem.steps, MEASURED_STEPS))
    midway = midway if names.from_middle(keep) else None
    middle = midway.read() if midway else None
    begun, spent = 0, 0.0
    if middle:
        begun, spent = middle.step, middle.seconds
        final, velocity, running = middle.w, middle.v, middle.running
        losses[:begun], distances[: len(middle.distances)] = middle.losses, middle.distances
    if integers is None:
        steps = forward(problem, values, final, velocity, begun)
    else:
        probe(problem, values, initial)
        steps = forward_in_integers(problem, values, integers)
    size = sum(one.nbytes for one in initial.values())
    block = max(1, min(BLOCK, BLOCK_BYTES // size))
    about = midway.about if midway else {}
    kept = keeper(keep, problem, size * (1 + problem.dynamics.moments * problem.needs_velocity()), begun, about)
    try:
        for one in steps:
            losses[one.t] = one.loss
            running = problem.update_running(running, one.statistics)
            final, velocity = one.w_next, one.v_next
            if one.t < len(distances):
                distances[one.t] = norm({p: final[p] - initial[p] for p in final})
            kept.take(one)
            if (one.t + 1) % block == 0 or one.t == problem.steps - 1:
                kept.save()
                if midway and midway.due():
                    kept.flush()
                    done, seconds = one.t + 1, spent + time.perf_counter() - clock
                    midway.write(Middle(done, final, velocity, running, losses[:done], distances[:done], seconds))
                if progress:
                    progress(one.t + 1, problem.steps)
        if not np.isfinite(norm(final)):
            raise NumericalFailure("elementary weights", problem.steps, "a smaller learning rate may help")
        trajectory = kept.finish() if integers is None else integers.undoable(problem.steps)
    except BaseException:  # an interrupt counts too
        kept.abandon()
        raise
    return Training(
        initial=initial,
        final=final,
        weights=problem.effective(np, final, values),
        velocity=velocity,
        running=running,
        losses=losses,
        distances=distances,
        steps=problem.steps,
        trajectory=trajectory,  # type: ignore[arg-type]  # a protocol there, its classes here
        cost=Cost(
            gradients=problem.steps,
            seconds=spent + time.perf_counter() - clock,
            trajectory_bytes=0 if trajectory is None else trajectory.nbytes,
        ),
        inputs=values["training_input"]["x"] if "training_input" in values else None,
    )
