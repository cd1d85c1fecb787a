"""When a finite training counts as lost."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail.blown_up import blown_up, norm


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((20.0, 25.0, 2.3, 0.1), None),
        ((20.0, 4e28, 2.3, 2.3), "‖w‖ grew from 20 to 4e+28, more than 10000 times"),
        ((20.0, 1.9e5, 2.3, 2.3), None),
        ((20.0, 25.0, 2.3, 1e6), "the loss rose from 2.3 to 1e+06, more than 1000 times"),
        ((0.0, 50.0, 2.3, 0.1), None),
        ((0.0, 2e4, 2.3, 0.1), "‖w‖ grew from 0 to 2e+04, more than 10000 times"),
        ((20.0, 25.0, 1e-6, 0.5), None),
    ],
    ids=str,
)
def test_norm_and_loss_have_a_limit_each(ends, words):
    assert blown_up(*ends) == words


def test_the_norm_is_that_of_all_weights_in_float64():
    weights = {"a/W": np.full((2, 2), 3e28, np.float32), "b": np.array([8e28], np.float32)}
    assert norm(weights) == pytest.approx(1e29, rel=1e-6), "squares would overflow in float32"
