"""A writer writes into the folder that it has locked, and nowhere else: not where its folder was, not through a link."""

import os
import shutil
import sys
import uuid

import numpy as np
import pytest

from hypertrail_data import StoredTrajectory, TrajectoryError
from hypertrail_data import durable as durable_module
from hypertrail_data import manifest as manifest_module
from hypertrail_data import store as store_module
from hypertrail_data import writer as writer_module


def block(start, stop, factor=1.0):
    return {"w": factor * np.arange(start, stop)[:, None] * np.ones(10)}


def begin(folder, stop=8, factor=1.0):
    """A trajectory that is being written, in segments of four steps; all of it is acknowledged."""
    trajectory = StoredTrajectory.create(folder, 320)
    trajectory.append(0, block(0, stop, factor))
    trajectory.flush()
    return trajectory


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def intact(folder, stop):
    """It opens, verifies up to the last acknowledged step, and goes on from there."""
    with StoredTrajectory.open(folder) as trajectory:
        assert trajectory.stop == stop
        assert trajectory.verify().steps == stop
        for part in trajectory.forwards():
            assert (part.states["w"] == block(part.start, part.stop)["w"]).all()
    with StoredTrajectory.open(folder, "a") as trajectory:
        trajectory.append(stop, block(stop, stop + 3))
    with StoredTrajectory.open(folder) as trajectory:
        assert trajectory.verify().steps == stop + 3
    assert not list(folder.glob("*.tmp"))


def append(trajectory):
    trajectory.append(8, block(8, 12))
    trajectory.flush()


def append_and_close(trajectory):
    trajectory.append(8, block(8, 10))
    trajectory.close()


WRITES = [
    append,
    append_and_close,
    lambda trajectory: trajectory.truncate(2),  # writes a segment anew
    lambda trajectory: trajectory.truncate(4),  # writes the manifest alone
]
WRITE_NAMES = ["append", "close", "truncate a segment", "truncate"]
MOVED = "the folder .*/t was moved or replaced while it was being written; nothing more is written: go on with"
GONE = "the folder .*/t is gone; put it back and open it again"


@pytest.mark.parametrize("write", WRITES, ids=WRITE_NAMES)
class TestMoved:
    def test_and_another_trajectory_lies_there(self, tmp_path, write):
        """The other one has segments of the same names."""
        first = begin(tmp_path / "t")
        (tmp_path / "t").rename(tmp_path / "moved")
        with begin(tmp_path / "t", 12, factor=-1.0):
            pass
        before = files(tmp_path / "t")
        with pytest.raises(TrajectoryError, match=MOVED):
            write(first)
        first.close()
        assert files(tmp_path / "t") == before
        intact(tmp_path / "moved", 8)

    def test_and_another_is_being_written_there(self, tmp_path, write):
        first = begin(tmp_path / "t")
        (tmp_path / "t").rename(tmp_path / "moved")
        with begin(tmp_path / "t") as second:
            with pytest.raises(TrajectoryError, match=MOVED):
                write(first)
            first.close()
            second.append(8, block(8, 10))
        intact(tmp_path / "t", 10)
        intact(tmp_path / "moved", 8)

    def test_and_an_empty_folder_lies_there(self, tmp_path, write):
        first = begin(tmp_path / "t")
        (tmp_path / "t").rename(tmp_path / "moved")
        (tmp_path / "t").mkdir()
        with pytest.raises(TrajectoryError, match=MOVED):
            write(first)
        first.close()
        assert files(tmp_path / "t") == {}
        intact(tmp_path / "moved", 8)

    def test_and_a_link_leads_to_another(self, tmp_path, write):
        first = begin(tmp_path / "t")
        with begin(tmp_path / "other", 12, factor=-1.0):
            pass
        before = files(tmp_path / "other")
        (tmp_path / "t").rename(tmp_path / "moved")
        (tmp_path / "t").symlink_to(tmp_path / "other")
        with pytest.raises(TrajectoryError, match=MOVED):
            write(first)
        first.close()
        assert files(tmp_path / "other") == before

    def test_and_nothing_lies_there(self, tmp_path, write):
        first = begin(tmp_path / "t")
        (tmp_path / "t").rename(tmp_path / "moved")
        with pytest.raises(TrajectoryError, match=GONE):
            write(first)
        first.close()
        assert os.listdir(tmp_path) == ["moved"]
        intact(tmp_path / "moved", 8)

    def test_deleted(self, tmp_path, write):
        first = begin(tmp_path / "runs" / "t")
        shutil.rmtree(tmp_path / "runs")
        with pytest.raises(TrajectoryError, match=GONE):
            write(first)
        first.close()
        assert os.listdir(tmp_path) == []

    def test_a_file_lies_there(self, tmp_path, write):
        first = begin(tmp_path / "t")
        shutil.rmtree(tmp_path / "t")
        (tmp_path / "t").write_text("mine")
        with pytest.raises(TrajectoryError, match=GONE):
            write(first)
        first.close()
        assert (tmp_path / "t").read_text() == "mine"


class TestInTheMiddle:
    """The folder is moved between two writes that belong together."""

    @pytest.fixture
    def move(self, tmp_path):
        """Put another trajectory into the place of the folder."""
        before = {}

        def go():
            (tmp_path / "t").rename(tmp_path / "moved")
            with begin(tmp_path / "t", factor=-1.0):
                pass
            (tmp_path / "t" / ("manifest.jsonl." + "0a" * 16 + ".tmp")).write_text("of the other")
            before.update(files(tmp_path / "t"))

        yield go
        assert before
        assert files(tmp_path / "t") == before
        intact(tmp_path / "moved", 8)

    def test_after_a_segment_and_before_its_line(self, tmp_path, monkeypatch, move):
        first, sync = begin(tmp_path / "t"), writer_module.Written.sync
        monkeypatch.setattr(writer_module.Written, "sync", lambda written: (sync(written), monkeypatch.undo(), move()))
        with pytest.raises(TrajectoryError, match=MOVED):
            append(first)
        assert first.stop == first.acknowledged == 8
        first.close()

    def test_after_a_segment_and_before_it_is_synced(self, tmp_path, monkeypatch, move):
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        first, write = begin(tmp_path / "t"), writer_module.write_segment
        monkeypatch.setattr(writer_module, "write_segment", lambda *job: (write(*job), monkeypatch.undo(), move())[0])
        with pytest.raises(TrajectoryError, match=MOVED):
            append(first)
        first.close()
        if before:
            assert len(os.listdir("/proc/self/fd")) == before

    def test_while_a_segment_is_written(self, tmp_path, monkeypatch, move):
        first, write_all = begin(tmp_path / "t"), writer_module.write_all
        monkeypatch.setattr(
            writer_module, "write_all", lambda fd, *parts: (write_all(fd, *parts), monkeypatch.undo(), move())
        )
        with pytest.raises(TrajectoryError, match=MOVED):
            append(first)
        first.close()

    @pytest.mark.parametrize("until", [None, 4])
    def test_while_it_is_opened(self, tmp_path, monkeypatch, move, until):
        begin(tmp_path / "t").close()
        read = manifest_module.read
        monkeypatch.setattr(manifest_module, "read", lambda folder: (read(folder), monkeypatch.undo(), move())[0])
        with pytest.raises(TrajectoryError, match=MOVED):
            StoredTrajectory.open(tmp_path / "t", "a", until=until)

    def test_before_the_sweep(self, tmp_path, monkeypatch, move):
        begin(tmp_path / "t").close()
        cut = manifest_module.cut
        monkeypatch.setattr(manifest_module, "cut", lambda *where: (cut(*where), monkeypatch.undo(), move()))
        with pytest.raises(TrajectoryError, match=MOVED):
            StoredTrajectory.open(tmp_path / "t", "a")

    def test_before_the_header(self, tmp_path, monkeypatch):
        """No header appears in a folder that another process has begun."""
        replace = manifest_module.replace

        def moving(*arguments):
            replace(*arguments)
            (tmp_path / "t").rename(tmp_path / "moved")
            (tmp_path / "t").mkdir()

        monkeypatch.setattr(store_module.manifest, "replace", moving)
        with pytest.raises(TrajectoryError, match=MOVED):
            StoredTrajectory.create(tmp_path / "t")
        assert files(tmp_path / "t") == {}


def test_reading_from_a_folder_that_has_gone_is_no_damage(tmp_path):
    for end in ("moved", "replaced"):
        with begin(tmp_path / "t", 12) as first:
            (tmp_path / "t").rename(tmp_path / end)
            if end == "replaced":
                begin(tmp_path / "t", 12, factor=-1.0).close()
            with pytest.raises(TrajectoryError, match=MOVED if end == "replaced" else GONE) as caught:
                first.read(0)
            assert caught.value.resume_step is None


def test_an_abandoned_one_says_that_its_folder_has_gone(tmp_path):
    trajectory = begin(tmp_path / "t")
    trajectory.append(8, block(8, 10))
    (tmp_path / "t").rename(tmp_path / "moved")
    trajectory.append(10, block(10, 12))
    with pytest.warns(RuntimeWarning, match=GONE):
        del trajectory


class TestCreate:
    def test_without_parents(self, tmp_path):
        StoredTrajectory.create(tmp_path / "t", parents=False).close()
        StoredTrajectory.create(tmp_path / "more" / "t").close()
        for parent in ("nowhere", "nowhere/more"):
            folder = tmp_path / parent / "t"
            with pytest.raises(TrajectoryError, match=f"the folder .*/{parent} is gone or was never there; make it"):
                StoredTrajectory.create(folder, parents=False)
        assert not (tmp_path / "nowhere").exists()


class TestTemporaryNames:
    """A link that lies at the temporary name, as if somebody had guessed it: its target stays as it is."""

    @pytest.fixture
    def guessed(self, tmp_path, monkeypatch):
        (tmp_path / "secret").write_text("mine")
        guess = uuid.UUID(int=7)

        def place(path):
            path.with_name(f"{path.name}.{guess.hex}.tmp").symlink_to(tmp_path / "secret")
            monkeypatch.setattr(durable_module.uuid, "uuid4", lambda: guess)

        yield place
        assert (tmp_path / "secret").read_text() == "mine"

    def test_of_a_segment(self, tmp_path, guessed):
        trajectory = begin(tmp_path / "t")
        guessed(tmp_path / "t" / "segment-000000000008-000000000012.h5")
        with pytest.raises(TrajectoryError, match="file exists"):
            append(trajectory)
        trajectory.close()

    def test_of_the_manifest(self, tmp_path, guessed):
        with begin(tmp_path / "t") as trajectory:
            guessed(tmp_path / "t" / "manifest.jsonl")
            with pytest.raises(TrajectoryError, match="file exists"):
                trajectory.truncate(4)

    def test_of_an_export(self, tmp_path, guessed):
        with begin(tmp_path / "t") as trajectory:
            guessed(tmp_path / "x.h5")
            with pytest.raises(TrajectoryError, match="file exists"):
                trajectory.export(tmp_path / "x.h5")
        assert not (tmp_path / "x.h5").exists()
