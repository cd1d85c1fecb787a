"""The online rules written in plain JAX, for any task. Nothing of the engine is used: a Python loop of steps by `jax.grad`, and
`jax.grad` through the unrolled steps of a block. Each returns the state and the hyperparameters after the last block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from hypertrail.online import Adaptive
from hypertrail.task import Task

from .problems import batch_at, fresh, steps_of

Tree = Any
BLOCKS, N, LR = 3, 3, 0.05


def is_float(a: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(a), jnp.inexact))


def floats(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: jnp.asarray(a) if is_float(a) else None, tree)


def fill(tree: Tree, moving: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a if b is None else b, tree, moving)


def stop(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if is_float(a) else a, tree)


def only(names: tuple[str, ...], hyper: Tree) -> Tree:
    """What of a dictionary moves."""
    return {name: floats(part) if name in names else jax.tree.map(lambda a: None, part) for name, part in hyper.items()}


def vdot(a: Tree, b: Tree) -> Any:
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), a, b)))


class Plainly:
    """A task as two functions: one step, and the mean hyper loss. values(u): what the functions are given, written out."""

    def __init__(self, task: Task, values: Callable[[Tree], Tree] = lambda u: u, marks: Tree = None) -> None:
        self.task, self.values = task, values
        self.marks = task.per_example if marks is None else marks
        self.step, self.f_of = jax.jit(self._step), jax.jit(self._f_of)
        self.loss, self.update = jax.jit(self._loss), jax.jit(self._update)

    def seen(self, given: Tree, batch: Tree) -> Tree:
        if self.marks is None:
            return given
        rows = self.task.rows(batch)
        return {
            name: jax.tree.map(lambda a: a[rows], part) if self.marks[name] is True else part
            for name, part in given.items()
        }

    def _loss(self, w: Tree, carried: Tree, given: Tree, batch: Tree, t: Any) -> Any:
        rows = self.seen(given, batch)
        if carried is None:
            return self.task.loss(w, rows, batch, t), None
        return self.task.loss(w, fresh(carried), rows, batch, t)

    def _update(self, w: Tree, v: Tree, g: Tree, given: Tree, batch: Tree, t: Any) -> Any:
        return self.task.update(w, v, g, self.seen(given, batch), t)

    def _step(self, s: tuple, given: Tree, batch: Tree, t: Any) -> tuple:
        w, v, carried = s
        (loss, carried), g = jax.value_and_grad(self._loss, has_aux=True)(w, carried, given, batch, t)
        return (*self._update(w, v, g, given, batch, t), carried), loss, g

    def _f_of(self, s: tuple, given: Tree, batch: Tree) -> Any:
        w, _, carried = s
        return self.task.hyper_loss(*((w, given, batch) if carried is None else (w, fresh(carried), given, batch)))

    def f(self, s: tuple, given: Tree, numbers: Any = None) -> Any:
        numbers = range(steps_of(self.task.valid)) if numbers is None else numbers
        found = [self.f_of(s, given, batch_at(self.task.valid, int(k))) for k in numbers]
        return sum(found) / len(found)

    def batch(self, t: int) -> Tree:
        return batch_at(self.task.batches, t)

    def begin(self, u: Tree) -> tuple:
        given, task = self.values(u), self.task
        w, carried = task.start(given) if task.start else (task.weights, task.state)
        w = jax.tree.map(jnp.asarray, w)
        v = task.update.init(w, given) if hasattr(task.update, "init") else jax.tree.map(jnp.zeros_like, w)
        return w, v, carried

    def go(self, s: tuple, u: Tree, first: int, steps: int) -> tuple:
        for t in range(first, first + steps):
            s, _, _ = self.step(s, self.values(u), self.batch(t), t)
        return s


def plainly_adaptive(one: Plainly, u: Tree, method: Adaptive, clip: Callable = lambda u: u) -> tuple:
    n, last_steps, sizes = method.steps, method.last, dict(method.moves)
    moves = tuple(name for name, size in sizes.items() if size and name in u)
    s, start, d = one.begin(u), 0, None
    for _ in range(BLOCKS):

        def f(moving: Tree, start: int = start, s: tuple = s, u: Tree = u) -> tuple:
            given = one.values(fill(u, moving))
            for t in range(start, start + n):
                if t == start + n - last_steps:
                    early = s
                last = t >= start + n - last_steps
                s, _, _ = one.step(s if last else stop(s), given if last else stop(given), one.batch(t), t)
            return one.f(s, given), (s, early)

        (_, (s, early)), h = jax.value_and_grad(f, has_aux=True)(only(moves, u))
        way = jax.tree.map(lambda h: -jnp.sign(h), {name: average(method, h[name]) for name in h})
        d = blended(method.mass, jax.tree.map(jnp.zeros_like, way) if d is None else d, way)
        moved = {name: shifted(only(moves, u)[name], sizes.get(name, 0.0), d[name]) for name in u}
        u, start = clip(fill(u, moved)), start + method.advance
        s = s if method.mode == "restore" else early
    return s, u, h


def blended(m: float, old: Tree, new: Tree) -> Tree:
    return jax.tree.map(lambda old, new: m * old + (1 - m) * new, old, new)


def shifted(u: Tree, size: float, way: Tree) -> Tree:
    return jax.tree.map(lambda u, way: u + size * way, u, way)


def average(method: Adaptive, h: Tree) -> Tree:
    def of_array(path: Any, a: Any) -> Any:
        named = keystr(path[-1:], simple=True) in method.averaged if path else False
        return jnp.broadcast_to(a.mean(-1, keepdims=True), a.shape) if named else a

    return jax.tree_util.tree_map_with_path(of_array, h)


def plainly_t1t2(
    one: Plainly,
    u: Tree,
    moves: tuple[str, ...],
    of: Callable = lambda u: u,
    to: Callable = lambda x: x,
    clip: Callable = lambda x: x,
) -> tuple:
    """of, to: from u to what moves, and back."""
    s = one.begin(u)
    for t in range(BLOCKS * N):
        before, batch = s, one.batch(t)
        s, _, g = one.step(s, one.values(u), batch, t)
        if (t + 1) % N:
            continue

        def f(
            moving: Tree, before: tuple = before, s: tuple = s, u: Tree = u, g: Tree = g, batch: Any = batch, t: int = t
        ) -> Any:
            w, _, carried = before
            again = jax.grad(one.loss, has_aux=True)(w, carried, one.values(to(fill(of(u), moving))), batch, t)[0]
            w = jax.tree.map(lambda w, again, g: w - (again - g), s[0], again, g)
            return one.f((w, *s[1:]), one.values(u))

        h = jax.grad(f)(only(moves, of(u)))
        size = jnp.sqrt(vdot(h, h))
        x = jax.tree.map(lambda x, h, size=size: x - LR * h * jnp.minimum(1, 0.01 / size), only(moves, of(u)), h)
        u = to(clip(fill(of(u), x)))
    return s, u, h


def plainly_descent(
    one: Plainly, u: Tree, name: str, rate: tuple[Callable, Callable], bounds: tuple, rule: Callable
) -> tuple:
    """rate: (from u to the value of the rate, back). rule(α, h, g, ∂w/∂α) → α before it is clipped."""
    of, to = rate
    s, before = one.begin(u), None
    for t in range(BLOCKS * N):
        (w, v, carried), batch, alpha = s, one.batch(t), jax.tree.map(of, u[name])
        (_, carried), g = jax.value_and_grad(one.loss, has_aux=True)(w, carried, one.values(u), batch, t)
        if before is not None:
            w_, v_, g_, u_, t_ = before

            def last(alpha: Tree, w: Tree = w_, v: Tree = v_, g: Tree = g_, u: Tree = u_, t: int = t_) -> Tree:
                return one.update(w, v, g, one.values(u | {name: jax.tree.map(to, alpha)}), one.batch(t), t)[0]

            alpha = rule(
                alpha, jax.grad(lambda a, g=g, last=last: vdot(g, last(a)))(jax.tree.map(of, u_[name])), g, last
            )
            u = u | {name: jax.tree.map(lambda a: to(jnp.clip(a, *bounds)), alpha)}
        before = w, v, g, u, t
        s = (*one.update(w, v, g, one.values(u), batch, t), carried)
    return s, u


def plainly_almeida(one: Plainly, u: Tree) -> tuple:
    s = one.begin(u)
    last = square = jax.tree.map(jnp.zeros_like, s[0])
    for t in range(BLOCKS * N):
        w, _, carried = s
        (_, carried), g = jax.value_and_grad(one.loss, has_aux=True)(w, carried, one.values(u), one.batch(t), t)
        square = jax.tree.map(lambda q, g: 0.9 * q + 0.1 * g**2, square, g)
        ratio = jax.tree.map(lambda g, last, q: jnp.where(q > 0, g * last / jnp.where(q > 0, q, 1), 0), g, last, square)
        alpha, last = {}, g
        for path, a in jax.tree_util.tree_flatten_with_path(ratio)[0]:
            if (key := keystr(path)) in u["alpha"]:
                alpha[key] = jnp.log(jnp.clip(jnp.exp(u["alpha"][key]) * jnp.maximum(0.5, 1 + 0.1 * a), 0.01, 0.06))
        u = u | {"alpha": alpha}
        w = jax.tree.map(lambda w, p, g: w - p * g, w, one.values(u)["alpha"], g)
        s = w, jax.tree.map(jnp.negative, g), carried
    return s, u


def plainly_tangents(one: Plainly, u: Tree, moves: tuple[str, ...], mu: float, every: int, restart: bool) -> tuple:
    """The derivative by one shift δ of all hyperparameters so far, each of them held at what it was; μ scales what a state
    hands on."""
    first = s = one.begin(u)
    begun, in_force = 0, ()

    def damped(s: tuple) -> tuple:
        return jax.tree.map(lambda a: stop(a) + mu * (a - stop(a)) if is_float(a) else a, s)

    for stopped in range(every, BLOCKS * N + 1, every):
        in_force += (u,) * every

        def f(
            shift: Tree, first: tuple = first, in_force: tuple = in_force, begun: int = begun, stopped: int = stopped
        ) -> tuple:
            s = first
            for t in range(begun, stopped):
                shifted = fill(in_force[t], jax.tree.map(jnp.add, only(moves, in_force[t]), shift))
                s, _, _ = one.step(damped(s), one.values(shifted), one.batch(t), t)
            return one.f(s, one.values(shifted)), s

        (_, s), h = jax.value_and_grad(f, has_aux=True)(jax.tree.map(jnp.zeros_like, only(moves, u)))
        u = fill(u, jax.tree.map(lambda u, h: u - LR * h, only(moves, u), h))
        if restart:
            first, begun = s, stopped
    return s, u, h


def plainly_osgm(one: Plainly, u: Tree, name: str, rate: tuple[Callable, Callable], bounds: tuple) -> tuple:
    of, to = rate
    s, G, refused = one.begin(u), jax.tree.map(lambda a: jnp.zeros(jnp.shape(a)), u[name]), 0
    for t in range(BLOCKS * N):
        (w, v, carried), batch, P = s, one.batch(t), jax.tree.map(of, u[name])
        (loss, after), g = jax.value_and_grad(one.loss, has_aux=True)(w, carried, one.values(u), batch, t)

        def trial(P: Tree, s: tuple = s, u: Tree = u, g: Tree = g, batch: Any = batch, t: int = t) -> tuple:
            moved = one.update(s[0], s[1], g, one.values(u | {name: jax.tree.map(to, P)}), batch, t)
            return one.loss(moved[0], s[2], one.values(u), batch, t)[0], moved

        (new, moved), h = jax.value_and_grad(trial, has_aux=True)(P)
        h = jax.tree.map(lambda h, g=g: h / vdot(g, g), h)
        G = jax.tree.map(lambda G, h: G + h**2, G, h)
        P = jax.tree.map(lambda P, h, G: jnp.clip(P - 0.002 * h / (jnp.sqrt(G) + 1e-12), *bounds), P, h, G)
        u = u | {name: jax.tree.map(to, P)}
        s = (*(moved if new < loss else (w, v)), after)
        refused += not new < loss
    return s, u, refused


def plainly_clarke(one: Plainly, u: Tree, moves: tuple[str, ...], terms: int) -> tuple:
    """Φ is gone through terms + 1 times, and each time its value is put back to the present w."""
    s = one.begin(u)
    for k in range(BLOCKS):
        s = one.go(s, u, k * N, N)
        t = k * N + N - 1

        def f(moving: Tree, s: tuple = s, u: Tree = u, t: int = t) -> Any:
            w, given = s[0], one.values(fill(u, moving))
            for _ in range(terms + 1):
                phi = one.step((w, *s[1:]), given, one.batch(t), t)[0][0]
                w = jax.tree.map(lambda w, phi: w + (phi - stop(phi)), s[0], phi)
            return one.f((w, *s[1:]), given)

        h = jax.grad(f)(only(moves, u))
        u = fill(u, jax.tree.map(lambda u, h: u - LR * h, only(moves, u), h))
    return s, u, h
