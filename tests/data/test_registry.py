"""The embedded digits, and what importing the package costs."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

import hypertrail_data
from hypertrail_data import DataError, load

PIXELS = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS = "3a0e68456f9a3c609b399717dd9ca55bb9153be1bccf72e38e3319cb740c75cd"


def test_digits():
    digits = load("digits")
    assert digits.x.shape == (1797, 8, 8, 1)
    assert (digits.x.dtype, digits.y.dtype) == (np.uint8, np.int32)
    assert (len(digits), digits.classes, digits.official_test, digits.scale, digits.x.max()) == (1797, 10, 0, 16, 16)
    # As scikit-learn 1.9 has them: images.astype(uint8) and target.astype(int32).
    assert np.bincount(digits.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert hashlib.sha256(digits.x.tobytes()).hexdigest() == PIXELS
    assert hashlib.sha256(digits.y.astype("<i4").tobytes()).hexdigest() == LABELS


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'cifar100'.*digits, mnist, cifar10"):
        load("cifar100")


def test_every_public_name_exists():
    assert {name for name in hypertrail_data.__all__ if not hasattr(hypertrail_data, name)} == set()
    assert set(hypertrail_data.__all__) <= set(dir(hypertrail_data))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hypertrail_data.no_such_name


def test_import_is_light_and_works_without_pooch():
    program = """
import sys
sys.modules["pooch"] = sys.modules["requests"] = None  # as if not installed
import hypertrail_data
hypertrail_data.load("digits"), hypertrail_data.MemoryTrajectory(), hypertrail_data.BatchSchedule(10, 2, 0)
print(sorted({"h5py", "jax", "matplotlib", "rich"} & set(sys.modules)))
try:
    hypertrail_data.load("mnist")
except hypertrail_data.DataError as error:
    print(error.exit_code, "install pooch" in str(error))
"""
    environment = {"PATH": "", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["[]", "4 True"]


@pytest.mark.parametrize("origin", ["data_dir", "HYPERTRAIL_DATA", "cache_dir", "HYPERTRAIL_CACHE"])
@pytest.mark.parametrize("path", ["~nobody-of-this-name", "a\0b", "a\nb", "a\udcffb", "a" * 5000])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_paths_that_are_none(tmp_path, monkeypatch, origin, path, name):
    """One line that names where the path comes from; with the way out."""
    monkeypatch.delenv("HYPERTRAIL_DATA", raising=False)
    monkeypatch.setenv("HYPERTRAIL_CACHE", str(tmp_path))
    if origin.islower():
        arguments = {origin: path}
    elif "\0" in path:
        pytest.skip("no variable can hold it")
    else:
        monkeypatch.setenv(origin, path)
        arguments = {}
    with pytest.raises(DataError) as caught:
        load(name, **arguments)
    said = str(caught.value)
    assert "\n" not in said
    said.encode()
    if len(path) < 5000:
        assert said.startswith(f"{origin} is {path!r}, expected a path (")
        assert said.endswith("correct or unset it")


def test_digits_have_no_notes():
    assert load("digits").notes == ()
