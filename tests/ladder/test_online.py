"""Online methods: reference against compiled engine block by block; a run that was cut and taken up; nothing compiled twice.

One run of each method serves all three, for compiling is what takes the time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import hypertrail_cpu as cpu
import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import (
    L1,
    L2,
    MARTHE,
    OSGM,
    RTHO,
    T1T2,
    Adaptive,
    Almeida,
    Clarke,
    Dynamics,
    ExampleWeight,
    HypergradientDescent,
    LearningRate,
    Momentum,
    Noise,
    NumericalFailure,
    Plain,
    Problem,
    TrainingInput,
    UsageError,
    WeightTransform,
)
from hypertrail.adapting import gather, numpy_state
from hypertrail.outer import Adam, SignMomentum
from hypertrail.runs import arrays
from hypertrail.tolerances import tolerance
from hypertrail_nets import densenet, mlp

TOLERANCE = tolerance("engines", "float64").epsilon

BOTH = (L2("parameter", 1e-2, bounds=(1e-7, 1e-1)), LearningRate("parameter", 0.1, bounds=(1e-5, 1.0)))
FEW = (L2("layer", 1e-2), LearningRate("network", 0.1))
DAMPED = Dynamics("damped", 0.1, 0.8, schedule=((7, 0.5),))
BALL = Dynamics("heavy-ball", 0.05, 0.8, schedule=((7, 0.5),))
NESTEROV = Dynamics("nesterov", 0.05, 0.8, schedule=((7, 0.5),))
ADAM = Dynamics("adam", 0.01, 0.8, schedule=((7, 0.5),), epsilon=1e-3)
SGD = Dynamics("damped", 0.1, 0.0, schedule=((7, 0.5),))
MOVES = (
    ("l2", 0.01),
    ("learning_rate", 0.1),
    ("momentum", 0.05),
    ("transform", 0.01),
    ("example_weight", 0.1),
    ("training_input", 0.1),
)

CASES: dict[str, tuple[tuple, Dynamics, Any]] = {
    "adaptive": (BOTH, DAMPED, Adaptive(5, 3, 2, mass=0.5, mode="look-ahead")),
    "adaptive, undone": (BOTH, DAMPED, Adaptive(4, 3, 2, states="undone")),
    "adaptive, rates stay": (BOTH, DAMPED, Adaptive(4, 3, 2, moves=(("l2", 0.01), ("learning_rate", 0.0)))),
    "adaptive, every kind": (
        (*FEW, Momentum("layer", 0.8), WeightTransform("input", 0.1), ExampleWeight(init=0.9), TrainingInput()),
        ADAM,
        Adaptive(4, 0, 4, moves=MOVES, mode="restore"),
    ),
    "t1t2": ((L2("unit", 1e-2), L1("network", 1e-3)), DAMPED, T1T2(every=2, block=4, outer=Adam(0.01))),
    "t1t2, noise": ((Noise("unit", 0.2), L2("layer", 1e-2)), DAMPED, T1T2(every=2, block=4, outer=Adam(0.01))),
    "descent": ((L2("layer", 1e-2), LearningRate("layer", 0.1)), BALL, HypergradientDescent(beta=1e-3, block=4)),
    "descent, multiplicative": ((LearningRate(),), DAMPED, HypergradientDescent("multiplicative", 0.02, block=4)),
    "descent, nesterov": ((LearningRate("layer", 0.1),), NESTEROV, HypergradientDescent(beta=1e-3, block=4)),
    "descent, adam": ((LearningRate("parameter", 0.01),), ADAM, HypergradientDescent(beta=1e-4, block=4)),
    "almeida": ((LearningRate("parameter", 0.1),), SGD, Almeida(block=4)),
    "rtho": (FEW, NESTEROV, RTHO(every=2, block=4)),
    "marthe": (FEW, ADAM, MARTHE(mu=0.7, every=1, block=4, outer=SignMomentum(0.01), restart=True)),
    "osgm": ((LearningRate("layer", 0.1),), SGD, OSGM(block=4)),
    "clarke": (BOTH, DAMPED, Clarke(every=2, block=4, terms=2)),
}


SLOW = {
    "t1t2, noise",
    "adaptive, undone",
    "adaptive, rates stay",
    "adaptive, every kind",
    "descent, multiplicative",
    "descent, nesterov",
    "descent, adam",
    "almeida",
    "marthe",
    "osgm",
    "clarke",
}


class Case(NamedTuple):
    problem: Problem
    method: Any
    blocks: list
    compiled_first: int
    compiled_later: int


@pytest.fixture(scope="module")
def splits() -> Any:
    return hypertrail_data.make_splits(hypertrail_data.load("digits"), train=200, valid=64, select=0, test=20, seed=4)


def problem_for(splits: Any, declared: tuple, dynamics: Dynamics, **changes: Any) -> Problem:
    settings: dict[str, Any] = {
        "network": mlp((8, 8, 1), (6,)),
        "splits": splits,
        "schedule": hypertrail_data.BatchSchedule(200, 20, seed=1, order="reshuffled"),
        "steps": 16,
        "hyperparameters": declared,
        "dynamics": dynamics,
        "valid_batch": 16,
        "seed": 6,
        "precision": "float64",
    }
    return Problem(**(settings | changes))


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def case(request, splits) -> Case:
    """A whole run of the compiled engine, and how many programs its first block and its later ones compiled."""
    declared, dynamics, method = CASES[request.param]
    noise = any(one.kind == "noise" for one in declared)
    hidden = mlp(
        (8, 8, 1), (6,), dropout=0.2 if request.param in SLOW else 0.0, noise=noise
    )  # masks take time to compile
    problem = problem_for(splits, declared, dynamics, network=hidden)
    seen: list[str] = []

    def listener(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        running = gpu.adapt(problem, problem.initial_hyper(), method)
        first = next(running)
        compiled_first = len(seen)
        rest = list(running)
        state = numpy_state(first.state)  # as an agent outside would hand it back, with other hyperparameters
        state["hyper"] = {kind: {key: u - 0.01 for key, u in one.items()} for kind, one in state["hyper"].items()}
        again = next(gpu.adapt(problem, {}, method, state=state, blocks=1))
        assert again.index == 1
        assert again.losses[1] != rest[0].losses[1]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return Case(problem, method, [first, *rest], compiled_first, len(seen) - compiled_first)


def flat(nested: Any) -> np.ndarray:
    if isinstance(nested, dict):
        return np.concatenate([np.empty(0), *(flat(one) for _, one in sorted(nested.items()))])
    return np.ravel(np.asarray(nested, dtype=np.float64))


def assert_close(a: Any, b: Any, what: str) -> None:
    x, y = flat(a), flat(b)
    assert x.shape == y.shape, what
    assert np.linalg.norm(x - y) <= TOLERANCE * np.linalg.norm(y), what


def test_the_second_block_compiles_nothing(case):
    assert case.compiled_first > 0, "the first block compiles, or this test sees nothing"
    assert case.compiled_later == 0
    assert len(case.blocks) >= 3


def test_engines_agree_block_by_block(case):
    if isinstance(case.method, OSGM | Clarke):
        with pytest.raises(UsageError, match="use the compiled engine"):
            cpu.adapt(case.problem, case.problem.initial_hyper(), case.method)
        return
    reference = list(cpu.adapt(case.problem, case.problem.initial_hyper(), case.method))
    assert len(reference) == len(case.blocks)
    moved = case.problem.initial_hyper()
    for mine, theirs in zip(reference, case.blocks, strict=True):
        assert (mine.index, mine.start, mine.stop) == (theirs.index, theirs.start, theirs.stop)
        assert (mine.cost.gradients, mine.cost.hvps) == (theirs.cost.gradients, theirs.cost.hvps)
        assert_close(mine.losses, theirs.losses, "losses")
        assert_close(mine.hyper_losses, theirs.hyper_losses, "hyper losses")
        assert_close(mine.gradient, theirs.gradient, "hypergradient")
        for key in ("w", "v", "running", "hyper", "step", "block"):
            assert_close(mine.state[key], theirs.state[key], key)
        assert not np.array_equal(flat(mine.hyper), flat(moved)), "every block should move something here"
        for kind, size in getattr(case.method, "moves", ()):
            if size == 0:
                assert_same_bits(theirs.hyper[kind], case.blocks[0].hyper[kind])
                assert len(np.unique(flat(theirs.hyper[kind]))) == 1
        moved = mine.hyper


def test_a_run_cut_and_taken_up_ends_with_the_same_bits(case, tmp_path):
    """The state goes through a file; the rest of the run is done by an engine that never saw its beginning."""
    arrays.save(tmp_path / "state.npz", case.blocks[0].state)
    state = arrays.load(tmp_path / "state.npz")
    *_, last = gpu.adapt(case.problem, {}, case.method, state=state)
    assert_same_bits(last.state, case.blocks[-1].state)
    if type(case.method) not in (OSGM, Clarke):
        one, *_, whole = cpu.adapt(case.problem, case.problem.initial_hyper(), case.method)
        arrays.save(tmp_path / "state.npz", one.state)
        *_, last = cpu.adapt(case.problem, {}, case.method, state=arrays.load(tmp_path / "state.npz"))
        assert_same_bits(last.state, whole.state)


def assert_same_bits(a: Any, b: Any) -> None:
    a, b = dict(arrays.flatten(numpy_state(a))), dict(arrays.flatten(numpy_state(b)))
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_plain_blocks_agree(splits):
    problem = problem_for(splits, BOTH, DAMPED)
    mine, theirs = (list(engine.adapt(problem, problem.initial_hyper(), Plain(5))) for engine in (cpu, gpu))
    assert [(one.start, one.stop) for one in theirs] == [(0, 5), (5, 10), (10, 15)]
    for one, other in zip(mine, theirs, strict=True):
        for key in ("w", "v", "hyper"):
            assert_close(one.state[key], other.state[key], key)
        assert_close(one.losses, other.losses, "losses")
        assert (one.cost.gradients, other.cost.gradients, other.cost.hvps) == (5, 5, 0)


@pytest.mark.slow
def test_batch_norm_and_convolutions(splits):
    network = densenet((8, 8, 1), depth=5, growth=3, blocks=2, first_output=4, dropout=0.2)
    problem = problem_for(splits, BOTH, DAMPED, network=network, steps=6)
    method = Adaptive(3, 2, 2, mode="look-ahead")
    mine, theirs = (list(engine.adapt(problem, problem.initial_hyper(), method)) for engine in (cpu, gpu))
    assert len(mine) == 4
    for key in ("w", "v", "running", "hyper"):
        assert_close(mine[-1].state[key], theirs[-1].state[key], key)
    adapted = gather(problem, iter(theirs))
    assert gpu.evaluate(problem, adapted, "test").examples == 20
    assert gpu.hyper_loss(problem, adapted) == pytest.approx(cpu.hyper_loss(problem, adapted), rel=TOLERANCE)


def test_a_failure_is_named_by_both_engines_at_the_same_step(splits):
    declared = (LearningRate("network", 0.1, bounds=(1e-3, 1e300)),)
    problem = problem_for(splits, declared, SGD)
    found = []
    for engine in (cpu, gpu):
        blocks = engine.adapt(problem, problem.initial_hyper(), HypergradientDescent(beta=1e250, block=4))
        with pytest.raises(NumericalFailure) as failure:
            list(blocks)
        found.append((failure.value.quantity, failure.value.step))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("method", "step"),
    [
        (T1T2(every=2, block=4, nonfinite="stop"), 6),
        (Adaptive(4, 3, 2), 8),
        pytest.param(MARTHE(every=2, block=4), 6, marks=pytest.mark.slow),
    ],
    ids=["t1t2", "adaptive", "marthe"],
)
def test_a_hypergradient_that_overflows_in_a_later_block(splits, method, step):
    """From step 4 on the weights are 1e100: with three layers every loss is finite, the square of ‖∇f‖ or of ‖Z‖ is not. The
    learning rate is so small that they stay."""
    network = mlp((8, 8, 1), (4, 3), nonlinearity="relu")
    problem = problem_for(splits, (L2("layer", 1e-2),), Dynamics("damped", 1e-300, 0.0), network=network)
    for engine in (cpu, gpu):
        state = numpy_state(next(iter(engine.adapt(problem, problem.initial_hyper(), method, blocks=1))).state)
        if isinstance(method, MARTHE):
            state["memory"]["w"] = {p: one + 1e200 for p, one in state["memory"]["w"].items()}
        else:
            state["w"] = {p: 1e100 * one for p, one in state["w"].items()}
        with pytest.raises(NumericalFailure) as failure:
            list(engine.adapt(problem, {}, method, state=state))
        assert (failure.value.quantity, failure.value.step) == ("hypergradient", step)


def test_a_state_of_another_problem_is_refused(splits):
    problem = problem_for(splits, BOTH, DAMPED)
    other = problem.with_(network=mlp((8, 8, 1), (7,)))
    block = next(cpu.adapt(other, other.initial_hyper(), Adaptive(4, 3, 2)))
    with pytest.raises(UsageError, match="that saved it"):
        cpu.adapt(problem, {}, Adaptive(4, 3, 2), state=block.state)
    with pytest.raises(UsageError, match="that saved it"):
        gpu.adapt(problem, {}, Adaptive(4, 3, 2), state=block.state)
