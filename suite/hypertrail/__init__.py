"""hypertrail: tune a million hyperparameters by gradient descent, by following a training run's trail backwards."""

from .engines import load
from .errors import NumericalFailure, UsageError, VerificationFailure
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
from .problem import Dynamics, Problem
from .projections import Box, BudgetSum, Simplex
from .records import Cost, Hypergradient, Metrics, Training

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
    "Box",
    "BudgetSum",
    "Checkpoints",
    "Clarke",
    "Cost",
    "DrMAD",
    "Dynamics",
    "Exact",
    "ExampleWeight",
    "FloatReversed",
    "Forward",
    "Hypergradient",
    "HypergradientDescent",
    "Implicit",
    "InitialScale",
    "InitialWeight",
    "Last",
    "LearningRate",
    "Metrics",
    "Momentum",
    "Noise",
    "NumericalFailure",
    "Plain",
    "Problem",
    "Reversible",
    "Simplex",
    "Training",
    "TrainingInput",
    "Truncated",
    "UsageError",
    "VerificationFailure",
    "WeightTransform",
    "load",
]
