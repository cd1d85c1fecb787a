"""The hand-written adjoints and tangents of all dynamics against derivatives by a complex step, and the rules in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail import Dynamics
from hypertrail.problem import DYNAMICS as KINDS
from hypertrail_cpu.dynamics import DYNAMICS, rule
from hypertrail_cpu.forward import TANGENTS, tangent_rule

SHAPE = (4, 3)
RATES = {"scalar": (), "per unit": (3,), "per input": (4, 1), "per parameter": SHAPE}
STEP = 2  # of which Adam's bias correction is taken


def point(kind, rates, rng):
    """(w, v, g, α, γ) somewhere; Adam's second moment is positive."""
    w, v, g = (rng.standard_normal(SHAPE) for _ in range(3))
    if kind == "adam":
        v = np.stack([v, v**2])
    return [w, v, g, *(rng.uniform(0.1, 0.9, RATES[rates]) for _ in range(2))]


def slope(advance, arguments, directions):
    """d/dε of the step at arguments + ε directions: Im f(x + iεd)/ε has no cancellation, so ε may be as small as one likes."""
    return [one.imag / 1e-30 for one in advance(*(x + 1e-30j * d for x, d in zip(arguments, directions, strict=True)))]


def test_every_kind_has_its_rules():
    assert {*DYNAMICS, "adam"} == {*TANGENTS, "adam"} == set(KINDS)


def published_adam(w, gradients, alpha, beta1, beta2, epsilon):
    """α_t = α √(1−β₂^t) / (1−β₁^t), w ← w − α_t m / √(s + ε), t from 1: ε beside the uncorrected second moment."""
    m = s = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g**2
        w = w - alpha * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / np.sqrt(s + epsilon)
    return w


def test_epsilon_beside_the_uncorrected_second_moment():
    """At ε = 1e-3 and gradients of size .1 the two places lead to other weights."""
    rng = np.random.default_rng(0)
    w0, gradients = rng.standard_normal(SHAPE), 0.1 * rng.standard_normal((5, *SHAPE))
    ends = {}
    for place in ("corrected", "uncorrected"):
        dynamics = Dynamics("adam", 0.1, 0.8, second_momentum=0.9, epsilon=1e-3, epsilon_place=place)
        w, v = w0, np.zeros((2, *SHAPE))
        for t, g in enumerate(gradients):
            w, v = rule(dynamics, t).advance(w, v, g, 0.1, 0.8)
        ends[place] = w
    expected = published_adam(w0, gradients, 0.1, 0.8, 0.9, 1e-3)
    np.testing.assert_allclose(ends["uncorrected"], expected, rtol=1e-13)
    assert np.abs(ends["corrected"] - expected).max() > 1e-2


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_against_derivatives(kind, rates):
    """Each argument in a random direction; the cotangents come from the random linear form ⟨a, w'⟩ + ⟨b, v'⟩."""
    advance, adjoint = rule(Dynamics(kind, epsilon=1e-3), STEP)
    rng = np.random.default_rng(0)
    arguments = point(kind, rates, rng)
    a, b = rng.standard_normal(SHAPE), rng.standard_normal(arguments[1].shape)
    dw, dv, u, dalpha, dgamma = adjoint(*arguments[1:], a, b)
    assert dalpha.shape == dgamma.shape == SHAPE
    for position, cotangent in enumerate((dw, dv, u, dalpha, dgamma)):
        directions = [np.zeros(np.shape(x)) for x in arguments]
        directions[position] = rng.standard_normal(np.shape(arguments[position]))
        w_dot, v_dot = slope(advance, arguments, directions)
        expected = np.sum(a * w_dot) + np.sum(b * v_dot)
        assert np.sum(cotangent * directions[position]) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_tangent_against_derivatives(kind, rates):
    """All arguments at once."""
    dynamics = Dynamics(kind, epsilon=1e-3)
    rng = np.random.default_rng(0)
    arguments = point(kind, rates, rng)
    directions = [rng.standard_normal(np.shape(x)) for x in arguments]
    found = tangent_rule(dynamics, STEP)(*arguments[1:], tuple(directions))
    for ours, theirs in zip(found, slope(rule(dynamics, STEP).advance, arguments, directions), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_rules_by_hand():
    """One step in numbers."""
    assert DYNAMICS["damped"].advance(1.0, 2.0, 4.0, 0.5, 0.75) == (1.0 + 0.5 * 0.5, 0.75 * 2 - 0.25 * 4)
    assert DYNAMICS["damped-old"].advance(1.0, 2.0, 4.0, 0.5, 0.75) == (1.0 + 0.5 * 2.0, 0.75 * 2 - 0.25 * 4)
    assert DYNAMICS["heavy-ball"].advance(1.0, 2.0, 4.0, 0.5, 0.75) == (1.0 - 0.5 * 5.5, 0.75 * 2 + 4)
    assert DYNAMICS["nesterov"].advance(1.0, 2.0, 4.0, 0.5, 0.75) == (1.0 - 0.5 * (4 + 0.75 * 5.5), 0.75 * 2 + 4)
    # m = 1/4 · 4 = 1, m̂ = 1 / (1 − 3/4) = 4; s = ½ · 16 = 8, ŝ = 16; ε = 9: 4 / √25
    first = rule(Dynamics("adam", second_momentum=0.5, epsilon=9.0), 0)
    w, v = first.advance(np.array(1.0), np.zeros(2), np.array(4.0), 0.5, 0.75)
    assert (float(w), v.tolist()) == (1.0 - 0.5 * 4 / 5, [1.0, 8.0])


def test_weight_without_a_gradient_has_a_finite_adjoint_under_adam():
    """m = s = g = 0, a dead pixel: with ε outside the root d√ŝ would be infinite here, and 0 · ∞ is NaN."""
    adjoint = rule(Dynamics("adam"), 0).adjoint
    nothing = adjoint(np.zeros((2, 1)), np.zeros(1), 0.1, 0.9, np.ones(1), np.zeros((2, 1)))
    assert all(np.isfinite(one).all() for one in nothing)
    assert nothing[2][0] == pytest.approx(-0.1 * 1e4)  # u = −α / √ε


def test_damped_is_heavy_ball_in_other_words():
    """With constant γ: η = α (1−γ), μ = γ and buffer −v / (1−γ)."""
    rng = np.random.default_rng(1)
    w = w_other = rng.standard_normal(SHAPE)
    v = buffer = np.zeros(SHAPE)
    for _ in range(5):
        g = rng.standard_normal(SHAPE)
        w, v = DYNAMICS["damped"].advance(w, v, g, 0.3, 0.8)
        w_other, buffer = DYNAMICS["heavy-ball"].advance(w_other, buffer, g, 0.3 * 0.2, 0.8)
    np.testing.assert_allclose(w, w_other, rtol=1e-13)
    np.testing.assert_allclose(v, -0.2 * buffer, rtol=1e-13)


def test_old_velocity_is_the_new_one_a_step_late():
    """On gradients that do not depend on w: w'_{t+1} of 'damped-old' is w_t of 'damped'."""
    rng = np.random.default_rng(2)
    w = late = rng.standard_normal(SHAPE)
    v = v_late = np.zeros(SHAPE)
    for _ in range(5):
        g, before = rng.standard_normal(SHAPE), w
        w, v = DYNAMICS["damped"].advance(w, v, g, 0.3, 0.8)
        late, v_late = DYNAMICS["damped-old"].advance(late, v_late, g, 0.3, 0.8)
        np.testing.assert_allclose(late, before, rtol=1e-14)
        np.testing.assert_array_equal(v, v_late)
