"""DrMAD: a straight line between two states in place of the trajectory. NOT exact, and POOR on long runs.

Fu, Luo, Feng, Low, Chua: "DrMAD: distilling reverse-mode automatic differentiation for optimizing hyperparameters of deep neural
networks", IJCAI 2016, algorithm 2. What fills its gaps is a completion: `hypertrail.methods.DrMAD` lists C0 to C6.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.errors import UsageError
from hypertrail.keeping import Checkpoints
from hypertrail.methods import DrMAD, points, speed_matched_steps, stretch_steps, tail_of
from hypertrail.task import Task

from ..batches import ahead
from ..inner import State, elementary_loss, program
from ..trail import Chunk, Pass, walk
from ..trees import add, filled, floats, norm, scaled, subtract
from .checkpoints import Starts
from .undone import refuse_undo, refuse_wrong_arrival, undo

Array = Any
Tree = Any

LINE_SPAN = 250  # line steps between two looks at the adjoint
CONSTANT_STEPS = 200  # of completion C3


def line_states(run: Pass, adjoint: tuple, method: DrMAD) -> tuple[tuple, int]:
    """Back along the line, or the lines, of a completion."""
    trail = run.trail
    refuse_line(trail.task, trail.start, trail.values, trail.batches.like(), method)
    if method.completion == "C5":
        return tail_then_line(run, adjoint, method), 0
    if method.completion == "C6":
        return lines_between_kept_states(run, adjoint, method), 0
    N = line_steps(run, method)
    return along(run, adjoint, trail.start, trail.end, 0, trail.steps, N, method), 0


def line_steps(run: Pass, method: DrMAD) -> int:
    """N of completions C0 to C4."""
    trail, T = run.trail, run.trail.steps
    if method.completion == "C1":
        return max(1, T // 10)
    if method.completion == "C3":
        return min(T, CONSTANT_STEPS)
    if method.completion == "C4":
        return speed_matched_steps(trail.distances, between(trail.start.w, trail.end.w), T, method)
    return T


def tail_then_line(run: Pass, adjoint: tuple, method: DrMAD) -> tuple:
    """C5: the last K steps undone with the full dynamics, then C4 on the line from w_0 to w_{T−K}."""
    trail, T = run.trail, run.trail.steps
    first = T - tail_of(method, momenta(run), T)
    adjoint, end = undo(run, adjoint, first, method.name)
    run.diagnostics["tail"] = T - first
    if first == 0:
        refuse_wrong_arrival(run, end, method.name)
        return adjoint
    N = stretch_steps(trail.distances, lambda: between(trail.start.w, end.w), first, method)
    return along(run, adjoint, trail.start, end, 0, first, N, method)


def lines_between_kept_states(run: Pass, adjoint: tuple, method: DrMAD) -> tuple:
    """C6: C4 on each stretch between kept states, the last one first."""
    trail, kept = run.trail, run.trail.kept
    if not isinstance(kept, Starts):
        raise UsageError(f"{method.name} goes along lines between kept states; train with keep={Checkpoints()}")
    run.diagnostics["pieces"] = []
    b = trail.end
    for (start, stop), a, distances in zip(
        reversed(kept.stretches()), reversed(kept.states), reversed(kept.distances), strict=True
    ):
        N = stretch_steps(distances, partial(between, a.w, b.w), stop - start, method)
        adjoint = along(run, adjoint, a, b, start, stop, N, method)
        run.diagnostics["pieces"].insert(0, N)
        b = a
    return adjoint


def along(run: Pass, adjoint: tuple, a: State, b: State, start: int, stop: int, N: int, method: DrMAD) -> tuple:
    """N reverse steps on the line from a to b, which stands for the steps start … stop − 1."""
    trail = run.trail
    rho, batch_steps = points(method, trail.task.seed, start, stop, N)
    last_rate = method.completion not in ("C0", "C1", "C2")
    rates = np.full(len(rho), stop - 1) if last_rate else np.arange(len(rho))
    ahead_of_it = getattr(trail.task.update, "kind", "") == "damped-old"  # v_i is the way from w_i to w_{i+1}
    before = rho[-1:] if method.choices.end_velocity else rho[:1]
    whole = {
        "t": batch_steps.astype(np.int32),
        "t_update": rates.astype(np.int32),
        "rho": rho,
        "rho_step": np.diff(rho, append=1.0) if ahead_of_it else np.diff(rho, prepend=before),
        "true_start": (np.arange(len(rho)) == 0) & (not method.choices.end_velocity),
    }
    back = literal_step if method.step.literal else None
    kwargs = {"back": back} if back else {}
    return walk(run, at_line, pieces_of(run, whole, (a, b)), adjoint, replays=False, **kwargs)[0]


def pieces_of(run: Pass, whole: dict[str, np.ndarray], ends: tuple[State, State]) -> Iterator[Chunk]:
    """The line's table in pieces of one length, from the last: N moves between meta-iterations, and nothing compiles anew."""
    N, length = len(whole["rho"]), min(LINE_SPAN, run.trail.steps)
    starts = range((N - 1) // length * length, -1, -length)
    tables = [
        {key: np.pad(one[i : i + length], (0, max(i + length - N, 0)), mode="edge") for key, one in whole.items()}
        for i in starts
    ]
    for i, (x, payload) in zip(starts, ahead(run.trail.batches, tables), strict=True):
        yield Chunk(x, payload, 0, min(length, N - i), ends)


def at_line(
    task: Task, position: Any, ends: tuple[State, State], x: Tree, i: Any, hyper: Tree, batch: Tree
) -> tuple[Any, State]:
    """w_i = (1 − ρ_i) w_a + ρ_i w_b, what is carried likewise, and the v that moves the weights as fast as the line does:

    v_i = speed(w_i − w_{i−1}),  v_0 the true one at w_a

    What is carried and is no floating point number (a count, a flag) cannot lie between: it is that of a at a, else that of b.
    """
    a, b = ends

    def between_ends(u: Array, z: Array) -> Array:
        rho = x["rho"].astype(u.dtype)
        return (1 - rho) * u + rho * z

    w = jax.tree.map(between_ends, a.w, b.w)
    whole = jax.tree.map(lambda u, z: jnp.where(x["rho"] == 0, u, z), a.carried, b.carried)
    carried = filled(whole, jax.tree.map(between_ends, floats(a.carried), floats(b.carried)))
    way = jax.tree.map(lambda u, z: x["rho_step"].astype(u.dtype) * (z - u), a.w, b.w)
    v = task.update.speed(way, hyper, x["t_update"])
    return position, State(w, jax.tree.map(lambda u, z: jnp.where(x["true_start"], u, z), a.v, v), carried)


def literal_step(
    task: Task, s: State, hyper: Tree, batch: Tree, t: Array, t_update: Array, after: State
) -> tuple[State, Tree, Array]:
    """One step of algorithm 2 to the letter (C0): no velocity, no learning rate; dλ takes dw before its own update.

    dλ −= (1−γ) (∂²L/∂λ∂w)ᵀ dw,   dw −= (1−γ) (∂²L/∂w²) dw
    """
    _, gamma = task.update.rates(s.w, hyper, t_update)
    u = jax.tree.map(lambda d, gamma: -(1 - gamma) * d, after.w, gamma)

    def gradients(w: Tree) -> tuple[Tree, Array]:
        def loss(w: Tree, hyper_floats: Tree) -> tuple[Array, Tree]:
            return elementary_loss(task, w, s.carried, filled(hyper, hyper_floats), batch, t)

        (value, _), pull = jax.vjp(lambda w, h: loss(w, h), w, floats(hyper))
        return pull((jnp.ones_like(value), scaled(0.0, s.carried))), value

    (_, tangent, loss) = jax.linearize(gradients, s.w, has_aux=True)
    hvp, mixed = tangent(u)
    return State(add(after.w, hvp), after.v, after.carried), mixed, loss


def refuse_line(task: Task, s: State, given: Tree, batch: Tree, method: DrMAD) -> None:
    """UsageError for an update that cannot say the velocity of a line, and for choices that are made of declared kinds."""
    if getattr(task.update, "speed", None) is None:
        raise UsageError(
            f"{method.name} needs the velocity that moves the weights along a line, which the update "
            f"{type(task.update).__name__} does not offer (update.speed); use Exact(), or updates.Momentum(rate, momentum)"
        )
    if method.completion == "C0" and getattr(task.update, "rates", None) is None:
        raise UsageError(
            f"{method.name} needs the momentum, which the update {type(task.update).__name__} does not offer (update.rates)"
        )
    if method.completion == "C5" and method.tail != 0:
        refuse_undo(task, s, given, batch, method.name)
    chosen = [one for one in method.choices.on if one in ("line_dalpha", "sum_of_norms", "regularized_only")]
    if chosen:
        raise UsageError(
            f"{method.name}: {', '.join(chosen)} are choices for a Problem, whose kinds of hyperparameters are known"
        )


def momenta(run: Pass) -> list[np.ndarray]:
    """γ of every tensor at the last step, for the length of a tail."""
    trail = run.trail
    if getattr(trail.task.update, "rates", None) is None:
        return [np.zeros(())]
    gammas = program(trail.task, last_momenta)(
        trail.end.w, trail.values, np.int32(trail.batches.first + trail.steps - 1)
    )
    return [np.asarray(one, np.float64) for one in jax.tree.leaves(gammas)]


def last_momenta(task: Task, w: Tree, hyper: Tree, t: Array) -> Tree:
    return jax.tree.map(jnp.asarray, task.update.rates(w, hyper, t)[1])


def between(a: Tree, b: Tree) -> float:
    """‖b − a‖."""
    return float(norm(subtract(b, a)))
