"""hypertrail: tune a million hyperparameters by gradient descent, by following a training run's trail backwards."""

from .engines import load
from .errors import NumericalFailure, UsageError, VerificationFailure
from .hyperparameters import L1, L2, LearningRate, Momentum, WeightTransform
from .methods import DrMAD, Exact
from .problem import Dynamics, Problem
from .records import Cost, Hypergradient, Metrics, Training

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "Cost",
    "DrMAD",
    "Dynamics",
    "Exact",
    "Hypergradient",
    "LearningRate",
    "Metrics",
    "Momentum",
    "NumericalFailure",
    "Problem",
    "Training",
    "UsageError",
    "VerificationFailure",
    "WeightTransform",
    "load",
]
