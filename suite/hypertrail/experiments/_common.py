"""What every experiment can be asked for; an experiment's Config adds its own fields and its own defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from ..checks import at_least, at_most, finite, fraction, positive
from ..errors import UsageError
from ..keeping import parse_keep
from ..methods import parse_method
from ..problem import Problem

EngineName = Literal["gpu", "cpu"]
Precision = Literal["float32", "float64"]


C = TypeVar("C")
P = TypeVar("P")


@dataclass(frozen=True)
class Study:
    """The settings that all experiments share."""

    engine: EngineName = "gpu"
    """What computes. gpu: compiled with JAX, for a GPU or, without one, the processor; cpu: the NumPy reference, slow."""
    devices: str = "1"
    """How many devices share each batch (gpu engine): a number, or all. In a job of several processes (srun), all joins them
    to one run. The numbers are the same up to rounding."""
    precision: Precision = "float32"
    """float32: to work with, fast. float64: to check and compare (engines agree to 1e-10), slower, twice the memory."""
    threads: int | None = None
    """Threads of the processor: roundings depend on their number. Default: the cores that are visible (gpu engine: or the
    variable NPROC), and for a run that goes on the number that it began with."""
    compilation_cache: bool = True
    """Load what an earlier run has compiled (gpu engine) from a folder in HYPERTRAIL_CACHE, and keep there what is compiled now.
    The numbers are the same."""
    seed: int = 0
    """One number for all that is random: split, initial weights, batches, dropout masks."""
    data_dir: Path | None = None
    """Folder with the data files; default: HYPERTRAIL_DATA, the cache, then a download. Digits are built in."""
    runs_dir: Path = Path("runs")
    """Folder that receives the run's folder."""
    run_dir: Path | None = None
    """The run's own folder, instead of a new one in runs-dir. A run that lies there unfinished or failed goes on where it was;
    if it is finished, nothing is done."""

    def __post_init__(self) -> None:
        """What a field of a certain name must be, in every experiment: UsageError with the field, its value and this."""
        for field in fields(self):
            name, value = field.name.replace("_", "-"), getattr(self, field.name)
            for one in value if isinstance(value, tuple) else (value,):
                if field.name in CHECKS and one is not None:
                    CHECKS[field.name](name, one)
                if isinstance(one, float):
                    finite(name, one)
                    at_most(name, abs(one), *LARGEST.get(self.precision, LARGEST["float64"]))
                if type(one) is int:
                    at_most(name, one, *MOST.get(field.name, MOST_OF_ANYTHING))


@dataclass(frozen=True)
class Common(Study):
    """The settings that all meta loops share: what a study can be asked for, and how the hyperparameters move."""

    method: str = "drmad-C4"
    """How the hypergradient is taken. exact: back over every state; drmad-*: back along a straight line, with the gaps of the
    printed algorithm filled as in the paper (C0), its authors' code (C1), the thesis (C2 to C5) or piecewise (C6);
    drmad-C1-first, -C3-first … see only the first minibatches, as the original programs; drmad-C4-even … those at equal
    distances; truncated-K: the last K steps; forward: for few hyperparameters; implicit-cg, -neumann, -dense: at a minimum;
    float-reversed: a negative control. Settings follow after colons, as in implicit-cg:damping=0.01:tolerance=1e-4,
    drmad-C5:tail=20, drmad-C4:multiplier=0.1:max_steps=200; so do further choices of the original programs, as in
    drmad-C4-first:sum_of_norms."""
    compare_exact: bool = False
    """Take the exact hypergradient beside the method's and report how far apart they are (about 3 more training runs of cost
    per meta-iteration, and every state kept). Only the method's moves the hyperparameters."""
    meta_iterations: int = 10
    """How many times the hyperparameters move: trainings, hypergradients, updates. One more training closes the run."""
    trajectory: str = "memory"
    """What is kept for the exact hypergradient: every state in memory (of the device), in the RAM of the host, on disk (HDF5 in
    the run folder) or in the first of these with room (auto); checkpoints (√T states) or checkpoints-N, the rest computed again;
    reversible: integers that can be undone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_method(self.method)
        parse_keep(self.trajectory, Path())


def built(make: Callable[[C], P], config: C) -> P:
    """make(config), a problem or data; what network, splits or schedule refuse is a usage error."""
    try:
        return make(config)
    except ValueError as refused:
        if hasattr(refused, "exit_code"):
            raise
        raise UsageError(str(refused)) from refused


def bounds(problem: Problem, kinds: Sequence[str]) -> tuple[list[float], list[float]]:
    """The lower and the upper bounds of these declared kinds."""
    low, high = zip(*(problem.declared(kind).bounds for kind in kinds), strict=True)  # type: ignore[union-attr]
    return list(low), list(high)


def listed(numbers: np.ndarray) -> list[float | None]:
    """(n,) floats as JSON holds them, for `run.part`; what is not finite becomes None. `numbered` undoes it, to the bit."""
    return [float(x) if math.isfinite(x) else None for x in numbers]


def numbered(values: list[float | None]) -> np.ndarray:
    """What `listed` made of floats: (n,) float64, NaN for None."""
    return np.array([math.nan if x is None else x for x in values])


# What no run can hold is refused before it fills the memory, or runs without an end. (at most, why)
MOST_OF_ANYTHING = (10**8, "more does not fit into a run")
# Rates are divided by 1 − γ and multiplied by factors: a number at the end of its precision would become infinite.
LARGEST: dict[Precision, tuple[float, str]] = {
    "float32": (1e30, "float32 ends at 3e38; --precision float64 goes further"),
    "float64": (1e300, "float64 ends at 1e308"),
}
MOST: dict[str, tuple[int, str]] = {
    "seed": (2**63 - 1, "a seed has 63 bits"),
    "steps": (10**8, "the loss of every step is kept"),
    **dict.fromkeys(("meta_iterations", "updates"), (10**6, "each leaves files in the folder of the run")),
    "depth": (2000, "a network of more layers does not compile"),
    "blocks": (100, "a network of more blocks does not compile"),
    **dict.fromkeys(
        ("hidden", "growth", "first_output"), (10**6, "a layer of more units does not fit into the memory")
    ),
    "weights": (4000, "the Hessian has as many rows and columns"),
    "threads": (4096, "no processor has more"),
}
CHECKS: dict[str, Callable[[str, float], None]] = {
    **dict.fromkeys(
        ("seed", "meta_iterations", "updates", "reference_steps", "select", "test"), partial(at_least, least=0)
    ),
    **dict.fromkeys(
        ("steps", "batch", "train", "valid", "valid_batch", "images", "examples", "hidden"), partial(at_least, least=1)
    ),
    **dict.fromkeys(("depth", "growth", "blocks", "first_output", "drop_epoch", "threads"), partial(at_least, least=1)),
    **dict.fromkeys(("learning_rate", "sgd_rate", "outer_rate", "l2", "largest", "init_scale", "epochs"), positive),
    **dict.fromkeys(("momentum", "dropout", "drop", "outer_mass"), fraction),
}
