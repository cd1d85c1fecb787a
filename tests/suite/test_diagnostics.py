"""Agreement of two hypergradients: known angles, zeros, extremes, kinds apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hypertrail.diagnostics import agree, agreement, as_json


def one(a, b):
    return agree([(np.array(a, dtype=float), np.array(b, dtype=float))])


def test_known_angle_and_length():
    found = one([1.0, 1.0], [2.0, 0.0])
    assert found.cosine == pytest.approx(np.sqrt(0.5), rel=1e-15)
    assert found.norm_ratio == pytest.approx(np.sqrt(2) / 2, rel=1e-15)
    assert found.difference == pytest.approx(np.sqrt(2) / 2, rel=1e-15)
    assert found.signs == 0.5  # (1, 2) agree, (1, 0) do not
    assert (found.norm, found.reference_norm, found.size) == (pytest.approx(np.sqrt(2)), 2.0, 2)


def test_equal_and_opposite():
    same, opposite = one([3.0, -4.0], [3.0, -4.0]), one([3.0, -4.0], [-3.0, 4.0])
    assert (same.cosine, same.signs, same.norm_ratio, same.difference) == (1.0, 1.0, 1.0, 0.0)
    assert (opposite.cosine, opposite.signs, opposite.norm_ratio, opposite.difference) == (-1.0, 0.0, 1.0, 2.0)


def test_zeros_agree_with_zeros_only():
    assert one([0.0, 0.0, 1.0, -1.0], [0.0, 2.0, 0.0, -3.0]).signs == 0.5


@pytest.mark.parametrize(
    ("a", "b", "cosine", "ratio", "difference"),
    [
        ([0.0], [0.0], None, 1.0, 0.0),
        ([0.0], [2.0], None, 0.0, 1.0),
        ([2.0], [0.0], None, None, 1.0),
        ([], [], None, 1.0, 0.0),
    ],
)
def test_zero_norms_have_explicit_values(a, b, cosine, ratio, difference):
    found = one(a, b)
    assert (found.cosine, found.norm_ratio, found.difference) == (cosine, ratio, difference)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extremely_small_and_large_gradients_keep_their_angle(scale):
    found = one([scale, scale], [scale, 0.0])
    assert found.cosine == pytest.approx(np.sqrt(0.5), rel=1e-14)
    assert found.norm_ratio == pytest.approx(np.sqrt(2), rel=1e-14)
    assert found.difference == pytest.approx(np.sqrt(0.5), rel=1e-14)


def test_layers_and_total_kind_by_kind():
    a = {"l2": {"x/W": np.ones((2, 2)), "y/W": np.array([1.0])}, "momentum": {"network": np.array(-2.0)}}
    b = {"l2": {"x/W": np.ones((2, 2)), "y/W": np.array([-1.0])}, "momentum": {"network": np.array(-1.0)}}
    found = agreement(a, b)
    assert list(found) == ["l2", "momentum"]
    assert list(found["l2"].layers) == ["x/W", "y/W"]
    assert found["l2"].layers["x/W"].cosine == 1.0
    assert found["l2"].layers["y/W"].cosine == -1.0
    assert found["l2"].total.cosine == pytest.approx(3 / 5)
    assert found["l2"].total.signs == 4 / 5
    assert found["momentum"].total.norm_ratio == 2.0
    again = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert again["l2"]["layers"]["y/W"]["signs"] == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="tensors differ"):
        agreement({"l2": {"x": np.ones(1)}}, {"l2": {"y": np.ones(1)}})
    with pytest.raises(ValueError, match="2 and 3 coordinates"):
        agreement({"l2": {"x": np.ones(2)}}, {"l2": {"x": np.ones(3)}})
    with pytest.raises(ValueError, match="NaN"):
        one([np.nan], [1.0])
