"""optax transformations as updates: equal to jax.grad of the unrolled loop, compiled once, refused if need be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypertrail import UsageError
from hypertrail_gpu import functional
from hypertrail_gpu.transformation import from_optax

STEPS = 7


def loss(w, hyper, batch, t):
    x, y = batch
    out = jnp.tanh(x @ w["in"][0] + w["in"][1]) @ w["out"]
    return jnp.mean((out - y) ** 2) + jnp.exp(hyper["l2"]) * jnp.sum(w["out"] ** 2)


def hyper_loss(w, hyper):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(w)) + hyper["l2"] ** 2


MAKE = {
    "sgd": lambda h: optax.sgd(jnp.exp(h["rate"]), momentum=jax.nn.sigmoid(h["logit"])),
    "adam": lambda h: optax.adam(jnp.exp(h["rate"]), b1=jax.nn.sigmoid(h["logit"]), eps=0, eps_root=1e-6),
    "clipped adamw": lambda h: optax.chain(
        optax.clip_by_global_norm(jnp.exp(h["clip"])),
        optax.adamw(jnp.exp(h["rate"]), eps=0, eps_root=1e-6, weight_decay=jnp.exp(h["decay"])),
    ),
    "noise": lambda h: optax.chain(optax.add_noise(0.1, 0.5, key=3), optax.sgd(jnp.exp(h["rate"]))),
    "decay of each weight": lambda h: optax.chain(
        optax.stateless(lambda g, w: jax.tree.map(lambda g, w, d: g + d * w, g, w, h["decays"])),
        optax.sgd(jnp.exp(h["rate"]), momentum=0.7, nesterov=True),
    ),
    "every second step": lambda h: optax.MultiSteps(optax.sgd(jnp.exp(h["rate"]), momentum=0.5), 2),
}
MOVED = {
    "sgd": {"rate", "logit"},
    "adam": {"rate", "logit"},
    "clipped adamw": {"rate", "clip", "decay"},
    "noise": {"rate"},
    "decay of each weight": {"rate", "decays"},
    "every second step": {"rate"},
}


@pytest.fixture(scope="module")
def case():
    """Weights in a dict with a tuple in it, hyperparameters of loss and transformation, batches."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w0 = {"in": (jnp.array(rng.normal(size=(5, 4))), jnp.zeros(4)), "out": jnp.array(rng.normal(size=(4, 2)))}
        hyper = {"rate": -2.0, "logit": 0.5, "clip": -1.0, "decay": -3.0, "l2": -3.0}
        hyper = {name: jnp.array(one) for name, one in hyper.items()}
        hyper["decays"] = jax.tree.map(lambda w: jnp.full(w.shape, 0.05), w0)
        batches = jnp.array(rng.normal(size=(STEPS, 6, 5))), jnp.array(rng.normal(size=(STEPS, 6, 2)))
    return w0, hyper, batches


def unrolled(transformation_of, hyper, w, batches):
    """The loop that optax's documentation shows."""
    transformation = transformation_of(hyper)
    v = transformation.init(w)
    for t in range(STEPS):
        batch = jax.tree.map(lambda a, t=t: a[t], batches)
        updates, v = transformation.update(jax.grad(loss)(w, hyper, batch, t), v, w)
        w = optax.apply_updates(w, updates)
    return hyper_loss(w, hyper)


LONG = ("noise", "every second step", "decay of each weight", "sgd")  # to compile; sgd is in the other two


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in MAKE])
def test_equals_autodiff_through_the_unrolled_loop(case, name):
    w0, hyper, batches = case
    init, update = from_optax(MAKE[name])
    inner = functional.Inner(loss, update)
    with jax.enable_x64(True):
        run = functional.train(inner, w0, init(w0, hyper), hyper, batches)
        result = functional.hypergradient(inner, hyper_loss, run, hyper, batches)
        value, expected = jax.jit(jax.value_and_grad(lambda hyper, w: unrolled(MAKE[name], hyper, w, batches), (0, 1)))(
            hyper, w0
        )
    assert float(result.value) == pytest.approx(float(value), rel=1e-12)
    found, expected = jax.tree.map(np.asarray, ((result.hyper, result.w0), expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs)
    moved = {key for key, one in found[0].items() if any(np.any(leaf) for leaf in jax.tree.leaves(one))}
    assert moved == MOVED[name] | {"l2"}


def test_second_call_compiles_nothing(case):
    w0, hyper, batches = case
    init, update = from_optax(MAKE["clipped adamw"])
    inner = functional.Inner(loss, update)
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        with jax.enable_x64(True):
            moved = hyper | {"rate": hyper["rate"] + 0.5, "clip": hyper["clip"] - 0.5}
            results = []
            for one in (hyper, moved):
                seen.clear()
                run = functional.train(inner, w0, init(w0, one), one, batches)
                results.append(functional.hypergradient(inner, hyper_loss, run, one, batches))
                assert bool(seen) == (one is hyper), "the first call compiles, the second does not"
            assert float(results[0].value) != float(results[1].value)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda h: h["rate"], "expected an optax.GradientTransformation"),
        (lambda h: optax.sgd(0.1 if h["rate"] > 0 else 0.2), "must not branch on hyper"),
        (lambda h: optax.lbfgs(), "nor ask for the loss"),
        (lambda h: optax.GradientTransformation(lambda w: 0, lambda g, v, w: (g, 1.5 * v)), "changes from"),
    ],
)
def test_transformations_that_cannot_be_differentiated_are_told(case, make, message):
    w0, hyper, _ = case
    with jax.enable_x64(True), pytest.raises(UsageError, match=message):
        from_optax(make)[0](w0, hyper)


def injected(h):
    """The rate lives in the state, where `init` puts it: `update` reads it there, and not in h."""
    sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=jnp.exp(h["rate"]), momentum=jax.nn.sigmoid(h["logit"]))
    return optax.chain(optax.add_decayed_weights(jnp.exp(h["decay"])), sgd)


def test_hyperparameters_in_the_state_of_the_transformation(case):
    w0, hyper, batches = case
    _, update = from_optax(injected)
    inner = functional.Inner(loss, update)
    with jax.enable_x64(True):
        v0 = update.init(w0, hyper)
        run = functional.train(inner, w0, v0, hyper, batches)
        result = functional.hypergradient(inner, hyper_loss, run, hyper, batches)
        expected = jax.jit(jax.grad(lambda hyper: unrolled(injected, hyper, w0, batches)))(hyper)
        for name in ("rate", "logit", "decay", "l2"):
            assert abs(expected[name]) > 1e-6
            np.testing.assert_allclose(result.hyper[name], expected[name], rtol=1e-10)
        assert float(result.value) == pytest.approx(float(unrolled(injected, hyper, w0, batches)), rel=1e-12)
        found = functional.slopes(inner, hyper_loss, w0, v0, hyper, batches)
        assert found.hypergradient == pytest.approx(found.differences, rel=1e-7)
        moved = hyper | {"rate": hyper["rate"] + 0.5}
        with pytest.raises(
            UsageError, match=r"v0 is not update.init\(w0, hyper\), which reads .*logit'\], hyper\['rate'\]"
        ):
            functional.train(inner, w0, v0, moved, batches)


def test_a_state_that_begins_alike_whatever_the_hyperparameters_may_be_any(case):
    """Momenta that go on from another training: `init` reads nothing, so there is nothing to miss."""
    w0, hyper, batches = case
    init, update = from_optax(MAKE["sgd"])
    inner = functional.Inner(loss, update)
    with jax.enable_x64(True):
        first = functional.train(inner, w0, init(w0, hyper), hyper, batches)
        again = functional.train(inner, first.w, first.v, hyper, batches, start=STEPS)
    assert again.losses[-1] < first.losses[-1]
