"""The exact hypergradient: against finite differences, and against autograd through the whole unrolled training."""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L2,
    DrMAD,
    Exact,
    LearningRate,
    Momentum,
    NumericalFailure,
    UsageError,
    VerificationFailure,
    WeightTransform,
)
from hypertrail_cpu.providers import Place, Stored
from hypertrail_cpu.reverse import reverse

EPS = 1e-6  # central differences: small enough that no rectifier changes sides, which would make f jump
REL = 1e-6
AGREE = 1e-10  # two derivations of the same number in float64, a few thousand roundings apart

CASES = [
    ("tanh", "coarse", "damped"),
    ("tanh", "coarse", "heavy-ball"),
    ("tanh", "fine", "damped"),
    ("tanh", "fine", "heavy-ball"),
    ("tanh", "fine", "nesterov"),
    ("tanh", "fine", "damped-old"),
    ("tanh", "fine", "adam"),
    ("tanh", "coarse", "adam"),
    ("tanh", "penalties", "adam"),
    ("relu", "layered", "damped"),
    ("tanh", "penalties", "heavy-ball"),
    ("densenet", "coarse", "heavy-ball"),
    pytest.param(("densenet", "fine", "damped"), marks=pytest.mark.slow),
    pytest.param(("densenet", "penalties", "damped"), marks=pytest.mark.slow),
    ("tanh", "examples", "damped"),
    ("tanh", "examples", "heavy-ball"),
    ("relu", "start", "heavy-ball"),
    ("tanh", "weights at the start", "damped"),
    ("tanh", "weights at the start", "adam"),
    ("tanh", "scaled and shifted", "heavy-ball"),
    ("tanh", "linear examples", "damped"),
]
KINKED = ("densenet", "examples", "damped")  # differences of EPS step over kinks of its rectifiers in most directions


@pytest.fixture(scope="module")
def solved(make):
    """(problem, hyper, training, exact hypergradient) of a case, computed once."""
    done = {}

    def solve(*case):
        if case not in done:
            problem = make(*case)
            hyper = problem.initial_hyper()
            training = cpu.train(problem, hyper, keep="memory")
            done[case] = problem, hyper, training, cpu.hypergradient(problem, hyper, training, Exact())
        return done[case]

    return solve


def inner(a, b) -> float:
    return float(sum(np.sum(a[key] * b[key]) for key in b))


def plus(a, direction, size):
    return {key: a[key] + size * direction[key] for key in a}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_each_kind_against_finite_differences(case, solved, scatter, run_from):
    problem, hyper, training, result = solved(*case)
    assert result.hyper_loss == pytest.approx(run_from(problem, hyper), rel=1e-13)
    assert cpu.hyper_loss(problem, training) == result.hyper_loss
    rng = np.random.default_rng(11)
    for kind, arrays in hyper.items():
        assert {key: d.shape for key, d in result.gradient[kind].items()} == {key: u.shape for key, u in arrays.items()}
        direction = scatter({key: 0.0 * u for key, u in arrays.items()}, rng, 1.0)
        up, down = (run_from(problem, hyper | {kind: plus(arrays, direction, s * EPS)}) for s in (1, -1))
        # f is about 2, so the difference itself is known to 1e-16/EPS.
        assert inner(result.gradient[kind], direction) == pytest.approx((up - down) / (2 * EPS), rel=REL, abs=1e-9), (
            kind
        )


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_initial_weights_and_velocity_against_finite_differences(case, solved, scatter, run_from):
    problem, hyper, training, result = solved(*case)
    rng = np.random.default_rng(12)
    for gradient, start in ((result.initial_weights, "w"), (result.initial_velocity, "v")):
        origin = {"w": training.initial, "v": problem.initial_velocity()}[start]
        zero = {name: 0.0 * one for name, one in origin.items()}
        # Adam bends more: its slopes are large, so smaller steps still tell them, above all that of the second moment.
        eps = {"w": EPS / 10, "v": EPS / 1000}[start] if problem.dynamics.kind == "adam" else EPS
        clean = 0
        for _ in range(4):
            direction = scatter(zero, rng, 1.0)

            def quotient(size: float, start=start, origin=origin, direction=direction) -> float:
                up, down = (run_from(problem, hyper, **{start: plus(origin, direction, s * size)}) for s in (1, -1))
                return (up - down) / (2 * size)

            wide, narrow = quotient(eps), quotient(eps / 4)
            if wide != pytest.approx(narrow, rel=REL / 2, abs=2e-9):
                continue  # the kink of a rectifier or of |w| lies between: f jumps or bends there, no quotient is its slope
            assert inner(gradient, direction) == pytest.approx(wide, rel=REL, abs=2e-9), start
            clean += 1
        assert clean, start


@pytest.mark.parametrize("case", [*CASES, KINKED], ids="-".join)
def test_agrees_with_autograd_through_the_unrolled_loop(case, solved, unrolled):
    problem, hyper, _, result = solved(*case)
    f, (dhyper, dw, dv) = unrolled(problem, hyper)
    assert result.hyper_loss == pytest.approx(f, rel=1e-12)
    for kind, arrays in dhyper.items():
        size = max(np.abs(one).max() for one in arrays.values())
        assert size > 1e-6
        for key, one in arrays.items():
            np.testing.assert_allclose(
                result.gradient[kind][key], one, rtol=0, atol=AGREE * size, err_msg=f"{kind} {key}"
            )
    for ours, theirs in ((result.initial_weights, dw), (result.initial_velocity, dv)):
        size = max(np.abs(one).max() for one in theirs.values())
        for name, one in theirs.items():
            np.testing.assert_allclose(ours[name], one, rtol=0, atol=AGREE * size, err_msg=name)


def test_record(solved):
    problem, _, training, result = solved("tanh", "coarse", "damped")
    assert result.method == "exact"
    assert result.diagnostics == {"N": problem.steps, "zero": []}
    assert result.cost.hvps == problem.steps
    assert result.cost.gradients == 2  # the two validation batches; g for dα and dγ is left out
    assert result.cost.seconds > 0
    assert result.adjoint_norms.shape == (problem.steps,)
    _, dw, _ = cpu.losses.hyper_gradient(problem, training.final, problem.values(problem.initial_hyper()))
    assert result.adjoint_norms[0] == pytest.approx(np.sqrt(inner(dw, dw)), rel=1e-13)
    _, _, _, plain = solved("tanh", "penalties", "heavy-ball")
    assert plain.cost.gradients == 2


def test_velocity_is_recomputed_not_needed_for_penalties(solved, make):
    """The same L2 hypergradient whether or not learning rate and momentum are declared beside it."""
    penalties = (L2("parameter", 2e-2),)
    values = {"learning_rate": 0.3, "momentum": 0.6}
    more = (*penalties, LearningRate("network", values["learning_rate"]), Momentum("network", values["momentum"]))
    results = []
    for declared in (penalties, more):
        problem = make("tanh", hyperparameters=declared)
        hyper = problem.initial_hyper()
        training = cpu.train(problem, hyper, keep="memory")
        assert any(name.startswith("v/") for name in training.trajectory.read(0)) == (declared is more)
        results.append(cpu.hypergradient(problem, hyper, training, Exact()))
    for name, one in results[0].gradient["l2"].items():
        np.testing.assert_allclose(results[1].gradient["l2"][name], one, rtol=1e-9, atol=1e-16)
    for name, one in results[0].initial_velocity.items():
        np.testing.assert_allclose(results[1].initial_velocity[name], one, rtol=1e-9, atol=1e-16)


def test_adam_keeps_its_moments_whatever_is_declared(solved):
    """v/<parameter> holds both, (2, …): its adjoint is not linear in them."""
    _, _, training, result = solved("tanh", "penalties", "adam")
    state = training.trajectory.read(3)
    for name, w in training.initial.items():
        assert state[f"v/{name}"].shape == training.velocity[name].shape == (2, *w.shape)
        assert np.all(state[f"v/{name}"][1] >= 0)
        assert result.initial_velocity[name].shape == (2, *w.shape)


def test_any_provider_with_true_states_is_exact(solved):
    """The kernel asks a provider for (w_i, v_i) and nothing else; here v_i comes from differences of the true weights."""
    problem, hyper, training, exact = solved("tanh", "fine", "damped")
    alpha = problem.values(hyper)["learning_rate"]
    factors = problem.dynamics.factors(problem.steps)
    states = [{n: training.trajectory.read(t)[f"w/{n}"] for n in training.initial} for t in range(problem.steps)]

    class TrueWeights:
        def backwards(self):
            for t in reversed(range(problem.steps)):
                w = states[t]
                if t == 0:
                    v = {n: np.zeros_like(w[n]) for n in w}
                else:
                    v = {n: (w[n] - states[t - 1][n]) / (factors[t - 1] * alpha[n]) for n in w}
                yield Place(t, t, t, w, v)

    result = reverse(problem, hyper, TrueWeights(), problem.steps, final=training.final)
    stored = reverse(problem, hyper, Stored(training.trajectory, True), problem.steps, final=training.final)
    for kind, arrays in stored.dvalues.items():
        size = max(np.abs(one).max() for one in arrays.values())
        for name, one in arrays.items():
            np.testing.assert_allclose(result.dvalues[kind][name], one, rtol=0, atol=1e-12 * size)
    for name, one in exact.initial_weights.items():
        np.testing.assert_array_equal(stored.dw[name], one)


def test_reverse_that_stops_early_is_caught(solved):
    problem, hyper, training, _ = solved("tanh", "penalties", "heavy-ball")

    class Half(Stored):
        def backwards(self):
            return (place for place in super().backwards() if place.i >= 3)

    with pytest.raises(VerificationFailure, match="3 steps down to step 3, expected 6"):
        reverse(problem, hyper, Half(training.trajectory), problem.steps, final=training.final)


def test_trajectory_of_another_run_is_caught(make):
    problem, other = make("tanh"), make("tanh", seed=8)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    training.trajectory = cpu.train(other, hyper, keep="memory").trajectory
    with pytest.raises(VerificationFailure, match="does not begin at the w_0"):
        cpu.hypergradient(problem, hyper, training, Exact())


def test_exactly_zero_hypergradient_is_reported(make):
    """One step with v = 0 = γ v: the momentum of heavy ball does nothing, and its hypergradient says so."""
    problem = make("tanh", dynamics="heavy-ball", steps=1, hyperparameters=(L2(), Momentum("network", 0.5)))
    hyper = problem.initial_hyper()
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep="memory"), Exact())
    assert result.diagnostics["zero"] == ["momentum"]
    assert result.gradient["momentum"]["network"] == 0.0


def test_declared_precision_does_not_matter(solved, make):
    """The reference is float64 throughout; digits and their scaling are float32 data either way."""
    _, hyper, _, expected = solved("tanh", "coarse", "damped")
    problem = make("tanh", "coarse", "damped", precision="float32")
    training = cpu.train(problem, hyper, keep="memory")
    assert all(one.dtype == np.float64 for one in training.final.values())
    result = cpu.hypergradient(problem, hyper, training, Exact())
    assert result.hyper_loss == expected.hyper_loss
    for kind, arrays in expected.gradient.items():
        for key, one in arrays.items():
            np.testing.assert_array_equal(result.gradient[kind][key], one)
            assert result.gradient[kind][key].dtype == np.float64


def test_not_finite_adjoint_names_quantity_and_step(make):
    """A run whose states are finite, walked back with an α that is not its own: the adjoint explodes."""
    problem = make("tanh", hyperparameters=(L2("network", 1.0, bounds=(1e-9, 1e300)),), steps=6)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    hyper["l2"]["network"] = np.asarray(150.0)  # λ = 1e150: each reverse step multiplies ‖dw‖ by as much
    with pytest.raises(NumericalFailure) as caught:
        cpu.hypergradient(problem, hyper, training, Exact())
    assert caught.value.quantity == "adjoint of the weights (‖dw‖)"
    assert caught.value.step == 3  # steps 5 and 4 are undone by then, and 1e300 squared is too large for a norm
    assert "‖dw‖" in str(caught.value)


def test_combinations_that_cannot_work_are_refused(make):
    ends = make("tanh")
    training = cpu.train(ends, ends.initial_hyper())
    with pytest.raises(UsageError, match="needs the trajectory"):
        cpu.hypergradient(ends, ends.initial_hyper(), training, Exact())

    moving = make("tanh", hyperparameters=(LearningRate("network", per_step=True),))
    training = cpu.train(moving, moving.initial_hyper())
    with pytest.raises(UsageError, match="C0 has neither learning rate nor velocity"):
        cpu.hypergradient(moving, moving.initial_hyper(), training, DrMAD("C0"))
    with pytest.raises(UsageError, match="C4 walks a stretch with one learning rate"):
        cpu.hypergradient(moving, moving.initial_hyper(), training, DrMAD("C4"))

    ball = make("tanh", dynamics="heavy-ball")
    training = cpu.train(ball, ball.initial_hyper())
    with pytest.raises(UsageError, match="written for the damped dynamics"):
        cpu.hypergradient(ball, ball.initial_hyper(), training, DrMAD("C0"))

    short = cpu.train(ends, ends.initial_hyper(), keep="memory")
    short.trajectory.truncate(4)
    with pytest.raises(UsageError, match="holds 4 of the 6 states"):
        cpu.hypergradient(ends, ends.initial_hyper(), short, Exact())


def test_trajectory_without_velocity_is_refused(make):
    """Kept for penalties, asked for a learning rate."""
    kept, asked = make("tanh"), make("tanh", hyperparameters=(LearningRate("network", 0.3),))
    training = cpu.train(kept, kept.initial_hyper(), keep="memory")
    with pytest.raises(UsageError, match="holds no velocities"):
        cpu.hypergradient(asked, asked.initial_hyper(), training, Exact())


def test_transform_has_a_direct_term(make, run_from):
    """Also where the training does not see it: at a learning rate of almost nothing only the direct term is left."""
    problem = make("tanh", hyperparameters=(WeightTransform("input", 0.2), LearningRate("network", 1e-7)), steps=2)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    result = cpu.hypergradient(problem, hyper, training, Exact())
    direction = {key: np.ones_like(u) for key, u in hyper["transform"].items()}
    up, down = (run_from(problem, hyper | {"transform": plus(hyper["transform"], direction, s * EPS)}) for s in (1, -1))
    assert abs(up - down) / (2 * EPS) > 1e-2
    assert inner(result.gradient["transform"], direction) == pytest.approx((up - down) / (2 * EPS), rel=REL)


def test_progress(make):
    problem = make("tanh")
    hyper = problem.initial_hyper()
    calls: list[tuple[int, int]] = []
    training = cpu.train(problem, hyper, keep="memory", progress=lambda *c: calls.append(c))
    cpu.hypergradient(problem, hyper, training, Exact(), progress=lambda *c: calls.append(c))
    assert calls == [(6, 6), (6, 6)]
