"""The small networks of the papers: multilayer perceptrons, LeNet, softmax regression."""

from __future__ import annotations

from .initial import He, Initial, Normal
from .layers import AveragePool, Conv2D, Dense, Dropout, GaussianNoise, Input, Layer, Nonlinearity, number_streams

Shape = tuple[int, ...]


def mlp(
    input_shape: Shape,
    hidden: tuple[int, ...],
    classes: int = 10,
    nonlinearity: str = "tanh",
    init_scale: float | None = None,
    dropout: float = 0.0,
    noise: bool = False,
) -> Layer:
    """Logits of a multilayer perceptron. nonlinearity 'tanh' or 'relu'; dropout after each hidden layer.

    noise: Gaussian noise on the input ('noise0') and after each hidden nonlinearity ('noise1', …), its σ a hyperparameter.

    init_scale: standard deviation of all weights and biases (Maclaurin et al. 2015 use e⁻³); None: He, biases 0.
    """
    initial: Initial = He() if init_scale is None else Normal(init_scale)
    bias = None if init_scale is None else Normal(init_scale)
    layer: Layer = Input(input_shape)
    if noise:
        layer = GaussianNoise(layer, "noise0")
    for i, units in enumerate(hidden, 1):
        layer = Nonlinearity(
            Dense(layer, units, f"dense{i}", initial, bias_initial=bias), nonlinearity, f"{nonlinearity}{i}"
        )
        if noise:
            layer = GaussianNoise(layer, f"noise{i}")
        if dropout > 0.0:
            layer = Dropout(layer, dropout, f"dropout{i}")
    return number_streams(Dense(layer, classes, "logits", initial, bias_initial=bias))


def softmax_regression(input_shape: Shape, classes: int = 10, init_scale: float | None = None) -> Layer:
    """Logits of a linear classifier: an `mlp` without hidden layers."""
    return mlp(input_shape, (), classes, init_scale=init_scale)


def lenet(input_shape: tuple[int, int, int], classes: int = 10, maps: tuple[int, int] = (6, 16),
          hidden: tuple[int, ...] = (120, 84), size: int = 5, dropout: float = 0.0) -> Layer:  # fmt: skip
    """Logits of LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) with tanh and average pooling.

    Convolution 'same', pool 2, convolution 'valid', pool 2, dense layers. For 8×8 images use size=3 (or less).
    """
    layer: Layer = Input(input_shape)
    layer = Nonlinearity(Conv2D(layer, maps[0], size, "conv1", bias=True), "tanh", "tanh1")
    layer = AveragePool(layer, 2, "pool1")
    layer = Nonlinearity(Conv2D(layer, maps[1], size, "conv2", padding="valid", bias=True), "tanh", "tanh2")
    if all(n % 2 == 0 for n in layer.shape[:2]):
        layer = AveragePool(layer, 2, "pool2")
    for i, units in enumerate(hidden, 3):
        layer = Nonlinearity(Dense(layer, units, f"dense{i}"), "tanh", f"tanh{i}")
        if dropout > 0.0:
            layer = Dropout(layer, dropout, f"dropout{i}")
    return number_streams(Dense(layer, classes, "logits"))
