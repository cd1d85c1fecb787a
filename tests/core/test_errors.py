"""What failures say, in one line, and that they come out of another process as they went in."""

from __future__ import annotations

import pickle

import pytest

from hypertrail.errors import NotSolved, NumericalFailure, OutOfRange


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (NumericalFailure("hyper loss", 3), "hyper loss is not finite at step 3"),
        (NumericalFailure("hyper loss", 3, "lower it"), "hyper loss is not finite at step 3; lower it"),
        (OutOfRange("w_0", 0, "lower it"), "w_0 left the fixed point range at step 0; lower it"),
        (
            NotSolved("residual 1e-06, tolerance 1e-08; give damping", 112),
            "residual 1e-06, tolerance 1e-08; give damping",
        ),
    ],
)
def test_what_is_said_survives_a_pickle(failure, said):
    again = pickle.loads(pickle.dumps(failure))
    assert type(again) is type(failure)
    assert str(failure) == str(again) == said
    assert (again.quantity, again.step, again.hint) == (failure.quantity, failure.step, failure.hint)
    assert again.exit_code == NumericalFailure.exit_code == 3
