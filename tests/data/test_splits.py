"""Disjoint, reproducible, standardised by what the train split alone knows."""

import numpy as np
import pytest

from hypertrail_data import Dataset, load, make_splits

NAMES = ("train", "valid", "select", "test")


def tiny(official_test: int) -> Dataset:
    x = np.random.default_rng(0).integers(0, 256, size=(100, 3, 2, 3), dtype=np.uint8)
    x[..., 2] = 77  # a channel that says nothing
    x[:, 0, 0, 0] = np.arange(100)
    return Dataset("tiny", x, np.arange(100, dtype=np.int32) % 4, classes=4, official_test=official_test)


@pytest.mark.parametrize("official_test", [0, 30])
def test_rows_are_disjoint_and_carry_their_data(official_test):
    dataset = tiny(official_test)
    splits = make_splits(dataset, 40, 20, 10, 30, seed=3, standardise=False)
    rows = np.concatenate([getattr(splits, name).rows for name in NAMES])
    assert sorted(rows) == list(range(100))
    for name, size in zip(NAMES, (40, 20, 10, 30), strict=True):
        split = getattr(splits, name)
        assert len(split) == size
        assert (split.x.dtype, split.y.dtype, split.rows.dtype) == (np.float32, np.int32, np.int64)
        assert np.array_equal(split.x, dataset.x[split.rows].astype(np.float32) / np.float32(255))
        assert np.array_equal(split.y, dataset.y[split.rows])
    if official_test:
        assert sorted(splits.test.rows) == list(range(70, 100))
    else:
        assert splits.test.rows.min() < 70


@pytest.mark.parametrize("official_test", [0, 30])
def test_a_test_split_with_a_seed_of_its_own(official_test):
    """The same test rows for every seed and in no other split; without it they are the seed's, as they were."""
    several = [make_splits(tiny(official_test), 40, 20, 10, 25, seed, test_seed=7) for seed in range(3)]
    for one in several:
        assert np.array_equal(one.test.rows, several[0].test.rows)
        rows = np.concatenate([getattr(one, name).rows for name in NAMES])
        assert len(set(rows)) == 95
    assert sorted(several[0].train.rows) != sorted(several[1].train.rows)
    plain, again = (make_splits(tiny(official_test), 40, 20, 10, 25, seed=3, test_seed=x) for x in (None, 3))
    assert sorted(plain.test.rows) != sorted(several[0].test.rows)
    assert sorted(again.test.rows) != sorted(several[0].test.rows)


def test_train_alone_sets_mean_and_std():
    dataset = tiny(0)
    splits = make_splits(dataset, 60, 20, 0, 20, seed=1)
    pixels = (dataset.x[splits.train.rows] / 255.0).reshape(-1, 3)
    assert splits.mean.dtype == splits.std.dtype == np.float32
    np.testing.assert_allclose(splits.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(splits.std[:2], pixels[:, :2].std(axis=0), rtol=1e-6)
    assert splits.std[2] == 1
    np.testing.assert_allclose(splits.train.x[..., 2], 0, atol=1e-6)
    np.testing.assert_allclose(splits.train.x[..., :2].mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(splits.train.x[..., :2].std(axis=(0, 1, 2)), 1, atol=1e-6)
    # The other splits go through the same two numbers, not through their own.
    raw = make_splits(dataset, 60, 20, 0, 20, seed=1, standardise=False)
    np.testing.assert_allclose(splits.test.x, (raw.test.x - splits.mean) / splits.std, rtol=1e-5, atol=1e-6)
    assert raw.mean.tolist() == [0, 0, 0]
    assert raw.std.tolist() == [1, 1, 1]


def test_seed_and_sizes():
    dataset = tiny(0)
    a, b, c = (make_splits(dataset, 40, 20, 0, 30, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(a.test.x, b.test.x)
    assert not np.array_equal(a.train.rows, c.train.rows)
    assert a.select.x.shape == (0, 3, 2, 3)
    other = make_splits(dataset, 40, 10, 15, 5, seed=0)
    assert np.array_equal(a.train.rows, other.train.rows)  # the others' sizes do not move the train split


def test_digits_scale_by_sixteen():
    splits = make_splits(load("digits"), 1000, 300, 97, 400, seed=0, standardise=False)
    assert splits.train.x.max() == 1
    assert splits.train.x.shape == (1000, 8, 8, 1)
    assert (splits.name, splits.classes) == ("digits", 10)


@pytest.mark.parametrize(
    ("official_test", "sizes", "message"),
    [
        (0, (50, 30, 10, 11), r"asks for 101 rows, but tiny has 100 rows"),
        (30, (50, 20, 1, 30), r"train \+ valid \+ select asks for 71 rows, but tiny has 70 rows outside"),
        (30, (50, 20, 0, 31), r"test asks for 31 rows, but tiny has 30 rows in its official test set"),
        (0, (50, -1, 0, 30), r"valid -1"),
        (0, (0, 10, 0, 30), r"train 0"),
    ],
)
def test_too_many_rows(official_test, sizes, message):
    with pytest.raises(ValueError, match=message):
        make_splits(tiny(official_test), *sizes, seed=0)
