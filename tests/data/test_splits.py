"""Disjoint, reproducible, standardised by what the train split alone knows."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hypertrail_data import DataError, Dataset, Split, Splits, load, make_splits, recording

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


# Images of other dtypes


def images_of(x: np.ndarray, scale=None) -> Dataset:
    return Dataset("made", x, np.arange(len(x)) % 2, 2, scale=scale)


NORMAL = np.random.default_rng(1).normal(size=(200, 5, 4, 3))
SIXTEEN = (NORMAL * 20).astype(np.int16)


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(1).random((200, 5, 4, 3)).astype(np.float32),
        np.random.default_rng(1).random((200, 5, 4, 3)).astype(np.float16),
        np.random.default_rng(1).integers(0, 256, (200, 5, 4, 3)).astype(np.float32),
        NORMAL,
        1e9 + NORMAL,
        1e300 * NORMAL,
        1e-300 * NORMAL,
        NORMAL * (1e-5, 1, 1e5) + (-1e3, 0, 1e8),
        np.random.default_rng(1).integers(-300, 300, (200, 5, 4, 3)).astype(np.int16),
        np.random.default_rng(1).integers(0, 65536, (200, 5, 4, 3)).astype(np.uint16),
        NORMAL > 0,
    ],
    ids=["0 .. 1", "half", "0 .. 255", "done", "1e9", "1e300", "1e-300", "mixed", "int16", "uint16", "bool"],
)
def test_images_are_standardised_whatever_their_range(x):
    splits = make_splits(images_of(x), 120, 40, 20, 20, seed=0)
    assert splits.train.x.dtype == np.float32
    pixels = splits.train.x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(pixels.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(pixels.std(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(splits.seen["mean"], pixels.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(splits.seen["std"], pixels.std(axis=0), rtol=1e-12)
    assert splits.mean.dtype == (np.float32 if x.dtype.itemsize == 1 else np.float64)


def test_a_float_channel_that_never_changes_in_train():
    x = NORMAL.astype(np.float32)
    x[..., 1] = 0.1
    splits = make_splits(images_of(x), 200, 0, 0, 0, seed=0)
    assert (splits.mean[1], splits.std[1]) == (np.float64(np.float32(0.1)), 1)
    assert not splits.train.x[..., 1].any()
    assert (splits.seen["mean"][1], splits.seen["std"][1]) == (0, 0)


def test_integer_images_keep_their_bits():
    """float32 arithmetic and integer moments, as written down before floats were taken."""
    rows = make_splits(load("digits"), 1000, 300, 97, 400, seed=0).train.rows
    pixels = load("digits").x[rows].astype(np.int64)
    n = pixels.size
    mean = int(pixels.sum()) / (n * 16)
    std = np.sqrt((n * int((pixels**2).sum()) - int(pixels.sum()) ** 2) / (n * 16) ** 2)
    expected = pixels.astype(np.float32) / np.float32(16)
    expected = (expected - np.float32(mean)) / np.float32(std)
    splits = make_splits(load("digits"), 1000, 300, 97, 400, seed=0)
    assert splits.train.x.tobytes() == expected.tobytes()
    assert (splits.mean.tobytes(), splits.std.tobytes()) == (np.float32(mean).tobytes(), np.float32(std).tobytes())


WIDE = [np.uint16, np.int16, np.int32, np.uint64]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("scale", [None, 1, 3, 0.1, 1e-200, 1e200])
def test_wide_integers_with_a_large_offset_keep_their_digits(dtype, scale):
    """Two neighbouring values around a large one are 1 apart in 65535, which float32 could not tell well."""
    largest = min(65535, np.iinfo(dtype).max)
    x = (largest - np.random.default_rng(2).integers(0, 2, (60, 4, 4, 2))).astype(dtype)
    splits = make_splits(images_of(x, scale), 60, 0, 0, 0, seed=0)
    pixels = x[splits.train.rows].astype(np.float64)
    expected = (pixels - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))
    np.testing.assert_allclose(splits.train.x, expected, rtol=1e-6)
    np.testing.assert_allclose(splits.seen["mean"], 0, atol=1e-7)
    assert splits.mean.dtype == splits.std.dtype == np.float64


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("scale", [None, 0.1, 3])
def test_a_wide_channel_that_never_changes(dtype, scale):
    x = np.full((7, 3, 3, 1), 12345, dtype)
    splits = make_splits(images_of(x, scale), 7, 0, 0, 0, seed=0)
    assert splits.std.tolist() == [1]
    assert not splits.train.x.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool])
def test_images_of_one_byte_are_computed_in_float32(dtype):
    x = np.random.default_rng(1).integers(0, 100, (60, 4, 4, 2)).astype(dtype)
    dataset = images_of(x)
    splits = make_splits(dataset, 60, 0, 0, 0, seed=0)
    assert splits.mean.dtype == splits.std.dtype == np.float32
    pixels = dataset.x[splits.train.rows].astype(np.float32)
    expected = (pixels / np.float32(dataset.scale) - splits.mean) / splits.std
    assert splits.train.x.tobytes() == expected.tobytes()


def test_integer_moments_do_not_overflow():
    x = np.full((3, 4, 4, 1), 65535, np.int64)
    x[0, 0, 0] = -65535
    splits = make_splits(images_of(x), 3, 0, 0, 0, seed=0)
    np.testing.assert_allclose([splits.mean[0], splits.std[0]], [x.mean(), x.std()], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "options", "said"),
    [
        (
            1e300 * NORMAL,
            {"standardise": False},
            r"made: after \(pixel / 1 - mean\) / std in float32, .*row 0 has the pixel -?inf",
        ),
        (1e-320 * NORMAL, {}, r"the std of channel 0 in train is .*e-32\d, too small to divide by"),
        (NORMAL, {"scale": 1e-320}, "scale is 1e-320, expected a number in"),
        (1e10 * NORMAL, {"scale": 1e-300}, "made: after"),
        (SIXTEEN.astype(np.int8), {"scale": 1e300}, r"scale is 1e\+300, expected a number in 1.18e-38 .. 3.4e\+38"),
        (SIXTEEN, {"scale": 1e-38 * 2, "standardise": False}, "float32, with mean"),
        (
            (NORMAL > 0).astype(np.int16),
            {"scale": 10**308},
            "the std of channel 0 in train is .*, too small to divide by in float64",
        ),
        (SIXTEEN, {"scale": 2.3e-308}, "made: after"),
        (1.7e308 * np.sign(NORMAL), {}, "made: "),
    ],
    ids=["large", "small", "scale", "scaled", "scale of integers", "scaled integers", "tiny", "huge", "largest"],
)
def test_what_float32_cannot_hold(x, options, said):
    dataset = images_of(x, options.get("scale"))
    with pytest.raises(DataError, match=said):
        make_splits(dataset, 150, 20, 10, 20, seed=0, standardise=options.get("standardise", True))


@pytest.mark.parametrize("bad", [2.0, "2", True, None, np.float32(2)])
def test_sizes_and_seeds_are_integers(bad):
    for sizes in ((bad, 1, 1, 1), (1, 1, 1, bad)):
        with pytest.raises(ValueError, match="split sizes are"):
            make_splits(tiny(0), *sizes, seed=0)
    with pytest.raises(ValueError, match="seed is"):
        make_splits(tiny(0), 1, 1, 1, 1, seed=bad)
    if bad is not None:
        with pytest.raises(ValueError, match="test_seed is"):
            make_splits(tiny(0), 1, 1, 1, 1, seed=0, test_seed=bad)
    make_splits(tiny(0), np.int64(1), 1, 1, np.uint8(1), seed=np.int32(0))


# Splits that are made by hand


@pytest.fixture
def splits() -> Splits:
    return make_splits(tiny(0), 40, 20, 10, 30, seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_checked_whoever_makes_them(splits, name):
    split = getattr(splits, name)

    def changed(field, row, value):
        array = getattr(split, field).copy()
        array[row] = value
        return replace(split, **{field: array})

    for other, said in (
        (changed("x", (3, 1, 0, 2), np.nan), "row 3 has the pixel nan at line 1, column 0, channel 2"),
        (changed("x", 2, np.inf), "row 2 has the pixel inf at line 0, column 0, channel 0 .18 in all"),
        (changed("y", 5, -1), "row 5 has the label -1, expected 0 .. 3"),
        (changed("y", 5, 4), "row 5 has the label 4"),
        (changed("rows", 5, -4), "rows are -4"),
        (replace(split, y=split.y[:, None]), r"\.y is int32 \(\d+, 1\), expected integers of shape"),
        (replace(split, y=np.eye(4)[split.y]), r"\.y is float64"),
        (replace(split, y=split.y.astype(float)), r"\.y is float64"),
        (replace(split, y=split.y[1:]), r"has \d+ images and \d+ labels"),
        (replace(split, rows=split.rows[1:]), r"has (\d+) labels and \d+ rows, expected as many"),
        (replace(split, x=split.x[..., 0]), r"\.x is float32 \(\d+, 3, 2\), expected float32 \(n, H, W, C\)"),
        (replace(split, x=split.x.astype(np.uint8)), r"\.x is uint8"),
        (replace(split, y=split.y.astype(np.uint64) + np.uint64(2**32)), "row 0 has the label 429496729"),
        (None, "is a NoneType, expected a Split"),
    ):
        with pytest.raises(DataError, match=f"^{name}.*{said}") as caught:
            replace(splits, **{name: other})
        assert "\n" not in str(caught.value)


def test_splits_of_one_shape(splits):
    with pytest.raises(DataError, match=r"images of train are \(3, 2, 3\), of select \(2, 2, 3\), expected one shape"):
        replace(splits, select=replace(splits.select, x=splits.select.x[:, 1:]))
    empty = Split(np.zeros((0, 9, 9, 1), np.float32), np.zeros(0, int), np.zeros(0, int))
    assert len(replace(splits, select=empty).select) == 0  # nothing is ever taken from it
    with pytest.raises(DataError, match="the train split is empty"):
        replace(splits, train=empty)


@pytest.mark.parametrize(
    "change", [{"classes": 0}, {"classes": 4.0}, {"mean": [np.nan]}, {"std": "x"}, {"name": ""}], ids=str
)
def test_the_rest_of_splits_is_checked(splits, change):
    with pytest.raises(DataError, match="expected"):
        replace(splits, **change)


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("shape", [(2,), (4,), (2, 3, 3), (1, 3, 2, 3), (0,)], ids=str)
def test_mean_and_std_fit_an_image(splits, field, shape):
    with pytest.raises(
        DataError, match=rf"^{field} of the pixels has the shape \(.*, expected one that fits images \(3,"
    ):
        replace(splits, **{field: np.ones(shape)})
    for fitting in ((), (1,), (3,), (2, 1), (3, 2, 3)):
        assert getattr(replace(splits, **{field: np.ones(fitting)}), field).shape == fitting


@pytest.mark.parametrize("value", [0, -1.5, -0.0])
def test_std_is_above_zero(splits, value):
    with pytest.raises(DataError, match=r"^std of the pixels is .*, expected numbers above 0; give 1") as caught:
        replace(splits, std=np.array([1, value, 1]))
    assert "\n" not in str(caught.value)


def test_what_needs_no_conversion_stays_what_it_is(splits):
    assert replace(splits, valid=splits.train).valid is splits.train
    other = replace(splits, valid=replace(splits.valid, y=splits.valid.y.astype(np.int64)))
    assert other.valid.y.dtype == np.int32


def test_double_precision_and_one_class():
    """As the quadratic of an experiment has it."""
    split = Split(np.ones((2, 1, 3, 1)), np.zeros(2, np.int32), np.arange(2))
    splits = Splits(split, split, split, split, np.zeros(1), np.ones(1), 1, "quadratic")
    assert splits.train.x.dtype == np.float64


# What was used


def test_digest(splits):
    again = make_splits(tiny(0), 40, 20, 10, 30, seed=3)
    assert splits.digest == again.digest
    assert len(splits.digest) == 64
    split = splits.valid
    x = split.x.copy()
    x[-1, -1, -1, -1] += 1e-3
    y = split.y.copy()
    y[-1] = (y[-1] + 1) % 4
    others = [
        replace(splits, valid=replace(split, x=x)),
        replace(splits, valid=replace(split, y=y)),
        replace(splits, valid=splits.train),
        replace(splits, valid=replace(split, x=split.x.astype(np.float64))),
        replace(
            splits, **{name: replace(getattr(splits, name), x=getattr(splits, name).x.swapaxes(1, 2)) for name in NAMES}
        ),
        replace(splits, name="other"),
        replace(splits, classes=5),
        make_splits(tiny(0), 40, 20, 10, 30, seed=4),
    ]
    assert len({splits.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert replace(splits, notes=("A word.",)).digest == splits.digest
    turned = replace(split, x=np.asfortranarray(split.x).astype(">f4"))
    assert replace(splits, valid=turned).digest == splits.digest


def test_record_is_json():
    dataset = replace(tiny(0), notes=("Not the original.",))
    splits = make_splits(dataset, 40, 20, 10, 30, seed=3)
    record = splits.record()
    assert json.loads(json.dumps(record)) == record
    assert record["sizes"] == {"train": 40, "valid": 20, "select": 10, "test": 30}
    assert (record["name"], record["classes"], record["image"]) == ("tiny", 4, [3, 2, 3])
    assert (record["sha256"], record["seen"]) == (splits.digest, splits.seen)
    assert (record["mean"], record["std"]) == (splits.mean.tolist(), splits.std.tolist())
    assert record["notes"] == ["Not the original."]
    image = replace(splits, mean=np.full((3, 2, 3), 0.5)).record()
    assert image["mean"] == [0.5] * 3


def test_seen_of_images_that_were_only_scaled():
    splits = make_splits(tiny(0), 40, 20, 10, 30, seed=3, standardise=False)
    pixels = splits.train.x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(splits.seen["mean"], pixels.mean(axis=0), rtol=1e-12)
    assert splits.seen["std"][2] == 0


def test_recording():
    heard, outer = [], []
    with recording(lambda key, splits: outer.append(key)):
        with recording(lambda key, splits: heard.append((key, splits))):
            one = make_splits(load("digits"), 1000, 300, 97, 400, seed=0)
            make_splits(tiny(0), 40, 20, 10, 30, 1, standardise=False, test_seed=7)
        make_splits(tiny(0), 1, 0, 0, 0, seed=np.int64(2))
    make_splits(tiny(0), 2, 0, 0, 0, seed=2)
    assert outer == [
        "digits: train 1000, valid 300, select 97, test 400, seed 0",
        "tiny: train 40, valid 20, select 10, test 30, seed 1, standardise=False, test seed 7",
        "tiny: train 1, valid 0, select 0, test 0, seed 2",
    ]
    assert [key for key, _ in heard] == outer[:2]
    assert heard[0][1] is one
    assert "digest" not in vars(one)  # nobody asked for it


def test_a_listener_can_refuse():
    def refuse(key, splits):
        raise DataError("other data")

    with pytest.raises(DataError, match="other data"), recording(refuse):
        make_splits(tiny(0), 1, 0, 0, 0, seed=0)
    make_splits(tiny(0), 1, 0, 0, 0, seed=0)
