"""What stands under the tables of the report: how their numbers were taken, and what the rows say together."""

from __future__ import annotations

import determinism
from plan import Row

NOTES = {
    "device": (
        "The peaks of the data sheets are those of tensor cores for TF32, bfloat16 and float64, and of the others for "
        "float32."
    ),
    "verify": (
        "Tolerance: `engines` in float64 of suite/hypertrail/tolerances.py. The rows in float32 have no verdict: they "
        "say how far float32 is from the float64 numbers of the reference engine, with the precision of products that "
        "JAX takes by default and, where that is TF32, with the highest too."
    ),
    "determinism": (
        "Seconds a step: median of the repeats after the first, wall clock. Hypergradients: of the same kept states, "
        "repeated."
    ),
    "reversal": (
        "A refusal is the engine's answer where a gradient that is taken twice differs: exact reversal then needs the "
        "flags that it names. Gradient taken apart: the engine had to compute the gradient once more in each undone "
        "step, because two programs rounded it differently."
    ),
    "trajectories": (
        "Tolerance: `engines` in float32 of suite/hypertrail/tolerances.py, for devices whose gradients do not repeat "
        "to the bit. Seconds: wall clock of one training and one exact reverse pass, compilation included, so not to "
        "be compared."
    ),
    "densenet": (
        "Seconds a step: wall clock of a whole call divided by its T steps, median. The ratio is to plain training in "
        "JAX by hand (handwritten.py, with the JAX of the versions above), by turns in the same process: median, "
        "lowest and highest turn. Float32, with the precision of products named above. Exact and DrMAD: training, "
        "reverse pass and the gradient of 10 validation batches together, for one L2 penalty per weight. Adaptive: "
        "learning rate and L2 per weight. Arithmetic: matrix products and convolutions alone, counted in the traced "
        "programs (flops.py). First call: compilation and one run; programs that an earlier process of this run has "
        "compiled come from its cache."
    ),
    "seeds": (
        "A run: a training that keeps its states on the device, and the exact hypergradient of one L2 penalty per "
        "weight, float32. One by one: hypertrail's `train` and `hypergradient`; side by side: those of "
        "`hypertrail_gpu.many`. Wall clock, median."
    ),
    "memory": (
        "XLA's plan is that of `memory_analysis()`; all: arguments, results and temporary bytes, less what results "
        "share with arguments. The peak of the device is `peak_bytes_in_use` of `memory_stats()`, which never "
        "falls: it is the program's own where it has grown during the first call, and then it holds the data, "
        "states and other programs of the process as well (and, where a program does not come from the cache, what "
        "compiling took). A processor does not tell; there the peak of the whole process stands in for it. "
        "Counted: matrix products and convolutions of one call in the traced program, of one step where a program "
        "goes along a line. XLA's count is `cost_analysis()`, which takes the body of a loop once, has elementwise "
        "operations in it, and may not see into library calls."
    ),
}


def notes(section: str, rows: list[Row]) -> list[str]:
    """Sentences and list items, for a section that has rows."""
    return [NOTES[section], *(["", *determinism.conclusions(rows)] if section == "determinism" else [])]
