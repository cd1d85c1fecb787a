"""Every image and every label enters through Dataset, which refuses by name what does not belong."""

import tracemalloc
from dataclasses import replace
from decimal import Decimal

import h5py
import numpy as np
import pytest

from hypertrail_data import DataError, Dataset, make_splits

X = np.random.default_rng(0).integers(0, 256, (12, 4, 3, 2), dtype=np.uint8)
Y = np.arange(12) % 3


def refused(x=X, y=Y, classes=3, name="mine", **options):
    """The one line that the refusal says."""
    with pytest.raises(DataError) as caught:
        Dataset(name, x, y, classes, **options)
    assert caught.value.exit_code == 4
    said = str(caught.value)
    assert "\n" not in said
    return said


# Labels


def test_a_label_of_minus_one():
    y = Y.copy()
    y[7] = y[9] = -1
    assert refused(y=y).startswith("y: row 7 has the label -1, expected 0 .. 2;")


def test_labels_from_one_on():
    assert refused(y=Y + 1).endswith(
        "row 2 has the label 3, expected 0 .. 2; the labels are 1 .. 3: subtract 1 from all of them"
    )


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (
            Y[:, None],
            "y has the shape (12, 1) and the dtype int64, expected one integer per image, of shape (N,); pass y[:, 0]",
        ),
        (np.eye(3, dtype=np.uint8)[Y], "one-hot: pass y.argmax(axis=1)"),
        (np.eye(3)[Y], "one-hot: pass y.argmax(axis=1)"),
        (np.eye(3, dtype=bool)[Y], "one-hot: pass y.argmax(axis=1)"),
        (
            np.ones((12, 5), int),
            "tokens for instance, have no form here: for other losses and other kinds of label use",
        ),
        (np.full((12, 3), 0.5), "a regression target has no form here: for other losses"),
        (Y[:, None, None], "arrange them so"),
        (3, "y has the shape ()"),
        (Y.astype(np.float32), "whole numbers: pass y.astype(np.int32)"),
        (Y + 0.5, "row 0 is 0.5: a regression target has no form here"),
        (np.where(Y == 2, np.nan, Y), "row 2 is nan: a regression target"),
        (Y == 1, "y.astype(np.int32), where False is class 0"),
        (np.array(["a", "b", "c"])[Y], "np.unique(y, return_inverse=True)[1]"),
        (np.array(["a", 1, None], object)[Y], "np.unique(y, return_inverse=True)[1]"),
        (Y.astype(complex), "number the classes 0 .. K - 1"),
        (np.full(12, "2020-01-01", "M8[D]"), "number the classes 0 .. K - 1"),
        (np.ma.masked_equal(Y, 1), "y has 4 masked entries"),
        (Y[:-1], "x has 12 images and y has 11 labels"),
        ([], "expected integers"),
        ([[0, 1], [2]], "y cannot be made an array"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_labels_of_another_form(y, said):
    assert said in refused(y=y)


@pytest.mark.parametrize(
    ("dtype", "bad"), [(np.uint64, 2**64 - 1), (np.uint64, 2**32), (np.int64, 2**32 + 1), (np.uint32, 2**31)]
)
def test_labels_that_would_wrap(dtype, bad):
    y = Y.astype(dtype)
    y[5] = bad
    assert f"row 5 has the label {bad}" in refused(y=y)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, ">i4", np.int64, np.uint64, list])
def test_labels_of_every_integer_dtype(dtype):
    y = Y.tolist() if dtype is list else Y.astype(dtype)
    dataset = Dataset("mine", X, y, 1000)
    assert dataset.y.dtype == np.int32
    assert dataset.y.dtype.isnative
    assert np.array_equal(dataset.y, Y)


# Images


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixels_that_are_not_finite(value, dtype):
    x = X.astype(dtype)
    x[3, 2, 1, 1] = x[8, 0, 0, 0] = value
    said = refused(x=x)
    assert f"x: row 3 has the pixel {value} at line 2, column 1, channel 1 (2 in all are NaN or infinite)" in said


def test_a_pixel_in_the_last_block_that_is_not_finite():
    x = np.zeros((5000, 16, 16, 1), np.float32)
    x[4999, 15, 15, 0] = np.nan
    assert "row 4999 has the pixel nan at line 15, column 15, channel 0 (1 in all" in refused(
        x=x, y=np.zeros(5000, int)
    )


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (
            X.astype(complex),
            "x has the dtype complex128, expected bool, integers, float16, float32 or float64; convert it",
        ),
        (X.astype(object), "x has the dtype object"),
        (X.astype(str), "x has the dtype <U3"),
        (X.astype(np.longdouble), f"x has the dtype {np.dtype(np.longdouble)}"),
        (np.zeros((12, 1, 1, 1), [("a", float)]), "x has the dtype [('a', '<f8')]"),
        (np.ma.masked_greater(X, 254), "masked entries, expected none"),
        (
            X[..., 0],
            "x has the shape (12, 4, 3), expected (N, H, W, C) with no empty axis; for images of one channel pass x[..., None]",
        ),
        (X[:, :, 0, 0], "pass x.reshape(12, 1, 1, 4): each feature is then standardised by itself"),
        (X[None], "x has the shape (1, 12, 4, 3, 2)"),
        (X[:0], "x has the shape (0, 4, 3, 2), expected (N, H, W, C) with no empty axis; give at least one image"),
        (X[:, :0], "x has the shape (12, 0, 3, 2)"),
        ([], "x has the shape (0,)"),
        (None, "x has the dtype object"),
        ([[1, 2], [3]], "x cannot be made an array"),
        (X + np.int64(2**40), "expected integers in -65535 .. 65535; for larger values pass x.astype(np.float32)"),
        (X.astype(np.int32) - 65536, "x: row 3 has the pixel -65536"),
        (X.astype(np.uint64) + np.uint64(2**63), "x: row 0 has the pixel 9223372036854"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_images_of_another_form(x, said):
    assert said in refused(x=x)


@pytest.mark.parametrize(
    ("x", "dtype", "scale"),
    [
        (X, np.uint8, 255),
        (X.astype(">u2"), np.uint16, 65535),
        (X.astype(np.int16) - 300, np.int16, 1),
        (X.astype(np.int64), np.int64, 1),
        (X > 100, np.uint8, 1),
        (X.astype(np.float16), np.float16, 1),
        (X.astype(">f4"), np.float32, 1),
        (X.astype(float).tolist(), np.float64, 1),
        (X.transpose(0, 2, 1, 3)[::-1, ::2], np.uint8, 255),
        (np.ma.masked_greater(X, 300), np.uint8, 255),
    ],
    ids=["uint8", "uint16", "int16", "int64", "bool", "float16", "float32", "list", "view", "nothing masked"],
)
def test_images_of_every_dtype(x, dtype, scale):
    dataset = Dataset("mine", x, Y, 3)
    assert (dataset.x.dtype, dataset.scale) == (dtype, scale)
    assert dataset.x.dtype.isnative
    assert np.array_equal(dataset.x, np.asarray(x))


def test_an_h5py_dataset(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = X, Y
        dataset = Dataset("mine", file["x"], file["y"], 3)
    assert np.array_equal(dataset.x, X)
    assert np.array_equal(dataset.y, Y)


def test_arrays_are_read_only_views():
    x, y = X.copy(), Y.astype(np.int32)
    dataset = Dataset("mine", x, y, 3)
    assert np.shares_memory(dataset.x, x)
    assert np.shares_memory(dataset.y, y)
    for array in (dataset.x, dataset.y):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    x[0] = 1  # the caller's own stays as it was
    again = replace(dataset, name="again")
    assert np.shares_memory(again.x, x)


# The rest


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 1},
        {"classes": 3.0},
        {"classes": True},
        {"classes": "3"},
        {"classes": 2**31},
        {"classes": 10**5000},
        {"classes": np.ones((30, 30))},
        {"scale": np.ones((30, 30))},
        {"notes": 3},
        {"official_test": -1},
        {"official_test": 13},
        {"official_test": 2.0},
        {"official_test": True},
        {"scale": 0},
        {"scale": -1.0},
        {"scale": np.nan},
        {"scale": np.inf},
        {"scale": 10**400},
        {"scale": True},
        {"scale": "255"},
        {"scale": Decimal(2)},
        {"name": ""},
        {"name": "a\nb"},
        {"name": "\x1b[31m"},
        {"name": 3},
        {"notes": "one sentence"},
        {"notes": ("two\nlines",)},
        {"notes": (3,)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_arguments(options):
    if "classes" in options:
        assert "classes is" in refused(**options)
    else:
        assert "expected" in refused(**options)


def test_numpy_numbers_are_numbers():
    dataset = Dataset("ünï 字", X, Y, np.int64(3), np.uint8(4), np.float32(0.5), ["One.", "Two."])
    assert (dataset.classes, dataset.official_test, dataset.scale) == (3, 4, 0.5)
    assert [type(value) for value in (dataset.classes, dataset.official_test, dataset.scale)] == [int, int, float]
    assert dataset.notes == ("One.", "Two.")


def test_only_a_dataset_is_split():
    class Like:
        name, x, y, classes, official_test, scale, notes = "like", X, Y - 1, 3, 0, 255, ()

    with pytest.raises(DataError, match="the data set is a Like, expected a Dataset"):
        make_splits(Like(), 4, 4, 0, 4, seed=0)


def test_checks_make_no_copy_of_the_images():
    x, y = np.ones((2000, 28, 28, 1), np.float32), np.zeros(2000, np.int32)
    tracemalloc.start()
    try:
        Dataset("mine", x, y, 2)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 4
    finally:
        tracemalloc.stop()
