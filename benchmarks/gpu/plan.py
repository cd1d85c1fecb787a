"""What is measured, in the order of importance: the sections of the report, and the processes that measure them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # column, with its unit → value. "ok": whether the row is as it should be, where that can be said

BUDGET = 480.0  # seconds that the whole run may take

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
EXCLUDE = "--xla_gpu_exclude_nondeterministic_ops=true"

SECTIONS = {
    "device": "The device",
    "verify": "1. Hypergradients in float64 beside the stored numbers of the reference engine",
    "determinism": "2. Do gradients repeat bit for bit over 100 steps, with which XLA flags, and what do the flags cost?",
    "reversal": "3. Exact reversal: do w_0 and v_0 come home to the bit?",
    "trajectories": "4. Trajectories on the device, on the host and on the disk: equal hypergradients?",
    "densenet": "5. DenseNet: the cost of a training step of each method",
    "seeds": "6. A perceptron on the digits with many seeds side by side",
    "memory": "7. Memory: what XLA plans for each program, and what the device held",
}


@dataclass(frozen=True)
class Part:
    """One process of a section.

    least: with fewer seconds left in the budget it is not started. most: after so many seconds it is ended. Both are for a
    budget of BUDGET seconds, and shrink with a smaller one; with a larger one `most` grows. flags: for XLA_FLAGS, in this
    process alone. fresh: it reads no compilation cache, so that whatever XLA decides while it compiles, by trying out
    kernels, is decided anew.
    """

    section: str
    name: str
    least: float = 15
    most: float = 75
    flags: str = ""
    fresh: bool = False


PARTS = (
    Part("device", "device", least=5, most=60),
    Part("verify", "mlp"),
    Part("verify", "densenet"),
    Part("reversal", "no flags"),
    Part("reversal", "exclude", flags=EXCLUDE),
    Part("trajectories", "exclude", flags=EXCLUDE),
    Part("densenet", "by hand", least=30, most=100),
    Part("densenet", "plain", least=30, most=100),
    Part("densenet", "exact", least=40, most=150),
    Part("densenet", "adaptive", least=40, most=150),
    Part("determinism", "no flags"),
    Part("determinism", "exclude", flags=EXCLUDE),
    Part("determinism", "deterministic", flags=DETERMINISTIC),
    Part("densenet", "drmad-C4", least=30, most=120),
    Part("seeds", "few seeds"),
    Part("memory", "exact", most=60),
    Part("memory", "adaptive", most=60),
    Part("memory", "plain", most=60),
    Part("memory", "by hand", most=60),
    Part("memory", "drmad-C4", most=60),
    Part("trajectories", "no flags"),
    Part("determinism", "exclude, compiled anew", flags=EXCLUDE, fresh=True),
    Part("determinism", "deterministic, compiled anew", flags=DETERMINISTIC, fresh=True),
    Part("reversal", "deterministic", flags=DETERMINISTIC),
    Part(
        "seeds", "most seeds", most=150
    ),  # slow to compile: the programs that take the runs apart grow with their number
)
