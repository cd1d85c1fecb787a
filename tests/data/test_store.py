"""The store on disk: its segments, its thread, its lock, and the errors that lead out of damage."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

from hypertrail_data import DiskFull, StoredTrajectory, TrajectoryError
from hypertrail_data import gathering as gathering_module
from hypertrail_data import manifest as manifest_module
from hypertrail_data import rooms as rooms_module
from hypertrail_data import segment as segment_module
from hypertrail_data import store as store_module
from hypertrail_data import writer as writer_module
from hypertrail_data.rooms import Rooms
from hypertrail_data.sealed import seal

STEP = {"w": np.ones((1, 1000), np.float64)}  # 8000 bytes


def fill(folder, writing, stop=60, **options):
    """Steps 0 .. stop - 1 in six segments of ten or so."""
    with StoredTrajectory.create(folder, writing.SEGMENT_BYTES * 2, **options) as trajectory:
        for start in range(0, stop, 4):
            trajectory.append(start, writing.states(start, min(start + 4, stop)))
    return folder


@pytest.fixture
def may_sync(monkeypatch):
    """No file is synced until this is set."""
    event, sync = threading.Event(), writer_module.Written.sync

    def slow(written):
        event.wait()
        sync(written)

    monkeypatch.setattr(writer_module.Written, "sync", slow)
    return event


def lines(folder):
    return (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def intact(folder, writing, stop):
    with StoredTrajectory.open(folder) as trajectory:
        assert trajectory.stop == trajectory.acknowledged == stop
        for part in trajectory.forwards():
            assert writing.same(part.states, writing.states(part.start, part.stop))
        assert trajectory.verify().steps == len(trajectory)


class TestFormat:
    def test_another_reader_needs_only_json_and_hdf5(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing, meta={"experiment": "a", "rate": 0.1})
        header = json.loads((folder / "trajectory.json").read_text())
        assert (header["format"], header["version"]) == ("hypertrail-trajectory", 1)
        assert header["meta"] == {"experiment": "a", "rate": 0.1}
        expected_start = 0
        for line in lines(folder):
            entry = json.loads(line)
            assert list(entry) == ["name", "start", "stop", "bytes", "sha256", "check"]
            assert entry["start"] == expected_start
            raw = (folder / entry["name"]).read_bytes()
            assert (len(raw), hashlib.sha256(raw).hexdigest()) == (entry["bytes"], entry["sha256"])
            bare = line.rstrip(b"\n").replace(f',"check":"{entry["check"]}"'.encode(), b"")
            assert hashlib.sha256(bare).hexdigest()[:16] == entry["check"]
            with h5py.File(folder / entry["name"]) as file:
                assert (file.attrs["start"], file.attrs["stop"]) == (entry["start"], entry["stop"])
                weights = file["w/block1.conv3/W"]
                assert weights.chunks is None
                assert all(file[name].id.get_offset() % 64 == 0 for name in ("w/block1.conv3/W", "v"))
                expected = writing.states(entry["start"], entry["stop"])
                assert weights[...].tobytes() == expected["w/block1.conv3/W"].tobytes()
            expected_start = entry["stop"]
        assert expected_start == 60
        assert files(folder)[:2] == ["lock", "manifest.jsonl"]

    def test_segments_hold_whole_steps(self, tmp_path):
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=25_000) as trajectory:
            trajectory.append(0, {"w": np.ones((10, 1000))})
            assert trajectory.segments() == [(0, 3), (3, 6), (6, 9), (9, 10)]

    def test_a_step_larger_than_a_segment_has_one_of_its_own(self, tmp_path):
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=100) as trajectory:
            trajectory.append(0, {"w": np.ones((3, 1000))})
            assert trajectory.segments() == [(0, 1), (1, 2), (2, 3)]
            assert trajectory.read(2)["w"].sum() == 1000

    def test_a_block_that_fits_is_not_cut(self, tmp_path):
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            for start in (0, 4, 8, 12):
                trajectory.append(start, {"w": np.full((4, 1000), float(start))})
            trajectory.append(16, {"w": np.ones((13, 1000))})
            assert trajectory.segments() == [(0, 8), (8, 18), (18, 28), (28, 29)]

    def test_scalars_and_what_has_no_elements(self, tmp_path):
        with StoredTrajectory.create(tmp_path / "t") as trajectory:
            trajectory.append(0, {"w": np.arange(5000.0), "none": np.zeros((5000, 0, 3), np.float32)})
        with StoredTrajectory.open(tmp_path / "t") as trajectory:
            state = trajectory.read(4999)
            assert state["w"] == 4999.0
            assert (state["none"].shape, state["none"].dtype) == ((0, 3), np.float32)

    def test_chunked_segments_of_another_writer_are_read(self, tmp_path):
        folder = tmp_path / "t"
        with StoredTrajectory.create(folder) as trajectory:
            trajectory.append(0, {"w": np.arange(12.0).reshape(4, 3)})
        entry = json.loads(lines(folder)[0])
        with h5py.File(folder / entry["name"], "r+") as file:
            del file["w"]
            file.create_dataset("w", data=np.arange(12.0).reshape(4, 3), chunks=(1, 3), fletcher32=True)
        raw = (folder / entry["name"]).read_bytes()
        changed = {**entry, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        del changed["check"]
        (folder / "manifest.jsonl").write_bytes(seal(changed))
        with StoredTrajectory.open(folder) as trajectory:
            assert trajectory.read(2)["w"].tolist() == [6.0, 7.0, 8.0]

    def test_segments_are_recognised_or_read_by_hdf5_with_the_same_result(self, tmp_path, writing, monkeypatch):
        """With the layout at hand, a segment is read as it was drawn; one that is drawn differently is left to HDF5."""
        asked = []
        unpack = segment_module.unpack
        monkeypatch.setattr(segment_module, "unpack", lambda image: asked.append(image) or unpack(image))
        folder = fill(tmp_path / "t", writing, 60)
        with StoredTrajectory.open(folder) as trajectory:
            parts = list(trajectory.forwards())
            assert len(parts) > 3
            assert len(asked) == 1  # the first one told the layout
            for one, entry in zip(parts, trajectory._entries, strict=True):
                alone = segment_module.load(folder, entry, Rooms())
                assert list(one.states) == list(alone.states)
                assert writing.same(one.states, alone.states)
                assert writing.same(one.states, writing.states(one.start, one.stop))
                unlike = {"other": ((2,), np.dtype("f4"))}
                with pytest.raises(TrajectoryError, match=r"'exact/v.fixed' is int64 .*; expected absent") as caught:
                    segment_module.load(folder, entry, Rooms(), unlike)
                assert caught.value.segment == entry.name
        assert len(asked) == 1 + 2 * len(parts)

    def test_what_is_read_is_read_only(self, tmp_path, writing):
        with StoredTrajectory.open(fill(tmp_path / "t", writing)) as trajectory:
            with pytest.raises(ValueError, match="read-only"):
                trajectory.read(3)["v"][0] = 0
            with pytest.raises(ValueError, match="read-only"):
                next(trajectory.backwards()).states["v"][0] = 0

    def test_verify(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        with StoredTrajectory.open(folder) as trajectory:
            report = trajectory.verify()
        segments = [path for path in folder.iterdir() if path.name.startswith("segment-")]
        assert (report.segments, report.steps) == (len(segments), 60)
        assert report.bytes == sum(path.stat().st_size for path in segments)

    def test_meta_and_size_come_back(self, tmp_path, writing):
        with StoredTrajectory.open(fill(tmp_path / "t", writing, meta={"x": [1, None, "ü"]})) as trajectory:
            assert trajectory.meta == {"x": [1, None, "ü"]}
            assert trajectory.segment_bytes == writing.SEGMENT_BYTES * 2


class TestOpening:
    def test_create_refuses_an_occupied_folder(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        before = files(folder)
        with pytest.raises(TrajectoryError, match="already holds a trajectory; open it with mode='a'"):
            StoredTrajectory.create(folder)
        assert files(folder) == before
        intact(folder, writing, 60)

    def test_create_after_a_kill_in_create(self, tmp_path, writing):
        folder = tmp_path / "t"
        folder.mkdir()
        (folder / "manifest.jsonl").touch()
        fill(folder, writing)
        intact(folder, writing, 60)

    def test_open_without_a_trajectory(self, tmp_path):
        for mode in ("r", "a"):
            with pytest.raises(TrajectoryError, match="holds no trajectory"):
                StoredTrajectory.open(tmp_path / "nowhere", mode)
        assert not (tmp_path / "nowhere").exists()

    def test_wrong_arguments(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        with pytest.raises(ValueError, match="mode is 'w'"):
            StoredTrajectory.open(folder, "w")
        with pytest.raises(ValueError, match="needs mode='a'"):
            StoredTrajectory.open(folder, "r", until=3)
        with pytest.raises(ValueError, match="segment_bytes is 0"):
            StoredTrajectory.create(tmp_path / "u", 0)

    def test_a_version_from_the_future(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        header = {"format": "hypertrail-trajectory", "version": 2, "segment_bytes": 1, "meta": {}}
        (folder / "trajectory.json").write_bytes(seal(header))
        with pytest.raises(TrajectoryError, match=r"version 2; this release reads .* version 1"):
            StoredTrajectory.open(folder)

    def test_reading_mode_does_not_write(self, tmp_path, writing):
        with StoredTrajectory.open(fill(tmp_path / "t", writing)) as trajectory:
            for write in (lambda: trajectory.append(60, writing.states(60, 61)), lambda: trajectory.truncate(3)):
                with pytest.raises(TrajectoryError, match="open for reading; open it with mode='a'"):
                    write()

    def test_second_writer_is_refused_and_readers_are_not(self, tmp_path, writing):
        folder = tmp_path / "t"
        with StoredTrajectory.create(folder) as first:
            first.append(0, writing.states(0, 5))
            first.flush()
            with pytest.raises(TrajectoryError, match=f"being written by process {os.getpid()} on"):
                StoredTrajectory.open(folder, "a")
            program = "import sys, hypertrail_data as h; h.StoredTrajectory.open(sys.argv[1], 'a')"
            other = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
            assert other.returncode == 1
            assert "is being written by process" in other.stderr
            intact(folder, writing, 5)
            first.append(5, writing.states(5, 9))
        StoredTrajectory.open(folder, "a").close()
        intact(folder, writing, 9)


class TestDamage:
    def test_torn_last_line_at_every_byte(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        whole = lines(folder)
        last = json.loads(whole[-1])
        for keep in range(len(whole[-1])):
            (folder / "manifest.jsonl").write_bytes(b"".join(whole[:-1]) + whole[-1][:keep])
            with StoredTrajectory.open(folder) as trajectory:
                assert trajectory.stop == last["start"]
        assert last["name"] in files(folder)  # reading sweeps nothing
        with StoredTrajectory.open(folder, "a") as trajectory:
            assert last["name"] not in files(folder)
            assert lines(folder) == whole[:-1]
            trajectory.append(last["start"], writing.states(last["start"], 70))
        intact(folder, writing, 70)

    def test_leftovers_are_swept_and_strangers_are_not(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        left = [
            "segment-000000000060-000000000064.h5",
            "segment-000000000060-000000000064.h5." + "0af3" * 8 + ".tmp",
            "manifest.jsonl." + "0af3" * 8 + ".tmp",
        ]
        strangers = ["notes.txt", "segment.h5", "x.tmp"]
        before = files(folder)
        for name in left + strangers:
            (folder / name).write_text("?")
        StoredTrajectory.open(folder).close()
        assert set(left) < set(files(folder))
        StoredTrajectory.open(folder, "a").close()
        assert files(folder) == sorted(before + strangers)
        intact(folder, writing, 60)

    def test_missing_segment(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        entry = json.loads(lines(folder)[2])
        (folder / entry["name"]).unlink()
        self.check_way_out(folder, writing, entry, f"segment {entry['name']} cannot be read")

    def test_short_segment(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        entry = json.loads(lines(folder)[2])
        os.truncate(folder / entry["name"], entry["bytes"] - 1)
        self.check_way_out(folder, writing, entry, f"has {entry['bytes'] - 1} bytes, expected {entry['bytes']}")

    def test_hole(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        whole = lines(folder)
        (folder / "manifest.jsonl").write_bytes(b"".join(whole[:2] + whole[3:]))
        entry, after = json.loads(whole[2]), json.loads(whole[3])
        message = f"{after['name']} starts at step {after['start']}, expected step {entry['start']}"
        self.check_way_out(folder, writing, {**after, "start": entry["start"]}, message)

    def check_way_out(self, folder, writing, entry, message):
        """The error names the segment and the step; doing as it says leads on, and loses nothing below that step."""
        step = entry["start"]
        for mode in ("r", "a"):
            with pytest.raises(TrajectoryError, match=message) as caught:
                StoredTrajectory.open(folder, mode)
            assert f'resume from there with StoredTrajectory.open(folder, "a", until={step})' in str(caught.value)
            assert (caught.value.resume_step, caught.value.segment) == (step, entry["name"])
        with pytest.raises(TrajectoryError, match=message):
            StoredTrajectory.open(folder, "a", until=step + 1)
        with StoredTrajectory.open(folder, "a", until=step) as trajectory:
            assert trajectory.stop == step
            trajectory.append(step, writing.states(step, step + 7))
        intact(folder, writing, step + 7)

    def test_damage_inside_a_segment(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        entry = json.loads(lines(folder)[1])
        raw = bytearray((folder / entry["name"]).read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / entry["name"]).write_bytes(raw)
        with StoredTrajectory.open(folder) as trajectory:
            trajectory.read(0)
            for use in (
                lambda: trajectory.read(entry["start"]),
                lambda: list(trajectory.backwards()),
                lambda: list(trajectory.forwards()),
                lambda: trajectory.verify(),
                lambda: trajectory.export(folder.parent / "x.h5"),
            ):
                with pytest.raises(TrajectoryError, match=f"segment {entry['name']} has sha256") as caught:
                    use()
                assert caught.value.resume_step == entry["start"]
        assert not list(folder.parent.glob("x.h5*"))
        with StoredTrajectory.open(folder, "a", until=entry["start"]) as trajectory:
            trajectory.append(entry["start"], writing.states(entry["start"], 30))
        intact(folder, writing, 30)

    def test_a_lost_manifest_sweeps_nothing(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        (folder / "manifest.jsonl").unlink()
        before = files(folder)
        with pytest.raises(TrajectoryError, match=r"manifest\.jsonl cannot be read"):
            StoredTrajectory.open(folder, "a")
        assert files(folder) == before

    def test_no_flipped_bit_is_silent(self, tmp_path, writing):
        """Every byte of the manifest and the header, and a hundred and more places of each segment."""
        folder = fill(tmp_path / "t", writing, stop=24)
        draw = np.random.default_rng(11)
        tried = 0
        for path in sorted(folder.iterdir()):
            if path.name == "lock":
                continue
            raw = path.read_bytes()
            places = range(len(raw))
            if path.suffix == ".h5":
                places = [0, 8, 100, len(raw) - 1, *map(int, draw.integers(0, len(raw), size=100))]
            for place in places:
                flipped = bytearray(raw)
                flipped[place] ^= 1 << int(draw.integers(8))
                path.write_bytes(flipped)
                with pytest.raises(TrajectoryError), StoredTrajectory.open(folder) as trajectory:
                    trajectory.verify()
                tried += 1
            path.write_bytes(raw)
        assert tried > 600
        intact(folder, writing, 24)

    def test_no_flipped_bit_of_the_manifest_costs_a_segment(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing, stop=24)
        raw, before = (folder / "manifest.jsonl").read_bytes(), files(folder)
        for place in range(0, len(raw), 7):
            flipped = bytearray(raw)
            flipped[place] ^= 1 << (place % 8)
            (folder / "manifest.jsonl").write_bytes(flipped)
            with pytest.raises(TrajectoryError):
                StoredTrajectory.open(folder, "a")
            assert files(folder) == before


class TestWriting:
    def test_flush_acknowledges(self, tmp_path, writing):
        with StoredTrajectory.create(tmp_path / "t") as trajectory:
            trajectory.append(4, writing.states(4, 7))
            assert trajectory.acknowledged == 4
            trajectory.flush()
            assert trajectory.acknowledged == 7
            intact(tmp_path / "t", writing, 7)

    def test_a_walk_backwards_does_not_wait_for_the_disk(self, tmp_path, monkeypatch):
        """The latest segments come while a slow disk still has them; by the end of the walk all are acknowledged."""
        may_write = threading.Event()
        write = writer_module.write_segment

        def slow(folder, job):
            if job.start >= 10:
                may_write.wait()
            return write(folder, job)

        monkeypatch.setattr(writer_module, "write_segment", slow)
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            for step in range(25):
                trajectory.append(step, {"w": np.full((1, 1000), float(step))})
            walk = trajectory.backwards()
            seen = [next(walk), next(walk)]
            assert trajectory.acknowledged <= 10
            may_write.set()
            seen += walk
            assert [(one.start, one.stop) for one in seen] == [(20, 25), (10, 20), (0, 10)]
            assert all(one.states["w"][k, 0] == one.start + k for one in seen for k in range(len(one)))
            assert trajectory.acknowledged == 25

    def test_a_failure_that_nobody_asked_for_is_said(self, tmp_path, monkeypatch):
        def full(folder, job):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(writer_module, "write_segment", full)
        trajectory = StoredTrajectory.create(tmp_path / "t")
        trajectory.append(0, STEP)
        trajectory.hand_over()
        with pytest.warns(RuntimeWarning, match="no space left on device"):
            del trajectory

    def test_a_walk_backwards_tells_that_the_disk_failed(self, tmp_path, monkeypatch):
        def full(folder, job):
            time.sleep(0.05)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(writer_module, "write_segment", full)
        trajectory = StoredTrajectory.create(tmp_path / "t")
        trajectory.append(0, STEP)
        with pytest.raises(DiskFull, match="below step 0 are safe"):
            list(trajectory.backwards())
        trajectory.close()

    def test_a_walk_backwards_does_not_wait_until_files_are_synced(self, tmp_path, may_sync):
        """Those that are written are read, and acknowledged later; the walk ends once all of them are."""
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            for step in range(60):
                trajectory.append(step, {"w": np.full((1, 1000), float(step))})
            walk = trajectory.backwards()
            seen = [next(walk) for _ in range(6)]
            assert trajectory.acknowledged == 0
            assert [(one.start, one.stop) for one in seen] == [(k, k + 10) for k in range(50, -1, -10)]
            assert all(one.states["w"][k, 0] == one.start + k for one in seen for k in range(len(one)))
            may_sync.set()
            assert next(walk, None) is None
            assert trajectory.acknowledged == 60

    def test_a_disk_that_never_syncs_stops_the_writing(self, tmp_path, may_sync):
        """Ten steps make a segment; sixteen files are written without a sync, one waits, two are accepted, one is gathered."""
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            threading.Timer(0.5, may_sync.set).start()
            for step in range(1000):
                trajectory.append(step, STEP)
                if not may_sync.is_set():
                    assert trajectory.stop <= 10 * (writer_module.BEHIND + 1 + 2 + 1)
            assert may_sync.is_set()

    def test_what_was_written_before_a_failure_is_acknowledged(self, tmp_path, monkeypatch):
        write, sync = writer_module.write_segment, writer_module.Written.sync
        failed = threading.Event()

        def third(folder, job):
            if job.start == 20:
                failed.set()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(folder, job)

        def late(written):
            failed.wait()
            sync(written)

        monkeypatch.setattr(writer_module, "write_segment", third)
        monkeypatch.setattr(writer_module.Written, "sync", late)
        trajectory = StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000)
        with pytest.raises(DiskFull, match="below step 20 are safe"):
            trajectory.append(0, {"w": np.ones((300, 1000))})
        trajectory.close()
        with StoredTrajectory.open(tmp_path / "t") as trajectory:
            assert trajectory.stop == 20

    def test_a_disk_that_cannot_sync(self, tmp_path, monkeypatch):
        """The third file is not on the disk: the first two count, it and all later ones do not."""
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        sync = writer_module.Written.sync

        def third(written):
            sync(written)
            if written.entry.start == 20:
                time.sleep(0.05)  # others are written meanwhile
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(writer_module.Written, "sync", third)
        trajectory = StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000)
        for step in range(60):
            trajectory.append(step, STEP)
        with pytest.raises(TrajectoryError, match="below step 20 are safe"):
            list(trajectory.backwards())
        trajectory.close()
        monkeypatch.undo()
        if before:
            assert len(os.listdir("/proc/self/fd")) == before
        with StoredTrajectory.open(tmp_path / "t", "a") as trajectory:
            assert trajectory.stop == 20
            trajectory.append(20, STEP)
            assert trajectory.verify().steps == 21

    def test_a_step_counts_once_the_disk_has_file_name_and_line(self, tmp_path, monkeypatch):
        """What a power cut may not reorder: file, then the folder that names it, then the manifest; anew for a cut."""
        done = []

        def noted(kind, call):
            def wrapped(fd, *rest):
                path = os.readlink(f"/proc/self/fd/{fd}") if isinstance(fd, int) else str(rest[0])
                done.append((kind, os.path.basename(path).partition(".h5")[0].partition("-")[0]))
                return call(fd, *rest)

            return wrapped

        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
            monkeypatch.setattr(os, "replace", noted("rename", os.replace))
            trajectory.append(0, {"w": np.ones((10, 1000))})
            trajectory.flush()
            once = [("rename", "segment"), ("sync", "segment"), ("sync", "t"), ("sync", "manifest.jsonl")]
            assert done == once
            done.clear()
            trajectory.truncate(5)
            new = [("sync", "manifest.jsonl." + "x"), ("rename", "manifest.jsonl"), ("sync", "t")]
            assert [kind for kind, _ in done] == [kind for kind, _ in once[:3] + new]
            assert [name for _, name in done[:3]] == ["segment", "segment", "t"]
            assert done[4:] == new[1:]

    def test_an_interrupted_append_costs_nothing(self, tmp_path, monkeypatch):
        """Ctrl-C while states are copied, and while a segment is handed over: no room is lost and no segment comes twice."""
        take, submit = gathering_module.Gathered.take, writer_module.Writer.submit

        def interrupted(*arguments):
            raise KeyboardInterrupt

        def then_interrupted(writer, job):
            submit(writer, job)
            raise KeyboardInterrupt

        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            trajectory.append(0, {"w": np.zeros((3, 1000))})
            for _ in range(5):
                monkeypatch.setattr(gathering_module.Gathered, "take", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    trajectory.append(3, {"w": np.zeros((7, 1000))})
            monkeypatch.setattr(gathering_module.Gathered, "take", take)
            monkeypatch.setattr(writer_module.Writer, "submit", then_interrupted)
            with pytest.raises(KeyboardInterrupt):
                trajectory.append(3, {"w": np.full((7, 1000), 3.0)})
            monkeypatch.setattr(writer_module.Writer, "submit", submit)
            assert trajectory.stop == 10
            trajectory.append(10, {"w": np.full((20, 1000), 10.0)})
            trajectory.flush()
            assert trajectory.segments() == [(0, 10), (10, 20), (20, 30)]
            assert [trajectory.read(step)["w"][0] for step in (0, 3, 29)] == [0, 3, 10]

    def test_an_interrupt_while_the_threads_start(self, tmp_path, monkeypatch):
        start = threading.Thread.start

        def interrupted(thread):
            start(thread)
            if thread.name == "trajectory writer":
                raise KeyboardInterrupt

        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            monkeypatch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trajectory.append(0, {"w": np.zeros((10, 1000))})
            monkeypatch.undo()
            trajectory.flush()
            assert trajectory.acknowledged == 10

    def test_a_child_reads_into_memory_of_its_own(self, tmp_path):
        """A forked child inherits the free rooms of a trajectory that its parent goes on reading."""
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:
            for step in range(100):
                trajectory.append(step, {"w": np.full((1, 1000), float(step))})
        program = """
import os, sys
from hypertrail_data import StoredTrajectory
trajectory = StoredTrajectory.open(sys.argv[1])
for step in range(0, 100, 10):
    trajectory.read(step)
child = os.fork()
wrong = sum(bool((trajectory.read(step)["w"] != step).any()) for _ in range(50) for step in range(5, 100, 10))
if child == 0:
    os._exit(wrong > 0)
print(wrong, os.waitpid(child, 0)[1])
"""
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "t"], capture_output=True, text=True, check=False
        )
        assert done.stdout == "0 0\n", done.stderr

    def test_short_segments_do_not_use_up_the_open_files(self, tmp_path):
        program = """
import resource, sys
import numpy as np
from hypertrail_data import StoredTrajectory
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with StoredTrajectory.create(sys.argv[1]) as trajectory:
    for step in range(300):
        trajectory.append(step, {"w": np.ones((1, 100))})
        trajectory.hand_over()
    trajectory.flush()
    print(len(trajectory.segments()))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "t"], capture_output=True, text=True, check=False
        )
        assert done.stdout == "300\n", done.stderr

    def test_no_memory_is_no_damage(self, tmp_path, writing, monkeypatch):
        folder = fill(tmp_path / "t", writing)

        def none(*_, **__):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        with StoredTrajectory.open(folder) as trajectory:
            monkeypatch.setattr(rooms_module.mmap, "mmap", none)
            with pytest.raises(MemoryError, match="choose a smaller segment_bytes"):
                trajectory.read(0)

    def test_an_abandoned_trajectory_is_written_even_from_its_own_thread(self, tmp_path, monkeypatch):
        """The garbage collector may run anywhere, so the last reference may go in the thread that writes."""
        folder, write = tmp_path / "t", writer_module.write_segment
        held, gone = [], threading.Event()

        def collecting(where, job):
            written = write(where, job)
            gone.wait()
            held.clear()
            return written

        monkeypatch.setattr(writer_module, "write_segment", collecting)
        held.append(StoredTrajectory.create(folder, segment_bytes=80_000))
        held[0].append(0, {"w": np.ones((10, 1000))})
        threads = list(held[0]._writer._threads)
        gone.set()
        for thread in threads:
            thread.join(60)
        assert not held
        with StoredTrajectory.open(folder, "a") as trajectory:
            assert trajectory.stop == 10

    def test_a_writable_block_may_be_reused_at_once(self, tmp_path):
        with StoredTrajectory.create(tmp_path / "t", 20_000) as trajectory:
            buffer = np.empty((2, 500))
            hidden = buffer.view()
            hidden.flags.writeable = False  # read-only to whoever holds it, and yet it changes
            for step in range(0, 40, 2):
                buffer[:] = [[step], [step + 1]]
                trajectory.append(step, {"w": buffer, "v": hidden})
                buffer[:] = -1
            for step in range(40):
                assert (trajectory.read(step)["w"] == step).all()
                assert (trajectory.read(step)["v"] == step).all()

    def test_rooms_are_used_again_and_never_under_somebodys_eyes(self, tmp_path):
        """Whoever keeps an array keeps its room; the others come back: hundreds of segments in a handful of rooms."""
        made = []

        class Counted(rooms_module.mmap.mmap):
            def __new__(cls, *arguments, **named):
                made.append(arguments)
                return super().__new__(cls, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch, StoredTrajectory.create(tmp_path / "t", 80_000) as trajectory:
            patch.setattr(rooms_module.mmap, "mmap", Counted)
            for step in range(2000):
                trajectory.append(step, {"w": np.full((1, 1000), float(step))})
            held = trajectory.read(0)["w"], trajectory.read(500)["w"][3:5]
            for one in trajectory.backwards():
                assert (one.states["w"][:, 0] == np.arange(one.start, one.stop)).all()
            assert (held[0] == 0).all()
            assert (held[1] == 500).all()
            assert len(made) < 20

    def test_back_pressure_bounds_what_is_under_way(self, tmp_path, monkeypatch):
        """While a slow disk takes one segment, at most one more is accepted."""
        accepted = []
        write = writer_module.write_segment

        def slow(folder, job):
            time.sleep(0.01)
            accepted.append(trajectory.stop - job.start)
            return write(folder, job)

        monkeypatch.setattr(writer_module, "write_segment", slow)
        with StoredTrajectory.create(tmp_path / "t", segment_bytes=80_000) as trajectory:  # ten steps
            for step in range(300):
                trajectory.append(step, STEP)
            trajectory.append(300, {"w": np.ones((300, 1000))})  # one block much larger than what may be under way
        assert len(accepted) == 60
        assert max(accepted) == 20

    @pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory the Linux way")
    def test_memory_stays_bounded(self, tmp_path):
        program = """
import resource, sys
import numpy as np
from hypertrail_data import StoredTrajectory
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
block = np.ones((4, 250_000), np.float32)  # 4 MB
with StoredTrajectory.create(sys.argv[1], segment_bytes=4_000_000) as trajectory:
    trajectory.append(0, {"w": block})
    trajectory.flush()
    before = peak()
    for step in range(4, 300, 4):
        trajectory.append(step, {"w": block})
    trajectory.flush()
    for part in trajectory.backwards():
        pass
    print((peak() - before) / 4_000_000, len(trajectory.segments()))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "t"], capture_output=True, text=True, check=True
        )
        segments_worth, segments = map(float, done.stdout.split())
        assert segments == 75
        assert segments_worth < 8

    def test_append_goes_on_after_opening(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing, stop=33)
        with StoredTrajectory.open(folder, "a") as trajectory:
            with pytest.raises(TrajectoryError, match="expected step 33"):
                trajectory.append(32, writing.states(32, 40))
            with pytest.raises(TrajectoryError, match="is absent in this block"):
                trajectory.append(33, STEP)
            trajectory.append(33, writing.states(33, 41))
        intact(folder, writing, 41)

    @pytest.mark.parametrize(
        ("number", "kind"),
        [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EFBIG, DiskFull), (errno.EIO, TrajectoryError)],
    )
    def test_a_failing_disk(self, tmp_path, writing, monkeypatch, number, kind):
        folder = tmp_path / "t"
        trajectory = StoredTrajectory.create(folder, 20_000)
        trajectory.append(0, writing.states(0, 20))
        trajectory.flush()
        write = writer_module.write_all

        def fail(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(writer_module, "write_all", fail)
        message = f"{os.strerror(number).lower()}; the states below step 20 are safe"
        trajectory.append(20, writing.states(20, 23))
        with pytest.raises(kind, match=message):
            trajectory.flush()
        monkeypatch.setattr(writer_module, "write_all", write)
        for again in (trajectory.flush, lambda: trajectory.append(40, writing.states(40, 41))):
            with pytest.raises(kind, match=message):  # nothing is written after a failure: it would leave a hole
                again()
        assert trajectory.stop == trajectory.acknowledged == 20
        assert writing.same(trajectory.read(19), {name: a[0] for name, a in writing.states(19, 20).items()})
        trajectory.close()
        intact(folder, writing, 20)
        with StoredTrajectory.open(folder, "a") as trajectory:
            trajectory.append(20, writing.states(20, 23))
        intact(folder, writing, 23)

    def test_closing_tells_of_a_failure_nobody_has_heard_of(self, tmp_path, writing, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(writer_module, "write_all", fail)
        trajectory = StoredTrajectory.create(tmp_path / "t")
        trajectory.append(0, writing.states(0, 20))
        with pytest.raises(DiskFull):
            trajectory.close()
        trajectory.close()

        def train():
            with StoredTrajectory.create(tmp_path / "u") as trajectory:
                trajectory.append(0, writing.states(0, 20))
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine") as caught:
            train()
        assert "no space left" in caught.value.__notes__[0]

    def test_a_failing_manifest_takes_its_line_back(self, tmp_path, writing, monkeypatch):
        folder = fill(tmp_path / "t", writing)
        whole = lines(folder)
        write_all = manifest_module.write_all

        def half(fd, data):
            write_all(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        with StoredTrajectory.open(folder, "a") as trajectory:
            monkeypatch.setattr(manifest_module, "write_all", half)
            trajectory.append(60, writing.states(60, 61))
            with pytest.raises(DiskFull):
                trajectory.flush()
        assert lines(folder) == whole
        intact(folder, writing, 60)


class TestTruncate:
    def test_a_crash_before_the_new_manifest_changes_nothing(self, tmp_path, writing, monkeypatch):
        folder = fill(tmp_path / "t", writing)

        def crash(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(store_module.manifest, "replace", crash)
        with pytest.raises(KeyboardInterrupt), StoredTrajectory.open(folder, "a") as trajectory:
            trajectory.truncate(27)
        monkeypatch.undo()
        intact(folder, writing, 60)
        before = files(folder)
        StoredTrajectory.open(folder, "a").close()
        assert len(files(folder)) == len(before) - 1  # the segment that was to end at 27
        intact(folder, writing, 60)

    def test_a_crash_after_the_new_manifest_has_truncated(self, tmp_path, writing, monkeypatch):
        folder = fill(tmp_path / "t", writing)
        trajectory = StoredTrajectory.open(folder, "a")

        def crash(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(store_module, "sweep", crash)
        with pytest.raises(KeyboardInterrupt):
            trajectory.truncate(27)
        trajectory.close()
        monkeypatch.undo()
        intact(folder, writing, 27)
        before = len(files(folder))
        with StoredTrajectory.open(folder, "a") as trajectory:
            assert len(files(folder)) < before
            trajectory.append(27, writing.states(27, 40))
        intact(folder, writing, 40)

    def test_until_truncates_at_opening(self, tmp_path, writing):
        folder = fill(tmp_path / "t", writing)
        with StoredTrajectory.open(folder, "a", until=100) as trajectory:
            assert trajectory.stop == 60
        with StoredTrajectory.open(folder, "a", until=31) as trajectory:
            assert trajectory.stop == 31
        intact(folder, writing, 31)
        with StoredTrajectory.open(folder, "a", until=0) as trajectory:
            assert len(trajectory) == 0

    def test_pending_states_are_cut_too(self, tmp_path, writing):
        with StoredTrajectory.create(tmp_path / "t") as trajectory:
            trajectory.append(0, writing.states(0, 9))
            trajectory.truncate(4)
            trajectory.append(4, writing.states(4, 6))
        intact(tmp_path / "t", writing, 6)


class TestExport:
    def test_plain_h5py_reads_it(self, tmp_path, writing):
        path = tmp_path / "whole.h5"
        with StoredTrajectory.create(tmp_path / "t", 20_000, meta={"experiment": "a"}) as trajectory:
            trajectory.append(7, {**writing.states(7, 40), "none": np.zeros((33, 0))})
            trajectory.export(path)
        with h5py.File(path) as file:
            assert file["step"].dtype == np.int64
            assert file["step"][...].tolist() == list(range(7, 40))
            found = {name: file[name][...] for name in writing.states(7, 8)}
            assert file["none"].shape == (33, 0)
            assert json.loads(file.attrs["meta"]) == {"experiment": "a"}
            assert (file.attrs["start"], file.attrs["stop"]) == (7, 40)
        assert writing.same(found, writing.states(7, 40))
        assert files(tmp_path) == ["t", "whole.h5"]

    def test_nothing_to_export(self, tmp_path):
        with StoredTrajectory.create(tmp_path / "t") as trajectory, pytest.raises(TrajectoryError, match="is empty"):
            trajectory.export(tmp_path / "x.h5")
        assert files(tmp_path) == ["t"]

    def test_no_such_folder(self, tmp_path, writing):
        folder, message = fill(tmp_path / "t", writing), "no such file or directory"
        with StoredTrajectory.open(folder) as trajectory, pytest.raises(TrajectoryError, match=message):
            trajectory.export(tmp_path / "nowhere" / "x.h5")

    def test_a_full_disk_leaves_the_old_file(self, tmp_path, writing, monkeypatch):
        (tmp_path / "x.h5").write_text("old")

        class Full:
            free = 1000

        monkeypatch.setattr("hypertrail_data.export.shutil.disk_usage", lambda _: Full)
        with (
            StoredTrajectory.open(fill(tmp_path / "t", writing)) as trajectory,
            pytest.raises(DiskFull, match="no space"),
        ):
            trajectory.export(tmp_path / "x.h5")
        assert files(tmp_path) == ["t", "x.h5"]
        assert (tmp_path / "x.h5").read_text() == "old"
