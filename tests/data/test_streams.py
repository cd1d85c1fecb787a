"""The streams are part of every published number: their values are pinned."""

import numpy as np
import pytest

from hypertrail_data import STREAMS, derived_seed, generator, words

PINNED = {
    "init": 305369112,
    "split": 681396160,
    "batches": 396636610,
    "noise": 479537206,
    "hyper": 801363470,
    "updates": 479385552,
    "held-out": 421935236,
    "line": 780386708,
}
PINNED_WORDS = [3842200183, 1588825544]


def test_values_never_change():
    drawn = {name: int(generator(7, name).integers(10**9)) for name in STREAMS}
    assert drawn == PINNED
    assert words(7, "noise").tolist() == PINNED_WORDS


def test_streams_seeds_and_keys_are_independent():
    assert STREAMS == ("init", "split", "batches", "noise", "hyper", "updates", "held-out", "line")
    seen = {
        generator(seed, name, *key).bytes(16)
        for seed in range(3)
        for name in STREAMS
        for key in ((), (0,), (1,), (0, 0))
    }
    assert len(seen) == 3 * len(STREAMS) * 4
    assert len({words(seed, name).tobytes() for seed in range(3) for name in STREAMS}) == 3 * len(STREAMS)


def test_derived_seeds_are_pinned_and_never_those_of_a_neighbour():
    assert derived_seed(7, "updates", 3) == 170293346183968085
    drawn = {derived_seed(seed, name, k) for seed in range(20) for name in ("updates", "held-out") for k in range(50)}
    assert len(drawn) == 20 * 2 * 50
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert generator(derived_seed(0, "updates", 1), "init").normal() != generator(1, "init").normal()


def test_same_seed_same_numbers():
    assert np.array_equal(generator(3, "init").normal(size=5), generator(3, "init").normal(size=5))
    assert words(3, "noise", 4).dtype == np.uint32
    assert words(3, "noise", 4).shape == (4,)
    assert np.array_equal(words(np.int64(3), "noise"), words(3, "noise"))


@pytest.mark.parametrize("call", [generator, words, derived_seed])
def test_misuse(call):
    with pytest.raises(ValueError, match=r"'nosie'.*init, split, batches, noise, hyper, updates, held-out, line"):
        call(0, "nosie")
    with pytest.raises(ValueError, match="seed is -1"):
        call(-1, "noise")


@pytest.mark.parametrize("seed", [1.5, 1.0, True, np.True_, "a", None, np.float32(1), [1]], ids=repr)
@pytest.mark.parametrize("call", [generator, words, derived_seed])
def test_a_seed_is_an_integer(call, seed):
    with pytest.raises(ValueError, match=r"^seed is .*; expected an integer >= 0$"):
        call(seed, "noise")


def test_integers_of_numpy_are_the_same_seeds():
    for seed in (np.int32(3), np.uint8(3), np.int64(3)):
        assert generator(seed, "init").bytes(8) == generator(3, "init").bytes(8)
        assert derived_seed(seed, "updates", 1) == derived_seed(3, "updates", 1)
