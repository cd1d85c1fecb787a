"""Which states `Checkpoints` keeps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from hypertrail import Checkpoints, UsageError


@pytest.mark.parametrize("steps", [1, 2, 7, 31, 40, 100])
def test_as_many_states_as_were_asked_for(steps):
    """Distances that differ by one at most, the longer ones first: so two lengths are compiled, or one."""
    for n in range(1, steps + 1):
        at = Checkpoints(n).at(steps)
        gaps = [b - a for a, b in zip(at, [*at[1:], steps], strict=True)]
        assert (len(at), at[0], sum(gaps)) == (n, 0, steps)
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[0] - gaps[-1] <= (steps % n > 0)


def test_about_the_root_of_T_at_equal_distances():
    assert Checkpoints().at(11) == [0, 3, 6, 9]
    assert Checkpoints().at(1000) == list(range(0, 1000, 40))
    for steps in range(1, 400):
        at, root = Checkpoints().at(steps), math.isqrt(steps - 1) + 1
        assert len({b - a for a, b in pairwise(at)}) <= 1
        assert 2 * root / 3 - 1 < len(at) <= root, steps


def test_more_than_one_for_each_step_is_refused():
    with pytest.raises(UsageError, match="8 checkpoints for 7 steps"):
        Checkpoints(8).at(7)
    with pytest.raises(UsageError, match="checkpoints 0"):
        Checkpoints(0)
