"""The shared model definitions of hypertrail: layers, DenseNet and the small networks of the papers. Needs NumPy only."""

from .classic import lenet, mlp, softmax_regression
from .densenet import densenet
from .layers import (
    Layer,
    Ops,
    Parameter,
    count_params,
    get_all_layers,
    get_all_params,
    get_noise_params,
    get_output,
    initial_params,
    initial_running,
)

__all__ = [
    "Layer",
    "Ops",
    "Parameter",
    "count_params",
    "densenet",
    "get_all_layers",
    "get_all_params",
    "get_noise_params",
    "get_output",
    "initial_params",
    "initial_running",
    "lenet",
    "mlp",
    "softmax_regression",
]
