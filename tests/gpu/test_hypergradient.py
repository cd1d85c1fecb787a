"""The oracle ladder of the compiled engine: finite differences, autodiff through the unrolled loop, provider against provider."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypertrail_gpu as gpu
from hypertrail import L2, DrMAD, Dynamics, Exact, LearningRate, NumericalFailure, UsageError
from hypertrail.methods import EXACT_STEP
from hypertrail_data import StoredTrajectory
from hypertrail_gpu import losses
from hypertrail_gpu.compiled import compiled, precision
from hypertrail_gpu.functional import zeros
from hypertrail_gpu.ops import OPS
from hypertrail_gpu.reverse import reverse_line

CASES = [("mlp", "everything", {}), ("densenet", "penalties", {"steps": 3})]
HEAVY = {"dynamics": Dynamics("heavy-ball", 0.1, 0.7, schedule=((4, 0.5),))}
OTHERS = [
    ("mlp", "everything", {"steps": 4, "dynamics": Dynamics("nesterov", 0.1, 0.7, ((2, 0.5),))}),
    ("mlp", "everything", {"steps": 4, "dynamics": Dynamics("damped-old", 0.3, 0.7, ((2, 0.5),))}),
    ("mlp", "per-step", {"steps": 4, "dynamics": Dynamics("adam", 0.02, 0.7, ((2, 0.5),), second_momentum=0.9)}),
]


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("network", "declared", "changes"), [CASES[0], slow(*CASES[1]), slow("mlp", "per-step", HEAVY)]
)
def test_finite_differences_in_random_directions(make, network, declared, changes):
    problem = make(network, declared, **changes)
    hyper = problem.initial_hyper()
    result = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, "memory"), Exact())
    rng = np.random.default_rng(0)
    for kind in hyper:
        # A coordinate that is hit hard and many that are hardly hit: random signs weigh them alike.
        signs = {name: rng.choice([-1.0, 1.0], np.shape(u)) for name, u in hyper[kind].items()}

        def f(e: float, kind: str = kind, signs: dict = signs) -> float:
            moved = hyper | {kind: {name: u + e * signs[name] for name, u in hyper[kind].items()}}
            return gpu.hyper_loss(problem, gpu.train(problem, moved))

        h = 1e-3 if network == "mlp" else 1e-5  # a rectifier has kinks, a large step would cross them
        numerical = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
        analytical = sum(float(np.sum(s * result.gradient[kind][name])) for name, s in signs.items())
        assert analytical == pytest.approx(numerical, rel=1e-6), kind


def unrolled(problem: Any, hyper: Any) -> Any:
    """jax.grad through the whole training, written out by hand: gradients of f in (hyper, w_0, v_0)."""

    def f(hyper: Any, w: Any, v: Any) -> Any:
        values = problem.values(hyper, jnp)
        factors = problem.dynamics.factors(problem.steps)
        for t in range(problem.steps):
            rows = problem.schedule.indices(t, t + 1)[0]
            x, y = problem.splits.train.x[rows].astype(np.float64), problem.splits.train.y[rows]
            g = jax.grad(lambda w, x=x, y=y, t=t: losses.elementary_loss(problem, w, values, x, y, t)[0])(w)

            def now(kind: str, name: str, t: int = t) -> Any:
                one = problem.declared(kind)
                return values[kind][name][t] if one and one.per_step else values[kind][name]

            for name in w:
                alpha, gamma = factors[t] * now("learning_rate", name), now("momentum", name)
                new, way = moved(problem.dynamics, v[name], g[name], gamma, t)
                v, w = v | {name: new}, w | {name: w[name] + alpha * way}
        weights = problem.effective(jnp, w, values)
        xs, ys = problem.valid_batches()
        return sum(problem.valid_loss(OPS, weights, x, y) for x, y in zip(xs, ys, strict=True)) / len(ys)

    with precision(problem):
        w0, v0 = jax.tree.map(jnp.asarray, (problem.initial_weights(), problem.initial_velocity()))
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(hyper, w0, v0)


def moved(dynamics: Dynamics, v: Any, g: Any, gamma: Any, t: int) -> tuple[Any, Any]:
    """The velocity after step t, and what the learning rate multiplies; not the engine's code."""
    if dynamics.kind == "adam":
        beta, steps = jnp.stack([gamma * jnp.ones(()), jnp.asarray(dynamics.second_momentum)]), t + 1
        beta = beta.reshape(2, *[1] * g.ndim)
        new = beta * v + (1 - beta) * jnp.stack([g, g * g])
        first, second = new / (1 - beta**steps)
        return new, -first * (second + dynamics.epsilon) ** -0.5
    if dynamics.kind.startswith("damped"):
        new = gamma * v - (1 - gamma) * g
        return new, v if dynamics.kind == "damped-old" else new
    new = gamma * v + g
    return new, -(g + gamma * new) if dynamics.kind == "nesterov" else -new


@pytest.mark.parametrize(
    ("network", "declared", "changes"),
    [CASES[0], slow(*CASES[1]), ("mlp", "per-step", HEAVY), *(slow(*one) for one in OTHERS)],
)
def test_autodiff_through_the_unrolled_loop(make, relative, network, declared, changes):
    problem = make(network, declared, **changes)
    hyper = problem.initial_hyper()
    result = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, "memory"), Exact())
    f, (dhyper, dw0, dv0) = unrolled(problem, hyper)
    assert result.hyper_loss == pytest.approx(float(f), rel=1e-12)
    for kind in hyper:
        assert relative(result.gradient[kind], dhyper[kind]) < 1e-10, kind
    assert relative(result.initial_weights, dw0) < 1e-10
    assert relative(result.initial_velocity, dv0) < 1e-10


class TrueLine(NamedTuple):
    """What the line kernel is fed with here: the true states in place of the points of a line."""

    states: Any
    indices: Any
    t: Any
    rho: Any

    def point(self, i: Any, programs: Any, values: Any) -> Any:
        w = {k.removeprefix("w/"): one[i] for k, one in self.states.items() if k.startswith("w/")}
        v = {k: self.states["v/" + k][i] if programs.keeps_velocity else jnp.zeros_like(w[k]) for k in w}
        return w, v, self.indices[i], tuple(one[i] for one in self.t)


@pytest.mark.parametrize(
    ("network", "declared"),
    [("mlp", "everything"), pytest.param("densenet", "penalties", marks=pytest.mark.slow)],
)
def test_line_kernel_fed_with_the_true_states_is_exact(make, relative, network, declared):
    problem = make(network, declared)
    hyper = problem.initial_hyper()
    training = gpu.train(problem, hyper, "memory")
    exact = gpu.hypergradient(problem, hyper, training, Exact())
    with precision(problem):
        programs = compiled(problem)
        values = programs.values(hyper)
        _, dw, dvalues = programs.hyper_gradient(training.final, values, programs.valid_data)
        states = {
            k: jnp.concatenate([s.states[k] for s in training.trajectory.forwards()])
            for k in training.trajectory.read(0)
        }
        indices, t = jax.tree.map(jnp.asarray, programs.steps(0, problem.steps))
        line = TrueLine(states, indices, t, jnp.zeros(problem.steps))
        adjoint, _ = reverse_line(programs, (dw, zeros(dw), dvalues), line, 0, problem.steps, values, EXACT_STEP, None)
        gradient = programs.pull_back(hyper, adjoint[2])
    assert relative(gradient, exact.gradient) < 1e-12
    assert relative(adjoint[0], exact.initial_weights) < 1e-12


def test_full_hessian_not_block_diagonal(make, relative):
    problem = make("mlp", "penalties")
    rng = np.random.default_rng(1)
    with precision(problem):
        w = problem.initial_weights()
        u = {name: rng.normal(size=one.shape) for name, one in w.items()}
        values = problem.values(problem.initial_hyper())
        x, y = problem.splits.train.x[:16].astype(np.float64), problem.splits.train.y[:16]

        def gradient(w: Any) -> Any:
            return losses.elementary_gradient(problem, w, values, x, y, 0)[1]

        h = 1e-5
        up, down = ({k: w[k] + s * u[k] for k in w} for s in (h, -h))
        numerical = {k: (gradient(up)[k] - gradient(down)[k]) / (2 * h) for k in w}
        full, _ = losses.second_order(problem, w, values, x, y, 0, u)
        blocks = {}
        for name in w:
            alone = {k: u[k] if k == name else np.zeros_like(u[k]) for k in w}
            blocks[name] = losses.second_order(problem, w, values, x, y, 0, alone)[0][name]
    assert relative(full, numerical) < 1e-7
    assert relative(blocks, numerical) > 1e-2


@pytest.mark.optimised
def test_stored_on_disk_equals_memory_to_the_bit(make, tmp_path: Path):
    problem = make("mlp", "everything")
    hyper = problem.initial_hyper()
    memory = gpu.train(problem, hyper, "memory")
    disk = gpu.train(problem, hyper, tmp_path / "trajectory")
    with disk.trajectory:
        a = gpu.hypergradient(problem, hyper, memory, Exact())
        b = gpu.hypergradient(problem, hyper, disk, Exact())
    for kind, arrays in a.gradient.items():
        for name, one in arrays.items():
            np.testing.assert_array_equal(one, b.gradient[kind][name])


@pytest.mark.slow
def test_chunks_and_segments_do_not_matter(make, relative, tmp_path: Path, monkeypatch):
    """Chunks of two steps with a rest, segments of one or two states: pieces are joined and cut as needed."""
    whole = make("mlp", "everything")
    hyper = whole.initial_hyper()
    reference = gpu.hypergradient(whole, hyper, gpu.train(whole, hyper, "memory"), Exact())
    state = 2 * sum(p.size for p in whole.params) * 8
    monkeypatch.setattr("hypertrail_gpu.compiled.CHUNK_STEPS", 3)
    create = StoredTrajectory.create
    for segment in (state, 2 * state + 8):
        monkeypatch.setattr(StoredTrajectory, "create", partial(create, segment_bytes=segment))
        problem = whole.with_()
        training = gpu.train(problem, hyper, tmp_path / str(segment))
        assert compiled(problem).chunk == 2
        with training.trajectory:
            result = gpu.hypergradient(problem, hyper, training, Exact())
        assert relative(result.gradient, reference.gradient) < 1e-13


def test_velocity_is_kept_only_where_it_is_needed(make):
    with_rates, without = (gpu.train(p, p.initial_hyper(), "memory") for p in (make("mlp", "everything"), make("mlp")))
    assert with_rates.cost.trajectory_bytes == 2 * without.cost.trajectory_bytes


@pytest.mark.parametrize("completion", ["C0", "C1", "C4"])
def test_drmad_on_a_short_gentle_run_points_the_right_way(make, completion):
    problem = make("mlp", "penalties", steps=20)
    hyper = problem.initial_hyper()
    training = gpu.train(problem, hyper, "memory")
    exact = gpu.hypergradient(problem, hyper, training, Exact())
    result = gpu.hypergradient(problem, hyper, training, DrMAD(completion))
    a, b = (np.concatenate([one.ravel() for one in r.gradient["l2"].values()]) for r in (exact, result))
    # C1 takes two steps here, one of them from the very start of the run; C0 and C4 see the whole way.
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > {"C0": 0.9, "C1": 0.4, "C4": 0.9}[completion]
    assert result.diagnostics["N"] in {"C0": [20], "C1": [2], "C4": range(10, 21)}[completion]


def test_refusals_come_before_any_work(make):
    problem = make("mlp", "everything")
    training = gpu.train(problem, problem.initial_hyper())
    with pytest.raises(UsageError, match="keep='memory'"):
        gpu.hypergradient(problem, problem.initial_hyper(), training, Exact())
    with pytest.raises(UsageError, match="C0 has neither"):
        gpu.hypergradient(problem, problem.initial_hyper(), training, DrMAD("C0"))


def test_a_loss_that_explodes_names_the_step_and_keeps_what_came_before(make, tmp_path: Path):
    problem = make(
        "mlp", "penalties", dynamics=Dynamics("damped", 1e200, 0.1), hyperparameters=(L2("parameter", 1e-2),)
    )
    with pytest.raises(NumericalFailure, match="at step") as failure:
        gpu.train(problem, problem.initial_hyper(), tmp_path / "trajectory")
    assert failure.value.step <= 3
    if failure.value.step:
        with StoredTrajectory.open(tmp_path / "trajectory") as kept:
            assert kept.stop == failure.value.step
            assert all(np.all(np.isfinite(one)) for one in kept.read(kept.stop - 1).values())


def test_an_adjoint_that_explodes_is_an_error(make):
    """Forward fine, backward not: momentum and rate such that the reverse recursion overflows float32."""
    problem = make("mlp", "penalties", precision="float32", steps=120, dynamics=Dynamics("damped", 60.0, 0.0),
                   hyperparameters=(L2("parameter", 1e-2), LearningRate("network", 9.9)))  # fmt: skip
    try:
        training = gpu.train(problem, problem.initial_hyper(), "memory")
    except NumericalFailure as failure:
        pytest.fail(f"the forward run should have survived: {failure}")
    with pytest.raises(NumericalFailure, match="dw"):
        gpu.hypergradient(problem, problem.initial_hyper(), training, Exact())


@pytest.mark.parametrize("network", ["mlp", pytest.param("densenet", marks=pytest.mark.slow)])
def test_float32_is_near_float64(make, relative, network):
    double, single = make(network), make(network, precision="float32")
    hyper = double.initial_hyper()
    a, b = (gpu.hypergradient(p, hyper, gpu.train(p, hyper, "memory"), Exact()) for p in (double, single))
    assert relative(b.gradient, a.gradient) < 1e-3
    assert not jax.config.jax_enable_x64, "float64 is switched on only inside the engine"
