"""Arrays from .npz and HDF5 files, among them files that were made to mislead."""

import os
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib

import h5py
import numpy as np
import pytest

import hypertrail_data
from hypertrail_data import DataError, read_dataset

draw = np.random.default_rng(0)
X, Y = draw.random((30, 4, 3, 2)).astype(np.float32), draw.integers(0, 5, 30)


def message(path, *arguments, **options):
    """The one line that the refusal says."""
    with pytest.raises(DataError) as caught:
        read_dataset(path, *(arguments or (5,)), **options)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


def check(dataset):
    assert np.array_equal(dataset.x, X)
    assert np.array_equal(dataset.y, Y)
    assert (dataset.classes, dataset.official_test, dataset.name) == (5, 4, "made")


def npz(path, **arrays):
    with open(path, "wb") as file:  # np.savez would give a name its own ending
        np.savez(file, **(arrays or {"x": X, "y": Y}))
    return path


def hdf5(path, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, **options)
        file["y"] = Y
    return path


def npy(array):
    header = np.lib.format.header_data_from_array_1_0(array)
    text = repr(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + array.tobytes()


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("arrange", [np.ascontiguousarray, np.asfortranarray, lambda x: x.astype(">f4")])
def test_npz(tmp_path, save, arrange):
    save(tmp_path / "made.npz", x=arrange(X), y=Y, other=np.array([{}]))
    check(read_dataset(tmp_path / "made.npz", 5, official_test=4))
    np.savez(tmp_path / "a.npz", images=X, classes=Y)
    check(read_dataset(str(tmp_path / "a.npz"), 5, "images", "classes", official_test=4, name="made"))


def test_npz_with_pickled_arrays(tmp_path):
    assert "expected a plain array of numbers" in message(npz(tmp_path / "a.npz", x=np.array([{}]), y=Y))


def test_npz_without_the_name_lists_those_it_has(tmp_path):
    said = message(npz(tmp_path / "a.npz", images=X, y=Y))
    assert "no array 'x'; it has 'images', 'y': pass one of these names" in said
    many = {f"a{i}": Y for i in range(20)}
    assert message(npz(tmp_path / "b.npz", **many)).count("'a") == 10


def test_npz_lists_only_what_can_be_an_array(tmp_path):
    """A member without the ending .npy is none that np.savez makes, and its name cannot be passed."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("x", "y", "images.npy", "readme.txt"):
            archive.writestr(name, npy(X))
    assert "no array 'x'; it has 'images': pass one of these names" in message(tmp_path / "a.npz")


def test_npz_whose_labels_do_not_fit(tmp_path):
    assert "row 0 has the label 9, expected 0 .. 4" in message(npz(tmp_path / "a.npz", x=X, y=Y * 0 + 9))


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"no zip file\n" * 100, "half"])
def test_npz_that_is_damaged(tmp_path, content):
    path = npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:2000] if content == "half" else content)
    assert "write it anew" in message(path)


def test_npz_with_a_flipped_pixel(tmp_path):
    path = npz(tmp_path / "a.npz")
    raw = bytearray(path.read_bytes())
    raw[raw.index(X.tobytes()) + 77] ^= 1
    path.write_bytes(raw)
    assert "Bad CRC-32" in message(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "device"])
def test_no_regular_file(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    assert ("cannot be read" if kind == "missing" else "is not a regular file") in message(path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/a", "a\0b", "a\nb", "a\udcff"])
def test_paths_that_are_none(path):
    with pytest.raises(DataError, match=r"path is .*expected a path \(.*correct or unset it$"):
        read_dataset(path, 5)


def test_npz_larger_than_allowed(tmp_path):
    assert "pass a larger at_most" in message(npz(tmp_path / "a.npz"), 5, at_most=X.nbytes - 1)


@pytest.mark.parametrize("at_most", [None, "5", -1, 0, True, 1e9])
@pytest.mark.parametrize("write", [npz, hdf5])
def test_at_most_that_is_no_number_of_bytes(tmp_path, write, at_most):
    """The argument is to blame, and the file is not."""
    with pytest.raises(DataError, match=r"^at_most is .*, expected an integer in 1 \.\. \d+; correct it$"):
        read_dataset(write(tmp_path / "made"), 5, at_most=at_most)


def test_npz_with_an_array_twice(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(npz(tmp_path / "a.npz"), "a") as archive:
            archive.writestr("x.npy", npy(X + 1))
    assert "'x' is there 2 times" in message(tmp_path / "a.npz")


def zipped(path, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", npy(Y))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_packed_by_other_methods(tmp_path, method):
    assert "is packed by method" in message(zipped(tmp_path / "a.npz", npy(X), method))


def test_npz_encrypted_or_of_an_unknown_method(tmp_path):
    raw = npz(tmp_path / "a.npz").read_bytes()
    entry = raw.index(b"PK\1\2")
    for place, value, said in ((8, 1, "is encrypted"), (10, 77, "is packed by method 77")):
        changed = bytearray(raw)
        changed[entry + place] = value
        (tmp_path / "a.npz").write_bytes(changed)
        assert said in message(tmp_path / "a.npz")


def header(text):
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy(X)[:-1], "its header tells of float32 (30, 4, 3, 2)"),
        (npy(X) + b"0", "its header tells of float32"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 1, 1, 1), }"),
            "its header tells of",
        ),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1, 1, 1), }"), "expected a plain array"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1, 1, 1), }") + b"1234", "plain array"),
        (header("(" * 9000), "damaged"),
        (b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + b"{}", "the header of 'x' has 4294967295 bytes"),
        (b"\x93NUMPY\x03\0" + b"{}" * 40, "expected a plain NumPy array"),
        (b"", "expected a plain NumPy array"),
    ],
    ids=["short", "long", "huge", "negative", "bool", "brackets", "header", "version", "empty"],
)
def test_npz_with_a_header_that_is_not_true(tmp_path, content, said):
    assert said in message(zipped(tmp_path / "a.npz", content))


def test_npz_that_claims_more_than_it_packs(tmp_path):
    """Both the member and its header say 100 GB, of which 100 bytes are there."""
    claimed = header("{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000, 1, 1, 1), }".ljust(117))
    raw = bytearray(zipped(tmp_path / "a.npz", claimed).read_bytes())
    entry = raw.index(b"PK\1\2")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 4_000_000_000 + len(claimed))
    (tmp_path / "a.npz").write_bytes(raw)
    assert "its header tells of" in message(tmp_path / "a.npz")


READ = """
import sys, hypertrail_data
try:
    print(hypertrail_data.read_dataset(sys.argv[1], 5))
except hypertrail_data.DataError as error:
    print(error)
"""


def test_npz_bomb(tmp_path, in_little_memory):
    """A header of 3 GB."""
    head = b"\x93NUMPY\x02\0" + struct.pack("<I", 3 * 2**30)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(head)
            for _ in range(4):
                member.write(bytes(2**23))
        archive.writestr("y.npy", npy(Y))
    said = in_little_memory(READ, tmp_path / "a.npz", gib=2)
    assert "the header of 'x' has 3221225472 bytes" in said


# HDF5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (7, 4, 3, 2), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (7, 4, 3, 1), "compression": "lzf"},
        {"chunks": (40, 4, 3, 2), "maxshape": (None, 4, 3, 2), "compression": "gzip"},
        {"dtype": ">f8"},
    ],
    ids=["contiguous", "gzip", "lzf", "large chunk", "big-endian"],
)
def test_hdf5(tmp_path, options):
    check(read_dataset(hdf5(tmp_path / "made.h5", **options), 5, official_test=4))


def test_hdf5_in_groups(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/images"], file["train/labels"] = X, Y
    check(read_dataset(tmp_path / "a.h5", 5, "train/images", "/train/labels", official_test=4, name="made"))
    assert "'/train' has 'images', 'labels': pass" in message(tmp_path / "a.h5", 5, x="train/x")
    assert "'train' is a group with 'images', 'labels'" in message(tmp_path / "a.h5", 5, x="train")
    assert "has no data set" in message(tmp_path / "a.h5", 5, x="train/images/x")
    assert "has no data set" in message(tmp_path / "a.h5", 5, x="/")


@pytest.mark.parametrize("kind", ["soft", "external", "group", "dangling"])
def test_hdf5_links(tmp_path, kind):
    hdf5(tmp_path / "secret.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["real"], file["y"] = X, Y
        file["x"] = {
            "soft": h5py.SoftLink("/real"),
            "external": h5py.ExternalLink("secret.h5", "/x"),
            "group": h5py.ExternalLink("secret.h5", "/"),
            "dangling": h5py.ExternalLink("nowhere.h5", "/x"),
        }[kind]
    said = message(tmp_path / "a.h5", 5, x="x/x" if kind == "group" else "x")
    assert "is reached by a link, which is not followed" in said


def test_hdf5_external_storage(tmp_path):
    (tmp_path / "secret").write_bytes(X.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", X.shape, X.dtype, external=[(str(tmp_path / "secret"), 0, X.nbytes)])
        file["y"] = Y
    assert "keeps its values in other files" in message(tmp_path / "a.h5")


def test_hdf5_virtual(tmp_path):
    hdf5(tmp_path / "secret.h5")
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", X.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
        file["y"] = Y
    assert "keeps its values in other files" in message(tmp_path / "a.h5")


@pytest.mark.parametrize("chunked", [False, True])
def test_hdf5_of_ten_terabytes_that_are_not_there(tmp_path, chunked):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10**13 // 4, 2, 2, 1), np.uint8, chunks=(1000, 2, 2, 1) if chunked else None)
        file["y"] = Y
    assert "pass a larger at_most" in message(tmp_path / "a.h5")
    said = message(tmp_path / "a.h5", 5, at_most=10**15)
    assert "more than a file of" in said


@pytest.mark.parametrize("values", [np.array([b"a", b"b"]), np.zeros(3, [("a", int)]), np.zeros(3, complex)])
def test_hdf5_of_no_numbers(tmp_path, values):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"], file["z"] = values, Y, h5py.Empty("f")
    assert "expected a plain array of numbers" in message(tmp_path / "a.h5")
    assert "expected a plain array of numbers" in message(tmp_path / "a.h5", 5, x="z")


@pytest.mark.parametrize(
    ("options", "written", "said"),
    [
        ({"chunks": (7, 4, 3, 2)}, 0, "5 of 5 chunks of 'x' were never written"),
        ({"chunks": (7, 4, 3, 2)}, 14, "3 of 5 chunks of 'x' were never written"),
        ({"chunks": (7, 4, 3, 1), "compression": "gzip", "fillvalue": 3}, 28, "2 of 10 chunks of 'x' were never"),
        ({}, 0, "'x' of the shape (30, 4, 3, 2) was never written"),
        ({"fillvalue": 3}, 0, "'x' of the shape (30, 4, 3, 2) was never written"),
    ],
)
def test_hdf5_that_was_not_wholly_written(tmp_path, options, written, said):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", X.shape, X.dtype, **options)
        if written:
            x[:written] = X[:written]
        file["y"] = Y
    assert said in message(tmp_path / "a.h5")


def test_hdf5_labels_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = X
        file.create_dataset("y", Y.shape, Y.dtype)
    assert "'y' of the shape (30,) was never written" in message(tmp_path / "a.h5")


def test_hdf5_of_no_images_or_inside_its_header(tmp_path):
    """An empty data set needs no storage; a compact one has no address of its own."""
    with h5py.File(tmp_path / "made.h5", "w") as file:
        file.create_dataset("none", (0, 4, 3, 2), X.dtype)
        file["x"] = X
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(Y.shape)
        y = h5py.h5d.create(file.id, b"y", h5py.h5t.py_create(Y.dtype), space, properties)
        y.write(h5py.h5s.ALL, h5py.h5s.ALL, Y)
    check(read_dataset(tmp_path / "made.h5", 5, official_test=4))
    assert "give at least one image" in message(tmp_path / "made.h5", 5, x="none")


def test_hdf5_chunk_bomb(tmp_path, in_little_memory):
    """A chunk of 720 bytes whose packed bytes unpack to 3 GB."""
    packer = zlib.compressobj()
    begin = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    part = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)  # which knows nothing of what came before
    bomb = begin + 192 * part + packer.flush()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", X.shape, X.dtype, chunks=X.shape, compression="gzip")
        x.id.write_direct_chunk((0, 0, 0, 0), bomb)
        file["y"] = Y
    said = in_little_memory(READ, tmp_path / "a.h5", gib=2)
    assert f"unpacks to more than the {X.nbytes + 4} bytes of a chunk" in said


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + b"\xff" * 200, "half"])
def test_hdf5_that_is_damaged(tmp_path, content):
    path = hdf5(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:3000] if content == "half" else content)
    assert "write it anew" in message(path)


def test_reading_is_as_lazy_as_the_rest():
    program = "import sys, hypertrail_data; hypertrail_data.read_dataset; print('h5py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert hypertrail_data.read_dataset is read_dataset


def test_a_file_that_is_neither(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"x,y\n1,2\n")
    assert "begins with b'x,y\\n1,2\\n', expected a .npz or an HDF5 file" in message(path)


def test_npz_with_fewer_bytes_than_it_declares(tmp_path):
    """The archive is in order, but for the size of the member in its directory."""
    content = npy(X)
    path = zipped(tmp_path / "a.npz", content[:-8])
    raw = bytearray(path.read_bytes())
    size = raw.index(b"PK\x01\x02") + 24
    raw[size : size + 4] = struct.pack("<I", len(content))
    path.write_bytes(raw)
    assert "is cut short after" in message(path)


def test_hdf5_of_another_filter(tmp_path):
    """Filters that are not built in may be loaded from plug-ins, and a plug-in is a program."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=(X * 100).astype(np.int32), chunks=X.shape, scaleoffset=0)
        file["y"] = Y
    assert "is packed by the filters [6], expected" in message(tmp_path / "a.h5")


def test_hdf5_chunk_that_claims_more_than_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", data=X, chunks=X.shape, compression="gzip")
        file["y"] = Y
        size = x.id.get_chunk_info(0).size
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    at = raw.index(struct.pack("<IIQ", size, 0, 0))  # size, filters that were left out, first offset
    raw[at : at + 4] = struct.pack("<I", 2**30)
    (tmp_path / "a.h5").write_bytes(raw)
    assert "claims more bytes than the file has" in message(tmp_path / "a.h5")
