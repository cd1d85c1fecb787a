"""A best point on the edge of its grid, axis by axis."""

from __future__ import annotations

from itertools import product

import pytest

from hypertrail.edges import edge

GRID = [{"learning_rate": α, "l2": λ} for α, λ in product((0.1, 0.3, 1.0), (1e-4, 1e-3, 1e-2))]


@pytest.mark.parametrize(
    ("best", "words"),
    [
        ({"learning_rate": 0.3, "l2": 1e-3}, ""),
        ({"learning_rate": 1.0, "l2": 1e-3}, "α 1 at the edge of the grid"),
        ({"learning_rate": 0.1, "l2": 1e-3}, "α 0.1 at the edge of the grid"),
        ({"learning_rate": 0.3, "l2": 1e-2}, "λ 0.01 at the edge of the grid"),
        ({"learning_rate": 1.0, "l2": 1e-4}, "α 1 and λ 0.0001 at the edge of the grid"),
    ],
)
def test_every_axis_has_two_ends(best, words):
    assert edge(GRID, best) == words


def test_a_single_value_is_no_choice_and_two_have_no_inside():
    assert edge([{"rate": 0.1}], {"rate": 0.1}) == ""
    assert edge([{"rate": 0.1}, {"rate": 0.2}], {"rate": 0.1}) == "α 0.1 at the edge of the grid"


def test_a_value_that_went_through_a_logarithm_is_still_the_last():
    assert edge(GRID, {"learning_rate": 1.0000000001, "l2": 1e-3}) == "α 1 at the edge of the grid"
