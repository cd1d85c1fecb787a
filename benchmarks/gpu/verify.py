"""Section 1: hypergradients of a small perceptron and a small DenseNet in float64, beside those of the reference engine.

The expected numbers lie in reference.npz (reference.py computes them, cases.py says of what). Where the inputs themselves differ,
which would be another NumPy's random numbers, that is said, and no verdict is given.
"""

from __future__ import annotations

from typing import Any

import cases
import processes
import reference
from plan import Part
from problems import difference
from sizes import Sizes


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    import jax

    import hypertrail_gpu as engine
    from hypertrail.tolerances import tolerance

    case = part.name
    limit = tolerance("engines", "float64").epsilon
    equal = same_inputs(case)
    for method, gradient in cases.all_hypergradients(engine, case):
        for kind, arrays in reference.expected(case, method).items():
            off = difference(gradient[kind], arrays)
            say(row(case, method, kind, "float64", off, limit) | {"ok": off <= limit if equal else None})
    if not equal:
        raise RuntimeError("the inputs differ from those of reference.npz, so nothing was verified")
    precisions = ("default",) if machine["products"] == "float32" else ("default", "highest")  # else twice the same
    for precision in precisions:
        with jax.default_matmul_precision(precision):  # part of the key by which JAX remembers compiled programs
            for method, gradient in cases.hypergradients(engine, case, "float32", ("exact",)):
                for kind, arrays in reference.expected(case, method).items():
                    off = difference(gradient[kind], arrays)
                    say(row(case, method, kind, f"float32, products '{precision}'", off, None))


def same_inputs(case: str) -> bool:
    mine = cases.inputs(case)
    return mine["digest"] == reference.digest(case) and difference(mine["w0"], reference.expected(case, "w0")) < 1e-14


def row(case: str, method: str, kind: str, precision: str, off: float, limit: float | None) -> dict[str, Any]:
    network = {"mlp": "perceptron 64-12-10", "densenet": cases.DENSENET.words}[case]
    return {
        "network": network,
        "hypergradient": method,
        "hyperparameters": kind,
        "precision": precision,
        "relative difference (norm)": off,
        "tolerance": limit,
    }
