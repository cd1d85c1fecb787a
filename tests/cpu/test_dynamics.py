"""The hand-written adjoints of the two dynamics against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail_cpu.dynamics import DYNAMICS

EPS = 0.5  # a step is linear in each argument by itself, so a central difference of any size is exact
SHAPE = (4, 3)
RATES = {"scalar": (), "per unit": (3,), "per input": (4, 1), "per parameter": SHAPE}


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("kind", DYNAMICS)
def test_adjoint_against_finite_differences(kind, rates):
    """Each argument in a random direction; the cotangents come from the random linear form ⟨a, w'⟩ + ⟨b, v'⟩."""
    advance, adjoint = DYNAMICS[kind]
    rng = np.random.default_rng(0)
    w, v, g, a, b = (rng.standard_normal(SHAPE) for _ in range(5))
    alpha, gamma = rng.uniform(0.1, 0.9, RATES[rates]), rng.uniform(0.1, 0.9, RATES[rates])

    def form(*arguments):
        w_next, v_next = advance(*arguments)
        return np.sum(a * w_next) + np.sum(b * v_next)

    dw, dv, u, dalpha, dgamma = adjoint(v, g, alpha, gamma, a, b)
    assert dalpha.shape == dgamma.shape == SHAPE
    arguments = [w, v, g, alpha, gamma]
    for position, cotangent in enumerate((dw, dv, u, dalpha, dgamma)):
        direction = rng.standard_normal(np.shape(arguments[position]))
        moved = [
            [x + sign * EPS * direction if i == position else x for i, x in enumerate(arguments)] for sign in (1, -1)
        ]
        expected = (form(*moved[0]) - form(*moved[1])) / (2 * EPS)
        assert np.sum(cotangent * direction) == pytest.approx(expected, rel=1e-12)


def test_rules_by_hand():
    """One step in numbers."""
    assert DYNAMICS["damped"][0](1.0, 2.0, 4.0, 0.5, 0.75) == (1.0 + 0.5 * 0.5, 0.75 * 2 - 0.25 * 4)
    assert DYNAMICS["heavy-ball"][0](1.0, 2.0, 4.0, 0.5, 0.75) == (1.0 - 0.5 * 5.5, 0.75 * 2 + 4)


def test_damped_is_heavy_ball_in_other_words():
    """With constant γ: η = α (1−γ), μ = γ and buffer −v / (1−γ)."""
    rng = np.random.default_rng(1)
    w = w_other = rng.standard_normal(SHAPE)
    v = buffer = np.zeros(SHAPE)
    for _ in range(5):
        g = rng.standard_normal(SHAPE)
        w, v = DYNAMICS["damped"][0](w, v, g, 0.3, 0.8)
        w_other, buffer = DYNAMICS["heavy-ball"][0](w_other, buffer, g, 0.3 * 0.2, 0.8)
    np.testing.assert_allclose(w, w_other, rtol=1e-13)
    np.testing.assert_allclose(v, -0.2 * buffer, rtol=1e-13)
