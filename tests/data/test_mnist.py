"""MNIST from folders, from the cache, and from files that are not what they should be."""

import gzip
import hashlib
import os
import shutil
import struct
import warnings

import numpy as np
import pytest

from hypertrail_data import DataError, UnverifiedData, load
from hypertrail_data.mnist import FILES, IdxFile, load_mnist


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()


draw = np.random.default_rng(0)
ARRAYS = [draw.integers(0, top, size) for top, size in ((256, (30, 28, 28)), (10, 30), (256, (7, 28, 28)), (10, 7))]
RAW = [idx(array) for array in ARRAYS]
PACKED = [gzip.compress(raw, mtime=0) for raw in RAW]
SMALL = tuple(
    IdxFile(file.name, hashlib.sha256(packed).hexdigest(), hashlib.sha256(raw).hexdigest(), len(packed), array.shape)
    for file, array, raw, packed in zip(FILES, ARRAYS, RAW, PACKED, strict=True)
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("HYPERTRAIL_DATA", raising=False)
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path / "cache"))


def put(folder, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for file, raw, gz in zip(FILES, RAW, PACKED, strict=True):
        (folder / (file.name + ".gz" * packed)).write_bytes(gz if packed else raw)
    return folder


def small(**options):
    return load_mnist(files=SMALL, mirrors=("http://127.0.0.1:1/",), **options)


def check(dataset):
    assert dataset.x.shape == (37, 28, 28, 1)
    assert (dataset.x.dtype, dataset.y.dtype) == (np.uint8, np.int32)
    assert (dataset.name, dataset.classes, dataset.official_test, dataset.scale) == ("mnist", 10, 7, 255)
    assert np.array_equal(dataset.x[..., 0], np.concatenate([ARRAYS[0], ARRAYS[2]]))
    assert np.array_equal(dataset.y, np.concatenate([ARRAYS[1], ARRAYS[3]]))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", [".", "mnist"])
def test_named_folder(tmp_path, packed, inside):
    put(tmp_path / inside, packed)
    check(small(data_dir=tmp_path))


def test_environment_and_cache(tmp_path, monkeypatch):
    put(tmp_path / "cache" / "mnist")
    check(small())
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path / "other"))
    check(small(cache_dir=tmp_path / "cache"))
    monkeypatch.setenv("HYPERTRAIL_DATA", str(put(tmp_path / "named")))
    check(small())
    (tmp_path / "empty").mkdir()
    check(small(data_dir=tmp_path / "empty"))  # passed over


def test_data_dir_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERTRAIL_DATA", str(put(tmp_path / "broken")))
    (tmp_path / "broken" / f"{FILES[0].name}.gz").write_bytes(b"")
    check(small(data_dir=put(tmp_path / "good")))


def test_unverified_files_load_with_a_warning(tmp_path):
    folder = put(tmp_path)
    other = ARRAYS[0].copy()
    other[0, 0, 0] ^= 1
    (folder / f"{FILES[0].name}.gz").write_bytes(gzip.compress(idx(other)))
    with pytest.warns(
        UnverifiedData, match=r"train-images-idx3-ubyte\.gz loads, but is not the published original"
    ) as seen:
        dataset = small(data_dir=folder)
    assert len(seen) == 1
    assert dataset.x[0, 0, 0, 0] == other[0, 0, 0]


def test_packed_anew_is_still_the_original(tmp_path):
    folder = put(tmp_path)
    (folder / f"{FILES[0].name}.gz").write_bytes(gzip.compress(RAW[0], 1, mtime=5))
    check(small(data_dir=folder))


@pytest.mark.parametrize(
    ("number", "content", "message"),
    [
        (0, PACKED[0][:-500], "damaged or cut short"),
        (0, PACKED[0][:500] + b"?" + PACKED[0][501:], "damaged or cut short"),
        (2, b"<html>sign in</html>", "damaged or cut short"),
        (1, gzip.compress(RAW[1][:-1]), r"has 37 bytes, expected 8 and then \(30,\) values: it is cut short"),
        (1, gzip.compress(b"\0\0\x0d\x01" + RAW[1][4:]), "expected an idx file of unsigned bytes"),
        (1, gzip.compress(RAW[1][:6]), "cut short"),
        (1, gzip.compress(RAW[1][:4] + struct.pack(">i", -1)), r"expected 8 and then \(4294967295,\) values"),
        (
            0,
            gzip.compress(RAW[0][:4] + struct.pack(">3i", -30, -28, 28) + RAW[0][16:]),
            r"\(4294967266, 4294967268, 28\)",
        ),
        (0, gzip.compress(RAW[0][:3] + b"\2" + RAW[0][4:]), "expected an idx file of unsigned bytes of rank 3"),
        (1, gzip.compress(RAW[1][:3] + b"\0" + b"7"), "expected an idx file of unsigned bytes of rank 1"),
        (1, gzip.compress(RAW[1][:3] + b"\xff" + RAW[1][4:]), "expected an idx file of unsigned bytes of rank 1"),
        (3, gzip.compress(RAW[1]), "unpacks to more than 15 bytes"),
        (1, gzip.compress(np.random.default_rng(0).bytes(10_000)), "has more than 4134 bytes"),
        (1, gzip.compress(RAW[3]), r"images \(30, 28, 28\), labels \(7,\)"),
        (3, gzip.compress(idx(np.full(7, 10))), "largest label 10"),
    ],
    ids=[
        "short",
        "flipped",
        "page",
        "short inside",
        "type",
        "short header",
        "negative size",
        "negative sizes",
        "rank 2",
        "rank 0",
        "rank 255",
        "long inside",
        "long",
        "counts",
        "label",
    ],
)
@pytest.mark.filterwarnings("ignore::hypertrail_data.UnverifiedData")
def test_damage(tmp_path, number, content, message):
    folder = put(tmp_path)
    path = folder / f"{FILES[number].name}.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        small(data_dir=folder)
    assert str(path) in str(caught.value)


def test_a_file_is_missing(tmp_path):
    folder = put(tmp_path)
    (folder / f"{FILES[3].name}.gz").unlink()
    with pytest.raises(DataError, match="only part of MNIST; missing: t10k-labels-idx1-ubyte"):
        small(data_dir=folder)


def test_a_folder_is_missing(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"data_dir names .*nowhere, which is missing"):
        load("mnist", data_dir=tmp_path / "nowhere")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPERTRAIL_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"HYPERTRAIL_DATA names .*file, which is a file"):
        load("mnist")


def test_not_there_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(
        DataError, match=r"127\.0\.0\.1:1/train-images.*place the file here: .*cache/mnist/train-images"
    ):
        small()


def test_an_unverified_file_in_the_cache_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    folder = put(tmp_path / "cache" / "mnist")
    (folder / f"{FILES[0].name}.gz").write_bytes(gzip.compress(RAW[0], 1))
    with pytest.raises(DataError, match="cannot download"):
        small()


def test_the_warning_stays_with_the_data(tmp_path):
    folder = put(tmp_path)
    other = ARRAYS[2].copy()
    other[0, 0, 0] ^= 1
    (folder / f"{FILES[2].name}.gz").write_bytes(gzip.compress(idx(other)))
    with pytest.warns(UnverifiedData) as seen:
        dataset = small(data_dir=folder)
    assert dataset.notes == (str(seen[0].message),)
    assert "t10k-images-idx3-ubyte.gz loads, but is not the published original" in dataset.notes[0]
    (folder / f"{FILES[2].name}.gz").write_bytes(PACKED[2])
    assert small(data_dir=folder).notes == ()


def test_labels_that_are_replaced_after_the_hash_check(tmp_path, monkeypatch):
    """What is parsed is what was hashed: a file of the cache is read once."""
    folder = put(tmp_path / "cache" / "mnist")
    real = hashlib.sha256

    def replaced_when_hashed(content=b""):
        for file, packed in zip(FILES, PACKED, strict=True):
            if content == packed:
                (folder / f"{file.name}.gz").write_bytes(b"something else")
        return real(content)

    monkeypatch.setattr(hashlib, "sha256", replaced_when_hashed)
    check(small())


READ = """
import sys, hypertrail_data
try:
    hypertrail_data.load("mnist", data_dir=sys.argv[1])
except hypertrail_data.DataError as error:
    print(error)
"""


def test_an_archive_that_unpacks_to_gigabytes(tmp_path, in_little_memory):
    """4 GiB in a file of 4 MB, read with 1 GiB of memory."""
    folder = put(tmp_path)
    part = gzip.compress(bytes(2**24), mtime=0)  # members of a gz file follow each other
    (folder / f"{FILES[0].name}.gz").write_bytes(256 * part)
    said = in_little_memory(READ, folder, gib=1)
    assert f"{FILES[0].name}.gz unpacks to more than 47040016 bytes" in said


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_regular_file(tmp_path, kind):
    folder = put(tmp_path)
    path = folder / f"{FILES[1].name}.gz"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="only part of MNIST; missing: train-labels"):
        small(data_dir=folder)


@pytest.mark.data
def test_the_real_one(real_data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnist = load("mnist", data_dir=real_data)
        shutil.copytree(real_data / "mnist", tmp_path / "cache" / "mnist")
        cached = load("mnist")
    assert mnist.x.shape == (70_000, 28, 28, 1)
    assert np.bincount(mnist.y).tolist() == [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    assert mnist.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.y[-10_000:][:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(mnist.x[:60_000].mean() / 255 - 0.1307) < 1e-4
    assert np.array_equal(mnist.x, cached.x)
