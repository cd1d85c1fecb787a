"""What both forms of a trajectory promise, asked of each."""

import numpy as np
import pytest

from hypertrail_data import MemoryTrajectory, StoredTrajectory, Trajectory, TrajectoryError

BLOCKS = ((5, 9), (9, 10), (10, 40), (40, 41), (41, 47))  # first step 5, last 46


@pytest.fixture(params=["memory", "stored", "stored, reopened"])
def trajectory(request, tmp_path, writing):
    """Steps 5 .. 46, in blocks of different sizes."""
    made = MemoryTrajectory() if request.param == "memory" else StoredTrajectory.create(tmp_path / "t", 20_000)
    for start, stop in BLOCKS:
        made.append(start, writing.states(start, stop))
    if request.param == "stored, reopened":
        made.close()
        made = StoredTrajectory.open(tmp_path / "t", "a")
    with made:
        yield made


@pytest.fixture(params=["memory", "stored"])
def empty(request, tmp_path):
    with MemoryTrajectory() if request.param == "memory" else StoredTrajectory.create(tmp_path / "empty") as made:
        yield made


class TestTrajectory:
    def test_extent(self, trajectory, writing):
        assert isinstance(trajectory, Trajectory)
        assert (trajectory.start, trajectory.stop, len(trajectory)) == (5, 47, 42)
        assert trajectory.nbytes == sum(array.nbytes for array in writing.states(5, 47).values())

    def test_random_access(self, trajectory, writing):
        expected = writing.states(0, 47)
        for step in np.random.default_rng(0).permutation(np.arange(5, 47)):
            found = trajectory.read(int(step))
            assert list(found) == sorted(found)
            assert writing.same(found, {name: array[step] for name, array in expected.items()})

    def test_forwards_and_backwards(self, trajectory, writing):
        forwards, backwards = list(trajectory.forwards()), list(trajectory.backwards())
        assert [(s.start, s.stop) for s in forwards] == trajectory.segments()
        assert [(s.start, s.stop) for s in backwards] == trajectory.segments()[::-1]
        assert (forwards[0].start, forwards[-1].stop) == (5, 47)
        for segment, mirrored in zip(forwards, backwards[::-1], strict=True):
            assert writing.same(segment.states, writing.states(segment.start, segment.stop))
            assert writing.same(mirrored.states, segment.states)
            assert len(segment) == segment.stop - segment.start

    def test_an_abandoned_walk_ends(self, trajectory, writing):
        walk = trajectory.backwards()
        assert next(walk).stop == 47
        del walk
        trajectory.append(47, writing.states(47, 48))
        assert trajectory.stop == 48

    @pytest.mark.parametrize("step", [5, 6, 9, 10, 25, 46, 47])
    def test_truncate_and_go_on(self, trajectory, writing, step):
        trajectory.truncate(step)
        assert len(trajectory) == step - 5
        start = step if step > 5 else 3  # an emptied trajectory begins anew, anywhere
        trajectory.append(start, writing.states(start, start + 4))
        assert (trajectory.start, trajectory.stop) == (min(5, start), start + 4)
        for t in range(trajectory.start, trajectory.stop):
            assert writing.same(trajectory.read(t), {name: a[0] for name, a in writing.states(t, t + 1).items()})
        assert next(s.start for s in trajectory.forwards()) == trajectory.start

    def test_truncate_outside(self, trajectory):
        for step in (4, 48):
            with pytest.raises(TrajectoryError, match=rf"truncate at step {step}; expected 5 \.\. 47"):
                trajectory.truncate(step)

    def test_blocks_must_join(self, trajectory, writing):
        for start in (46, 48, 0):
            with pytest.raises(TrajectoryError, match=f"starting at step {start} .* expected step 47"):
                trajectory.append(start, writing.states(start, start + 2))
        assert trajectory.stop == 47

    def test_layout_is_kept(self, trajectory, writing):
        good = writing.states(47, 49)
        wrong = [
            ({**good, "extra": good["v"]}, "'extra' is float32 .* expected absent"),
            ({name: a for name, a in good.items() if name != "v"}, "'v' is absent .* expected float32"),
            ({**good, "v": good["v"].astype(np.float64)}, r"'v' is float64 \(7,\) .* expected float32 \(7,\)"),
            ({**good, "v": good["v"][:, :3]}, r"'v' is float32 \(3,\) .* expected float32 \(7,\)"),
        ]
        for states, message in wrong:
            with pytest.raises(TrajectoryError, match=message):
                trajectory.append(47, states)
        trajectory.append(47, good)
        assert writing.same(trajectory.read(48), {name: a[1] for name, a in good.items()})

    def test_steps_outside(self, trajectory):
        for step in (4, 47, -1):
            with pytest.raises(TrajectoryError, match=rf"step {step} was asked for; this trajectory holds 5 \.\. 46"):
                trajectory.read(step)

    def test_closed(self, trajectory, writing):
        trajectory.close()
        trajectory.close()
        uses = (
            lambda: trajectory.append(47, writing.states(47, 48)),
            lambda: trajectory.read(5),
            lambda: trajectory.backwards(),
            lambda: trajectory.forwards(),
            lambda: trajectory.segments(),
            lambda: trajectory.flush(),
            lambda: trajectory.truncate(6),
        )
        for use in uses:
            with pytest.raises(TrajectoryError, match="closed"):
                use()

    def test_empty(self, empty):
        assert (empty.start, empty.stop, len(empty), empty.nbytes) == (0, 0, 0, 0)
        assert empty.segments() == list(empty.forwards()) == list(empty.backwards()) == []
        with pytest.raises(TrajectoryError, match="empty trajectory"):
            empty.read(0)
        empty.truncate(0)

    def test_numpy_integers_are_integers(self, empty):
        empty.append(np.int64(2), {"w": np.arange(6.0)})
        empty.truncate(np.int32(7))
        empty.append(np.uint8(7), {"w": np.array([-1.0])})
        assert (empty.start, empty.stop) == (2, 8)
        assert [float(empty.read(np.int64(step))["w"]) for step in range(2, 8)] == [0, 1, 2, 3, 4, -1]

    def test_odd_shapes(self, empty):
        states = {"scalar": np.arange(3.0), "none": np.zeros((3, 0, 2), np.float32), "transposed": np.eye(3)[:, ::-1].T}
        empty.append(2, states)
        found = empty.read(3)
        assert (found["scalar"].shape, found["none"].shape) == ((), (0, 2))
        assert (float(found["scalar"]), found["transposed"].tolist()) == (1.0, states["transposed"][1].tolist())

    @pytest.mark.parametrize(
        ("states", "message"),
        [
            ({}, "without arrays"),
            ({"w": np.zeros((2, 3), np.float16)}, "'w' has dtype float16"),
            ({"w": np.zeros((2, 3), ">f4")}, "'w' has dtype >f4"),
            ({"w": np.float64(3)}, r"'w' has shape \(\)"),
            ({"w": np.zeros((0, 3))}, r"'w' has shape \(0, 3\)"),
            ({"w": np.zeros(2), "b": np.zeros(3)}, "'b' has 3, 'w' has 2"),
            ({"w": np.zeros(2), "w/b": np.zeros(2)}, "'w' and 'w/b' cannot both"),
            ({"/w": np.zeros(2)}, "'/w' cannot name"),
            ({"a/../w": np.zeros(2)}, "cannot name"),
            ({"step": np.zeros(2)}, "'step' cannot name"),
        ],
    )
    def test_bad_blocks(self, empty, states, message):
        with pytest.raises(TrajectoryError, match=message):
            empty.append(0, states)
        assert len(empty) == 0

    def test_negative_start(self, empty):
        with pytest.raises(TrajectoryError, match="step -1"):
            empty.append(-1, {"w": np.zeros(2)})


def test_memory_keeps_the_very_arrays():
    block = np.arange(6.0).reshape(2, 3)
    with MemoryTrajectory() as trajectory:
        trajectory.append(0, {"w": block})
        assert next(trajectory.forwards()).states["w"] is block


def test_device_arrays_stay_what_they_are():
    jnp = pytest.importorskip("jax.numpy")
    block = jnp.arange(6.0).reshape(2, 3)
    with MemoryTrajectory() as trajectory:
        trajectory.append(0, {"w": block})
        assert type(trajectory.read(1)["w"]) is type(block)
        assert trajectory.read(1)["w"].tolist() == [3, 4, 5]
        assert trajectory.nbytes == 24
