"""The contenders of hypergradient.py. Each takes the problem and returns a function that does the whole thing once.

The function returns ({weight name: d f / d log10 λ}, bytes of trajectory kept) or (None, 0) for plain training.
All but the first two are written without hypertrail's networks and losses, from the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hypertrail import Exact, Problem, load

Once = Callable[[], tuple[dict[str, Any] | None, int | None]]
Tree = Any


def hypertrail_plain(problem: Problem) -> Once:
    engine, hyper = load("gpu"), problem.initial_hyper()

    def once() -> tuple[None, int]:
        engine.train(problem, hyper, keep="ends")
        return None, 0

    return once


def hypertrail_exact(problem: Problem) -> Once:
    engine, hyper = load("gpu"), problem.initial_hyper()

    def once() -> tuple[dict[str, Any], int]:
        training = engine.train(problem, hyper, keep="memory")
        result = engine.hypergradient(problem, hyper, training, Exact())
        return result.gradient["l2"], training.cost.trajectory_bytes

    return once


def hypertrail_task(problem: Problem) -> Once:
    """The same problem as an own model: a `Task` of plain functions, by the front door."""
    import jax
    import jax.numpy as jnp

    import hypertrail as h
    from hypertrail_gpu.updates import Momentum

    cross_entropy, elementary, _ = jax_losses(problem)
    w0, u, (x, y, indices, vx, vy) = arrays(problem)
    alpha, gamma = problem.dynamics.learning_rate, problem.dynamics.momentum
    task = h.Task(
        loss=lambda w, penalties, batch, t: elementary(w, penalties, *batch),
        update=Momentum(lambda penalties, t: alpha, lambda penalties, t: gamma),
        hyper_loss=lambda w, penalties, batch: cross_entropy(w, *batch),
        weights=w0,
        hyper=u,
        values=lambda u: jax.tree.map(lambda one: jnp.power(10.0, one), u),
        batches=h.Rows((x, y), indices),
        valid=(vx[None], vy[None]),
    )

    def once() -> tuple[dict[str, Any], int]:
        trail = h.train(task)
        return jax.device_get(h.hypergradient(trail).hyper), trail.kept.nbytes

    return once


def arrays(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    """(w_0, log10 λ, (train x, train y, batch indices, valid x, valid y)), images flattened, in the problem's precision."""
    train, valid = problem.splits.train, problem.splits.valid
    x, vx = (split.x.reshape(len(split), -1).astype(problem.dtype) for split in (train, valid))
    u = {name: one.astype(problem.dtype) for name, one in problem.initial_hyper()["l2"].items()}
    return problem.initial_weights(), u, (x, train.y, problem.schedule.indices(0, problem.steps), vx, valid.y)


# -- JAX, by hand ------------------------------------------------------------------------------------------------------


def jax_losses(problem: Problem) -> tuple[Any, Any, Any]:
    """(cross entropy, elementary loss of w and 10^u, device arrays) of the tanh perceptron with one hidden layer."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", problem.precision == "float64")

    def cross_entropy(w: Tree, x: Any, y: Any) -> Any:
        logits = jnp.tanh(x @ w["dense1/W"] + w["dense1/b"]) @ w["logits/W"] + w["logits/b"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

    def elementary(w: Tree, penalties: Tree, x: Any, y: Any) -> Any:
        return cross_entropy(w, x, y) + sum(jnp.sum(one * w[name] ** 2) for name, one in penalties.items())

    return cross_entropy, elementary, jax.tree.map(jnp.asarray, arrays(problem))


def optax_rule(problem: Problem) -> Any:
    """Damped momentum is SGD with rate α (1 − γ) and momentum γ."""
    import optax

    alpha, gamma = problem.dynamics.learning_rate, problem.dynamics.momentum
    return optax.sgd(alpha * (1 - gamma), momentum=gamma)


def jax_plain(problem: Problem) -> Once:
    """Training alone: optax in one lax.scan."""
    import jax
    import optax

    _, elementary, (w0, u, data) = jax_losses(problem)
    rule = optax_rule(problem)

    @jax.jit
    def train(w: Tree, u: Tree, data: Tree) -> Tree:
        x, y, indices, _, _ = data
        penalties = {name: 10.0**one for name, one in u.items()}

        def step(carry: Tree, i: Any) -> tuple[Tree, None]:
            w, state = carry
            updates, state = rule.update(jax.grad(elementary)(w, penalties, x[i], y[i]), state)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, rule.init(w)), indices)[0][0]

    def once() -> tuple[None, int]:
        jax.block_until_ready(train(w0, u, data))
        return None, 0

    return once


def jax_grad_of_scan(problem: Problem) -> Once:
    """What a JAX user writes in twenty lines: jax.grad of optax in lax.scan with jax.checkpoint around the step."""
    import jax
    import optax

    cross_entropy, elementary, (w0, u, data) = jax_losses(problem)
    rule = optax_rule(problem)

    @jax.jit
    def hypergradient(u: Tree, w0: Tree, data: Tree) -> Tree:
        x, y, indices, vx, vy = data

        def f(u: Tree) -> Any:
            penalties = {name: 10.0**one for name, one in u.items()}

            @jax.checkpoint
            def step(carry: Tree, i: Any) -> tuple[Tree, None]:
                w, state = carry
                updates, state = rule.update(jax.grad(elementary)(w, penalties, x[i], y[i]), state)
                return (optax.apply_updates(w, updates), state), None

            (w, _), _ = jax.lax.scan(step, (w0, rule.init(w0)), indices)
            return cross_entropy(w, vx, vy)

        return jax.grad(f)(u)

    # The scan keeps its carry, weights and momentum buffer, of every step.
    kept = 2 * problem.steps * sum(w.nbytes for w in w0.values())
    return lambda: (jax.device_get(hypergradient(u, w0, data)), kept)


def jax_reverse_scan(problem: Problem) -> Once:
    """The reverse pass by hand: a scan that stores w and v, and a scan back over them with forward-over-reverse."""
    import jax
    import jax.numpy as jnp

    cross_entropy, elementary, (w0, u, data) = jax_losses(problem)
    alpha, gamma = problem.dynamics.learning_rate, problem.dynamics.momentum
    plus = lambda a, b, c=1.0: jax.tree.map(lambda a, b: a + c * b, a, b)  # noqa: E731

    @jax.jit
    def train(w: Tree, u: Tree, data: Tree) -> Tree:
        x, y, indices, _, _ = data
        penalties = {name: 10.0**one for name, one in u.items()}

        def step(carry: Tree, i: Any) -> tuple[Tree, Tree]:
            w, v = carry
            g = jax.grad(elementary)(w, penalties, x[i], y[i])
            v_next = jax.tree.map(lambda v, g: gamma * v - (1 - gamma) * g, v, g)
            return (plus(w, v_next, alpha), v_next), (w, v)

        return jax.lax.scan(step, (w, jax.tree.map(jnp.zeros_like, w)), indices)

    @jax.jit
    def reverse(w: Tree, path: Tree, u: Tree, data: Tree) -> Tree:
        x, y, indices, vx, vy = data
        penalties = {name: 10.0**one for name, one in u.items()}

        def step(adjoint: Tree, at: Tree) -> tuple[Tree, None]:
            (dw, dv, dpenalties), ((w, _), i) = adjoint, at
            dv = plus(dv, dw, alpha)
            tangent = jax.tree.map(lambda d: -(1 - gamma) * d, dv)
            gradients = lambda w: jax.grad(elementary, (0, 1))(w, penalties, x[i], y[i])  # noqa: E731
            hvp, mixed = jax.jvp(gradients, (w,), (tangent,))[1]
            return (plus(dw, hvp), jax.tree.map(lambda d: gamma * d, dv), plus(dpenalties, mixed)), None

        dw = jax.grad(cross_entropy)(w, vx, vy)
        start = (dw, jax.tree.map(jnp.zeros_like, dw), jax.tree.map(jnp.zeros_like, u))
        dpenalties = jax.lax.scan(step, start, (path, indices), reverse=True)[0][2]
        return {name: np.log(10.0) * penalties[name] * one for name, one in dpenalties.items()}

    def once() -> tuple[dict[str, Any], int]:
        (w, _), path = train(w0, u, data)
        kept = sum(one.nbytes for one in jax.tree.leaves(path))
        return jax.device_get(reverse(w, path, u, data)), kept

    return once


# -- TorchOpt ----------------------------------------------------------------------------------------------------------


def torchopt_unrolled(problem: Problem) -> Once:
    """torchopt.MetaSGD: the whole run as one graph, then backward."""
    import torch
    import torchopt
    from torch.nn import functional as F

    torch.set_num_threads(1)
    w0, start, data = arrays(problem)
    x, y, indices, vx, vy = (torch.from_numpy(np.ascontiguousarray(one)) for one in data)
    y, vy = y.long(), vy.long()
    alpha, gamma = problem.dynamics.learning_rate, problem.dynamics.momentum

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, one in w0.items():
                self.register_parameter(name.replace("/", "_"), torch.nn.Parameter(torch.from_numpy(one.copy())))

        def forward(self, x: Any) -> Any:
            return torch.tanh(x @ self.dense1_W + self.dense1_b) @ self.logits_W + self.logits_b

    def once() -> tuple[dict[str, Any], None]:
        net = Net()
        u = {name: torch.from_numpy(one.copy()).requires_grad_() for name, one in start.items()}
        penalties = {name.replace("/", "_"): 10.0**one for name, one in u.items()}
        rule = torchopt.MetaSGD(net, lr=alpha * (1 - gamma), momentum=gamma)
        for i in indices:
            penalty = sum((one * getattr(net, name) ** 2).sum() for name, one in penalties.items())
            rule.step(F.cross_entropy(net(x[i]), y[i]) + penalty)
        gradient = torch.autograd.grad(F.cross_entropy(net(vx), vy), list(u.values()))
        return {name: one.numpy() for name, one in zip(u, gradient, strict=True)}, None

    return once


CONTENDERS: dict[str, tuple[str, Callable[[Problem], Once]]] = {
    "plain": ("plain training, hypertrail", hypertrail_plain),
    "exact": ("exact, states stored, hypertrail", hypertrail_exact),
    "task": ("the same as an own model, a Task, hypertrail", hypertrail_task),
    "jax-plain": ("plain training, optax in one `lax.scan`", jax_plain),
    "jax-grad": ("`jax.grad` of optax in `lax.scan`, `jax.checkpoint` per step", jax_grad_of_scan),
    "jax-reverse": ("hand-written JAX reverse scan, w and v stored", jax_reverse_scan),
    "torchopt": ("TorchOpt `MetaSGD`, unrolled", torchopt_unrolled),
}
