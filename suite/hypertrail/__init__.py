"""hypertrail: tune a million hyperparameters by gradient descent, by following a training run's trail backwards."""

from .engines import load
from .errors import NumericalFailure, UsageError, VerificationFailure
from .front import Tuned, adapt, check, hypergradient, train, tune
from .hyper import Bins, EachStep, Free, Linear, Log, Logit, Shared, Spline
from .hyperparameters import (
    L1,
    L2,
    ExampleWeight,
    InitialScale,
    InitialWeight,
    LearningRate,
    Momentum,
    Noise,
    TrainingInput,
    WeightTransform,
)
from .keeping import Checkpoints, Last, Reversible
from .methods import DrMAD, Exact, FloatReversed, Forward, Implicit, Truncated
from .online import MARTHE, OSGM, RTHO, T1T2, Adaptive, Almeida, Clarke, HypergradientDescent, Plain
from .own import TaskConfig
from .problem import Dynamics, Problem
from .projections import Box, BudgetSum, Simplex
from .records import Cost, Hypergradient, Metrics, Training
from .task import Arrays, Rows, Start, Stream, Task

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "MARTHE",
    "OSGM",
    "RTHO",
    "T1T2",
    "Adaptive",
    "Almeida",
    "Arrays",
    "Bins",
    "Box",
    "BudgetSum",
    "Checkpoints",
    "Clarke",
    "Cost",
    "DrMAD",
    "Dynamics",
    "EachStep",
    "Exact",
    "ExampleWeight",
    "FloatReversed",
    "Forward",
    "Free",
    "Hypergradient",
    "HypergradientDescent",
    "Implicit",
    "InitialScale",
    "InitialWeight",
    "Last",
    "LearningRate",
    "Linear",
    "Log",
    "Logit",
    "Metrics",
    "Momentum",
    "Noise",
    "NumericalFailure",
    "Plain",
    "Problem",
    "Reversible",
    "Rows",
    "Shared",
    "Simplex",
    "Spline",
    "Start",
    "Stream",
    "Task",
    "TaskConfig",
    "Training",
    "TrainingInput",
    "Truncated",
    "Tuned",
    "UsageError",
    "VerificationFailure",
    "WeightTransform",
    "adapt",
    "check",
    "hypergradient",
    "load",
    "train",
    "tune",
]
