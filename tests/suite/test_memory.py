"""One pool of freed memory for all threads: what many threads free can be used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Eight threads, one after the other, fill and free 20 MB in blocks below the size that is mapped: what stays resident
# is one pool's worth, or eight.
PROGRAM = """
import sys, threading
from hypertrail.memory import one_pool
if sys.argv[1] == "one":
    assert one_pool()
import numpy as np

ends = [threading.Event() for _ in range(8)]
done = [threading.Event() for _ in range(8)]
def work(i):
    blocks = [np.ones(12_500) for _ in range(200)]
    last = np.ones(100)  # at the end of the pool: it cannot be given back
    del blocks
    done[i].set()
    ends[i].wait()
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread, one in zip(threads, done):
    thread.start()
    one.wait()
print(int(open("/proc/self/statm").read().split()[1]) * 4096 // 10**6)
for one in ends:
    one.set()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is the GNU C library's")
def test_many_threads_share_what_was_freed():
    def resident(word: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, check=True).stdout)

    assert resident("one") < resident("many") - 40


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
