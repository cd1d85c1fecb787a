"""How much memory a process, or an engine's device, has held."""

from __future__ import annotations

import subprocess
import sys


def test_the_peak_counts_what_was_held_and_let_go():
    """In a process of its own: 200 MB held once, and still counted when they are gone."""
    program = (
        "import numpy as np; from hypertrail import memory; before = memory.peak();"
        "held = np.ones(25_000_000); del held; print(memory.peak() - before, before)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    more, before = map(int, answer.stdout.split())
    assert 150e6 < more < 250e6
    assert 5e6 < before < 1e9


def test_engines_tell_what_their_devices_have_held():
    """A processor has no memory of its own; where a device tells, it has held something by now."""
    from hypertrail import load

    assert load("cpu").device_memory() is None
    told = load("gpu").device_memory()
    assert told is None or told > 0
