"""The thesis' GPU script (Theano), adaptive method: two blocks of 12 steps, 4 of them reversed, on a DenseNet of depth 7.

What it was given: weights, ln rates and log10 penalties drawn at random (the same for all classes of the output layer), batches
of 8 in a fixed order, γ .9, steps .1 in ln α and .01 in log10 λ. `full` has the whole Hessian, `block` theirs as it is, which
takes the second derivatives of each tensor alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import hypertrail as h

STEPS, LAST, BATCHES = 12, 4, 12
# Their script divides the sum over the M validation batches by n.
SCALE = STEPS / BATCHES
# Their 10 is a float32 constant, and so is its logarithm: 1.4e-8 of d log10 λ.
THEIR_LN10 = float(np.log(np.float32(10))) / np.log(10)
OUTPUT = "logits/W"
DIGITS = {"w": 15, "v": 14, "dr": 14, "dλ": 14, "r": 16, "λ": 16}


def check(theirs: Callable[[str], dict[str, np.ndarray]], blocks: Iterator[Any], meets: Any, flat: Any) -> None:
    """Both blocks against what was recorded of them. theirs("b0_w") → {parameter name: array}."""
    for i, block in zip(range(2), blocks, strict=True):
        w, v, dr, dλ, r, λ = (theirs(f"b{i}_{tag}") for tag in ("w", "v", "dr", "dl", "r", "l"))
        everything = {
            "w": (block.state["w"], w, 1),
            "v": (block.state["v"], v, 1),
            "dr": (block.gradient["learning_rate"], dr, SCALE),
            "dλ": (block.gradient["l2"], dλ, SCALE / THEIR_LN10),
            "r": (block.hyper["learning_rate"], r, 1),
            "λ": (block.hyper["l2"], λ, 1),
        }
        for quantity, (mine, other, factor) in everything.items():
            assert set(mine) == set(other)
            meets(f"block {i}, {quantity}", flat(mine, other), factor * flat(other, other), DIGITS[quantity])
        for mine, other in ((block.hyper["learning_rate"], r), (block.hyper["l2"], λ)):
            meets(f"block {i}, output layer", mine[OUTPUT], other[OUTPUT], DIGITS["r"])


def test_two_blocks(engine, hessian, golden, meets, flat, thesis_problem, by_parameter):
    """λ and r identical to the rounding of one addition: every sign agrees, and the output layer is averaged as theirs."""
    recorded = golden(f"c_online_{hessian}")
    problem = thesis_problem(recorded, steps=2 * STEPS, rates=True)

    def theirs(tag: str) -> dict[str, np.ndarray]:
        return by_parameter(problem.network, recorded, tag)

    hyper = {"l2": theirs("l"), "learning_rate": theirs("r")}
    moves = (("learning_rate", 0.1), ("l2", 0.01))
    method = h.Adaptive(STEPS, 0, LAST, moves=moves, mode="as-published", states="undone")
    check(theirs, engine.adapt(problem, hyper, method), meets, flat)
