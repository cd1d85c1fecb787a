"""The streams are part of every published number: their values are pinned."""

import numpy as np
import pytest

from hypertrail_data import STREAMS, generator, words

PINNED = {
    "init": 305369112,
    "split": 681396160,
    "batches": 396636610,
    "noise": 479537206,
    "hyper": 801363470,
    "line": 479385552,
}
PINNED_WORDS = [3842200183, 1588825544]


def test_values_never_change():
    drawn = {name: int(generator(7, name).integers(10**9)) for name in STREAMS}
    assert drawn == PINNED
    assert words(7, "noise").tolist() == PINNED_WORDS


def test_streams_seeds_and_keys_are_independent():
    assert STREAMS == ("init", "split", "batches", "noise", "hyper", "line")
    seen = {
        generator(seed, name, *key).bytes(16)
        for seed in range(3)
        for name in STREAMS
        for key in ((), (0,), (1,), (0, 0))
    }
    assert len(seen) == 3 * len(STREAMS) * 4
    assert len({words(seed, name).tobytes() for seed in range(3) for name in STREAMS}) == 18


def test_same_seed_same_numbers():
    assert np.array_equal(generator(3, "init").normal(size=5), generator(3, "init").normal(size=5))
    assert words(3, "noise", 4).dtype == np.uint32
    assert words(3, "noise", 4).shape == (4,)
    assert np.array_equal(words(np.int64(3), "noise"), words(3, "noise"))


@pytest.mark.parametrize("call", [generator, words])
def test_misuse(call):
    with pytest.raises(ValueError, match=r"'nosie'.*init, split, batches, noise, hyper, line"):
        call(0, "nosie")
    with pytest.raises(ValueError, match="seed is -1"):
        call(-1, "noise")
