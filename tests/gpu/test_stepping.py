"""Large tensors are walked through by rows: the same numbers as whole tensors, and no copy of one in any loop."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypertrail_gpu as gpu
from hypertrail import (
    L1,
    L2,
    T1T2,
    Almeida,
    Dynamics,
    HypergradientDescent,
    LearningRate,
    Momentum,
    NumericalFailure,
    Plain,
    Problem,
    WeightTransform,
)
from hypertrail.adapting import numpy_state
from hypertrail_gpu import many, rows
from hypertrail_gpu.compiled import compiled, precision
from hypertrail_gpu.online import RULES, first_state
from hypertrail_gpu.stepping import sweepable
from hypertrail_nets import mlp

EVERYTHING = (
    L2("parameter", 1e-2),
    L1("unit", 1e-3),
    LearningRate("layer", 0.3),
    Momentum("network", 0.8),
    WeightTransform("input"),
)
PER_STEP = (L2("input", 1e-2), LearningRate("parameter", 0.05, per_step=True), Momentum("layer", 0.8, per_step=True))
RATES = (LearningRate("parameter", 0.1),)


@pytest.fixture
def small_blocks(monkeypatch):
    """Every tensor of a tiny network is large, and a block has two or three of its rows."""
    monkeypatch.setattr(rows, "LEAST_BYTES", 0)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 200)


@pytest.mark.parametrize(
    ("shape", "itemsize", "k"),
    [
        ((784, 1000), 4, 16),
        ((1000, 1000), 4, 10),
        ((3, 3, 256, 256), 4, 64),
        ((1_000_000,), 4, 0),  # no rows
        ((64, 256), 4, 0),  # small
        ((1009, 1000), 4, 0),  # a prime number of rows
        ((40, 100_000), 4, 0),  # a row is more than a block
    ],
)
def test_rows_of_a_block(shape, itemsize, k):
    assert rows.rows_of_block(shape, itemsize) == k


@pytest.mark.parametrize("shape", [(12, 5), (2, 3, 4, 5)])
def test_sweep_is_the_three_loops(small_blocks, shape):
    rng = np.random.default_rng(0)
    n = shape[-1]
    arrays = {
        "w": rng.normal(size=shape),
        "v": rng.normal(size=shape),
        "g": rng.normal(size=shape),
        "unit": rng.normal(size=n),
        "input": rng.normal(size=(*(1,) * (len(shape) - 2), shape[-2], 1)),
        "scalar": np.float64(0.3),
    }

    def terms(o: Any) -> tuple:
        return o["unit"] * o["w"] ** 2, o["v"] * o["g"] * o["input"]

    def velocity(o: Any) -> Any:
        return o["scalar"] * o["v"] - o["g"] * o["w"]

    def move(o: Any) -> Any:
        return o["w"] + o["unit"] * o["input"] * o["v"]

    with jax.enable_x64(True):
        written, sums = jax.jit(lambda o: rows.sweep(o, {"v": velocity, "w": move}, terms, jnp.int32(0)))(arrays)
        one, none = jax.jit(lambda o: rows.sweep(o, {"v": velocity}, lambda _: (), jnp.int32(0)))(arrays)
        written, one, sums = jax.tree.map(np.asarray, (written, one, sums))
    v = velocity(arrays)
    np.testing.assert_allclose(written["v"], v, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(written["w"], move(arrays | {"v": v}), rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(one["v"], written["v"])
    assert (list(one), none) == (["v"], ())
    for found, whole in zip(sums, terms(arrays), strict=True):
        assert found.shape == (rows.rows_of_block(shape, 8), n)
        np.testing.assert_allclose(found.sum(axis=0), whole.reshape(-1, n).sum(axis=0), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("network", "declared", "kind"),
    [
        ("mlp", EVERYTHING, "damped"),
        pytest.param("mlp", EVERYTHING, "heavy-ball", marks=pytest.mark.slow),
        pytest.param("mlp", PER_STEP, "damped", marks=pytest.mark.slow),
        ("mlp", PER_STEP, "adam"),
        ("mlp", RATES, "nesterov"),
        pytest.param("densenet", EVERYTHING, "damped", marks=pytest.mark.slow),
        pytest.param("lenet", PER_STEP, "heavy-ball", marks=pytest.mark.slow),
    ],
)
def test_training_by_rows(make, relative, small_blocks, monkeypatch, network, declared, kind):
    dynamics = Dynamics(kind, 0.05, 0.8, schedule=((4, 0.5),))
    problem = make(network, hyperparameters=declared, dynamics=dynamics).with_()
    by_rows = gpu.train(problem, problem.initial_hyper())
    assert compiled(problem).large
    monkeypatch.setattr(rows, "LEAST_BYTES", 1 << 20)
    other = problem.with_()
    whole = gpu.train(other, other.initial_hyper())
    assert not compiled(other).large
    np.testing.assert_allclose(by_rows.losses, whole.losses, rtol=1e-12)
    assert relative(by_rows.final, whole.final) < 1e-12
    assert relative(by_rows.velocity, whole.velocity) < 1e-12


SGD, SGD_DAMPED = (Dynamics(kind, 0.1, 0.0, schedule=((3, 0.5),)) for kind in ("heavy-ball", "damped"))
DAMPED, BALL = Dynamics("damped", 0.1, 0.8, schedule=((3, 0.5),)), Dynamics("heavy-ball", 0.05, 0.8)
PENALTIES = (L2("parameter", 1e-2), L1("unit", 1e-3))
ONLINE = {
    "t1t2": ((L2("unit", 1e-2),), DAMPED, T1T2(every=2, block=4)),
    "descent": ((LearningRate("network", 0.1),), DAMPED, HypergradientDescent(beta=1e-2, block=4)),
    "descent, layer, penalties": (
        (*PENALTIES, LearningRate("layer", 0.1)),
        BALL,
        HypergradientDescent(beta=1e-3, block=4),
    ),
    "descent, unit": ((LearningRate("unit", 0.1),), BALL, HypergradientDescent("multiplicative", 0.05, block=4)),
    "descent, parameter": (
        (*PENALTIES, LearningRate("parameter", 0.1)),
        DAMPED,
        HypergradientDescent(beta=1.0, block=4),
    ),
    "descent, multiplicative, parameter": (
        (LearningRate("parameter", 0.1),),
        BALL,
        HypergradientDescent("multiplicative", 0.05, block=4),
    ),
    "almeida": ((LearningRate("parameter", 0.1),), SGD, Almeida(0.2, block=4)),
    "almeida, penalties": ((*PENALTIES, LearningRate("parameter", 0.1)), SGD_DAMPED, Almeida(0.2, block=4)),
}


QUICK = ("t1t2", "descent, parameter", "almeida, penalties")  # the others are these with fewer terms or other shapes


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name not in QUICK else ()) for name in ONLINE]
)
def test_online_by_rows(make, relative, small_blocks, monkeypatch, case):
    declared, dynamics, method = ONLINE[case]
    problem = make("mlp", hyperparameters=declared, dynamics=dynamics, steps=8).with_()
    blocks = []
    for least in (0, 1 << 20):
        monkeypatch.setattr(rows, "LEAST_BYTES", least)
        one = problem.with_()
        blocks.append(list(gpu.adapt(one, one.initial_hyper(), method)))
        assert bool(compiled(one).large) == (least == 0)
        (taken_up,) = gpu.adapt(one, one.initial_hyper(), method, state=blocks[-1][0].state)
        for part in ("w", "v", "hyper"):
            assert relative(numpy_state(taken_up.state)[part], numpy_state(blocks[-1][-1].state)[part]) == 0
    for by_rows, whole in zip(*blocks, strict=True):
        np.testing.assert_allclose(by_rows.losses, whole.losses, rtol=1e-12)
        for part in ("w", "v", "hyper"):
            assert relative(numpy_state(by_rows.state)[part], numpy_state(whole.state)[part]) < 1e-12
    start, end = problem.initial_hyper(), blocks[0][-1].hyper
    assert all(np.any(end[kind][key] != u) for kind in method_moves(method, start) for key, u in start[kind].items())


def method_moves(method: Any, hyper: Any) -> list[str]:
    return ["learning_rate"] if isinstance(method, HypergradientDescent | Almeida) else list(hyper)


@dataclass(frozen=True, eq=False)
class Steep(Problem):
    """L = Σ √(w − w_0): at w_0 the loss is finite and the gradient is not."""

    def data_loss(self, ops: Any, weights: Any, *_: Any, **__: Any) -> Any:
        start = self.initial_weights()
        return sum(ops.xp.sqrt(w - start[name]).sum() for name, w in weights.items())


def test_what_waits_for_a_gradient_takes_nothing_of_it(make, small_blocks, monkeypatch):
    """The loss of step 0 stays finite, as with whole tensors: the failure is that of step 1."""
    tiny = make("mlp", "penalties")
    for least in (0, 1 << 20):
        monkeypatch.setattr(rows, "LEAST_BYTES", least)
        steep = Steep(**{one.name: getattr(tiny, one.name) for one in fields(Problem)})
        with pytest.raises(NumericalFailure, match="elementary loss is not finite at step 1"):
            gpu.train(steep, steep.initial_hyper())
        assert bool(compiled(steep).large) == (least == 0)


@dataclass(frozen=True, eq=False)
class Doubled(Problem):
    """A penalty of its own."""

    def penalty(self, xp: Any, w: Any, values: Any) -> Any:
        return 2 * super().penalty(xp, w, values)


def test_a_penalty_of_its_own_counts(make, relative, small_blocks):
    """It need not be a sum over the weights, so no walk: the same as the plain penalty at twice the λ, which is one."""
    one = make("mlp", hyperparameters=(L2("parameter", 1e-2),))
    other = make("mlp", hyperparameters=(L2("parameter", 2e-2),)).with_()
    doubled = Doubled(**{field.name: getattr(one, field.name) for field in fields(Problem)})
    found, expected = (gpu.train(problem, problem.initial_hyper()) for problem in (doubled, other))
    assert relative(found.final, expected.final) < 1e-12
    assert not sweepable(compiled(doubled))
    assert sweepable(compiled(other))


def test_several_runs_in_one_program_are_not_by_rows(make, small_blocks):
    problem = make("mlp", "penalties").with_()
    with precision(problem):
        assert compiled(problem).large
        assert not many.together((problem, problem)).first.large


COPY = re.compile(r"= f32\[(\d+),(\d+)\][^ ]* copy\(")


def copies_in_loops(text: str) -> list[str]:
    """Copies of large arrays in the bodies of the loops of a compiled program."""
    bodies = set(re.findall(r"body=(%[\w.-]+)", text))
    found, inside = [], False
    for line in text.splitlines():
        if line.endswith("{") and line.startswith("%"):
            inside = line.split(" ", 1)[0] in bodies
        elif inside and (match := COPY.search(line)) and int(match[1]) * int(match[2]) * 4 >= rows.LEAST_BYTES:
            found.append(line.strip())
    assert bodies
    return found


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("declared", "method"),
    [
        ((LearningRate("network", 0.1),), Plain(3)),
        ((L2("parameter", 1e-4), LearningRate("parameter", 0.1)), Plain(3)),
        ((L2("parameter", 1e-4), LearningRate("network", 0.1)), HypergradientDescent(beta=1e-6, block=3)),
        ((L2("parameter", 1e-4), LearningRate("parameter", 0.1)), HypergradientDescent(beta=1e-6, block=3)),
        ((LearningRate("parameter", 0.1),), Almeida(block=3)),
    ],
    ids=["plain", "arrays", "descent", "descent-arrays", "almeida"],
)
def test_no_loop_copies_a_large_tensor(make, declared, method):
    """Speed that no number shows: a copy of a weight is what XLA makes of a loop in which the order of reading and writing it is
    open. Also the walk itself must be there."""
    problem = make("mlp", hyperparameters=declared).with_(network=mlp((8, 8, 1), (600, 500)), precision="float32")
    with precision(problem):
        programs = compiled(problem)
        assert programs.large == ["dense2/W"]
        rule = RULES[type(method)](programs, method)
        state = first_state(programs, problem.initial_hyper(), rule)
        moving = {key: one for key, one in state.items() if key not in ("step", "block")}
        arguments = moving, rule.inputs(0, 0), programs.train_data, rule.valid_data
        text = jax.jit(rule.block).lower(*arguments).compile().as_text()
    assert copies_in_loops(text) == []
    by_rows = len(declared) > 1 or not isinstance(method, Plain)
    assert len(re.findall(r"body=", text)) == 1 + by_rows
