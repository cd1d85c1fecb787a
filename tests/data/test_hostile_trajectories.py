"""Trajectory folders that somebody hostile has made, or that an accident has changed: refused in one line, or read as they were.

The last class is a fuzz: every length that a file may be cut to, and many single flipped bits.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import zlib
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from hypertrail_data import DataError, StoredTrajectory, TrajectoryError
from hypertrail_data import manifest as manifest_module
from hypertrail_data import segment as segment_module
from hypertrail_data.sealed import seal

STEPS, STATE_BYTES = 12, 32  # in three segments of four steps
SECRET = np.arange(100.0, 112.0)


def states(start, stop):
    step = np.arange(start, stop)
    return {"w/a": step[:, None] * 8.0 + np.arange(3.0), "v": np.sin(step[:, None] + np.arange(2.0)).astype(np.float32)}


def small(folder):
    """Three segments of some kilobytes."""
    with StoredTrajectory.create(folder, 4 * STATE_BYTES, meta={"note": "small"}) as trajectory:
        for start in range(0, STEPS, 4):
            trajectory.append(start, states(start, start + 4))
    return folder


@pytest.fixture
def folder(tmp_path):
    return small(tmp_path / "t")


@pytest.fixture
def secret(tmp_path):
    """A file of the reader's own: it comes back in no array, and it is as it was afterwards."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET.tobytes())
    yield path
    assert path.read_bytes() == SECRET.tobytes()
    assert not path.is_symlink()


def entries(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_bytes().splitlines()]


def forge_line(folder, k, **fields):
    """Change line k of the manifest, and make its check sum right again."""
    lines = entries(folder)
    lines[k] |= fields
    for line in lines:
        line.pop("check", None)
    (folder / "manifest.jsonl").write_bytes(b"".join(map(seal, lines)))


def forge_bytes(folder, k, raw):
    """Give segment k other bytes, and the manifest their size and sha256."""
    (folder / entries(folder)[k]["name"]).write_bytes(raw)
    forge_line(folder, k, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def forge(folder, change, k=0):
    """Have ``change`` at segment k as an open HDF5 file, and make the manifest fit."""
    path = folder / entries(folder)[k]["name"]
    with h5py.File(path, "r+") as file:
        change(file)
    forge_bytes(folder, k, path.read_bytes())


def forge_header(folder, **fields):
    header = json.loads((folder / "trajectory.json").read_bytes())
    header.pop("check")
    (folder / "trajectory.json").write_bytes(seal({**header, **fields}))


def refused(folder, message, mode="r"):
    """Whatever way it is read: a TrajectoryError of one line that says ``message``."""

    def use(read):
        with StoredTrajectory.open(folder, mode) as trajectory:
            read(trajectory)

    for read in (
        lambda trajectory: [trajectory.read(step) for step in range(STEPS)],
        lambda trajectory: list(trajectory.forwards()),
        lambda trajectory: list(trajectory.backwards()),
        lambda trajectory: trajectory.verify(),
        lambda trajectory: trajectory.export(folder.parent / "exported.h5"),
    ):
        with pytest.raises(TrajectoryError, match=message) as caught:
            use(read)
        one_line(caught.value)
    assert not list(folder.parent.glob("exported.h5*"))


def one_line(error):
    assert str(error).isprintable(), error
    assert len(str(error)) < 1000


def replaced(file, name="v"):
    del file[name]


def create(file, shape, kind=h5t.IEEE_F32LE, set_up=lambda plist: None, name=b"v"):
    """A data set that nothing is written into; set_up changes how it is made."""
    plist = h5p.create(h5p.DATASET_CREATE)
    set_up(plist)
    h5d.create(file.id, name, kind, h5s.create_simple(shape), dcpl=plist)


class TestSegments:
    """Each segment has the sha256 that the manifest says: it was made like that."""

    def test_values_in_another_file(self, folder, secret):
        def change(file):
            replaced(file)
            file.create_dataset("v", (4, 3), "f8", external=[(os.fspath(secret), 0, h5py.h5f.UNLIMITED)])

        forge(folder, change)
        refused(folder, "'v' has its values in another file")

    def test_values_in_another_file_that_takes_for_ever(self, folder, tmp_path):
        os.mkfifo(tmp_path / "pipe")

        def change(file):
            replaced(file)
            file.create_dataset("v", (4, 3), "f8", external=[(os.fspath(tmp_path / "pipe"), 0, h5py.h5f.UNLIMITED)])

        forge(folder, change)
        refused(folder, "'v' has its values in another file")

    @pytest.mark.parametrize("unlimited", [False, True])
    def test_a_virtual_data_set(self, folder, tmp_path, unlimited):
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file.create_dataset("x", data=SECRET.reshape(4, 3), maxshape=(None, 3), chunks=(4, 3))
        before = (tmp_path / "secret.h5").read_bytes()

        def change(file):
            replaced(file)
            if unlimited:
                layout = h5py.VirtualLayout((4, 3), "f8", maxshape=(None, 3))
                source = h5py.VirtualSource(tmp_path / "secret.h5", "x", (4, 3), "f8", maxshape=(None, 3))
                layout[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
            else:
                layout = h5py.VirtualLayout((4, 3), "f8")
                layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", (4, 3))
            file.create_virtual_dataset("v", layout)

        forge(folder, change)
        refused(folder, "'v' has its values in another file")
        assert (tmp_path / "secret.h5").read_bytes() == before

    @pytest.mark.parametrize("chunks", [None, (4, 3)])
    def test_links_into_another_file(self, folder, tmp_path, chunks):
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file.create_dataset("x", data=SECRET.reshape(4, 3), chunks=chunks)

        def change(file):
            file["u"] = h5py.ExternalLink(os.fspath(tmp_path / "secret.h5"), "/x")

        forge(folder, change)
        refused(folder, "'u' is a link that leads out of its group")

    @pytest.mark.parametrize("link", ["b", "c"])
    def test_a_name_that_is_a_path_through_a_link(self, folder, tmp_path, link):
        """HDF5 makes no name with a slash, but a file can have one: it is followed through b into the other file."""
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file.create_dataset("x", data=SECRET.reshape(4, 3), chunks=(4, 3))

        def change(file):
            replaced(file)
            file["aaX"] = h5py.ExternalLink(os.fspath(tmp_path / "secret.h5"), "/")
            file["b!x"] = np.ones((4, 3))

        forge(folder, change)
        raw = (folder / entries(folder)[0]["name"]).read_bytes()
        assert raw.count(b"b!x") == 1
        forge_bytes(folder, 0, raw.replace(b"b!x", b"b/x").replace(b"aaX", link.encode() + b"\0\0"))
        refused(folder, f"'{'b' if link == 'b' else 'b/x'}' is a link that leads out of its group")

    def test_soft_links(self, folder):
        def change(file):
            file["u"] = h5py.SoftLink("/v")
            file["w/round"] = h5py.SoftLink("/w")

        forge(folder, change)
        refused(folder, "'.*' is a link that leads out of its group")

    def test_groups_that_hold_themselves(self, folder):
        def change(file):
            file["w/again"] = file["w"]
            file["w/top"] = file["/"]

        forge(folder, change)
        refused(folder, "'w/.*' has a second name")

    def test_a_data_set_with_two_names(self, folder):
        def change(file):
            file["u"] = file["v"]

        forge(folder, change)
        refused(folder, "has a second name")

    def test_a_named_type(self, folder):
        def change(file):
            file["type"] = np.dtype("f4")

        forge(folder, change)
        refused(folder, "'type' is neither a group nor a data set")

    def test_groups_in_groups_in_groups(self, folder):
        """Too deep for a walk that calls itself."""

        def change(file):
            group = file
            for _ in range(1200):
                group = group.create_group("g")
            group["v"] = file["v"][...]

        forge(folder, change)
        refused(folder, r"cannot be used \('(g/)+")

    @pytest.mark.parametrize(
        "values",
        [
            np.array([b"a", b"bc", b"", b"d"], object),  # of any length: the file says where each of them lies
            np.arange(4, dtype=">f4"),
            np.arange(4, dtype="f2"),
            np.arange(4, dtype="u8"),
            np.ones(4, bool),
            np.ones(4, "c16"),
            np.zeros(4, [("a", "f4"), ("b", "i8")]),
            np.array([b"abc"] * 4),
            h5py.Empty("f4"),
        ],
        ids=lambda values: str(values.dtype),
    )
    def test_values_of_another_type(self, folder, values):
        def change(file):
            replaced(file)
            string = {"dtype": h5py.string_dtype()} if values.dtype == object else {}
            file.create_dataset("v", data=values, **string)

        forge(folder, change)
        refused(folder, "'v' is not an array of float32, float64, int32, int64")

    def test_ten_terabytes(self, folder):
        """No byte of it is in the file: an array for it would take all memory."""

        def contiguous(file):
            replaced(file)
            create(file, (4, 10**12))

        forge(folder, contiguous)
        refused(folder, "'v' would take more memory than a file of .* bytes can fill")

    def test_ten_terabytes_in_chunks(self, folder):
        def chunked(file):
            replaced(file)
            create(file, (4, 10**12), set_up=lambda plist: plist.set_chunk((1, 1000)))

        forge(folder, chunked)
        refused(folder, "'v' would take more memory than a file of .* bytes can fill")

    def test_many_that_are_too_many_together(self, folder):
        """Each is small enough for the file's size."""

        def change(file):
            for k in range(100):
                create(file, (4, 10**6), name=b"u%d" % k)

        forge(folder, change)
        refused(folder, "'u.*' would take more memory than a file of .* bytes can fill")

    def test_an_array_beyond_the_end(self, folder):
        path = folder / entries(folder)[0]["name"]
        with h5py.File(path) as file:
            offset = file["v"].id.get_offset()
        raw = path.read_bytes()
        forge_bytes(folder, 0, raw.replace(struct.pack("<Q", offset), struct.pack("<Q", len(raw) - 8)))
        refused(folder, "cannot be used")

    @pytest.mark.parametrize("chunks", [(4, 2), (1, 2), (3, 2), (3, 1)])
    @pytest.mark.parametrize(
        "packed", [{}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"shuffle": True}], ids=str
    )
    def test_chunks_are_read(self, folder, chunks, packed):
        """Those of another writer, who means no harm."""

        def change(file):
            for name, array in states(4, 8).items():
                del file[name]
                file.create_dataset(name, data=array, chunks=chunks, **packed)

        forge(folder, change, k=1)
        assert contents(folder) == whole()

    def test_an_unknown_filter(self, folder):
        def change(file):
            replaced(file)
            file.create_dataset("v", data=np.zeros((4, 2), np.float32), chunks=(4, 2), compression="lzf")

        forge(folder, change)
        refused(folder, "packed by filter 32000 of HDF5, expected deflate, shuffle or fletcher32")

    def test_a_chunk_that_is_missing(self, folder):
        def change(file):
            replaced(file)
            create(file, (4, 2), set_up=lambda plist: plist.set_chunk((4, 2)))

        forge(folder, change)
        refused(folder, "'v' has a chunk that is not in the file")

    @pytest.mark.parametrize("size", [0, 3, 37, 2**32 - 1])
    def test_a_chunk_of_another_length(self, folder, size):
        """HDF5 itself crashes on one that is shorter than its check sum."""

        def change(file):
            replaced(file)
            file.create_dataset("v", data=states(0, 4)["v"], chunks=(4, 2), fletcher32=True)

        forge(folder, change)
        raw = (folder / entries(folder)[0]["name"]).read_bytes()
        key = struct.pack("<IIQQQ", 36, 0, 0, 0, 0)  # bytes, filter mask, and where it belongs
        assert raw.count(key) == 1
        forge_bytes(folder, 0, raw.replace(key, struct.pack("<I", size) + key[4:]))
        refused(folder, "cannot be used")

    def test_a_chunk_that_unpacks_to_more(self, folder):
        def change(file):
            replaced(file)
            made = file.create_dataset("v", (4, 2), "f4", chunks=(4, 2), compression="gzip")
            made.id.write_direct_chunk((0, 0), zlib.compress(bytes(10**8)))

        forge(folder, change)
        refused(folder, "cannot be used")

    @pytest.mark.parametrize("value", [0.0, [0, 0], "0", None, h5py.Empty("i8"), 2**63, -1])
    def test_attributes(self, folder, value):
        def change(file):
            del file.attrs["start"]
            if value is not None:
                file.attrs["start"] = np.uint64(value) if value == 2**63 else value

        forge(folder, change)
        refused(folder, r"cannot be used|holds the steps .*, expected 0 \.\. 3")

    def test_fewer_states_than_the_manifest_says(self, folder):
        def change(file):
            for name, array in states(0, 2).items():
                del file[name]
                file[name] = array

        forge(folder, change)
        refused(folder, r"holds the steps 0 \.\. 3 in arrays of 2, expected 0 \.\. 3")

    def test_another_layout_in_the_middle(self, folder):
        def change(file):
            replaced(file)
            file["v"] = np.ones((4, 3), np.float32)

        forge(folder, change, k=1)
        refused(folder, r"'v' is float32 \(3,\) in this block; expected float32 \(2,\)")

    def test_names_that_no_array_has(self, folder):
        def change(file):
            file["line\nbreak"] = np.ones(3)

        forge(folder, change)
        refused(folder, "cannot be used")

    @pytest.mark.parametrize("cut", [1, 8, 100, 1000])
    def test_cut_off(self, folder, cut):
        """Two other segments are read just as they were drawn; this one is not what was drawn."""
        raw = (folder / entries(folder)[1]["name"]).read_bytes()
        forge_bytes(folder, 1, raw[:-cut])
        refused(folder, "cannot be used|beyond the end")

    def test_longer_than_drawn(self, folder):
        raw = (folder / entries(folder)[1]["name"]).read_bytes()
        forge_bytes(folder, 1, raw + b"more")
        assert contents(folder) == whole()

    def test_another_segment_in_its_place(self, folder):
        forge_bytes(folder, 1, (folder / entries(folder)[2]["name"]).read_bytes())
        refused(folder, r"holds the steps 8 \.\. 11 in arrays of 4, expected 4 \.\. 7")

    def test_exchanged_between_hashing_and_reading(self, folder, monkeypatch):
        """What is taken apart are the bytes that were hashed."""

        def chunked(number):
            def change(file):
                replaced(file)
                file.create_dataset("v", data=states(0, 4)["v"] * number, chunks=(4, 2))

            return change

        path = folder / entries(folder)[0]["name"]
        forge(folder, chunked(2))
        other = path.read_bytes()
        forge(folder, chunked(1))
        unpack = segment_module.unpack

        def exchanging(*arguments):
            path.write_bytes(other)
            return unpack(*arguments)

        monkeypatch.setattr(segment_module, "unpack", exchanging)
        with StoredTrajectory.open(folder) as trajectory:
            assert trajectory.read(1)["v"].tolist() == states(1, 2)["v"][0].tolist()

    def test_grown_after_opening(self, folder):
        """Its size was checked at opening; it is not read at any size."""
        with StoredTrajectory.open(folder) as trajectory:
            os.truncate(folder / entries(folder)[0]["name"], 2**40)
            with pytest.raises(TrajectoryError, match="has no longer the size it had"):
                trajectory.read(0)


class TestManifest:
    @pytest.mark.parametrize(
        "name", ["../secret", "sub/../../secret", "absolute", "segment-0-4.h5", "lock", "", 7, None]
    )
    def test_names_of_other_files(self, folder, tmp_path, name):
        """A good segment lies outside of the folder."""
        shutil.copy(folder / entries(folder)[0]["name"], tmp_path / "secret")
        forge_line(folder, 0, name=os.fspath(tmp_path / "secret") if name == "absolute" else name)
        refused(folder, r"line 1 of manifest\.jsonl is damaged")
        refused(folder, r"line 1 of manifest\.jsonl is damaged", "a")

    @pytest.mark.parametrize(
        "fields",
        [
            {"start": -4, "name": "segment--00000000004-000000000004.h5"},
            {"start": False},
            {"start": 0.0},
            {"start": "0"},
            {"stop": 4.0},
            {"stop": 0, "name": "segment-000000000000-000000000000.h5"},
            {"stop": 2**63, "name": f"segment-000000000000-{2**63}.h5"},
            {"stop": [4]},
            {"stop": None},
            {"bytes": 0},
            {"bytes": -1},
            {"bytes": True},
            {"bytes": 2**63},
            {"bytes": 1e300},
            {"bytes": {"a": 1}},
            {"sha256": 5},
            {"sha256": "a"},
            {"sha256": "A" * 64},
            {"sha256": "a" * 63 + "\n"},
            {"sha256": None},
            {"more": 1},
            {"sha256": "a" * 10**6},
        ],
        ids=lambda fields: str(fields)[:60],
    )
    def test_fields(self, folder, fields):
        forge_line(folder, 0, **fields)
        refused(folder, r"line 1 of manifest\.jsonl is damaged")

    @pytest.mark.parametrize(
        "line",
        [
            b'{"start":' + b"9" * 5000 + b"}\n",
            b"[" * 100_000 + b"\n",
            b'{"a":' * 100_000 + b"\n",
            seal({"start": 0}),
            b'{"check":"0"}\n',
            b"[]\n",
            b"null\n",
            b"\xff\xfe{\n",
            b"\n",
            b"\0" * 1000 + b"\n",
        ],
        ids=lambda line: repr(line[:20]),
    )
    def test_lines(self, folder, line):
        path = folder / "manifest.jsonl"
        path.write_bytes(path.read_bytes() + line)
        with pytest.raises(TrajectoryError, match=r"line 4 of manifest\.jsonl is damaged; .*below step 12") as caught:
            StoredTrajectory.open(folder)
        one_line(caught.value)

    def test_nested_so_that_it_can_be_read_and_not_written(self, folder):
        """Python's limit for reading JSON and the one for writing it are not the same."""
        for depth in range(1, 3000, 7):
            (folder / "trajectory.json").write_bytes(b'{"a":' + b"[" * depth + b"]" * depth + b',"check":"0"}\n')
            with pytest.raises(TrajectoryError, match="is damaged"):
                StoredTrajectory.open(folder)

    def test_too_large(self, folder, monkeypatch):
        """No larger one is written either: it could not be read again."""
        size = (folder / "manifest.jsonl").stat().st_size
        monkeypatch.setattr(manifest_module, "LARGEST", size)
        with StoredTrajectory.open(folder, "a") as trajectory:
            trajectory.append(STEPS, states(STEPS, STEPS + 4))
            with pytest.raises(TrajectoryError, match=r"has no room for another segment .*; train again with a larger"):
                trajectory.flush()
            assert trajectory.acknowledged == STEPS
        assert contents(folder) == whole()
        monkeypatch.setattr(manifest_module, "LARGEST", size - 1)
        refused(folder, rf"manifest\.jsonl has more than {size - 1} bytes")


class TestHeader:
    @pytest.mark.parametrize(
        "fields",
        [
            {"format": None},
            {"format": ["hypertrail-trajectory"]},
            {"version": True},
            {"version": 1.0},
            {"version": "1"},
            {"segment_bytes": 0},
            {"segment_bytes": -1},
            {"segment_bytes": True},
            {"segment_bytes": 1e6},
            {"segment_bytes": "8"},
            {"segment_bytes": 2**63},
            {"meta": None},
            {"meta": [1]},
            {"meta": "x"},
        ],
        ids=str,
    )
    def test_fields(self, folder, fields):
        forge_header(folder, **fields)
        refused(folder, r"trajectory\.json is damaged; .*train again")
        refused(folder, r"trajectory\.json is damaged; .*train again", "a")

    @pytest.mark.parametrize("missing", ["format", "version", "segment_bytes", "meta"])
    def test_missing_fields(self, folder, missing):
        header = json.loads((folder / "trajectory.json").read_bytes())
        del header["check"], header[missing]
        (folder / "trajectory.json").write_bytes(seal(header))
        refused(folder, r"trajectory\.json is damaged")

    @pytest.mark.parametrize(
        "fields", [{"format": "\x1b[2J\n" * 10**5}, {"version": 10**4000}, {"version": -1}, {"format": "\ud800"}]
    )
    def test_of_another_release(self, folder, fields):
        forge_header(folder, **fields)
        refused(folder, "this release reads hypertrail-trajectory version 1: use the release that wrote it")

    @pytest.mark.parametrize(
        "raw",
        [b"", b"{", b"[]\n", b"\xff" * 100, b"[" * 10**6, b'{"version":' + b"1" * 5000 + b"}\n", b'{"check":{}}\n'],
        ids=lambda raw: repr(raw[:20]),
    )
    def test_other_contents(self, folder, raw):
        (folder / "trajectory.json").write_bytes(raw)
        refused(folder, r"trajectory\.json is damaged")

    def test_too_large(self, folder):
        os.truncate(folder / "trajectory.json", 2**40)
        refused(folder, r"trajectory\.json has more than \d+ bytes")

    def test_create_makes_none_that_it_would_not_read(self, tmp_path):
        for meta, kind in (([1], TypeError), ({"x": "a" * 2**24}, ValueError), ({1: 1, "1": 2}, ValueError)):
            with pytest.raises(kind):
                StoredTrajectory.create(tmp_path / "u", meta=meta)
        assert not (tmp_path / "u").exists()


OWN = ["trajectory.json", "manifest.jsonl", "segment-000000000004-000000000008.h5", "lock"]


class TestOtherThanFiles:
    @pytest.mark.parametrize("name", OWN)
    def test_links(self, folder, secret, name):
        """The link leads to a good file, which stays as it is."""
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        before = outside.read_bytes()
        for mode in ("r", "a"):
            refused(folder, f"{name} is a symbolic link", mode)
        with pytest.raises(TrajectoryError, match="is a symbolic link"):
            StoredTrajectory.open(folder, "a", until=4)
        assert outside.read_bytes() == before
        assert (folder / name).is_symlink()

    @pytest.mark.parametrize("name", OWN)
    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
    def test_pipes_and_folders(self, folder, name, make):
        (folder / name).unlink()
        make(folder / name)
        for mode in ("r", "a"):
            refused(folder, f"{name} is not a regular file; ", mode)

    @pytest.mark.parametrize("name", ["segment-000000000012-000000000016.h5", "manifest.jsonl." + "0a" * 16 + ".tmp"])
    def test_leftovers_that_are_links(self, folder, secret, name):
        (folder / name).symlink_to(secret)
        refused(folder, "is a symbolic link; remove it", "a")
        (folder / name).unlink()
        assert contents(folder) == whole()

    @pytest.mark.parametrize("name", ["lock", "trajectory.json", "manifest.jsonl"])
    def test_create_beside_a_link(self, tmp_path, secret, name):
        (tmp_path / "u").mkdir()
        (tmp_path / "u" / name).symlink_to(secret)
        with pytest.raises(TrajectoryError, match="is a symbolic link; remove it"):
            StoredTrajectory.create(tmp_path / "u")
        assert os.listdir(tmp_path / "u") == [name]

    def test_a_link_that_comes_after_opening(self, folder, secret):
        name = entries(folder)[0]["name"]
        outside = folder.parent / "outside"
        with StoredTrajectory.open(folder) as trajectory:
            (folder / name).rename(outside)
            (folder / name).symlink_to(outside)
            with pytest.raises(TrajectoryError, match="is a symbolic link") as caught:
                trajectory.read(0)
            assert (caught.value.segment, caught.value.resume_step) == (name, 0)

    def test_a_link_to_the_folder_itself_is_followed(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        assert contents(tmp_path / "link") == whole()

    def test_export_does_not_write_through_a_link(self, folder, secret):
        (folder.parent / "x.h5").symlink_to(secret)
        with StoredTrajectory.open(folder) as trajectory:
            trajectory.export(folder.parent / "x.h5")
        with h5py.File(folder.parent / "x.h5") as file:
            assert file["v"].shape == (STEPS, 2)

    def test_a_lock_of_other_words(self, folder):
        with StoredTrajectory.open(folder, "a"):
            (folder / "lock").write_bytes(b"\x1b[2J\xff\nline\n")
            with pytest.raises(TrajectoryError, match="is being written by") as caught:
                StoredTrajectory.open(folder, "a")
            assert str(caught.value).isprintable()


# The fuzz


def exact(arrays):
    """Names, dtypes, shapes and bytes."""
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


@cache
def whole(stop=STEPS):
    """What a trajectory of so many steps holds."""
    made = states(0, STEPS)
    return {step: exact({name: array[step] for name, array in made.items()}) for step in range(stop)}


def held(trajectory):
    trajectory.verify()
    return {step: exact(trajectory.read(step)) for step in range(trajectory.start, trajectory.stop)}


def contents(folder, mode="r"):
    with StoredTrajectory.open(folder, mode) as trajectory:
        return held(trajectory)


def attempt(folder, mode):
    """What it holds; or what the refusal says."""
    try:
        return contents(folder, mode)
    except DataError as error:
        one_line(error)
        return str(error)


WAY_OUT = re.compile(
    r"; .*(StoredTrajectory\.open\(folder, \"a\", until=\d+\)|put the|put that|copy them|make one with)"
)


def judge(folder, expected):
    """Reading gives one of the expected contents or is refused. So does opening for appending, and then either it goes on from
    there, or it is refused again in the same words, which name a way out."""
    found = attempt(folder, "r")
    assert isinstance(found, str) or found in expected, "other states than were written"
    found = attempt(folder, "a")
    if isinstance(found, str):
        assert WAY_OUT.search(found), found
        assert attempt(folder, "a") == found
        return
    assert found in expected, "other states than were written"
    stop = len(found)
    with StoredTrajectory.open(folder, "a") as trajectory:
        assert trajectory.stop == stop
        trajectory.append(stop, states(stop, stop + 3))
        trajectory.flush()
    with StoredTrajectory.open(folder) as trajectory:
        assert trajectory.verify().steps == stop + 3
        assert exact(trajectory.read(stop + 2)) == exact({n: array[2] for n, array in states(stop, stop + 3).items()})


class Folder:
    """A small trajectory in a folder that can be made anew, as it was."""

    def __init__(self, folder: Path) -> None:
        self.path = small(folder)
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def restore(self) -> None:
        found = {path.name: path.read_bytes() for path in self.path.iterdir()}
        for name in found.keys() - self.files.keys():
            (self.path / name).unlink()
        for name, raw in self.files.items():
            if found.get(name) != raw:
                (self.path / name).write_bytes(raw)

    def changed(self, name: str, raw: bytes) -> Path:
        self.restore()
        (self.path / name).write_bytes(raw)
        return self.path


@pytest.fixture
def original(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power cut is simulated, and it takes most of the time
    return Folder(tmp_path / "t")


class TestFuzz:
    @pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("name", ["trajectory.json", "manifest.jsonl", "segment-000000000004-000000000008.h5"])
    def test_cut_off_at_every_length(self, original, name, every):
        """Whole lines cut cleanly off the end of the manifest are an earlier state of the run."""
        expected = [whole(stop) for stop in (range(0, STEPS + 1, 4) if name == "manifest.jsonl" else [STEPS])]
        raw = original.files[name]
        for length in range(0, len(raw), every):
            judge(original.changed(name, raw[:length]), expected)

    @pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
    def test_one_bit_flipped(self, original, count):
        draw = np.random.default_rng(count)
        names = list(original.files)
        for _ in range(count):
            name = names[int(draw.integers(len(names)))]
            raw = bytearray(original.files[name])
            raw[int(draw.integers(len(raw)))] ^= 1 << int(draw.integers(8))
            judge(original.changed(name, raw), [whole()])

    @pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
    def test_one_bit_flipped_by_somebody_who_can_count(self, original, count):
        """With the manifest made to fit, what the arrays hold is the forger's. All else is refused or read."""
        draw = np.random.default_rng(count)
        names = [name for name in original.files if name.startswith("segment")]
        for _ in range(count):
            k = int(draw.integers(len(names)))
            raw = bytearray(original.files[names[k]])
            raw[int(draw.integers(len(raw)))] ^= 1 << int(draw.integers(8))
            original.restore()
            forge_bytes(original.path, k, bytes(raw))
            found = attempt(original.path, "r")
            assert isinstance(found, str) or len(found) == STEPS
