"""DrMAD: what the three completions walk along, and what the kernel makes of it."""

from __future__ import annotations

import math

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

import hypertrail_cpu as cpu
from hypertrail import L2, Checkpoints, Cost, DrMAD, Dynamics, Exact, LearningRate, Momentum, Training, UsageError
from hypertrail.methods import batch_steps, speed_matched_steps
from hypertrail_cpu.drmad import line, pieces
from hypertrail_cpu.losses import hyper_gradient
from hypertrail_cpu.ops import OPS
from hypertrail_cpu.providers import Line
from hypertrail_cpu.reverse import reverse
from hypertrail_cpu.training import batch


def straight(problem, speed: float = 0.01) -> Training:
    """A run at constant speed along one direction; nothing was trained."""
    T = problem.steps
    w0 = problem.initial_weights()
    rng = np.random.default_rng(0)
    way = {name: rng.standard_normal(one.shape) for name, one in w0.items()}
    length = np.sqrt(sum(np.sum(one**2) for one in way.values()))
    wT = {name: w0[name] + T * speed * way[name] / length for name in w0}
    zero = {name: np.zeros_like(one) for name, one in w0.items()}
    distances = speed * np.arange(1, T + 1)
    return Training(w0, wT, wT, zero, {}, np.ones(T), distances, T, None, Cost())


@pytest.mark.parametrize("multiplier", [0.1, 0.35, 0.5, 1.0])
@pytest.mark.parametrize("T", [5, 6, 19, 20, 21, 40, 60])
def test_c4_at_constant_speed_takes_the_multiplier_of_the_steps(make, T, multiplier):
    problem = make("tanh", steps=T)
    walk = line(problem, problem.initial_hyper(), straight(problem), DrMAD("C4", multiplier=multiplier))
    assert len(walk) == math.ceil(round(multiplier * T, 9))


def test_c4_bounds_its_steps(make):
    problem = make("tanh", steps=40)
    for method, expected in ((DrMAD("C4", max_steps=7), 7), (DrMAD("C4", multiplier=9.0), 40)):
        assert len(line(problem, problem.initial_hyper(), straight(problem), method)) == expected


def test_c4_line(make):
    problem = make("tanh", steps=40)
    training = straight(problem)
    walk = line(problem, problem.initial_hyper(), training, DrMAD("C4", multiplier=0.25))
    places = list(walk.backwards())
    assert [p.i for p in places] == list(range(9, -1, -1))
    assert [p.batch_step // 4 for p in places] == list(range(9, -1, -1))  # one of each tenth of the run
    assert {p.rate_step for p in places} == {39}  # the rate in force at the end
    for p in places:
        for name, one in p.w.items():
            expected = training.initial[name] + p.i / 10 * (training.final[name] - training.initial[name])
            np.testing.assert_allclose(one, expected, rtol=1e-13, atol=1e-15)
        assert p.v == {}  # nobody asks for it


def test_c4_with_all_steps_gives_each_its_own_batch(make):
    problem = make("tanh", steps=23)
    walk = line(problem, problem.initial_hyper(), straight(problem), DrMAD("C4"))
    np.testing.assert_array_equal(walk.batch_steps, np.arange(23))


def test_c1_line(make):
    problem = make("tanh", steps=47)
    walk = line(problem, problem.initial_hyper(), straight(problem), DrMAD("C1", spread="even"))
    np.testing.assert_allclose(walk.rho, [0.001, 0.001 + 0.998 / 3, 0.001 + 2 * 0.998 / 3, 0.999], rtol=1e-14)
    assert [(p.i, p.batch_step, p.rate_step) for p in walk.backwards()] == [
        (3, 35, 3),
        (2, 23, 2),
        (1, 11, 1),
        (0, 0, 0),
    ]
    authors = line(problem, problem.initial_hyper(), straight(problem), DrMAD("C1", first_batches=True))
    np.testing.assert_array_equal(authors.rho, walk.rho)
    assert [(p.i, p.batch_step, p.rate_step) for p in authors.backwards()] == [(i, i, i) for i in (3, 2, 1, 0)]


def test_c1_of_a_very_short_run_takes_one_step(make):
    problem = make("tanh", steps=6)
    np.testing.assert_array_equal(line(problem, problem.initial_hyper(), straight(problem), DrMAD("C1")).rho, [0.001])


def test_c0_line(make):
    problem = make("tanh", steps=8)
    walk = line(problem, problem.initial_hyper(), straight(problem), DrMAD("C0"))
    np.testing.assert_array_equal(walk.rho, np.arange(8) / 8)  # walked from 7/8 down by 1/8
    assert [(p.batch_step, p.rate_step) for p in walk.backwards()] == [(i, i) for i in range(7, -1, -1)]


@pytest.mark.parametrize(("kind", "sign"), [("damped", 1.0), ("heavy-ball", -1.0)])
def test_velocity_of_the_line(make, kind, sign):
    """v_i = ±(w_i − w_{i−1})/α_i with the rate of each step, and 0 at the beginning: it does not wrap around to the end."""
    problem = make("tanh", steps=60, dynamics=kind, hyperparameters=(LearningRate("network", 0.2),))
    training = straight(problem)
    walk = line(problem, problem.initial_hyper(), training, DrMAD("C1"))
    places = {p.i: p for p in walk.backwards()}
    for i in (5, 4, 3, 2, 1):
        alpha = sign * 0.2 * (0.5 if i >= 3 else 1.0)
        for name in training.initial:
            expected = (walk.rho[i] - walk.rho[i - 1]) * (training.final[name] - training.initial[name]) / alpha
            np.testing.assert_allclose(places[i].v[name], expected, rtol=1e-9, atol=1e-13)
    assert all(not np.any(one) for one in places[0].v.values())


def test_velocity_of_the_line_where_the_old_one_moves_the_weights(make):
    """v_i = (w_{i+1} − w_i)/α_i: right on true states, and on a line its last point is w_T."""
    problem = make("tanh", dynamics="damped-old", steps=60, hyperparameters=(LearningRate("network", 0.2),))
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    kept = [training.trajectory.read(t) for t in range(4)]
    alpha = cpu.drmad.rate_of(problem, hyper)
    for t in (0, 1, 2):
        for name, rate in alpha(t).items():
            recovered = (kept[t + 1][f"w/{name}"] - kept[t][f"w/{name}"]) / rate
            np.testing.assert_allclose(recovered, kept[t][f"v/{name}"], rtol=1e-10, atol=1e-14)
    training = straight(problem)
    walk = line(problem, hyper, training, DrMAD("C1"))
    places = {p.i: p for p in walk.backwards()}
    rho = [*walk.rho, 1.0]
    for i in (5, 4, 3, 2, 1):
        rate = 0.2 * (0.5 if i >= 3 else 1.0)
        for name in training.initial:
            expected = (rho[i + 1] - rho[i]) * (training.final[name] - training.initial[name]) / rate
            np.testing.assert_allclose(places[i].v[name], expected, rtol=1e-9, atol=1e-13)
    assert all(not np.any(one) for one in places[0].v.values())


@pytest.mark.parametrize(
    "dynamics", [Dynamics("damped", 0.3, 0.6), Dynamics("heavy-ball", 0.1, 0.6)], ids=lambda d: d.kind
)
def test_line_that_is_true_is_exact(make, dynamics):
    """Two steps: the line from w_0 to w_1 with ρ = (0, 1) hands over the true w_0, w_1, and recovers the true v_0, v_1."""
    declared = (L2("parameter", 2e-2), LearningRate("layer", dynamics.learning_rate), Momentum("network", 0.6))
    problem = make("tanh", hyperparameters=declared, dynamics=dynamics, steps=2)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact = reverse(problem, hyper, cpu.providers.Stored(training.trajectory, True), 2, final=training.final)
    w1 = {name: training.trajectory.read(1)[f"w/{name}"] for name in training.initial}
    rate = cpu.drmad.line(problem, hyper, training, DrMAD("C1")).rate
    walk = Line(training.initial, w1, np.array([0.0, 1.0]), np.arange(2), np.arange(2), rate)
    result = reverse(problem, hyper, walk, 2, final=training.final)
    for kind, arrays in exact.dvalues.items():
        size = max(np.abs(one).max() for one in arrays.values())
        assert size > 0
        for name, one in arrays.items():
            np.testing.assert_allclose(result.dvalues[kind][name], one, rtol=0, atol=1e-12 * size)
    for ours, theirs in ((result.dw, exact.dw), (result.dv, exact.dv)):
        size = max(np.abs(one).max() for one in theirs.values())
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-12 * size)


def test_c0_is_algorithm_2_to_the_letter(make):
    """Against the printed algorithm, its Hessian and mixed products taken by autograd from the whole loss in (w, λ)."""
    problem = make("tanh", hyperparameters=(L2("parameter", 2e-2),), steps=7)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    w0, wT, gamma = training.initial, training.final, problem.dynamics.momentum

    _, dw, _ = hyper_gradient(problem, wT, problem.values(hyper))
    dl = {key: np.zeros_like(u) for key, u in hyper["l2"].items()}
    norms, beta = [], 1.0
    for t in range(7, 0, -1):
        norms.append(np.sqrt(sum(np.sum(one**2) for one in dw.values())))
        beta -= 1 / 7
        w = {name: (1 - beta) * w0[name] + beta * wT[name] for name in w0}
        x, y = batch(problem, t - 1)

        def pairing(state, x=x, y=y, t=t, dw=dw):
            def loss(w, u):
                penalty = sum(anp.sum(10.0 ** u[name] * w[name] ** 2) for name in hyper["l2"])
                return problem.data_loss(OPS, w, x, y, t - 1) + penalty

            w, u = state
            g = grad(loss)(w, u)
            return sum(anp.sum(g[name] * dw[name]) for name in dw)

        Hdw, mixed = grad(pairing)((w, hyper["l2"]))
        dl = {key: dl[key] - (1 - gamma) * mixed[key] for key in dl}
        dw = {name: dw[name] - (1 - gamma) * Hdw[name] for name in dw}

    result = cpu.hypergradient(problem, hyper, training, DrMAD("C0"))
    np.testing.assert_allclose(result.adjoint_norms, norms, rtol=1e-12)
    for key, one in dl.items():
        np.testing.assert_allclose(result.gradient["l2"][key], one, rtol=0, atol=1e-12 * np.abs(one).max())
    for name, one in dw.items():
        np.testing.assert_allclose(result.initial_weights[name], one, rtol=0, atol=1e-12 * np.abs(one).max())
    assert not any(np.any(one) for one in result.initial_velocity.values())  # there is no dv in it
    assert result.method == "drmad-C0"


@pytest.mark.parametrize(
    ("network", "completion", "cosine"),
    [
        ("tanh", "C0", -1.0),
        ("tanh", "C1", 0.9),
        ("tanh", "C4", 0.98),
        pytest.param("densenet", "C0", -1.0, marks=pytest.mark.slow),
        pytest.param("densenet", "C1", 0.9, marks=pytest.mark.slow),
        ("densenet", "C4", 0.98),
    ],
)
def test_completions_on_a_short_and_nearly_straight_run(make, network, completion, cosine):
    """From the two ends alone. Measured cosines with the exact hypergradient: C1 .94 and .998, C4 .984 to .996 (by which steps
    are drawn) and 1.000; C0, which lacks the learning rate, has none to promise."""
    problem = make(network, dynamics=Dynamics("damped", 0.02, 0.6), steps=20)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact = cpu.hypergradient(problem, hyper, training, Exact())
    training.trajectory.close()
    training.trajectory = None
    result = cpu.hypergradient(problem, hyper, training, DrMAD(completion))
    assert result.diagnostics["zero"] == []
    # Where the path is a little curved, the line is shorter than the way, and C4 takes fewer steps.
    assert result.diagnostics["N"] in {"C0": [20], "C1": [2], "C4": range(16, 21)}[completion]
    assert result.cost.hvps == len(result.adjoint_norms) == result.diagnostics["N"]
    assert result.hyper_loss == exact.hyper_loss
    a, b = (np.concatenate([d.ravel() for d in r.gradient["l2"].values()]) for r in (exact, result))
    assert cosine < np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) <= 1 - 1e-9


@pytest.mark.parametrize("completion", ["C1", "C4"])
def test_completions_give_rates_a_gradient(make, completion):
    problem = make("tanh", steps=30, hyperparameters=(LearningRate("layer", 0.2), Momentum("network", 0.6)))
    hyper = problem.initial_hyper()
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), DrMAD(completion))
    assert result.diagnostics["zero"] == []
    assert all(np.any(d) for arrays in result.gradient.values() for d in arrays.values())


def test_c1_fills_only_the_first_tenth_of_a_schedule(make):
    problem = make("tanh", steps=30, hyperparameters=(LearningRate("network", 0.2, per_step=True),))
    hyper = problem.initial_hyper()
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), DrMAD("C1"))
    np.testing.assert_array_equal(result.gradient["learning_rate"]["network"] != 0, np.arange(30) < 3)


def test_run_that_did_not_move_has_no_line(make):
    problem = make("tanh", steps=6)
    training = straight(problem, speed=0.0)
    with pytest.raises(UsageError, match="there is no line to follow"):
        cpu.hypergradient(problem, problem.initial_hyper(), training, DrMAD("C4"))


def test_run_too_short_for_a_speed_is_refused(make):
    problem = make("tanh", steps=4)
    with pytest.raises(UsageError, match="this run has 4"):
        cpu.hypergradient(problem, problem.initial_hyper(), straight(problem), DrMAD("C4"))


# -- the thesis' completions


def gap(a, b) -> float:
    """Largest difference over all kinds, each relative to its largest entry."""
    out = 0.0
    for kind, arrays in b.gradient.items():
        size = max(np.abs(one).max() for one in arrays.values())
        assert size > 0
        out = max(out, *(np.abs(a.gradient[kind][key] - one).max() / size for key, one in arrays.items()))
    return out


def adjoint_gap(a, b) -> float:
    out = 0.0
    for ours, theirs in ((a.initial_weights, b.initial_weights), (a.initial_velocity, b.initial_velocity)):
        size = max(np.abs(one).max() for one in theirs.values())
        out = max(out, *(np.abs(ours[p] - one).max() / size for p, one in theirs.items()))
    return out


RATES = (L2("unit", 2e-2), LearningRate("layer", 0.2), Momentum("layer", 0.6))


@pytest.mark.parametrize("completion", ["C2", "C3"])
@pytest.mark.parametrize("T", [8, 200, 230])
def test_c2_and_c3_lines(make, completion, T):
    problem = make("tanh", steps=T)
    walk = line(problem, problem.initial_hyper(), straight(problem), DrMAD(completion))
    N = min(T, 200) if completion == "C3" else T
    assert len(walk) == N
    np.testing.assert_allclose(walk.rho, np.arange(N) / N, rtol=1e-13, atol=0)
    assert walk.rate_steps.tolist() == [T - 1 if completion == "C3" else i for i in range(N)]
    np.testing.assert_array_equal(walk.batch_steps, batch_steps(DrMAD(completion), problem.seed, 0, T, N))
    if completion == "C2":
        np.testing.assert_array_equal(walk.batch_steps, np.arange(T))


def test_c2_uses_the_full_recursion(make):
    """C0 walks the same line without velocity and learning rate: another hypergradient."""
    problem = make("tanh", dynamics=Dynamics("damped", 0.02, 0.6), steps=20)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact = cpu.hypergradient(problem, hyper, training, Exact())
    c0, c2 = (cpu.hypergradient(problem, hyper, training, DrMAD(one)) for one in ("C0", "C2"))
    assert c2.diagnostics["N"] == 20
    assert gap(c2, exact) < 0.5 < 10 < gap(c0, exact)


def test_c3_below_200_steps_is_c4_with_all_steps(make):
    problem = make("tanh", steps=30, hyperparameters=RATES)
    hyper = problem.initial_hyper()
    training = straight(problem)  # at constant speed C4 takes all steps
    assert gap(*(cpu.hypergradient(problem, hyper, training, DrMAD(one)) for one in ("C3", "C4"))) == 0.0


@pytest.mark.parametrize("declared", ["layered", "penalties"])
def test_c5_with_all_steps_is_exact(make, declared):
    problem = make("tanh", declared, steps=25)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    exact = cpu.hypergradient(problem, hyper, training, Exact())
    for tail in (25, 1000):
        result = cpu.hypergradient(problem, hyper, training, DrMAD("C5", tail=tail))
        assert gap(result, exact) < 1e-7  # undone in floats: the last bit grows by 1/γ each step, 3.5e5 in all
        assert adjoint_gap(result, exact) < 1e-7
        assert result.diagnostics["tail"] == result.diagnostics["N"] == 25


@pytest.mark.parametrize("declared", ["layered", "penalties"])
def test_c5_without_a_tail_is_c4(make, declared):
    problem = make("tanh", declared, steps=25)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper)
    c4, c5 = (cpu.hypergradient(problem, hyper, training, one) for one in (DrMAD("C4"), DrMAD("C5", tail=0)))
    assert gap(c5, c4) == adjoint_gap(c5, c4) == 0.0
    np.testing.assert_array_equal(c5.adjoint_norms, c4.adjoint_norms)
    assert (c5.cost.gradients, c5.cost.hvps) == (c4.cost.gradients, c4.cost.hvps)


def test_c5_is_its_two_parts(make):
    """The tail fed with the true states, then C4's line on the run cut off before the tail: written out with the kernel."""
    K, T = 7, 30
    problem = make("tanh", steps=T, hyperparameters=RATES)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep="memory")
    result = cpu.hypergradient(problem, hyper, training, DrMAD("C5", tail=K, multiplier=0.5))
    stored = cpu.providers.Stored(training.trajectory, True)
    tail = reverse(problem, hyper, stored, K, final=training.final, to=T - K)
    w = {p: training.trajectory.read(T - K)[f"w/{p}"] for p in training.initial}
    total = np.sqrt(sum(np.sum((w[p] - training.initial[p]) ** 2) for p in w))
    assert training.distances.shape == (20,)
    s = [training.distances[k] / (k + 1) for k in range(4, 20)]
    q = [2.0 ** -(i + 1) for i in range(16)]
    q[0] = 1 - sum(q[1:])
    N = min(math.ceil(0.5 * total / sum(a * b for a, b in zip(q, s, strict=True))), T - K)
    assert 2 < N < T - K
    rho, batches = np.linspace(0, 1, N + 1)[:N], batch_steps(DrMAD("C5"), problem.seed, 0, T - K, N)
    alpha = problem.values(hyper)["learning_rate"]
    factor = problem.dynamics.factors(T)[T - K - 1]
    walk = Line(
        training.initial,
        w,
        rho,
        batches,
        np.full(N, T - K - 1),
        lambda _: {p: factor * a for p, a in alpha.items()},
    )
    whole = reverse(problem, hyper, walk, N, final=training.final, begun=tail)
    assert result.diagnostics["N"] == K + N
    assert result.diagnostics["tail"] == K
    np.testing.assert_allclose(result.adjoint_norms, whole.norms, rtol=1e-9)
    for p, one in whole.dw.items():
        np.testing.assert_allclose(result.initial_weights[p], one, rtol=0, atol=1e-9 * np.abs(one).max())
    for kind, arrays in whole.dvalues.items():
        assert set(arrays) == set(tail.dvalues[kind])
        assert all(not np.array_equal(one, tail.dvalues[kind][p]) for p, one in arrays.items())  # the first part stayed


def test_c5_takes_its_tail_from_the_smallest_momentum(make):
    problem = make("tanh", steps=30, hyperparameters=(Momentum("layer", 0.6),))
    hyper = problem.initial_hyper()
    hyper["momentum"]["dense2/b"] = np.asarray(np.log(0.5 / 0.5))
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), DrMAD("C5"))
    assert result.diagnostics["tail"] == int(20 / 3)  # γ = .5, where γ = .6 gives 9


def test_c5_with_a_line_too_short_for_a_speed_walks_all_its_steps(make):
    problem = make("tanh", steps=10)
    hyper = problem.initial_hyper()
    result = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), DrMAD("C5", tail=7))
    assert result.diagnostics["N"] == 10


@pytest.mark.parametrize("dynamics", ["damped", "heavy-ball", "damped-old"])
def test_c6_with_a_state_at_every_step_is_exact(make, dynamics):
    problem = make("tanh", dynamics=dynamics, hyperparameters=RATES, steps=12)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep=Checkpoints(12))
    exact = cpu.hypergradient(problem, hyper, training, Exact())
    result = cpu.hypergradient(problem, hyper, training, DrMAD("C6"))
    assert gap(result, exact) < 1e-12
    assert adjoint_gap(result, exact) < 1e-12
    assert result.diagnostics["pieces"] == [1] * 12


def test_c6_with_one_state_is_c4(make):
    problem = make("tanh", hyperparameters=RATES, steps=40)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep=Checkpoints(1))
    for options in ({}, {"multiplier": 0.3}, {"max_steps": 9}):
        c4, c6 = (cpu.hypergradient(problem, hyper, training, DrMAD(one, **options)) for one in ("C4", "C6"))
        assert gap(c6, c4) == adjoint_gap(c6, c4) == 0.0
        assert c6.diagnostics["pieces"] == [c4.diagnostics["N"]]


def test_c6_pieces(make):
    """Stretches of 10, 9, 9 and 9 steps, each with its own speed, its own velocity at its beginning, its batches and its rate."""
    problem = make(
        "tanh", hyperparameters=RATES, steps=37, dynamics=Dynamics("damped", 0.3, 0.6, schedule=((15, 0.5),))
    )
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep=Checkpoints(4))
    method = DrMAD("C6", multiplier=0.6)
    several = pieces(problem, hyper, training, method)
    kept = training.trajectory
    assert kept.at == [0, 10, 19, 28]
    ends = [*({p: s[f"w/{p}"] for p in training.final} for s in kept.states[1:]), training.final]
    places = list(several.backwards())
    N = [len(one) for one in several.lines]
    assert [p.i for p in places] == list(range(sum(N) - 1, -1, -1))
    for one, a, b, state, end, d in zip(
        several.lines, kept.at, (10, 19, 28, 37), kept.states, ends, kept.distances, strict=True
    ):
        total = np.sqrt(sum(np.sum((end[p] - state[f"w/{p}"]) ** 2) for p in end))
        assert d[-1] == pytest.approx(total, rel=1e-13)
        assert len(one) == speed_matched_steps(d, total, b - a, method)
        assert set(one.rate_steps) == {b - 1}
        np.testing.assert_array_equal(one.batch_steps, batch_steps(method, problem.seed, a, b, len(one)))
        first = list(one.backwards())[-1]
        for p in end:
            np.testing.assert_array_equal(first.w[p], state[f"w/{p}"])
            np.testing.assert_array_equal(first.v[p], state[f"v/{p}"])
    assert len({len(one) for one in several.lines}) > 1


def test_more_states_bring_c6_nearer(make):
    """A run that is not straight (α = .3): the largest error falls with the number of kept states."""
    problem = make("tanh", dynamics=Dynamics("damped", 0.3, 0.6), steps=30)
    hyper = problem.initial_hyper()
    gaps = []
    for n in (1, 5, 15):
        training = cpu.train(problem, hyper, keep=Checkpoints(n))
        exact = cpu.hypergradient(problem, hyper, training, Exact())
        gaps.append(gap(cpu.hypergradient(problem, hyper, training, DrMAD("C6")), exact))
    assert gaps[2] < gaps[1] < gaps[0]


def test_refused_completions(make):
    problem = make("tanh", steps=30)
    hyper = problem.initial_hyper()
    with pytest.raises(UsageError, match="C6 walks between kept states"):
        cpu.hypergradient(problem, hyper, cpu.train(problem, hyper, keep="memory"), DrMAD("C6"))
    ball = make("tanh", dynamics="heavy-ball", steps=30)
    with pytest.raises(UsageError, match="undoes steps of the damped dynamics"):
        cpu.hypergradient(ball, hyper, cpu.train(ball, hyper), DrMAD("C5"))
    still = make("tanh", steps=30, dynamics=Dynamics("damped", 0.1, 0.0))
    with pytest.raises(UsageError, match="cannot undo a step with momentum 0"):
        cpu.hypergradient(still, hyper, cpu.train(still, hyper), DrMAD("C5"))
    moving = make("tanh", steps=30, hyperparameters=(LearningRate("network", per_step=True),))
    training = cpu.train(moving, moving.initial_hyper(), keep=Checkpoints())
    for completion in ("C3", "C4", "C5", "C6"):
        with pytest.raises(UsageError, match="walks a stretch with one learning rate"):
            cpu.hypergradient(moving, moving.initial_hyper(), training, DrMAD(completion))


def test_short_stretches_keep_to_max_steps(make):
    """4 steps before the tail, stretches of 4 steps: step by step, but not more than max_steps."""
    problem = make("tanh", steps=12)
    hyper = problem.initial_hyper()
    training = cpu.train(problem, hyper, keep=Checkpoints(3))
    result = cpu.hypergradient(problem, hyper, training, DrMAD("C5", tail=8, max_steps=2))
    assert (result.diagnostics["N"], result.diagnostics["tail"]) == (10, 8)
    result = cpu.hypergradient(problem, hyper, training, DrMAD("C6", max_steps=2))
    assert result.diagnostics["pieces"] == [2, 2, 2]
    assert cpu.hypergradient(problem, hyper, training, DrMAD("C6")).diagnostics["pieces"] == [4, 4, 4]
