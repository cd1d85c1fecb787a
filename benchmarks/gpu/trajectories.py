"""Section 4: states of a training on the device, in the host's memory and in HDF5 segments: do they give equal hypergradients?"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import problems
import processes
from plan import Part
from sizes import Sizes

# Of the difference where bits do not repeat, relative to the largest entry. In float32, some steps on, it is rounding, amplified.
LIMIT = ("engines", "float32")


def measure(part: Part, sizes: Sizes, machine: dict[str, Any], say: processes.Say) -> None:
    from hypertrail import L2, LearningRate

    declared, size = (L2("parameter", 1e-4), LearningRate("layer", 0.1)), sizes.small
    networks = {
        f"perceptron 64-{sizes.hidden}-10": problems.perceptron(sizes.hidden, sizes.perceptron_steps, declared),
        size.words: problems.densenet(size, declared),
    }
    for words, problem in networks.items():
        compare(problem, {"network": words, "XLA flags": part.flags or "none", "T, steps": problem.steps}, say)


def compare(problem: Any, front: dict[str, Any], say: processes.Say) -> None:
    from hypertrail.tolerances import tolerance

    limit, first = tolerance(*LIMIT).epsilon, None
    with tempfile.TemporaryDirectory(prefix="hypertrail-gpu-") as folder:
        for label, keep in {"device": "memory", "host": "host", "disk": Path(folder) / "trajectory"}.items():
            gradient, kept, seconds = there_and_back(problem, keep)
            first = gradient if first is None else first
            off = (
                np.abs(problems.flat(gradient).astype(float) - problems.flat(first)).max()
                / np.abs(problems.flat(first)).max()
            )
            say(
                front
                | {
                    "states": label,
                    "kept, MB": kept / 1e6,
                    "equal to the bit to the device's": problems.same_bits(gradient, first),
                    "largest difference / largest entry": float(off),
                    "tolerance": limit,
                    "there and back, s a step": seconds / problem.steps,
                    "ok": bool(off <= limit),
                }
            )


def there_and_back(problem: Any, keep: Any) -> tuple[Any, int, float]:
    """(hypergradient, bytes kept, seconds of training and reverse pass, compilation included)."""
    import hypertrail_gpu as engine
    from hypertrail import Exact

    hyper, begun = problem.initial_hyper(), time.perf_counter()
    training = engine.train(problem, hyper, keep)
    gradient = engine.hypergradient(problem, hyper, training, Exact()).gradient
    seconds = time.perf_counter() - begun
    kept = training.trajectory.nbytes
    training.trajectory.close()
    return gradient, kept, seconds
