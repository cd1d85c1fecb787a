"""Computes the numbers that section 1 compares with, by the reference engine, and writes them to reference.npz.

    python benchmarks/gpu/reference.py             some seconds on a processor; needs autograd, not JAX

Only to be run where a case has changed: the file is the memory of what was right.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import roots

roots.put_on_path()

import cases  # noqa: E402
import machine  # noqa: E402

FILE = Path(__file__).with_name("reference.npz")


def computed() -> dict[str, np.ndarray]:
    """All arrays of the file: 'case:method:kind:name', 'case:w0:name', 'case:digest', and 'about', a JSON text."""
    import hypertrail_cpu as engine

    arrays: dict[str, np.ndarray] = {}
    for case in cases.CASES:
        arrays |= cases.flattened(cases.inputs(case), case)
        for method, gradient in cases.all_hypergradients(engine, case):
            arrays |= cases.flattened(gradient, f"{case}:{method}")
    about: dict[str, Any] = {
        "definition": cases.DEFINITION,
        "engine": "hypertrail_cpu",
        "python": platform.python_version(),
        "versions": {name: machine.installed(name) for name in ("numpy", "autograd")},
        "hypertrail": machine.hypertrail_version(),
    }
    return arrays | {"about": np.array(json.dumps(about, ensure_ascii=False))}


def expected(case: str, method: str) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {name: array}} of one hypergradient of the file; of method 'w0' {name: array}."""
    nested: dict[str, Any] = {}
    with np.load(FILE, allow_pickle=False) as arrays:
        for key in arrays.files:
            if key.startswith(f"{case}:{method}:"):
                *kinds, name = key.split(":")[2:]
                level = nested
                for kind in kinds:
                    level = level.setdefault(kind, {})
                level[name] = arrays[key]
    return nested


def digest(case: str) -> str:
    with np.load(FILE, allow_pickle=False) as arrays:
        return str(arrays[f"{case}:digest"])


if __name__ == "__main__":
    np.savez_compressed(FILE, **computed())
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")
