"""CIFAR-10 in its four forms, small here; and pickles that should not be opened."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest

from hypertrail_data import DataError, UnverifiedData, cifar10, load
from hypertrail_data.cifar10 import BINARY_FOLDER, PICKLED_FOLDER, Batch, load_cifar10
from hypertrail_data.download import RemoteFile

ROWS = 20
PICKLED = cifar10.PICKLED.name
draw = np.random.default_rng(0)
PIXELS = draw.integers(0, 256, (6, ROWS, 3, 32, 32), dtype=np.uint8)
LABELS = draw.integers(0, 10, (6, ROWS), dtype=np.uint8)
NAMES = [batch.name for batch in cifar10.BATCHES]
RAW = [np.concatenate([y[:, None], x.reshape(ROWS, -1)], axis=1).tobytes() for x, y in zip(PIXELS, LABELS, strict=True)]


def as_in_2009(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """What cPickle of Python 2 wrote with protocol 2, opcode by opcode."""
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    shape = b"(K" + bytes([len(pixels)]) + b"M" + struct.pack("<H", 3072) + b"t"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    items = b"U\x04data" + array + state + b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + items + b"u."


PICKLES = [as_in_2009(x, y) for x, y in zip(PIXELS, LABELS, strict=True)]


def archive(folder: str, suffix: str, contents: list[bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in zip(NAMES[::-1], contents[::-1], strict=True):  # in another order than ours
            member = tarfile.TarInfo(f"{folder}/{name}{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


BINARY, PYTHON = archive(BINARY_FOLDER, ".bin", RAW), archive(PICKLED_FOLDER, "", PICKLES)
REMOTE = RemoteFile("cifar-10-binary.tar.gz", hashlib.sha256(BINARY).hexdigest(), len(BINARY), ("http://127.0.0.1:1/",))


def small(pickles=PICKLES, python=PYTHON, **options):
    """The loader, taking the small set for the original."""
    batches = tuple(
        Batch(name, hashlib.sha256(raw).hexdigest(), hashlib.md5(pickled).hexdigest())
        for name, raw, pickled in zip(NAMES, RAW, pickles, strict=True)
    )
    known = RemoteFile(PICKLED, hashlib.sha256(python).hexdigest(), len(python), ())
    return load_cifar10(batches=batches, binary=REMOTE, pickled=known, **options)


@pytest.fixture(autouse=True)
def small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "ROWS", ROWS)
    monkeypatch.delenv("HYPERTRAIL_DATA", raising=False)
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")


def put_binary(folder):
    (folder / BINARY_FOLDER).mkdir(parents=True)
    for name, raw in zip(NAMES, RAW, strict=True):
        (folder / BINARY_FOLDER / f"{name}.bin").write_bytes(raw)


def put_pickles(folder):
    (folder / PICKLED_FOLDER).mkdir(parents=True)
    for name, raw in zip(NAMES, PICKLES, strict=True):
        (folder / PICKLED_FOLDER / name).write_bytes(raw)


FORMS = {
    "binary folder": put_binary,
    "binary archive": lambda folder: (folder / REMOTE.name).write_bytes(BINARY),
    "python folder": put_pickles,
    "python archive": lambda folder: (folder / PICKLED).write_bytes(PYTHON),
}


def check(dataset):
    assert dataset.x.shape == (120, 32, 32, 3)
    assert (dataset.x.dtype, dataset.y.dtype) == (np.uint8, np.int32)
    assert (dataset.name, dataset.classes, dataset.official_test, dataset.scale) == ("cifar10", 10, ROWS, 255)
    assert np.array_equal(dataset.x, PIXELS.reshape(120, 3, 32, 32).transpose(0, 2, 3, 1))
    assert np.array_equal(dataset.y, LABELS.ravel())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_a_named_folder(tmp_path, form):
    FORMS[form](tmp_path)
    check(small(data_dir=tmp_path))


def test_the_batches_folder_itself(tmp_path):
    put_binary(tmp_path)
    check(small(data_dir=tmp_path / BINARY_FOLDER))


@pytest.mark.parametrize("form", ["binary archive", "python archive"])
def test_the_cache(tmp_path, form):
    (tmp_path / "cache").mkdir()
    FORMS[form](tmp_path / "cache")
    check(small())


def test_plain_records_are_preferred(tmp_path):
    put_binary(tmp_path)
    (tmp_path / PICKLED).write_bytes(b"not even an archive")
    check(small(data_dir=tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_unverified_records_load_with_a_warning(tmp_path, packed):
    changed = RAW[5][:-1] + bytes([RAW[5][-1] ^ 1])
    if packed:
        (tmp_path / REMOTE.name).write_bytes(archive(BINARY_FOLDER, ".bin", [*RAW[:5], changed]))
    else:
        put_binary(tmp_path)
        (tmp_path / BINARY_FOLDER / "test_batch.bin").write_bytes(changed)
    with pytest.warns(UnverifiedData, match=r"test_batch\.bin loads, but is not the published original") as seen:
        dataset = small(data_dir=tmp_path)
    assert len(seen) == 1
    assert dataset.x[-1, -1, -1, -1] == changed[-1]


def test_damaged_records(tmp_path):
    put_binary(tmp_path)
    path = tmp_path / BINARY_FOLDER / "data_batch_2.bin"
    path.write_bytes(RAW[1][:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin has 61459 bytes, expected 61460: it is cut short"):
        small(data_dir=tmp_path)
    path.write_bytes(b"\x0a" + RAW[1][1:])
    with pytest.raises(DataError, match="has the label 10, expected"):
        small(data_dir=tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"only part of CIFAR-10; missing: data_batch_2\.bin"):
        small(data_dir=tmp_path)


@pytest.mark.parametrize(
    "content", [BINARY[: len(BINARY) // 2], b"<html>sign in</html>", b""], ids=["short", "page", "empty"]
)
def test_damaged_archive(tmp_path, content):
    (tmp_path / REMOTE.name).write_bytes(content)
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz is damaged or cut short"):
        small(data_dir=tmp_path)


def test_an_archive_of_something_else(tmp_path):
    (tmp_path / REMOTE.name).write_bytes(PYTHON)
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/data_batch_1\.bin"):
        small(data_dir=tmp_path)


def test_unknown_pickles_are_not_opened(tmp_path, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("it was opened")

    monkeypatch.setattr(cifar10, "_Unpickler", opened)
    put_pickles(tmp_path)
    (tmp_path / PICKLED_FOLDER / NAMES[0]).write_bytes(PICKLES[1])
    with pytest.raises(DataError, match=r"an unknown pickle is not opened: use the binary version \(cifar-10-binary"):
        small(data_dir=tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / PICKLED).write_bytes(PYTHON[:-1])
    with pytest.raises(DataError, match="an archive of unknown pickles is not opened"):
        small(data_dir=tmp_path / "b")


class Malicious:
    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("module", ["posix", "builtins", "numpy"])
def test_even_a_known_hash_runs_nothing(tmp_path, module):
    """Should a hash ever be forged: no call gets through."""
    victim = tmp_path / "victim"
    call = {
        "posix": Malicious(os.system, f"touch {victim}"),
        "builtins": Malicious(exec, f"import pathlib; pathlib.Path({str(victim)!r}).touch()"),
        "numpy": Malicious(np.save, str(victim), 1),
    }[module]
    pickles = [pickle.dumps({b"data": call, b"labels": []}, protocol=2), *PICKLES[1:]]
    put_pickles(tmp_path)
    (tmp_path / PICKLED_FOLDER / NAMES[0]).write_bytes(pickles[0])
    with pytest.raises(DataError, match=r"not a batch of CIFAR-10 \(it asks for .*, which is not allowed\)"):
        small(data_dir=tmp_path, pickles=pickles)
    assert not list(tmp_path.glob("victim*"))
    pickle.loads(pickles[0])  # it would have
    assert list(tmp_path.glob("victim*"))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({b"data": PIXELS[0].reshape(ROWS, -1)[:, :-1], b"labels": [0] * ROWS}, protocol=3),
        pickle.dumps({b"data": PIXELS[0].reshape(ROWS, -1), b"labels": [10] * ROWS}, protocol=3),
        b"",
    ],
    ids=["list", "shape", "label", "empty"],
)
def test_pickles_of_something_else(tmp_path, content):
    python = archive(PICKLED_FOLDER, "", [content, *PICKLES[1:]])
    (tmp_path / PICKLED).write_bytes(python)
    with pytest.raises(DataError, match="data_batch_1 is not a batch of CIFAR-10"):
        small(data_dir=tmp_path, python=python)


def test_not_there_and_no_network(tmp_path):
    with pytest.raises(
        DataError, match=r"cifar-10-binary\.tar\.gz cannot be reached; place the file here: .*cache/cifar"
    ):
        small()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_the_warning_stays_with_the_data(tmp_path):
    put_binary(tmp_path)
    (tmp_path / BINARY_FOLDER / "test_batch.bin").write_bytes(RAW[5][:-1] + bytes([RAW[5][-1] ^ 1]))
    with pytest.warns(UnverifiedData) as seen:
        dataset = small(data_dir=tmp_path)
    assert dataset.notes == (str(seen[0].message),)


def test_a_warning_that_is_an_error_stays_one(tmp_path):
    (tmp_path / REMOTE.name).write_bytes(archive(BINARY_FOLDER, ".bin", [*RAW[:5], RAW[0]]))
    with pytest.raises(UnverifiedData):
        small(data_dir=tmp_path)


# Archives that were made to mislead


def packed(*members, end=b"") -> bytes:
    """A tar.gz of these (TarInfo, content), and then ``end`` in place of the end of the archive."""
    out = io.BytesIO()
    for info, content in members:
        out.write(info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512))
    return gzip.compress(out.getvalue() + (end or bytes(1024)), 1)


def member(name, content=b"", **changes):
    info = tarfile.TarInfo(f"{BINARY_FOLDER}/{name}.bin")
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def said_of(tmp_path, content):
    (tmp_path / REMOTE.name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        small(data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / REMOTE.name) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_tar_of_links(tmp_path, kind):
    """A link to itself, to a member that is not there, or to a file of the reader's; and other things that hold nothing."""
    for target in (f"{BINARY_FOLDER}/{NAMES[0]}.bin", "nowhere", "/etc/passwd", ""):
        links = [member(name, type=kind, linkname=target) for name in NAMES]
        assert "lacks cifar-10-batches-bin/data_batch_1.bin" in said_of(tmp_path, packed(*links))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_member_of_another_size(tmp_path, change):
    content = RAW[0][:-1] if change < 0 else RAW[0] + b"0"
    said = said_of(tmp_path, packed(member(NAMES[0], content)))
    assert f"data_batch_1.bin has {len(content)} bytes, expected {len(RAW[0])}" in said


def header(name, size, kind):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (header("x", 5 * 2**30, tarfile.XHDTYPE) + bytes(2**22), "has more than"),
        (header("x", 5 * 2**30, tarfile.GNUTYPE_LONGNAME) + bytes(2**22), "has more than"),
        (header("x", 5 * 2**30, tarfile.XGLTYPE) + bytes(2**22), "has more than"),
        (header("x", -(2**20), tarfile.REGTYPE) + bytes(2**20), "one of its headers points back"),
        (header("x", 512, tarfile.XHDTYPE) + b"99999999999 a=b\n".ljust(512, b"\0") + bytes(1024), ""),
        (
            header("x", 512, tarfile.XHDTYPE)
            + b"14 size=-1000\n".ljust(512, b"\0")
            + header("y", 0, b"0")
            + bytes(512),
            "",
        ),
        (header("x", 512, tarfile.XHDTYPE) + b"0 =\n".ljust(512, b"\0") + header("y", 0, b"0"), ""),
        (3000 * header("x", 0, tarfile.XHDTYPE), ""),
        (1001 * header("x", 0, tarfile.REGTYPE), "has more than 1000 members"),
        (header("x", 2**40, tarfile.REGTYPE) + bytes(2**25), "unpacks to more than"),
        (header("x", 512, tarfile.REGTYPE), ""),
        (bytes(range(256)) * 8, ""),
    ],
    ids=[
        "pax",
        "long name",
        "global",
        "negative",
        "record",
        "negative record",
        "empty record",
        "deep",
        "many",
        "large",
        "short",
        "noise",
    ],
)
def test_crafted_headers(tmp_path, end, said):
    assert said in said_of(tmp_path, packed(end=end))
    assert said in said_of(tmp_path, packed(member(NAMES[0], RAW[0]), end=end))


def test_a_sparse_member_is_passed_over(tmp_path):
    sparse = member(NAMES[0], bytes(512), pax_headers={"GNU.sparse.size": str(len(RAW[0])), "GNU.sparse.map": "0,512"})
    assert "data_batch_1.bin" in said_of(tmp_path, packed(sparse))


READ = """
import sys, hypertrail_data
try:
    hypertrail_data.load("cifar10", data_dir=sys.argv[1])
except hypertrail_data.DataError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.REGTYPE])
def test_an_archive_that_unpacks_to_gigabytes(tmp_path, kind, in_little_memory):
    """4 GiB in a file of 4 MB, as one header or as one member, read with 2 GiB of memory."""
    name = f"{BINARY_FOLDER}/{NAMES[0]}.bin"
    part = gzip.compress(bytes(2**24), mtime=0)  # members of a gz file follow each other
    (tmp_path / REMOTE.name).write_bytes(gzip.compress(header(name, 2**32, kind)) + 256 * part)
    said = in_little_memory(READ, tmp_path, gib=2)
    assert ("has more than 30730000 bytes" if kind == tarfile.XHDTYPE else "has 4294967296 bytes") in said


def test_an_archive_that_is_replaced_after_the_hash_check(tmp_path, monkeypatch):
    """What is parsed is what was hashed: an archive of the cache is read once."""
    folder = tmp_path / "cache"
    folder.mkdir()
    real = hashlib.sha256

    def replaced_when_hashed(content=b""):
        if content in (BINARY, PYTHON):
            for name in (REMOTE.name, PICKLED):
                (folder / name).write_bytes(b"something else")
        return real(content)

    monkeypatch.setattr(hashlib, "sha256", replaced_when_hashed)
    for name, content in ((REMOTE.name, BINARY), (PICKLED, PYTHON)):
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_bytes(content)
        known = RemoteFile(PICKLED, real(PYTHON).hexdigest(), len(PYTHON), ())
        batches = tuple(Batch(name, real(raw).hexdigest(), "") for name, raw in zip(NAMES, RAW, strict=True))
        check(load_cifar10(batches=batches, binary=REMOTE, pickled=known))
        assert (folder / name).read_bytes() == b"something else"


@pytest.mark.data
def test_the_real_one(real_data, monkeypatch):
    monkeypatch.setattr(cifar10, "ROWS", 10_000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        dataset = load("cifar10", data_dir=real_data)
    # All but test_batch must be the original; in some copies twenty of its images were packed as JPEG.
    assert {warning.category for warning in seen} <= {UnverifiedData}
    assert [str(warning.message) for warning in seen if "test_batch" not in str(warning.message)] == []
    assert dataset.x.shape == (60_000, 32, 32, 3)
    assert np.bincount(dataset.y).tolist() == [6000] * 10
    assert dataset.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    mean = dataset.x[:50_000].mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)
    raw = (real_data / BINARY_FOLDER / "test_batch.bin").read_bytes()
    original = hashlib.sha256(raw).hexdigest() == cifar10.BATCHES[5].sha256
    assert bool(seen) != original
