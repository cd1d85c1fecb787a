"""Online methods on the reference engine: the loop, and what is looked at from inside. The identities that prove them, on both
engines: tests/ladder/test_online_identities.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L2,
    OSGM,
    T1T2,
    Adaptive,
    Dynamics,
    HypergradientDescent,
    LearningRate,
    NumericalFailure,
    Problem,
    UsageError,
)
from hypertrail.adapting import gather
from hypertrail.outer import Adam
from hypertrail.runs import arrays
from hypertrail_cpu.online.adaptive import AdaptiveRule

SGD = Dynamics("damped", 0.2, 0.0)
DAMPED = Dynamics("damped", 0.2, 0.6)
BOTH = (L2("parameter", 2e-2), LearningRate("parameter", 0.2, bounds=(1e-5, 1.0)))


def run(problem: Problem, method: Any, **more: Any) -> list:
    return list(cpu.adapt(problem, problem.initial_hyper(), method, **more))


def flat(nested: Any) -> np.ndarray:
    if isinstance(nested, dict):
        return np.concatenate([np.empty(0), *(flat(one) for _, one in sorted(nested.items()))])
    return np.ravel(nested)


def assert_close(a: Any, b: Any, rel: float = 1e-12) -> None:
    x, y = flat(a), flat(b)
    assert np.linalg.norm(y) > 0
    assert np.linalg.norm(x - y) <= rel * np.linalg.norm(y)


# -- the adaptive method ---------------------------------------------------------------------------------------------------


def test_the_sign_of_nothing_is_nothing(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED)
    hyper = problem.initial_hyper()
    nothing = {kind: {key: 0.0 * u for key, u in arrays.items()} for kind, arrays in hyper.items()}
    moved, _ = AdaptiveRule(problem, Adaptive()).move(hyper, nothing, {})
    np.testing.assert_array_equal(flat(moved), flat(hyper))


def test_batch_norm_goes_back_with_the_weights(make):
    problem = make("densenet", hyperparameters=(L2("layer", 1e-2),), dynamics=DAMPED, steps=4)
    _, reached = (run(problem, Adaptive(n, 1, 1), blocks=1)[0].state["running"] for n in (4, 3))
    (ahead,) = run(problem, Adaptive(4, 1, 1, mode="look-ahead"), blocks=1)
    assert_close(ahead.state["running"], reached, 1e-15)


def test_states_undone_in_floating_point_are_nearly_the_kept_ones(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED, steps=6)
    kept, undone = (run(problem, Adaptive(6, 2, 4, states=s, mode="look-ahead"))[0] for s in ("kept", "undone"))
    assert_close(undone.gradient, kept.gradient, 1e-11)
    assert_close(undone.state["w"], kept.state["w"], 1e-12)
    assert not np.array_equal(flat(undone.state["w"]), flat(kept.state["w"]))


# -- T1–T2 ----------------------------------------------------------------------------------------------------------------------


def test_t1t2_skips_what_is_not_finite_unless_told_otherwise(make, monkeypatch):
    from hypertrail_cpu.online import t1t2

    def broken(self: Any, w: Any, w_valid: Any, t: int, values: Any, hyper: Any) -> Any:
        return 1.0, {"l2": {key: u * np.nan for key, u in hyper["l2"].items()}}

    monkeypatch.setattr(t1t2.T1T2Rule, "gradient", broken)
    problem = make(hyperparameters=(L2("layer", 1e-2),), steps=4)
    (block,) = run(problem, T1T2(every=2, block=4))
    assert block.skipped == 2
    assert_close(block.hyper, problem.initial_hyper(), 1e-15)
    with pytest.raises(NumericalFailure, match="hypergradient is not finite at step 2"):
        run(problem, T1T2(every=2, block=4, nonfinite="stop"))


# -- the loop ------------------------------------------------------------------------------------------------------------------


def test_a_block_does_not_depend_on_how_steps_are_cut(make):
    problem = make(hyperparameters=(L2("layer", 1e-2),), dynamics=DAMPED, steps=6)
    a, b = (run(problem, T1T2(every=2, block=block, outer=Adam(0.01))) for block in (2, 6))
    assert_close(a[-1].state["w"], b[-1].state["w"], 1e-15)
    assert_close(a[-1].hyper, b[-1].hyper, 1e-13)


def test_failures_are_named_and_what_was_before_stays(make):
    problem = make(hyperparameters=(LearningRate("network", 0.2, bounds=(1e-3, 1e300)),), dynamics=SGD, steps=12)
    got = []
    blocks = cpu.adapt(problem, problem.initial_hyper(), HypergradientDescent(beta=1e250, block=1))
    with pytest.raises(NumericalFailure, match="at step"):
        got.extend(blocks)
    assert 1 <= len(got) < 12
    assert np.isfinite(flat(got[-1].state["w"])).all()


def test_too_many_blocks_and_what_only_the_compiled_engine_has(make):
    problem = make(hyperparameters=(LearningRate("network", 0.2),), dynamics=SGD, steps=6)
    with pytest.raises(UsageError, match="7 blocks of hypergradient-descent, expected 0 to 6"):
        cpu.adapt(problem, problem.initial_hyper(), HypergradientDescent(block=1), blocks=7)
    with pytest.raises(UsageError, match="no osgm; use the compiled engine"):
        cpu.adapt(problem, problem.initial_hyper(), OSGM(block=1))


def test_where_a_run_ends_can_be_evaluated(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED, steps=8)
    done = []
    adapted = gather(
        problem, cpu.adapt(problem, problem.initial_hyper(), Adaptive(4, 2, 2), progress=lambda *x: done.append(x))
    )
    assert done == [(4, 8), (8, 8)]
    assert adapted.losses.shape == (8,)
    assert adapted.hyper_losses.shape == (2,)
    assert adapted.cost.gradients == 2 * (4 + 2)
    assert adapted.cost.hvps == 2 * 2
    assert cpu.evaluate(problem, adapted, "test").examples == 30
    assert np.isfinite(cpu.hyper_loss(problem, adapted))


def test_a_run_killed_inside_a_block_goes_on_from_the_block_before(make, tmp_path, monkeypatch):
    """The interrupt comes in the middle of the third block; what was saved after the second leads to the same bits."""
    from hypertrail_cpu import training

    problem, method = make(hyperparameters=BOTH, dynamics=DAMPED, steps=16), Adaptive(4, 2, 2, mass=0.5)
    whole = run(problem, method)
    gradient_at = training.gradient_at

    def killed(problem: Problem, values: Any, w: Any, t: int) -> Any:
        if t == 10:
            raise KeyboardInterrupt
        return gradient_at(problem, values, w, t)

    monkeypatch.setattr(training, "gradient_at", killed)
    blocks = cpu.adapt(problem, problem.initial_hyper(), method)
    saved = (arrays.save(tmp_path / "state.npz", block.state) for block in blocks)
    with pytest.raises(KeyboardInterrupt):
        list(saved)
    monkeypatch.setattr(training, "gradient_at", gradient_at)
    rest = list(cpu.adapt(problem, problem.initial_hyper(), method, state=arrays.load(tmp_path / "state.npz")))
    assert [block.index for block in rest] == [2, 3]
    for key, one in whole[-1].state.items():
        np.testing.assert_array_equal(flat(rest[-1].state[key]), flat(one), err_msg=key)
