"""Makes hypertrail importable where it is not installed: the folders of its five packages, and that of the benchmarks, go onto
`sys.path`.

What the benchmark imports of them needs Python 3.11 or newer, numpy, h5py, optax and jax, and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("suite", "densenet", "data", "gpu-ver", "cpu-ver")


def put_on_path() -> None:
    """This checkout comes before an installed hypertrail, so that the commit in the report is the one that ran. The other
    benchmarks come last: they have a densenet.py too."""
    sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
    sys.path.append(str(ROOT / "benchmarks"))
