"""Outer updates: numbers worked out by hand, Adam against optax, bounds, refusals, state that survives a file."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail import L2, LearningRate, NumericalFailure, UsageError
from hypertrail.outer import Adam, AdamHips, GradientDescent, Sign, SignMomentum, State, update
from hypertrail.runs import arrays

FREE = (L2(bounds=(1e-300, 1e300)), LearningRate(bounds=(1e-300, 1e300)))


def hyper(values=(1.0, 2.0, 3.0)):
    return {"l2": {"a/W": np.array(values)}, "learning_rate": {"network": np.array(-1.0)}}


def gradient(values, rate=0.5):
    return {"l2": {"a/W": np.array(values)}, "learning_rate": {"network": np.array(rate)}}


def walk(rule, gradients, start=None, declared=FREE):
    λ = hyper() if start is None else start
    state = rule.start(λ)
    for h in gradients:
        λ, state = update(rule, declared, λ, h, state)
    return λ, state


def test_gradient_descent_by_hand():
    λ, state = walk(GradientDescent(0.5), [gradient([2.0, 0.0, -4.0])])
    np.testing.assert_array_equal(λ["l2"]["a/W"], [0.0, 2.0, 5.0])
    assert λ["learning_rate"]["network"] == -1.25
    assert state == State(1, {})


def test_sign_by_hand_and_zero_does_not_move():
    λ, _ = walk(Sign(0.07), [gradient([1e-12, 0.0, -5.0], rate=0.0)])
    np.testing.assert_array_equal(λ["l2"]["a/W"], [1.0 - 0.07, 2.0, 3.0 + 0.07])
    assert λ["learning_rate"]["network"] == -1.0


def test_sign_momentum_by_hand():
    """u ← .7 u − .3 sign(h), λ += u / 3: the thesis' settings are the defaults."""
    λ, state = walk(SignMomentum(), [gradient([4.0, 0.0, -1.0]), gradient([9.0, 1.0, 1.0])])
    u1 = np.array([-0.3, 0.0, 0.3])
    u2 = 0.7 * u1 - 0.3 * np.array([1.0, 1.0, 1.0])
    np.testing.assert_allclose(u2, [-0.51, -0.3, -0.09], rtol=1e-15)
    np.testing.assert_allclose(λ["l2"]["a/W"], np.array([1.0, 2.0, 3.0]) + (u1 + u2) / 3, rtol=1e-15)
    np.testing.assert_allclose(state.slots["u"]["l2"]["a/W"], u2, rtol=1e-15)
    assert state.count == 2


def test_adam_first_step_by_hand():
    """m̂ = h, ŝ = h², so the first step is lr h / (|h| + ε)."""
    λ, _ = walk(Adam(0.1, epsilon=1e-8), [gradient([2.0, 0.0, -3.0])])
    np.testing.assert_allclose(λ["l2"]["a/W"], [1.0 - 0.2 / (2 + 1e-8), 2.0, 3.0 + 0.3 / (3 + 1e-8)], rtol=1e-15)


def test_adam_with_epsilon_beside_the_uncorrected_second_moment():
    """b₂ = .75: the first step is lr h / √((h²/4 + ε) · 4) = lr h / √(h² + 4 ε)."""
    λ, _ = walk(Adam(0.1, b2=0.75, epsilon=0.25, epsilon_place="uncorrected"), [gradient([2.0, 0.0, -3.0])])
    np.testing.assert_allclose(λ["l2"]["a/W"], [1.0 - 0.2 / 5**0.5, 2.0, 3.0 + 0.3 / 10**0.5], rtol=1e-15)


@pytest.mark.parametrize("settings", [{}, {"b1": 0.5, "b2": 0.9, "epsilon": 1e-3}])
def test_adam_is_optax_adam(settings):
    import jax
    import optax

    rng = np.random.default_rng(0)
    gradients = [gradient(rng.normal(size=3) * 10.0 ** rng.integers(-6, 6), float(rng.normal())) for _ in range(30)]
    ours, _ = walk(Adam(0.1, **settings), gradients)
    names = {"b1": "b1", "b2": "b2", "epsilon": "eps"}
    with jax.enable_x64(True):
        transform = optax.adam(0.1, **{names[k]: v for k, v in settings.items()})
        theirs = jax.tree.map(jax.numpy.asarray, hyper())
        state = transform.init(theirs)
        for h in gradients:
            updates, state = transform.update(jax.tree.map(jax.numpy.asarray, h), state)
            theirs = optax.apply_updates(theirs, updates)
    for kind, tensors in ours.items():
        for key, value in tensors.items():
            np.testing.assert_allclose(value, np.asarray(theirs[kind][key]), rtol=1e-12)


def test_adam_hips_has_the_inflated_steps_of_the_published_curves():
    """A constant h: step lengths in units of the rate are 1, 5.26, 3.69, 2.91, 2.44 …, down to 1."""
    rule = AdamHips(0.04)
    h = gradient([1e4, -1e4, 1e6], rate=1e4)  # so large that ε does not show
    λ, state, lengths = hyper(), rule.start(hyper()), []
    for _ in range(60):
        after, state = update(rule, FREE, λ, h, state)
        lengths.append((λ["l2"]["a/W"] - after["l2"]["a/W"]) / 0.04)
        λ = after
    np.testing.assert_allclose([one[0] for one in lengths[:5]], [1.0, 5.26, 3.69, 2.91, 2.44], atol=0.005)
    np.testing.assert_allclose([one[0] for one in lengths[1:]], [1 / (1 - 0.9**i) for i in range(2, 61)], rtol=1e-4)
    for one in lengths:
        np.testing.assert_allclose(one, one[0] * np.array([1.0, -1.0, 1.0]), rtol=1e-6)


def test_adam_hips_has_no_momentum():
    """From the second update on the first moment is the last h but for ℓⁱ; by hand: b₁ = .1, b = 1 − .9e-4."""
    _, state = walk(AdamHips(), [gradient([1.0, 1.0, 1.0]), gradient([0.0, -1.0, 2.0])])
    np.testing.assert_allclose(state.slots["m"]["l2"]["a/W"], (1 - 0.9e-4) * np.array([0.0, -1.0, 2.0]) + 0.9e-4 * 0.1)
    np.testing.assert_allclose(state.slots["s"]["l2"]["a/W"], 0.01 * np.array([0.0, 1.0, 4.0]) + 0.99 * 0.01)
    λ, _ = walk(AdamHips(0.5), [gradient([2.0, 0.0, -3.0])])
    np.testing.assert_allclose(λ["l2"]["a/W"], [1.0 - 1.0 / (2 + 1e-4), 2.0, 3.0 + 1.5 / (3 + 1e-4)], rtol=1e-12)


def test_moves_end_at_the_bounds_of_each_kind():
    declared = (L2(init=1.0, bounds=(1e-2, 1e2)), LearningRate(bounds=(1e-3, 1e-1)))
    start = {"l2": {"a/W": np.zeros(3)}, "learning_rate": {"network": np.array(np.log(0.01))}}
    λ, _ = walk(GradientDescent(1.0), [gradient([9.0, -9.0, 0.5], rate=-100.0)], start, declared)
    np.testing.assert_array_equal(λ["l2"]["a/W"], [-2.0, 2.0, -0.5])
    assert λ["learning_rate"]["network"] == np.log(1e-1)


def test_nothing_is_changed_in_place():
    λ, h = hyper(), gradient([1.0, 2.0, 3.0])
    state = SignMomentum().start(λ)
    update(SignMomentum(), FREE, λ, h, state)
    np.testing.assert_array_equal(λ["l2"]["a/W"], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(state.slots["u"]["l2"]["a/W"], np.zeros(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_refused_by_name(bad):
    λ = hyper()
    with pytest.raises(NumericalFailure, match=r"hypergradient of l2 for a/W \(1 of 3 coordinates\).* at step 4"):
        update(Sign(0.1), FREE, λ, gradient([1.0, bad, 2.0]), State(4))
    np.testing.assert_array_equal(λ["l2"]["a/W"], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "rule", [GradientDescent(0.1), Sign(0.1), SignMomentum(), Adam(0.1), AdamHips(0.1)], ids=lambda r: type(r).__name__
)
def test_a_walk_goes_on_from_a_file_bit_for_bit(rule, tmp_path):
    gradients = [gradient([1.0 / (k + 1), -k, 0.3 * k], k - 1.5) for k in range(6)]
    whole, end = walk(rule, gradients)
    half, state = walk(rule, gradients[:3])
    arrays.save_state(tmp_path / "state.npz", half, state)
    λ, state = arrays.load_state(tmp_path / "state.npz")
    for h in gradients[3:]:
        λ, state = update(rule, FREE, λ, h, state)
    assert state.count == end.count
    for kind, tensors in whole.items():
        for key, value in tensors.items():
            np.testing.assert_array_equal(λ[kind][key], value, strict=True)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: Sign(0.0), "0.0"),
        (lambda: GradientDescent(float("nan")), "nan"),
        (lambda: SignMomentum(mass=1.0), "1.0"),
        (lambda: Adam(b1=1.0), "1.0"),
        (lambda: Adam(epsilon=0.0), "0.0"),
        (lambda: Adam(epsilon_place="under"), "under"),
        (lambda: AdamHips(b1=0.0), "0.0"),
        (lambda: AdamHips(decay=2.0), "2.0"),
    ],
)
def test_settings_that_cannot_be(make, value):
    with pytest.raises(UsageError, match=value):
        make()
