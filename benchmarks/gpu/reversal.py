"""Section 3: exact reversal (`keep=Reversible()`): w_0 and v_0 must come home to the bit.

The engine asserts it by itself. Here the state that its last undone step leaves is looked at once more, from outside: the int64
numbers beside w_0 · 2^52 computed by NumPy, the velocity and the buffers beside 0.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import problems
import processes
from plan import Part
from sizes import Sizes


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    from hypertrail import L2

    declared, size = (L2("parameter", 1e-4),), sizes.small
    networks = {
        f"perceptron 64-{sizes.hidden}-10": problems.perceptron(sizes.hidden, sizes.perceptron_steps, declared),
        size.words: problems.densenet(size, declared),
    }
    for words, problem in networks.items():
        say({"network": words, "XLA flags": part.flags or "none", "T, steps": problem.steps} | there_and_back(problem))


def there_and_back(problem: Any) -> dict[str, Any]:
    """What came of it. On a device whose gradients do not repeat the engine refuses, in words, which is an answer as well."""
    import hypertrail_gpu as engine
    from hypertrail import Exact, Reversible, UsageError, VerificationFailure
    from hypertrail_gpu.compiled import compiled

    hyper = problem.initial_hyper()
    begun = time.perf_counter()
    try:
        training = engine.train(problem, hyper, Reversible())
        with jax.enable_x64(True):
            last = watch_undoing(compiled(problem))
        engine.hypergradient(problem, hyper, training, Exact())
    except (UsageError, VerificationFailure) as refusal:
        return {"outcome": f"refused: {refusal}", "ok": None}
    (W, V, *_), B, _ = last["out"]
    home = all(np.array_equal(np.asarray(W[name]), fixed(w)) for name, w in training.initial.items())
    velocity, buffers = (not any(np.asarray(one).any() for one in tree.values()) for tree in (V, B))
    return {
        "outcome": "went there and back",
        "w_0 home to the bit": home,
        "v_0 home to the bit": velocity,
        "buffers empty": buffers,
        "bits kept, a number and step": training.trajectory.bits,
        "gradient taken apart": last["apart"],
        "there and back, compilation included, s": time.perf_counter() - begun,
        "ok": home and velocity and buffers,
    }


def watch_undoing(programs: Any) -> dict[str, Any]:
    """The newest result of the programs that undo steps: the reverse pass ends with that of step 0."""
    last: dict[str, Any] = {"apart": False}
    of_the_engine = programs.program

    def program(key: str, build: Any) -> Any:
        undo = of_the_engine(key, build)
        if not key.startswith("undo"):
            return undo

        def watched(*arguments: Any) -> Any:
            last["out"] = out = undo(*arguments)
            last["apart"] |= key.endswith("True")
            return out

        return watched

    programs.program = program
    return last


def fixed(w: np.ndarray) -> np.ndarray:
    """w · 2^52 as int64, truncated: the numbers that training starts from."""
    return (w.astype(np.float64) * 2.0**52).astype(np.int64)
