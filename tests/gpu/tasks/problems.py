"""The tasks of the matrix, small, and the loop in plain JAX that they are compared with. The loop uses nothing of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypertrail.hyper import Log, Shared
from hypertrail.task import Arrays, Rows, Start, Stream, Task
from hypertrail_gpu.updates import Momentum, Optax

STEPS = 11
Tree = Any


def batch_at(batches: Any, t: int) -> Tree:
    """Batch t, by indexing alone."""
    if isinstance(batches, Stream):
        return batches.read(t)
    if isinstance(batches, Rows):
        return jax.tree.map(lambda a: jnp.asarray(a)[batches.indices[t]], batches.data)
    tree = batches.tree if isinstance(batches, Arrays) else batches
    return jax.tree.map(lambda a: jnp.asarray(a)[t], tree)


def steps_of(batches: Any) -> int:
    if isinstance(batches, Stream):
        return batches.steps
    if isinstance(batches, Rows):
        return len(batches.indices)
    return len(jax.tree.leaves(batches.tree if isinstance(batches, Arrays) else batches)[0])


def unrolled(task: Task, hyper: Tree, cut: int = 0) -> Any:
    """f after T steps of a Python loop. cut: the steps before it are not differentiated (truncated reverse mode)."""
    stop = jax.lax.stop_gradient
    T = steps_of(task.batches)
    at = hyper if cut == 0 else jax.tree.map(stop, hyper)
    begun = task.start(at) if task.start else Start(task.weights, task.state)
    w, state = begun
    v = task.update.init(w, at) if hasattr(task.update, "init") else jax.tree.map(jnp.zeros_like, w)
    for t in range(T):
        if t == cut and cut:
            w, v, state = jax.tree.map(stop, (w, v, state))
        λ = hyper if t >= cut else jax.tree.map(stop, hyper)
        batch = batch_at(task.batches, t)

        def loss(w: Tree, state: Tree = state, λ: Tree = λ, batch: Tree = batch, t: int = t) -> Any:
            seen = λ
            if task.per_example is not None:
                rows = task.rows(batch)
                seen = jax.tree.map(
                    lambda mark, part: jax.tree.map(lambda a: a[rows], part) if mark else part, task.per_example, λ
                )
            found = task.loss(w, seen, batch, t) if state is None else task.loss(w, fresh(state), seen, batch, t)
            return found if isinstance(found, tuple) else (found, None)

        g, state = jax.grad(loss, has_aux=True)(w)
        w, v = task.update(w, v, g, λ, t)
    if task.valid is None:
        return task.hyper_loss(w, hyper, None) if state is None else task.hyper_loss(w, state, hyper, None)
    values = []
    for k in range(steps_of(task.valid)):
        batch = batch_at(task.valid, k)
        values.append(
            task.hyper_loss(w, hyper, batch) if state is None else task.hyper_loss(w, fresh(state), hyper, batch)
        )
    return sum(values) / len(values)


def fresh(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: a, tree)


def oracle(task: Task, cut: int = 0) -> tuple[Any, Tree]:
    """(f, df/dλ by jax.grad through the loop); λ may hold leaves that are not floating point."""

    def is_float(a: Any) -> bool:
        return bool(jnp.issubdtype(jnp.result_type(a), jnp.inexact))

    moving = jax.tree.map(lambda a: jnp.asarray(a) if is_float(a) else None, task.hyper)

    def f(moving: Tree) -> Any:
        return unrolled(task, jax.tree.map(lambda a, b: a if b is None else b, task.hyper, moving), cut)

    return jax.jit(jax.value_and_grad(f))(moving)


# -- the tasks ----------------------------------------------------------------------------------------------------------------


def least_squares(update: str = "damped") -> Task:
    """A linear model, one penalty per feature, the rate and momentum of all steps."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6)), rng.standard_normal(40)
    A, b = rng.standard_normal((30, 6)), rng.standard_normal(30)
    hyper = {"penalty": np.full(6, -3.0), "rate": np.log(0.1), "momentum": 0.5}

    def loss(w: Tree, hyper: Tree, batch: Tree, t: Any) -> Any:
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) + jnp.sum(jnp.exp(hyper["penalty"]) * w**2)

    def rate(hyper: Tree, t: Any) -> Any:
        return jnp.exp(hyper["rate"]) / (1 + 0.1 * t)

    return Task(
        loss=loss,
        update=Momentum(rate, lambda hyper, t: jax.nn.sigmoid(hyper["momentum"]), update),
        hyper_loss=lambda w, hyper, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2),
        weights=np.zeros(6),
        hyper=hyper,
        batches=Rows((X, y), rng.integers(0, 40, (STEPS, 8))),
        valid=(A.reshape(3, 10, 6), b.reshape(3, 10)),
        whole_loss=lambda w, hyper: loss(w, hyper, (X, y), 0),
    )


def mlp(update: str = "adamw") -> Task:
    """Nested dicts; a rate for each step, a decay for each layer, the scale of w_0, weights of the examples, an int, a None."""
    import optax

    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((24, 5)), rng.integers(0, 3, 24)
    V, z = rng.standard_normal((2, 9, 5)), rng.integers(0, 3, (2, 9))
    drawn = {
        "hidden": {"W": rng.standard_normal((5, 7)) * 0.4, "b": np.zeros(7)},
        "out": {"W": rng.standard_normal((7, 3)) * 0.4, "b": np.zeros(3)},
    }
    hyper = {
        "rates": np.full(STEPS, -3.0),
        "decay": {"hidden": np.array(-4.0), "out": np.array(-3.0)},
        "scale": np.array(0.1),
        "momentum": np.array(1.0),
        "examples": rng.standard_normal(24),
        "classes": np.int32(3),
        "nothing": None,
    }

    def logits(w: Tree, X: Any) -> Any:
        return jnp.tanh(X @ w["hidden"]["W"] + w["hidden"]["b"]) @ w["out"]["W"] + w["out"]["b"]

    def cross_entropy(w: Tree, X: Any, y: Any) -> Any:
        scores = jax.nn.log_softmax(logits(w, X))
        return -jnp.take_along_axis(scores, y[:, None], 1)[:, 0]

    def loss(w: Tree, hyper: Tree, batch: Tree, t: Any) -> Any:
        X, y, _ = batch
        decay = sum(jnp.exp(hyper["decay"][name]) * jnp.sum(w[name]["W"] ** 2) for name in w)
        return jnp.mean(jax.nn.sigmoid(hyper["examples"]) * cross_entropy(w, X, y)) + decay

    def make(hyper: Tree, t: Any) -> Any:
        return optax.chain(
            optax.clip_by_global_norm(jnp.exp(1.0 + hyper["scale"])),
            optax.adamw(
                jnp.exp(hyper["rates"][t]), b1=jax.nn.sigmoid(hyper["momentum"]), b2=0.9, eps=0.0, eps_root=1e-4
            ),
        )

    momentum = (
        Momentum(
            lambda hyper, t: jnp.exp(hyper["rates"][t]), lambda hyper, t: jax.nn.sigmoid(hyper["momentum"]), update
        )
        if update != "adamw"
        else None
    )
    return Task(
        loss=loss,
        update=momentum or Optax(make),
        hyper_loss=lambda w, hyper, batch: jnp.mean(cross_entropy(w, *batch)) + 0.01 * hyper["scale"] ** 2,
        start=lambda hyper: Start(jax.tree.map(lambda a: jnp.exp(hyper["scale"]) * a, drawn)),
        hyper=hyper,
        batches=Rows((X, y, np.arange(24)), rng.integers(0, 24, (STEPS, 6))),
        valid=Arrays((V, z)),
        per_example={
            "rates": False,
            "decay": False,
            "scale": False,
            "momentum": False,
            "examples": True,
            "classes": False,
            "nothing": False,
        },
        rows=lambda batch: batch[2],
    )


def transformer() -> Task:
    """A causal transformer in Flax NNX on tokens: a loss for each token, AdamW with warm-up, a decay for each block."""
    import optax
    from flax import nnx

    vocabulary, width, length = 7, 8, 5

    def in_float64(query: Any, key: Any, value: Any, mask: Any = None, **others: Any) -> Any:
        """Flax' own attention takes its softmax in float32, and would agree with itself to 1e-8 alone."""
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), value)

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            settings: dict[str, Any] = {"rngs": rngs, "param_dtype": jnp.float64, "dtype": jnp.float64}
            self.embed = nnx.Embed(vocabulary, width, **settings)
            self.attention = nnx.MultiHeadAttention(2, width, decode=False, attention_fn=in_float64, **settings)
            self.norm = nnx.LayerNorm(width, **settings)
            self.out = nnx.Linear(width, vocabulary, **settings)

        def __call__(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(tokens))
            return self.out(x)

    graph, weights = nnx.split(Model(nnx.Rngs(0)))
    rng = np.random.default_rng(2)

    def per_token(w: Tree, tokens: Any) -> Any:
        scores = jax.nn.log_softmax(nnx.merge(graph, w)(tokens[:, :-1]))
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1)[..., 0]

    def make(hyper: Tree, t: Any) -> Any:
        warm_up = jnp.minimum((t + 1) / 4, 1.0)
        return optax.adamw(
            warm_up * jnp.exp(hyper["rate"]), eps=0.0, eps_root=1e-4, weight_decay=jnp.exp(hyper["decay"]), b2=0.95
        )

    def read(t: int) -> Any:
        return np.random.default_rng(t).integers(0, vocabulary, (3, length + 1)).astype(np.int32)

    return Task(
        loss=lambda w, hyper, tokens, t: jnp.mean(jax.nn.sigmoid(hyper["positions"]) * per_token(w, tokens)),
        update=Optax(make),
        hyper_loss=lambda w, hyper, tokens: jnp.mean(per_token(w, tokens)),
        weights=weights,
        hyper={"rate": np.log(0.05), "decay": np.log(0.1), "positions": np.linspace(-1.0, 1.0, length)},
        batches=Stream(read, STEPS),
        valid=rng.integers(0, vocabulary, (2, 4, length + 1)),
    )


def convolutions(update: str = "damped") -> Task:
    """A convolutional network in Equinox with batch norm and dropout: the hyper loss reads the running statistics."""
    import equinox as eqx

    class Model(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        out: eqx.nn.Linear

        def __init__(self, key: Any) -> None:
            one, two = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 3, 3, key=one, dtype=jnp.float64)
            self.norm = eqx.nn.BatchNorm(3, "batch", mode="ema", dtype=jnp.float64, momentum=0.6)
            self.dropout = eqx.nn.Dropout(0.3)
            self.out = eqx.nn.Linear(3, 4, key=two, dtype=jnp.float64)

        def __call__(self, x: Any, state: Any, key: Any = None) -> Any:
            x, state = self.norm(self.conv(x), state, inference=key is None)
            x = self.dropout(jnp.tanh(x).mean((1, 2)), key=key, inference=key is None)
            return self.out(x), state

    model, state = eqx.nn.make_with_state(Model)(jax.random.key(0))
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((20, 1, 6, 6)), rng.integers(0, 4, 20)

    def forward(w: Tree, state: Tree, X: Any, key: Any) -> Any:
        model = eqx.combine(w, rest)
        keys = None if key is None else jax.random.split(key, len(X))
        axes = (0, None, None if key is None else 0)
        return jax.vmap(model, axis_name="batch", in_axes=axes, out_axes=(0, None))(X, state, keys)

    def cross_entropy(logits: Any, y: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    def loss(w: Tree, state: Tree, hyper: Tree, batch: Tree, t: Any) -> Any:
        logits, state = forward(w, state, batch[0], jax.random.fold_in(jax.random.key(1), t))
        return cross_entropy(logits, batch[1]) + jnp.exp(hyper["decay"]) * jnp.sum(w.conv.weight**2), state

    return Task(
        loss=loss,
        update=Momentum(
            lambda hyper, t: jnp.exp(hyper["rate"]), lambda hyper, t: jax.nn.sigmoid(hyper["momentum"]), update
        ),
        hyper_loss=lambda w, state, hyper, batch: cross_entropy(forward(w, state, batch[0], None)[0], batch[1]),
        weights=weights,
        state=state,
        hyper={"rate": np.log(0.3), "momentum": 0.4, "decay": -3.0},
        batches=Rows((X, y), rng.integers(0, 20, (STEPS, 6))),
        valid=(rng.standard_normal((2, 5, 1, 6, 6)), rng.integers(0, 4, (2, 5))),
    )


def has_gradient(name: str, shape: tuple[int, ...] = ()) -> bool:
    """Softmax does not see the bias of the keys: its gradient is rounding alone, and a ratio of two of them is noise."""
    return "['key']['bias']" not in name


def rated(name: str, by: str = "parameter", momentum: float = 0.0, kind: str = "damped") -> Task:
    """Another task of this file, moved by our dynamics with a declared learning rate "alpha". by: which weights share one."""
    task = globals()[name]()
    weights = task.weights if task.start is None else task.start(task.hyper).weights
    return replace(
        task,
        weights=weights,
        hyper=task.hyper | {"alpha": Log(0.05, bounds=(0.01, 0.06), over=Shared(by, where=has_gradient))},
        update=Momentum(lambda hyper, t: hyper["alpha"], lambda hyper, t: momentum, kind),
        per_example=None if task.per_example is None else task.per_example | {"alpha": False},
    )
