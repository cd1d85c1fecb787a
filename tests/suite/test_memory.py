"""One pool of freed memory for all threads: what many threads free can be used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Eight threads, one after the other, fill and free 20 MB in blocks below the size that is mapped: what stays resident
# is one pool's worth, or eight.
PROGRAM = """
import sys, threading
from hypertrail.memory import one_arena
if sys.argv[1] == "one":
    assert one_arena()
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
