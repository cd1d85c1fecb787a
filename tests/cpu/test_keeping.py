"""What a run keeps, in every way of keeping, and that the exact hypergradient is the same whichever way it was."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    Checkpoints,
    Dynamics,
    Exact,
    FloatReversed,
    Last,
    Momentum,
    Truncated,
    UsageError,
    VerificationFailure,
)
from hypertrail.records import Checkpointed
from hypertrail_cpu.providers import Recomputed, Stored, Undone
from hypertrail_data import MemoryTrajectory

STEPS = 11


@pytest.fixture(scope="module")
def run(make):
    """(problem, hyper, run with all states, its exact hypergradient), everything declared, both dynamics' names."""
    done = {}

    def run(dynamics="damped", declared="fine"):
        if (dynamics, declared) not in done:
            problem = make("tanh", declared, dynamics, steps=STEPS)
            hyper = problem.initial_hyper()
            training = cpu.train(problem, hyper, keep="memory")
            done[dynamics, declared] = problem, hyper, training, cpu.hypergradient(problem, hyper, training, Exact())
        return done[dynamics, declared]

    return run


def same(a, b) -> None:
    """The same numbers, to the bit, wherever one has them."""
    for kind, arrays in b.gradient.items():
        for key, one in arrays.items():
            np.testing.assert_array_equal(a.gradient[kind][key], one, err_msg=f"{kind} {key}")
    for ours, theirs in ((a.initial_weights, b.initial_weights), (a.initial_velocity, b.initial_velocity)):
        for name, one in theirs.items():
            np.testing.assert_array_equal(ours[name], one, err_msg=name)
    np.testing.assert_array_equal(a.adjoint_norms, b.adjoint_norms)
    assert a.hyper_loss == b.hyper_loss


def close(a, b, rel) -> None:
    for kind, arrays in b.gradient.items():
        size = max(np.abs(one).max() for one in arrays.values())
        assert size > 0
        for key, one in arrays.items():
            np.testing.assert_allclose(a.gradient[kind][key], one, rtol=0, atol=rel * size, err_msg=f"{kind} {key}")


@pytest.mark.parametrize("keep", ["host", "auto", Checkpoints(), Checkpoints(1), Checkpoints(STEPS), Last(99)], ids=str)
@pytest.mark.parametrize("dynamics", ["damped", "heavy-ball", "nesterov", "damped-old", "adam"])
def test_every_way_of_keeping_all_gives_the_same_bits(run, dynamics, keep):
    problem, hyper, _, exact = run(dynamics)
    training = cpu.train(problem, hyper, keep=keep)
    result = cpu.hypergradient(problem, hyper, training, Exact())
    same(result, exact)
    again = cpu.hypergradient(problem, hyper, training, Exact())
    same(again, exact)  # nothing was used up


def test_checkpoints_hold_the_true_states_and_recompute_the_others(run):
    problem, hyper, stored, exact = run()
    training = cpu.train(problem, hyper, keep=Checkpoints())
    kept = training.trajectory
    assert isinstance(kept, Checkpointed)
    assert kept.at == [0, 3, 6, 9]  # at most ⌈√11⌉ = 4 states
    assert [len(d) for d in kept.distances] == [3, 3, 3, 2]
    for t, state in zip(kept.at, kept.states, strict=True):
        truth = stored.trajectory.read(t)
        assert set(state) == set(truth)
        for name, one in truth.items():
            np.testing.assert_array_equal(state[name], one)
    whole = [stored.trajectory.read(t) for t in range(STEPS)]
    ahead = [*({n: one[f"w/{n}"] for n in training.final} for one in whole[1:]), training.final]
    for a, distances in zip(kept.at, kept.distances, strict=True):
        for t, d in enumerate(distances, a):
            gap = {n: ahead[t][n] - whole[a][f"w/{n}"] for n in training.final}
            assert d == pytest.approx(cpu.training.norm(gap), rel=1e-14)
    provider = Recomputed(problem, problem.values(hyper), kept, training.final)
    true = Stored(stored.trajectory, True)
    places = list(provider.backwards())
    assert [p.i for p in places] == list(range(STEPS - 1, -1, -1))
    for ours, theirs in zip(places, true.backwards(), strict=True):
        for name in theirs.w:
            np.testing.assert_array_equal(ours.w[name], theirs.w[name])
            np.testing.assert_array_equal(ours.v[name], theirs.v[name])
    result = cpu.hypergradient(problem, hyper, training, Exact())
    assert result.cost.gradients == exact.cost.gradients + STEPS  # one more forward run
    assert training.cost.trajectory_bytes == 4 * 2 * sum(one.nbytes for one in training.final.values())


def test_checkpoints_keep_the_velocity_where_nobody_declared_a_rate(run):
    problem, hyper, _, exact = run("heavy-ball", "penalties")
    training = cpu.train(problem, hyper, keep=Checkpoints(3))
    assert any(name.startswith("v/") for name in training.trajectory.states[0])
    same(cpu.hypergradient(problem, hyper, training, Exact()), exact)


def test_recomputing_another_run_is_caught(run):
    problem, hyper, _, _ = run()
    training = cpu.train(problem, hyper, keep=Checkpoints(3))
    other = {kind: {key: u + 0.1 for key, u in arrays.items()} for kind, arrays in hyper.items()}
    with pytest.raises(VerificationFailure, match="arrives at step 11"):
        cpu.hypergradient(problem, other, training, Exact())


@pytest.mark.parametrize(("rounding", "caught"), [(1e-6, False), (1e-3, True)])
def test_checkpoints_in_single_precision_are_compared_as_such(run, rounding, caught):
    """Another engine's float32 run: its rounding is let pass, another run is not."""
    problem, hyper, _, exact = run()
    training = cpu.train(problem, hyper, keep=Checkpoints(3))
    training.final = {name: (one * (1 + rounding)).astype(np.float32) for name, one in training.final.items()}
    training.initial = {name: one.astype(np.float32) for name, one in training.initial.items()}
    kept = training.trajectory
    kept.states = [{name: one.astype(np.float32) for name, one in state.items()} for state in kept.states]
    if caught:
        with pytest.raises(VerificationFailure, match=r"allowed 0.0001; .*float32 run parts"):
            cpu.hypergradient(problem, hyper, training, Exact())
    else:
        close(cpu.hypergradient(problem, hyper, training, Exact()), exact, 1e-3)


def test_last_states(run):
    problem, hyper, stored, _ = run()
    training = cpu.train(problem, hyper, keep=Last(4))
    kept = training.trajectory
    assert isinstance(kept, MemoryTrajectory)
    assert (kept.start, kept.stop, len(kept)) == (STEPS - 4, STEPS, 4)
    for t in range(STEPS - 4, STEPS):
        for name, one in stored.trajectory.read(t).items():
            np.testing.assert_array_equal(kept.read(t)[name], one)
    with pytest.raises(UsageError, match="holds 4 of the 11 states"):
        cpu.hypergradient(problem, hyper, training, Exact())
    with pytest.raises(UsageError, match="holds 4 of the 5 states"):
        cpu.hypergradient(problem, hyper, training, Truncated(5))


def test_auto_goes_to_disk_where_memory_is_short_and_leaves_nothing(run, monkeypatch):
    problem, hyper, stored, exact = run()
    size = stored.trajectory.nbytes
    monkeypatch.setattr(cpu.keeping, "available_memory", lambda: 2 * size)
    assert isinstance(cpu.train(problem, hyper, keep="auto").trajectory, MemoryTrajectory)
    monkeypatch.setattr(cpu.keeping, "available_memory", lambda: 2 * size - 1)
    training = cpu.train(problem, hyper, keep="auto")
    folder = training.trajectory.folder
    assert folder.exists()
    same(cpu.hypergradient(problem, hyper, training, Exact()), exact)
    training.trajectory.close()
    assert not folder.exists()
    training = cpu.train(problem, hyper, keep="auto")  # and where nobody closes it
    folder = training.trajectory.folder
    del training
    gc.collect()
    assert not folder.exists()


def test_memory_is_measured():
    assert 2**20 < cpu.keeping.available_memory() < 2**50


@pytest.mark.parametrize("keep", ["memory", Checkpoints(), Checkpoints(1), Last(5)], ids=str)
def test_truncated_after_one_step_is_one_step_of_the_adjoint(run, keep):
    """K = 1: dλ = direct + what the last step alone does, by the formulas of the reference written out here."""
    problem, hyper, stored, _ = run("damped", "penalties")
    training = cpu.train(problem, hyper, keep=keep)
    result = cpu.hypergradient(problem, hyper, training, Truncated(1))
    values, t = problem.values(hyper), STEPS - 1
    w = {name: stored.trajectory.read(t)[f"w/{name}"] for name in training.initial}
    _, dw, _ = cpu.losses.hyper_gradient(problem, training.final, values)
    alpha, gamma = cpu.training.rates(problem, values, t)
    u = {p: -(1 - gamma[p]) * alpha[p] * dw[p] for p in dw}
    x, y = cpu.training.batch(problem, t)
    Hu, _ = cpu.losses.second_order(problem, w, values, x, y, t, u)
    for name, one in result.gradient["l2"].items():
        expected = 2 * w[name] * u[name] * values["l2"][name] * np.log(10.0)
        np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-18)
    for name, one in result.initial_weights.items():  # df/dw_{T−1}
        np.testing.assert_allclose(one, dw[name] + Hu[name], rtol=1e-12, atol=1e-18)
    assert result.diagnostics["N"] == len(result.adjoint_norms) == result.cost.hvps == 1
    assert result.method == "truncated"


@pytest.mark.parametrize("keep", ["memory", Checkpoints(4)], ids=str)
@pytest.mark.parametrize("steps", [STEPS, 10**6])
def test_truncated_after_all_steps_is_exact(run, steps, keep):
    problem, hyper, _, exact = run()
    training = cpu.train(problem, hyper, keep=keep)
    same(cpu.hypergradient(problem, hyper, training, Truncated(steps)), exact)


def test_truncated_is_the_end_of_the_exact_walk(run):
    """From all states, from the last ones and from checkpoints: the same bits; and the recomputing stops where it may."""
    problem, hyper, stored, exact = run()
    truth = cpu.hypergradient(problem, hyper, stored, Truncated(4))
    np.testing.assert_array_equal(truth.adjoint_norms, exact.adjoint_norms[:4])
    assert not np.array_equal(truth.gradient["momentum"]["dense1/W"], exact.gradient["momentum"]["dense1/W"])
    np.testing.assert_array_equal(  # the rows of the steps that were undone
        truth.gradient["momentum"]["dense1/W"] != 0, np.arange(STEPS) >= STEPS - 4
    )
    for keep, extra in ((Last(4), 0), (Checkpoints(), 5), (Checkpoints(STEPS), 4)):
        result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep=keep), Truncated(4))
        same(result, truth)
        assert result.cost.gradients == truth.cost.gradients + extra


# -- undone in floating point


def test_float_reversal_of_a_short_run_is_nearly_exact(run):
    problem, hyper, _, exact = run()
    training = cpu.train(problem, hyper)
    result = cpu.hypergradient(problem, hyper, training, FloatReversed())
    close(result, exact, 1e-10)
    assert 0 < result.diagnostics["drift"] < 1e-12
    assert result.diagnostics["N"] == STEPS
    assert result.cost.gradients == exact.cost.gradients


@pytest.mark.parametrize("gamma", [0.6, 0.8, 0.9, 0.95, pytest.param(0.98, marks=pytest.mark.slow)])
def test_float32_reversal_dies_where_the_reference_says(make, gamma):
    """Negative control: the velocity is lost after about 24 / log2(1/γ) steps: by then the error is as large as it."""
    T = int(24 / -np.log2(gamma) * 1.3)
    problem = make("tanh", steps=T, hyperparameters=(Momentum("network", gamma),))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    true = Stored(training.trajectory, True).backwards()
    undone = Undone(problem, problem.values(hyper), training.final, training.velocity, np.float32)
    errors = []
    with np.errstate(all="ignore"):
        for ours, theirs in zip(undone.backwards(), true, strict=True):
            gap = cpu.training.norm({p: ours.v[p] - theirs.v[p] for p in ours.v})
            errors.append(gap / max(cpu.training.norm(theirs.v), 1e-300))
    lost = int(np.argmax(~(np.array(errors) < 1)))
    assert lost > 0
    assert lost == pytest.approx(24 / -np.log2(gamma), rel=0.2)
    assert errors[0] < 1e-6


def test_float_reversal_of_a_long_run_is_lost(make):
    """In float64 too, after 53 / log2(1/γ) = 53 steps at γ = .5: it ends far from w_0, with another hypergradient."""
    problem = make("tanh", steps=100, hyperparameters=(Momentum("network", 0.5),))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact = cpu.hypergradient(problem, hyper, training, Exact())
    result = cpu.hypergradient(problem, hyper, training, FloatReversed(beyond=True))
    assert result.diagnostics["drift"] > 1e6
    one, other = (float(r.gradient["momentum"]["network"]) for r in (result, exact))
    assert abs(one - other) > 1e6 * abs(other)
    shorter = make("tanh", steps=58, hyperparameters=(Momentum("network", 0.5),))
    result = cpu.hypergradient(shorter, hyper, cpu.train(shorter, hyper), FloatReversed(beyond=True))
    assert result.diagnostics["drift"] > 0.01


def test_float_reversal_is_refused_where_it_cannot_go(make):
    for problem in (make("tanh", dynamics="heavy-ball"), make("tanh", dynamics=Dynamics("damped", 0.1, 0.0))):
        hyper = problem.initial_hyper()
        with pytest.raises(UsageError, match="float-reversed"):
            cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), FloatReversed())
