"""The machinery on plain functions: any pytree, any update, any hyperparameters; equal to jax.grad of the unrolled loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrail import Checkpoints, NumericalFailure, Reversible, Truncated, UsageError, task
from hypertrail_gpu import functional, same_training
from hypertrail_gpu.updates import Momentum

STEPS = 9


@pytest.fixture
def case():
    """Nested weights (dict, tuple, list), hyperparameters in the loss AND in the update, a Nesterov-like update."""

    def loss(w, hyper, batch, t):
        x, y = batch
        h = jnp.tanh(x @ w["hidden"][0] + w["hidden"][1]) * jnp.exp(hyper["gain"])
        penalty = sum(jnp.sum(jnp.exp(hyper["l2"]) * leaf**2) for leaf in jax.tree.leaves(w))
        return jnp.mean((h @ w["out"][0] - y) ** 2) * (1 + 0.1 * t) + penalty, {"h": h.mean()}

    def update(w, v, g, hyper, t):
        mu, eta = jax.nn.sigmoid(hyper["logit"]), jnp.exp(hyper["rate"])
        v = jax.tree.map(lambda v, g: mu * v + g, v, g)
        return jax.tree.map(lambda w, v, g: w - eta * (g + mu * v), w, v, g), v

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w0 = {"hidden": (jnp.array(rng.normal(size=(5, 4))), jnp.zeros(4)), "out": [jnp.array(rng.normal(size=(4, 2)))]}
        hyper = {"gain": jnp.array(0.1), "l2": jnp.array(-3.0), "logit": jnp.array(0.5), "rate": jnp.array(-2.0)}
        batches = jnp.array(rng.normal(size=(STEPS, 7, 5))), jnp.array(rng.normal(size=(STEPS, 7, 2)))
        v0 = jax.tree.map(jnp.zeros_like, w0)
    return functional.Inner(loss, update, has_aux=True), w0, v0, hyper, batches


def hyper_loss(w, hyper):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(w)) + hyper["gain"] ** 2


def test_equals_autodiff_through_the_unrolled_loop(case):
    inner, w0, v0, hyper, batches = case

    def unrolled(hyper, w, v):
        for t in range(STEPS):
            batch = jax.tree.map(lambda a, t=t: a[t], batches)
            g = jax.grad(lambda w, batch=batch, t=t: inner.loss(w, hyper, batch, t)[0])(w)
            w, v = inner.update(w, v, g, hyper, t)
        return hyper_loss(w, hyper)

    with jax.enable_x64(True):
        run = functional.train(inner, w0, v0, hyper, batches)
        result = functional.hypergradient(inner, hyper_loss, run, hyper, batches)
        value, expected = jax.value_and_grad(unrolled, (0, 1, 2))(hyper, w0, v0)
    assert float(result.value) == pytest.approx(float(value), rel=1e-12)
    assert run.losses.shape == (STEPS,)
    for ours, theirs in zip(jax.tree.leaves(result[1:]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_loss_without_aux(case):
    inner, w0, v0, hyper, batches = case
    plain = functional.Inner(lambda *a: inner.loss(*a)[0], inner.update)
    with jax.enable_x64(True):
        a = functional.hypergradient(inner, hyper_loss, functional.train(inner, w0, v0, hyper, batches), hyper, batches)
        b = functional.hypergradient(plain, hyper_loss, functional.train(plain, w0, v0, hyper, batches), hyper, batches)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.optimised
def test_states_computed_again_are_the_same(case):
    """A state every third step: a third of the states is kept, and the hypergradient does not notice."""
    inner, w0, v0, hyper, batches = case
    with jax.enable_x64(True):
        every = functional.train(inner, w0, v0, hyper, batches)
        third = functional.train(inner, w0, v0, hyper, batches, every=3)
        states, state = [], (w0, v0)
        for t in range(STEPS):
            states.append(state)
            state = functional.step(inner, *state, hyper, jax.tree.map(lambda a, t=t: a[t], batches), t)[:2]
        assert len(third.trail.kept.states) == STEPS // 3
        for ours, true in zip(third.trail.kept.states, states[::3], strict=True):
            for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(true), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-13)
        a, b = (functional.hypergradient(inner, hyper_loss, run, hyper, batches) for run in (every, third))
        np.testing.assert_allclose(every.losses, third.losses, rtol=1e-14)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)
    with pytest.raises(UsageError, match="every 2 steps, expected a divisor of the 9 steps"):
        functional.train(inner, w0, v0, hyper, batches, every=2)


def test_slopes_tell_a_right_hypergradient_from_a_wrong_one(case):
    inner, w0, v0, hyper, batches = case
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), (w0, v0, hyper, batches))  # what most models come in
    right = functional.slopes(inner, hyper_loss, *single)
    assert right.hypergradient == pytest.approx(right.differences, rel=1e-8)

    signs = np.random.default_rng(0).choice(
        [-1.0, 1.0], size=4
    )  # gain, l2, logit, rate: one number each, in this order
    with jax.enable_x64(True):
        w0, v0, hyper, batches = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), single)
        run = functional.train(inner, w0, v0, hyper, batches)
        h = functional.hypergradient(inner, hyper_loss, run, hyper, batches).hyper
    assert right.hypergradient == pytest.approx(float(np.stack(jax.tree.leaves(h)) @ signs), rel=1e-12)

    def deaf(w, hyper):  # to a part of λ that the differences do see
        return hyper_loss(w, jax.lax.stop_gradient(hyper))

    wrong = functional.slopes(inner, deaf, *single)
    assert wrong.differences == pytest.approx(right.differences, rel=1e-8)
    assert abs(wrong.hypergradient - right.hypergradient) == pytest.approx(2 * 0.1, rel=1e-6)  # d gain² / d gain


def test_what_is_not_floating_point_keeps_its_dtype():
    rows, key = np.arange(3, dtype=np.int32), jax.random.key(1)
    assert functional.doubled(rows) is rows
    assert functional.doubled(key) is key
    with jax.enable_x64(True):
        assert functional.doubled(np.float32(1.5)).dtype == jnp.float64


# -- what is said and done about mistakes -------------------------------------------------------------------------------------


@pytest.fixture
def compilations():
    """A list that grows by one entry for every program XLA compiles."""
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listener)


def square(w, hyper, batch, t):
    return jnp.mean((batch @ w - hyper["target"]) ** 2)


def descend(w, v, g, hyper, t):
    v = 0.9 * v + g
    return w - jnp.exp(hyper["rate"]) * v, v


def last_loss(w, hyper):
    return jnp.sum(w**2)


@dataclass(frozen=True)
class FilledDescent:
    """A descent whose rate lives in the state of the update, as optax.inject_hyperparams keeps it."""

    def init(self, w, hyper):
        return {
            "rate": jnp.exp(hyper["rate"]),
            "slow": w,
            "count": jnp.int32(0),
            "best": jnp.full((), jnp.inf, w.dtype),
        }

    def __call__(self, w, v, g, hyper, t):
        w = w - v["rate"] * g
        slow = 0.5 * v["slow"] + 0.5 * w
        return 0.9 * w + 0.1 * slow, {**v, "slow": slow, "count": v["count"] + 1}


@pytest.fixture
def small():
    """(inner, w0, v0, hyper, batches) of ten steps on three weights, float32."""
    rng = np.random.default_rng(1)
    w0 = jnp.asarray(rng.normal(size=3), jnp.float32)
    hyper = {"rate": jnp.float32(-2.0), "target": jnp.ones(4, jnp.float32)}
    batches = rng.normal(size=(10, 4, 3)).astype(np.float32)
    return functional.Inner(square, descend), w0, jnp.zeros(3, jnp.float32), hyper, batches


def test_a_hypergradient_is_of_the_training_that_was_run(small):
    inner, w0, v0, hyper, batches = small
    run = functional.train(inner, w0, v0, hyper, batches)
    other_rate = hyper | {"rate": hyper["rate"] + 1}
    read = {"target": hyper["target"]}
    update = lambda w, v, g, hyper, t: descend(w, v, g, hyper, t)  # noqa: E731
    mistakes = [
        (inner, other_rate, batches, r"hyper\['rate'\] is not the one of this training"),
        (inner, hyper | {"target": np.zeros(5, np.float32)}, batches, r"hyper\['target'\] is not the one of this"),
        (inner, read, batches, r"hyper\['rate'\] is missing, this training had it"),
        (inner, hyper | {"more": w0}, batches, r"hyper\['more'\] is new, this training did not have it"),
        (inner, hyper, np.concatenate([batches, batches]), "batches: 20 steps, this training took 10"),
        (inner, hyper, batches[::-1], "batches: the batch of step 0 is not the one of this training"),
        (inner, hyper, (batches, batches), r"batches\[0\] is new, this training did not have it"),
        (inner, hyper, batches[:, :2], r"batches: arrays of shape \[10, 2, 3\], this training had \[10, 4, 3\]"),
        (inner, hyper, task.Rows(batches[0], np.zeros((10, 2), int)), "batches: Rows, this training had Arrays"),
        (functional.Inner(square, update), hyper, batches, "inner: update is not the one of this training"),
        (inner, hyper, iter(batches), "batches is a .*iterator, expected arrays .* hypertrail.Stream"),
    ]
    for inner_now, hyper_now, batches_now, message in mistakes:
        with pytest.raises(UsageError, match=message) as refused:
            functional.hypergradient(inner_now, last_loss, run, hyper_now, batches_now)
        assert "\n" not in str(refused.value)
    swapped = batches.copy()
    swapped[[3, 7]] = batches[[7, 3]]
    with pytest.raises(UsageError, match="the batch of step 3 is not the one of this training"):
        functional.hypergradient(inner, last_loss, run, hyper, swapped)


def test_equal_values_are_the_same_training(small, monkeypatch):
    inner, w0, v0, hyper, batches = small
    run = functional.train(inner, w0, v0, hyper, batches)
    first = functional.hypergradient(inner, last_loss, run, hyper, batches)
    with monkeypatch.context() as patch:  # the same objects are not looked at, however large they are
        patch.setattr(same_training, "first_other", None)
        functional.hypergradient(inner, last_loss, run, hyper, batches)
    copies = {"rate": -2.0, "target": np.ones(4)}  # float64 on the host, a Python number
    for hyper_now, batches_now in [(copies, batches.copy()), (hyper, task.Arrays(jnp.asarray(batches)))]:
        second = functional.hypergradient(functional.Inner(square, descend), last_loss, run, hyper_now, batches_now)
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_hypergradient_has_the_precision_of_the_training(small):
    """Whatever the mode is in which it is asked for: the masks of a float32 training are others in x64 mode."""
    _, w0, v0, hyper, batches = small

    def loss(w, hyper, batch, t):
        mask = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), t), 0.5, w.shape)
        return square(w * mask, hyper, batch, t)

    inner = functional.Inner(loss, descend)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            run = functional.train(inner, w0, v0, hyper, batches.astype(np.float64))
            inside = functional.hypergradient(inner, last_loss, run, hyper, run.given.batches)
        with jax.enable_x64(not x64):
            outside = functional.hypergradient(inner, last_loss, run, hyper, run.given.batches)
        for x, y in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
            np.testing.assert_array_equal(x, y)


def test_hyperparameters_that_were_changed_in_place_are_others(small):
    inner, w0, v0, _, batches = small
    hyper = {"rate": np.full((), -2.0, np.float32), "target": np.ones(4, np.float32)}
    run = functional.train(inner, w0, v0, hyper, batches)
    hyper["target"] -= 0.5
    with pytest.raises(UsageError, match=r"hyper\['target'\] is not the one of this training"):
        functional.hypergradient(inner, last_loss, run, hyper, batches)


def test_streams_and_rows_are_those_of_the_training(small):
    inner, w0, v0, hyper, batches = small
    data, indices = batches.reshape(40, 3), np.arange(40).reshape(10, 4)
    plain = functional.hypergradient(inner, last_loss, functional.train(inner, w0, v0, hyper, batches), hyper, batches)
    stream, rows = task.Stream(batches.__getitem__, 10), task.Rows(data, indices)
    again = {
        "arrays": (task.Arrays(batches), task.Arrays(batches.copy())),
        "rows": (rows, task.Rows(data.copy(), indices.copy())),
        "stream": (stream, task.Stream(batches.__getitem__, 10)),
    }
    for first, second in again.values():
        run = functional.train(inner, w0, v0, hyper, first)
        found = functional.hypergradient(inner, last_loss, run, hyper, second)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
        both = functional.slopes(inner, last_loss, w0, v0, hyper, first)
        assert both.hypergradient == pytest.approx(both.differences, rel=1e-7)
    run = functional.train(inner, w0, v0, hyper, stream)
    with pytest.raises(UsageError, match="batches: 9 steps, this training took 10"):
        functional.hypergradient(inner, last_loss, run, hyper, task.Stream(batches.__getitem__, 9))
    with pytest.raises(UsageError, match=r"batches.read is not the one of this training"):
        functional.hypergradient(inner, last_loss, run, hyper, task.Stream(lambda t: batches[t], 10))
    run = functional.train(inner, w0, v0, hyper, rows)
    with pytest.raises(UsageError, match=r"batches.indices: the batch of step 9 is not the one of this training"):
        functional.hypergradient(inner, last_loss, run, hyper, task.Rows(data, np.where(indices < 39, indices, 0)))


def unrolled_filled(update, hyper, w, batches):
    v = update.init(w, hyper)
    for t, batch in enumerate(batches):
        w, v = update(w, v, jax.grad(square)(w, hyper, batch, t), hyper, t)
    return last_loss(w, hyper)


def test_a_state_that_is_filled_from_the_hyperparameters(small):
    with jax.enable_x64(True):
        _, w0, _, hyper, batches = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64) if hasattr(a, "dtype") else a, small
        )
        update = FilledDescent()
        inner = functional.Inner(square, update)
        for v0 in (update.init(w0, hyper), jax.jit(update.init)(w0, hyper)):
            run = functional.train(inner, w0, v0, hyper, batches)
            found = functional.hypergradient(inner, last_loss, run, hyper, batches)
            true, through = jax.grad(lambda h, w: unrolled_filled(update, h, w, batches), (0, 1))(hyper, w0)
            assert abs(true["rate"]) > 1e-3
            np.testing.assert_allclose(found.hyper["rate"], true["rate"], rtol=1e-12)
            np.testing.assert_allclose(found.w0, through, rtol=1e-12)
        found = functional.slopes(inner, last_loss, w0, v0, hyper, batches)
        assert found.hypergradient == pytest.approx(found.differences, rel=1e-8)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=5)
        expected = signs[0] * true["rate"] + signs[1:] @ true["target"]
        assert found.hypergradient == pytest.approx(float(expected), rel=1e-10)

        other = update.init(w0, hyper | {"rate": hyper["rate"] + 0.1})
        message = (
            r"v0 is not update.init\(w0, hyper\), which reads hyper\['rate'\].*; give v0 = update.init\(w0, hyper\)"
        )
        for refused in (functional.train, lambda *all: functional.slopes(all[0], last_loss, *all[1:])):
            with pytest.raises(UsageError, match=message):
                refused(inner, w0, other, hyper, batches)
        held = functional.Inner(square, lambda *all: update(*all))  # the way out: an update without init
        run = functional.train(held, w0, other, hyper, batches)
        assert functional.hypergradient(held, last_loss, run, hyper, batches).hyper["rate"] == 0


def test_what_is_not_finite_stops_by_name_and_step(small):
    inner, w0, v0, hyper, batches = small
    spoilt = batches.copy()
    spoilt[6] = np.nan
    with pytest.raises(NumericalFailure, match="elementary loss is not finite at step 6"):
        functional.train(inner, w0, v0, hyper, spoilt)
    with pytest.raises(NumericalFailure, match="elementary loss is not finite at step 36"):
        functional.train(inner, w0, v0, hyper, spoilt, start=30)
    run = functional.train(inner, w0, v0, hyper, batches)
    with pytest.raises(NumericalFailure, match="hyper loss is not finite at step 10"):
        functional.hypergradient(inner, lambda w, hyper: jnp.log(-jnp.sum(w**2)), run, hyper, batches)
    with pytest.raises(NumericalFailure, match=r"hypergradient of hyper\['target'\] is not finite at step"):
        functional.hypergradient(
            inner, lambda w, hyper: jnp.sum(w) + jnp.sum(jnp.sqrt(hyper["target"] - 1)), run, hyper, batches
        )


def test_the_gradient_of_the_first_weights_is_finite_or_refused():
    """Only the step that was first has an infinite slope: nothing but the gradient of w_0 shows it."""
    inner = functional.Inner(
        lambda w, hyper, batch, t: batch * jnp.sqrt(w) + hyper * w, lambda w, v, g, hyper, t: (w, v)
    )
    batches = jnp.array([1.0, 0.0])
    inner = functional.Inner(lambda w, hyper, batch, t: hyper * w, lambda w, v, g, hyper, t: (jnp.sqrt(w) + g, v))
    run = functional.train(inner, jnp.array(0.0), jnp.array(0.0), jnp.array(0.5), batches[:1])
    with pytest.raises(NumericalFailure, match="hypergradient of w0 is not finite at step 0"):
        functional.hypergradient(inner, lambda w, hyper: w, run, jnp.array(0.5), batches[:1])


def test_slopes_where_nothing_can_be_measured(small):
    inner, w0, v0, hyper, batches = small
    with pytest.raises(NumericalFailure, match="elementary loss is not finite at step 0"):
        functional.slopes(inner, last_loss, w0, v0, hyper, np.full_like(batches, np.nan))

    def cliff(w, hyper):  # finite at these hyperparameters alone
        return jnp.sum(w**2) + jnp.where(hyper["rate"] == -2.0, 0.0, jnp.nan)

    with pytest.raises(NumericalFailure, match="nothing could be measured"):
        functional.slopes(inner, cliff, w0, v0, hyper, batches)


def test_other_types_of_the_same_numbers_compile_nothing(small, compilations):
    _, w0, v0, _, batches = small
    inner = functional.Inner(square, descend)
    weak = {"rate": jnp.log(0.1), "target": 1.0 * jnp.arange(4.0)}
    strong = {"rate": jnp.float32(-2.0), "target": np.arange(4, dtype=np.float32)}
    python = {"rate": -2.0, "target": np.arange(4.0)}
    assert weak["rate"].weak_type
    for hyper in (weak, strong, python):
        compilations.clear()
        for w, v in ((w0, v0), (w0 * 1.0, np.zeros(3))):
            run = functional.train(inner, w, v, hyper, batches)
            functional.hypergradient(inner, last_loss, run, hyper, batches)
            assert bool(compilations) == (hyper is weak)
            compilations.clear() if w is not w0 else None


def test_t_is_the_true_step():
    """40 steps in one go, and the last ten of them by themselves."""

    def loss(w, hyper, batch, t):
        return jnp.sum((w - hyper["target"]) ** 2) * (1 + 0.1 * t) + batch * jnp.sum(w)

    def update(w, v, g, hyper, t):
        return w - jnp.exp(hyper["rate"]) / (10 + t) * g, v

    inner = functional.Inner(loss, update)
    with jax.enable_x64(True):
        batches = jnp.asarray(np.random.default_rng(2).normal(size=40))
        hyper, w0, v0 = {"rate": jnp.array(-0.5), "target": jnp.array(0.7)}, jnp.array([2.0, 3.0]), jnp.zeros(2)
        whole = functional.train(inner, w0, v0, hyper, batches)
        first = functional.train(inner, w0, v0, hyper, batches[:30])
        for more in ({}, {"every": 5}, {"keep": "host"}, {"keep": Checkpoints(3)}):
            last = functional.train(inner, first.w, first.v, hyper, batches[30:], start=30, **more)
            np.testing.assert_allclose(last.w, whole.w, rtol=1e-14)
            np.testing.assert_allclose(last.losses, whole.losses[30:], rtol=1e-14)
            b = functional.hypergradient(inner, lambda w, hyper: jnp.sum(w**3), last, hyper, batches[30:])
            a = functional.hypergradient(inner, lambda w, hyper, dw=b.w0: jnp.vdot(w, dw), first, hyper, batches[:30])
            true = functional.hypergradient(inner, lambda w, hyper: jnp.sum(w**3), whole, hyper, batches)
            for name in hyper:
                np.testing.assert_allclose(a.hyper[name] + b.hyper[name], true.hyper[name], rtol=1e-12)
            np.testing.assert_allclose(a.w0, true.w0, rtol=1e-12)
        found = functional.slopes(
            inner, lambda w, hyper: jnp.sum(w**3), first.w, first.v, hyper, batches[30:], start=30
        )
        assert found.hypergradient == pytest.approx(found.differences, rel=1e-8)
        cut = functional.hypergradient(
            inner, lambda w, hyper: jnp.sum(w**3), whole, hyper, batches, method=Truncated(10)
        )
        for name in hyper:
            np.testing.assert_allclose(cut.hyper[name], b.hyper[name], rtol=1e-12)
        assert cut.w0 is None
        forward = functional.hypergradient(
            inner, lambda w, hyper: jnp.sum(w**3), last, hyper, batches[30:], method="forward"
        )
        for name in hyper:
            np.testing.assert_allclose(forward.hyper[name], b.hyper[name], rtol=1e-12)
    for start in (-1, 2.5, "3"):
        with jax.enable_x64(True), pytest.raises(UsageError, match=r"start .*, expected a whole number from 0 on"):
            functional.train(inner, w0, v0, hyper, batches, start=start)


def test_what_is_no_batches_is_refused_with_the_way_out(small, tmp_path):
    inner, w0, v0, hyper, batches = small
    with h5py.File(tmp_path / "batches.h5", "w") as file:
        on_disk = file.create_dataset("x", data=batches)
        for wrong in (iter(batches), (batch for batch in batches), on_disk, "a name", []):
            with pytest.raises(
                UsageError, match=r"batches is a .*, expected arrays .* hypertrail.Stream\(read, steps\)"
            ):
                functional.train(inner, w0, v0, hyper, wrong)
    with pytest.raises(UsageError, match=r"batches is a .*, expected arrays .* hypertrail.Stream\(read, steps\)"):
        functional.slopes(inner, last_loss, w0, v0, hyper, iter(batches))
    pairs = [(batch, batch[:, 0]) for batch in batches]
    for wrong, count in ((list(batches), 10), (pairs, 10), ([*pairs[:-1], (batches[0, :2], batches[0, :2, 0])], 10)):
        with pytest.raises(
            UsageError, match=rf"batches is a list of {count} .* hypertrail.Stream\(batches.__getitem__, {count}\)"
        ):
            functional.train(inner, w0, v0, hyper, wrong)
    listed = functional.train(inner, w0, v0, hyper, task.Stream(list(batches).__getitem__, 10))  # the way out
    np.testing.assert_allclose(listed.w, functional.train(inner, w0, v0, hyper, batches).w, rtol=1e-6)

    def of_parts(w, hyper, batch, t):
        return square(w, hyper, batch[0] + batch[1], t)

    functional.train(functional.Inner(of_parts, descend), w0, v0, hyper, [batches, batches])  # parts of a batch


def test_training_inside_jit_grad_and_vmap_is_refused(small):
    inner, w0, v0, hyper, batches = small

    def trained(hyper):
        return functional.train(inner, w0, v0, hyper, batches).w.sum()

    run = functional.train(inner, w0, v0, hyper, batches)

    def differentiated(hyper):
        return functional.hypergradient(inner, last_loss, run, hyper, batches).value

    inside = {
        "jit": lambda f: jax.jit(f)(hyper),
        "grad": lambda f: jax.grad(f)(hyper),
        "vmap": lambda f: jax.vmap(f)(jax.tree.map(lambda a: jnp.stack([a, a]), hyper)),
        "jit of constants": lambda f: jax.jit(lambda: f(hyper))(),
    }
    for f in (trained, differentiated):
        for how, transformed in inside.items():
            with pytest.raises(
                UsageError, match=r"^(train|hypergradient) inside jax.jit, grad or vmap; .* call it outside"
            ) as one:
                transformed(f)
            assert "\n" not in str(one.value), how
    with pytest.raises(UsageError, match=r"train inside jax\.jit"):
        jax.jit(lambda x: functional.train(inner, w0, v0, hyper, task.Rows(x, np.zeros((3, 4), int))).w)(batches[0])


def test_leaves_that_are_no_arrays_are_named(small):
    inner, w0, v0, hyper, batches = small
    for w, v, h, message in [
        ({"a": w0, "f": jnp.tanh}, v0, hyper, r"w0\['f'\] is .*, expected arrays"),
        (w0, {"a": [v0, "sgd"]}, hyper, r"v0\['a'\]\[1\] is str, expected arrays"),
        (w0, v0, hyper | {"kind": "adam"}, r"hyper\['kind'\] is str, expected arrays"),
        (w0, v0, hyper | {"rate": object()}, r"hyper\['rate'\] is object, expected arrays"),
        ({"a": np.arange(3)}, v0, hyper, r"w0\['a'\]: int\d+\[3\], expected floating point arrays"),
        (None, v0, hyper, r"w0: nothing, expected floating point arrays"),
    ]:
        with pytest.raises(UsageError, match=message):
            functional.train(inner, w, v, h, batches)


def test_hyperparameters_that_are_not_floating_point_are_passed_on(small):
    _, w0, v0, hyper, batches = small

    def loss(w, hyper, batch, t):
        return square(w, hyper, batch, t) * hyper["times"]

    inner, hyper = functional.Inner(loss, descend), hyper | {"times": 2, "nothing": None}
    run = functional.train(inner, w0, v0, hyper, batches)
    result = functional.hypergradient(inner, last_loss, run, hyper, batches)
    assert result.hyper["times"] is None
    assert result.hyper["rate"] != 0
    found = functional.slopes(inner, last_loss, w0, v0, hyper, batches)
    assert found.hypergradient == pytest.approx(found.differences, rel=1e-7)


def test_without_hyperparameters_there_is_still_the_gradient_of_the_start():
    inner = functional.Inner(lambda w, hyper, batch, t: batch * w**2, lambda w, v, g, hyper, t: (w - 0.1 * g, v))
    run = functional.train(inner, jnp.array(1.0), (), {}, jnp.array([1.0, 2.0]))
    result = functional.hypergradient(inner, lambda w, hyper: w, run, {}, jnp.array([1.0, 2.0]))
    assert result.hyper == {}
    np.testing.assert_allclose(result.w0, 0.8 * 0.6, rtol=1e-6)


def test_a_mask_for_every_step_is_the_same_on_the_way_back(small):
    """Dropout as a pure function of (key, t), with the key among the hyperparameters' neighbours and in the state."""
    _, w0, v0, hyper, batches = small
    key = jax.random.key(4)

    def loss(w, hyper, batch, t):
        mask = jax.random.bernoulli(jax.random.fold_in(key, t), 0.7, w.shape)
        return square(w * mask, hyper, batch, t)

    def update(w, v, g, hyper, t):
        noise = 0.01 * jax.random.normal(v["key"], w.shape, w.dtype)
        speed = 0.9 * v["speed"] + g + noise
        return w - jnp.exp(hyper["rate"]) * speed, {"speed": speed, "key": jax.random.fold_in(v["key"], t)}

    def unrolled(hyper):
        w, v = w0, {"speed": v0, "key": key}
        for t, batch in enumerate(batches):
            w, v = update(w, v, jax.grad(loss)(w, hyper, batch, t), hyper, t)
        return last_loss(w, hyper)

    inner = functional.Inner(loss, update)
    run = functional.train(inner, w0, {"speed": v0, "key": key}, hyper, batches)
    result = functional.hypergradient(inner, last_loss, run, hyper, batches)
    for ours, theirs in zip(jax.tree.leaves(result.hyper), jax.tree.leaves(jax.grad(unrolled)(hyper)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert result.v0["key"] is None


@pytest.mark.parametrize(
    "keep",
    ["memory", "host", Path("states"), Checkpoints(4), Checkpoints(), Reversible()],
    ids=lambda keep: str(keep)[:12],
)
def test_whatever_is_kept_the_hypergradient_is_the_same(small, tmp_path, keep):
    _, w0, v0, hyper, batches = small
    with jax.enable_x64(True):
        w0, v0, hyper, batches = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (w0, v0, hyper, batches))
        damped = Momentum(lambda hyper, t: jnp.exp(hyper["rate"]) / (1 + t), lambda hyper, t: 0.75)
        inner = functional.Inner(square, damped)
        keep = tmp_path / keep if isinstance(keep, Path) else keep
        found = [
            functional.hypergradient(
                inner, last_loss, functional.train(inner, w0, v0, hyper, batches, **how), hyper, batches
            )
            for how in ({}, {"keep": keep})
        ]
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)


def test_what_can_be_kept(small):
    inner, w0, v0, hyper, batches = small
    with pytest.raises(UsageError, match="every=5 and keep='host', expected one of them"):
        functional.train(inner, w0, v0, hyper, batches, every=5, keep="host")
    for every in (0, 3, 11, 2.5):
        with pytest.raises(
            UsageError, match=rf"a state every {every} steps, expected a divisor of the 10 steps; .*Checkpoints"
        ):
            functional.train(inner, w0, v0, hyper, batches, every=every)
    run = functional.train(inner, w0, v0, hyper, batches, keep="ends")
    with pytest.raises(UsageError, match="exact needs the states of the run, this training kept its ends alone"):
        functional.hypergradient(inner, last_loss, run, hyper, batches)
    forward = functional.hypergradient(inner, last_loss, run, hyper, batches, method="forward")
    run = functional.train(inner, w0, v0, hyper, batches, every=5)
    exact = functional.hypergradient(inner, last_loss, run, hyper, batches)
    np.testing.assert_allclose(forward.hyper["rate"], exact.hyper["rate"], rtol=1e-4)
    assert forward.w0 is None
    damped = functional.Inner(square, Momentum(lambda hyper, t: 0.1, lambda hyper, t: 0.75))
    with pytest.raises(UsageError, match=r"start=5 with keep=Reversible\(\)"):
        functional.train(damped, w0, v0, hyper, batches, keep=Reversible(), start=5)
