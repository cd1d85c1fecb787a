"""Batches can be replayed from any step."""

import numpy as np
import pytest

from hypertrail_data import BatchSchedule

ORDERS = ("fixed", "reshuffled")


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_sees_no_example_twice(order):
    schedule = BatchSchedule(103, 10, seed=1, order=order)
    assert schedule.steps_per_epoch == 10
    for epoch in range(4):
        rows = schedule.indices(10 * epoch, 10 * epoch + 10)
        assert rows.shape == (10, 10)
        assert rows.dtype == np.int32
        assert len(np.unique(rows)) == 100
        assert rows.min() >= 0
        assert rows.max() < 103


def test_fixed_repeats_and_reshuffled_does_not():
    fixed, reshuffled = (BatchSchedule(60, 20, seed=5, order=order) for order in ORDERS)
    assert np.array_equal(fixed.indices(0, 3), fixed.indices(3, 6))
    epochs = reshuffled.indices(0, 30).reshape(10, 60)
    assert len({epoch.tobytes() for epoch in epochs}) == 10
    assert not np.array_equal(fixed.indices(0, 3), BatchSchedule(60, 20, seed=6).indices(0, 3))


def test_with_replacement_an_example_may_come_again():
    """Of 100 draws from 100 examples, 63 different ones on average; no two epochs alike."""
    schedule = BatchSchedule(100, 10, seed=3, order="replacement")
    epochs = schedule.indices(0, 100).reshape(10, 100)
    seen = [len(np.unique(epoch)) for epoch in epochs]
    assert 55 < np.mean(seen) < 71
    assert len({epoch.tobytes() for epoch in epochs}) == 10
    assert epochs.dtype == np.int32
    assert (epochs.min(), epochs.max()) == (0, 99)


@pytest.mark.parametrize("order", [*ORDERS, "replacement"])
def test_random_access_equals_walking(order):
    schedule = BatchSchedule(50, 7, seed=2, order=order)
    walked = schedule.indices(0, 120)
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, stop = sorted(draw.integers(0, 121, size=2))
        assert np.array_equal(schedule.indices(int(start), int(stop)), walked[start:stop])
    far = 10**12
    assert np.array_equal(schedule.indices(far, far + 9)[4:], schedule.indices(far + 4, far + 9))
    assert schedule.indices(5, 5).shape == (0, 7)


def test_writing_into_a_block_does_not_change_the_schedule():
    schedule = BatchSchedule(20, 5, seed=0)
    schedule.indices(0, 4)[:] = -1
    assert schedule.indices(0, 4).min() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 101}, r"batch is 101; expected 1 \.\. 100"),
        ({"batch": 0}, "batch is 0"),
        ({"order": "random"}, "order is 'random'"),
        ({"seed": -3}, "seed is -3"),
        ({"seed": 1.5}, "seed is 1.5; expected an integer"),
        ({"examples": 2**31}, "examples is 2147483648; expected at most 2147483647"),
    ],
)
def test_misuse(wrong, message):
    with pytest.raises(ValueError, match=message):
        BatchSchedule(**{"examples": 100, "batch": 10, "seed": 0, **wrong})


def test_steps_out_of_order():
    for start, stop in ((-1, 3), (5, 4)):
        with pytest.raises(ValueError, match=f"steps {start} .. {stop}"):
            BatchSchedule(100, 10, 0).indices(start, stop)


@pytest.mark.parametrize("bad", [1.0, "1", None, True, np.float64(1)], ids=repr)
def test_steps_are_integers(bad):
    schedule = BatchSchedule(100, 10, 0)
    for start, stop in ((bad, 3), (0, bad)):
        with pytest.raises(ValueError, match=r"^steps .* \.\. .*; expected two integers$"):
            schedule.indices(start, stop)
    assert np.array_equal(schedule.indices(np.int32(1), np.int64(3)), schedule.indices(1, 3))


def test_the_largest_number_of_examples():
    assert BatchSchedule(2**31 - 1, 10, 0).steps_per_epoch == 214748364
