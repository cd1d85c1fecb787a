"""The identities that prove the online methods (reference online.md, section 3), on both engines.

What they are compared with is written out here, or is a gradient, a loss or forward mode of the reference engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest

import hypertrail_cpu as cpu
import hypertrail_data
import hypertrail_gpu as gpu
from hypertrail import (
    L1,
    L2,
    MARTHE,
    RTHO,
    T1T2,
    Adaptive,
    Almeida,
    Dynamics,
    Forward,
    HypergradientDescent,
    LearningRate,
    Momentum,
    Noise,
    Problem,
)
from hypertrail.adapting import numpy_state, validation_rows
from hypertrail.outer import GradientDescent
from hypertrail_cpu.losses import elementary_gradient, hyper_gradient, hyper_loss
from hypertrail_cpu.training import batch, forward
from hypertrail_nets import mlp

SGD = Dynamics("damped", 0.2, 0.0)
DAMPED = Dynamics("damped", 0.2, 0.6)
BOTH = (L2("parameter", 2e-2), LearningRate("parameter", 0.2, bounds=(1e-5, 1.0)))
TIGHT = 1e-11  # one engine's number beside another derivation's: some hundred operations in another order


def on(*cases: Any, fast: int = 1) -> list:
    """Each case on each engine, as (engine, case); on the compiled one all but the first `fast` are slow, for each compiles."""
    return [pytest.param(cpu, one, id=f"cpu-{one}") for one in cases] + [
        pytest.param(gpu, one, id=f"gpu-{one}", marks=pytest.mark.slow if i >= fast else ())
        for i, one in enumerate(cases)
    ]


# That the engines agree block by block is in test_online.py.
gpu_slowly = pytest.mark.parametrize(
    "engine", [pytest.param(cpu, id="cpu"), pytest.param(gpu, id="gpu", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def make() -> Callable[..., Problem]:
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), train=120, valid=40, select=0, test=30, seed=3)

    def make(*declared: Any, dynamics: Dynamics = SGD, **changes: Any) -> Problem:
        settings: dict[str, Any] = {
            "network": mlp((8, 8, 1), (6,)),
            "splits": splits,
            "schedule": hypertrail_data.BatchSchedule(120, 12, seed=5),
            "steps": 6,
            "hyperparameters": declared,
            "dynamics": dynamics,
            "valid_batch": 20,
            "seed": 7,
            "precision": "float64",
        }
        return Problem(**(settings | changes))

    return make


def run(engine: Any, problem: Problem, method: Any, **more: Any) -> list:
    """The blocks, their states in NumPy."""
    blocks = engine.adapt(problem, problem.initial_hyper(), method, **more)
    return [replace(block, state=numpy_state(block.state)) for block in blocks]


def flat(nested: Any) -> np.ndarray:
    if isinstance(nested, dict):
        return np.concatenate([np.empty(0), *(flat(one) for _, one in sorted(nested.items()))])
    return np.ravel(nested)


def assert_close(a: Any, b: Any, rel: float = TIGHT) -> None:
    x, y = flat(a), flat(b)
    assert np.linalg.norm(y) > 0
    assert np.linalg.norm(x - y) <= rel * np.linalg.norm(y)


# -- the adaptive method -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "more"), on("penalties", "noise"))
def test_one_step_back_without_momentum_is_t1t2_times_the_learning_rate(make, engine, more):
    """T1–T2 in the free representation: h is then per log10 λ and ln λ, as the adaptive method's."""
    declared: tuple = (*BOTH, L1("layer", 3e-3))
    network = mlp((8, 8, 1), (6,), dropout=0.2, noise=True) if more == "noise" else mlp((8, 8, 1), (6,))
    if more == "noise":
        declared += (Noise("unit", 0.3),)
    problem = make(*declared, steps=4, network=network)
    moves = (("learning_rate", 0.1), ("l2", 0.01), ("l1", 0.01), ("noise", 0.1))
    (one,) = run(engine, problem, Adaptive(4, 0, 1, moves=moves))
    settings = {"every": 4, "block": 4, "validation_batches": 0, "clip_norm": 1e9}
    (other,) = run(engine, problem, T1T2(representation="free", outer=GradientDescent(0.3), **settings))
    np.testing.assert_allclose(one.hyper_losses, other.hyper_losses, rtol=TIGHT)
    for kind, h in other.gradient.items():
        assert_close(one.gradient[kind], {k: 0.2 * d for k, d in h.items()})
        start = problem.initial_hyper()[kind]
        assert_close(other.hyper[kind], {k: u - 0.3 * h[k] for k, u in start.items()})  # log λ is what moved
    assert set(other.gradient) == {h.kind for h in declared} - {"learning_rate"}


@gpu_slowly
def test_learning_rates_one_step_back_are_the_product_of_two_gradients(make, engine):
    """dr_i = −e^{r_i} ∇f(w_{t+1})_i ∇L(w_t)_i."""
    problem = make(*BOTH, steps=3)
    blocks = run(engine, problem, Adaptive(1, 1, 1))
    before, after = blocks[1].state, blocks[2]
    values = problem.values(before["hyper"])
    _, g, _ = elementary_gradient(problem, before["w"], values, *batch(problem, 2), 2)
    valid, rows = problem.splits.valid, validation_rows(problem, 1, 2)
    _, df, _ = hyper_gradient(problem, after.state["w"], values, (valid.x[rows].astype(float), valid.y[rows]))
    assert_close(after.gradient["learning_rate"], {p: -values["learning_rate"][p] * df[p] * g[p] for p in g})


DYNAMICS = {
    "damped": DAMPED,
    "heavy-ball": Dynamics("heavy-ball", 0.1, 0.6),
    "adam": Dynamics("adam", 0.05, 0.6, epsilon=1e-3),
}


@pytest.mark.parametrize(("engine", "kind"), on(*DYNAMICS))
def test_a_whole_block_back_is_the_derivative_of_the_block(make, engine, kind):
    """K = n, from the second block on (v is not 0 there): finite differences along a random direction, rel 1e-6."""
    problem = make(*BOTH, Momentum("network", 0.6), dynamics=DYNAMICS[kind], steps=8)
    moves = (("learning_rate", 0.1), ("l2", 0.01), ("momentum", 0.1))
    first, second = run(engine, problem, Adaptive(4, 0, 4, moves=moves))

    def after(hyper: Any) -> float:
        values = problem.values(hyper)
        *_, last = forward(problem, values, first.state["w"], first.state["v"], 4, 8)
        return hyper_loss(problem, problem.effective(np, last.w_next, values))

    assert after(first.hyper) == pytest.approx(second.hyper_losses[0], rel=1e-12)
    rng = np.random.default_rng(0)
    for kind, arrays in first.hyper.items():
        direction = {key: rng.standard_normal(np.shape(u)) for key, u in arrays.items()}

        def at(e: float, kind: str = kind, direction: Any = direction) -> float:
            arrays = {key: u + e * direction[key] for key, u in first.hyper[kind].items()}
            return after(first.hyper | {kind: arrays})

        e = 1e-3
        slope = (8 * (at(e) - at(-e)) - (at(2 * e) - at(-2 * e))) / (12 * e)
        assert flat(second.gradient[kind]) @ flat(direction) == pytest.approx(slope, rel=1e-6), kind


@gpu_slowly
def test_every_sign_step_has_its_length_or_ends_at_a_bound(make, engine):
    declared = (L2("parameter", 2e-2, bounds=(1e-7, 2.1e-2)), LearningRate("parameter", 0.2, bounds=(0.19, 1.0)))
    problem = make(*declared, dynamics=DAMPED, steps=12)
    hyper, method = problem.initial_hyper(), Adaptive(4, 2, 2, average_output=False)
    ended = 0
    for block in run(engine, problem, method):
        for kind, one in zip(("l2", "learning_rate"), declared, strict=True):
            s, (low, high) = method.move(kind), (one.free(b) for b in one.bounds)
            for key, u in block.hyper[kind].items():
                move, h = u - hyper[kind][key], block.gradient[kind][key]
                whole = np.isclose(move, -s * np.sign(h), rtol=1e-12, atol=1e-15)
                bound = ((u == low) & (h > 0)) | ((u == high) & (h < 0))
                assert (whole | bound).all()
                ended += (bound & ~whole).sum()
        hyper = block.hyper
    assert ended, "some should meet a bound here"


@pytest.mark.parametrize(("engine", "mass"), on(0.0, 0.7))
def test_the_output_layer_moves_by_the_mean_hypergradient_of_its_classes(make, engine, mass):
    """Of W alone, and before the sign: every class of an input moves by the same whole step. What is declared starts anywhere."""
    problem = make(*BOTH, dynamics=DAMPED, steps=8)
    rng = np.random.default_rng(0)
    hyper = {
        kind: {key: u + 0.3 * rng.standard_normal(np.shape(u)) for key, u in arrays.items()}
        for kind, arrays in problem.initial_hyper().items()
    }
    method = Adaptive(4, 2, 2, mass=mass)
    u: Any = {kind: dict.fromkeys(arrays, 0.0) for kind, arrays in hyper.items()}
    mixed = 0
    for block in engine.adapt(problem, hyper, method):
        for kind, arrays in numpy_state(block.gradient).items():
            one = problem.declared(kind)
            for key, h in arrays.items():
                if key == "logits/W":
                    mixed += (np.sign(h) != np.sign(h.mean(axis=-1, keepdims=True))).sum()
                    h = np.broadcast_to(h.mean(axis=-1, keepdims=True), h.shape)
                u[kind][key] = mass * u[kind][key] - (1 - mass) * np.sign(h)
                expected = one.project(hyper[kind][key] + method.move(kind) * u[kind][key])
                np.testing.assert_allclose(block.hyper[kind][key], expected, rtol=1e-13, err_msg=f"{kind} {key}")
        hyper = numpy_state(block.hyper)
    assert mixed, "some class should want another direction than the mean"


@gpu_slowly
def test_sign_momentum(make, engine):
    problem = make(*BOTH, dynamics=DAMPED, steps=8)
    m, s = 0.7, 0.01
    first, second = run(engine, problem, Adaptive(4, 2, 2, mass=m, average_output=False))
    key, start = "dense1/W", problem.initial_hyper()["l2"]["dense1/W"]
    u = -(1 - m) * np.sign(first.gradient["l2"][key])
    np.testing.assert_allclose(first.hyper["l2"][key], start + s * u, rtol=1e-14)
    u = m * u - (1 - m) * np.sign(second.gradient["l2"][key])
    np.testing.assert_allclose(second.hyper["l2"][key], first.hyper["l2"][key] + s * u, rtol=1e-14)


@pytest.mark.parametrize(("engine", "mode"), on("as-published", "look-ahead", "restore"))
def test_where_the_next_block_begins(make, engine, mode):
    """Restored at the end of the block; else K = 2 steps before: look-ahead takes their batches again, the thesis skips them."""
    problem = make(*BOTH, dynamics=DAMPED, steps=20)
    values = problem.values(problem.initial_hyper())
    steps = list(forward(problem, values, problem.initial_weights(), problem.initial_velocity(), 0, 6))
    first, second = run(engine, problem, Adaptive(6, 2, 2, mode=mode), blocks=2)
    w, v = (steps[5].w_next, steps[5].v_next) if mode == "restore" else (steps[4].w, steps[4].v)
    assert_close(first.state["w"], w)
    assert_close(first.state["v"], v)
    begin = 4 if mode == "look-ahead" else 6
    assert (first.start, first.stop, second.start, second.stop) == (0, 6, begin, begin + 6)
    loss, _, _ = elementary_gradient(problem, w, problem.values(first.hyper), *batch(problem, begin), begin)
    assert second.losses[0] == pytest.approx(loss, rel=TIGHT)


# -- learning rates that follow products of gradients --------------------------------------------------------------------


@gpu_slowly
def test_with_the_next_batch_for_validation_three_methods_are_one_product(make, engine):
    """g_1 ⊙ g_0 is what hypergradient descent adds (over β), what Almeida multiplies by (times v, over k), and −dr/α of the
    adaptive method one step back, where the valid split is the next training batch."""
    problem = make(LearningRate("parameter", 0.2), steps=2)
    train, rows = problem.splits.train, problem.schedule.indices(1, 2)[0]
    valid = replace(problem.splits.valid, x=train.x[rows], y=train.y[rows], rows=train.rows[rows])
    problem = problem.with_(splits=replace(problem.splits, valid=valid), valid_batch=None)
    values, w0 = problem.values(problem.initial_hyper()), problem.initial_weights()
    _, g0, _ = elementary_gradient(problem, w0, values, *batch(problem, 0), 0)
    _, g1, _ = elementary_gradient(problem, {p: w0[p] - 0.2 * g0[p] for p in w0}, values, *batch(problem, 1), 1)
    product = {p: g1[p] * g0[p] for p in g0}

    back, *_ = run(engine, problem, Adaptive(1, 0, 1, average_output=False))
    assert_close(back.gradient["learning_rate"], {p: -0.2 * one for p, one in product.items()})
    *_, descent = run(engine, problem, HypergradientDescent(beta=1e-2, block=2))
    assert_close({p: (np.exp(u) - 0.2) / 1e-2 for p, u in descent.hyper["learning_rate"].items()}, product, 1e-9)
    *_, almeida = run(engine, problem, Almeida(k=0.01, average=0.9, block=2))
    v = {p: 0.9 * 0.1 * g0[p] ** 2 + 0.1 * g1[p] ** 2 for p in g0}
    assert_close(almeida.state["memory"]["square"], v)
    moved = {p: (np.exp(u) / 0.2 - 1) / 0.01 for p, u in almeida.hyper["learning_rate"].items()}
    assert_close({p: moved[p] * v[p] for p in v}, product, 1e-9)


@dataclass(frozen=True, eq=False)
class Quadratic(Problem):
    """L = c ½ Σ a w² on every batch, a = 1 … 2 by parameter: gradients and runs in closed form."""

    c: ClassVar[float] = 1.0

    def data_loss(
        self,
        ops: Any,
        weights: Any,
        x: Any,
        y: Any,
        step: Any,
        collect: Any = None,
        values: Any = None,
        key: Any = None,
    ) -> Any:
        return sum(0.5 * self.c * (curvature(p.shape) * weights[p.name] ** 2).sum() for p in self.params)


@dataclass(frozen=True, eq=False)
class Steeper(Quadratic):
    c: ClassVar[float] = 3.0


@cache
def curvature(shape: tuple[int, ...]) -> np.ndarray:
    return np.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)


@pytest.fixture(scope="module")
def quadratic(make) -> Callable[..., Problem]:
    def quadratic(kind: type[Problem], *declared: Any, **changes: Any) -> Problem:
        one = make(*declared, **changes)
        return kind(**{name: getattr(one, name) for name in one.__dataclass_fields__})

    return quadratic


@pytest.mark.parametrize(("engine", "level"), on("network", "layer", "parameter"))
def test_descent_on_a_quadratic_in_closed_form(quadratic, engine, level):
    """w ← (1 − α a) w;  h_t = −Σ a² w_t w_{t−1}, summed over ALL that shares an α before α moves."""
    problem = quadratic(Quadratic, LearningRate(level, 0.1))
    beta = 1e-3
    blocks = run(engine, problem, HypergradientDescent(beta=beta, block=1))
    w, last = problem.initial_weights(), None
    alpha: Any = {p: np.full(one.shape, 0.1) for p, one in w.items()}
    for block in blocks:
        g = {p: curvature(one.shape) * one for p, one in w.items()}
        if last is not None:
            h = {p: -g[p] * last[p] for p in g}
            if level == "network":
                h = dict.fromkeys(h, sum(np.sum(one) for one in h.values()))
            if level == "layer":
                h = {p: np.sum(one) for p, one in h.items()}
            alpha = {p: alpha[p] - beta * h[p] for p in g}
        w = {p: w[p] - alpha[p] * g[p] for p in w}
        last = g
        assert_close(block.state["w"], w)
    assert np.ptp(flat(alpha)) > 1e-5 or level == "network"
    assert np.abs(flat(alpha) - 0.1).max() > 1e-3


RULES = {"additive": (3e-3, 3e-3 / Steeper.c**3), "multiplicative": (0.05, 0.05)}


@pytest.mark.parametrize(
    ("engine", "case"),
    on(*((rule, kind) for rule in RULES for kind in ("damped", "heavy-ball", "nesterov", "damped-old"))),
)
def test_loss_times_c(quadratic, engine, case):
    """Additive: α₀ / c needs β / c³, whatever the momentum. Multiplicative: the same β."""
    rule, kind = case
    dynamics = Dynamics(kind, 0.1, 0.6, schedule=((3, 0.5),))
    c, (beta, scaled) = Steeper.c, RULES[rule]
    one = quadratic(Quadratic, LearningRate("layer", 0.1), dynamics=dynamics)
    other = quadratic(Steeper, LearningRate("layer", 0.1 / c), dynamics=dynamics)
    (a,) = run(engine, one, HypergradientDescent(rule, beta, block=6))
    (b,) = run(engine, other, HypergradientDescent(rule, scaled, block=6))
    assert_close(a.state["w"], b.state["w"])
    rates = [np.exp(flat(block.hyper["learning_rate"])) for block in (a, b)]
    np.testing.assert_allclose(rates[0], c * rates[1], rtol=1e-11)
    assert np.abs(rates[0] - 0.1).max() > 1e-3


@gpu_slowly
def test_almeida_on_a_quadratic(quadratic, engine):
    problem = quadratic(Quadratic, LearningRate("parameter", 0.1))
    k, γ = 0.3, 0.8
    (block,) = run(engine, problem, Almeida(k, γ, block=6))
    for name, x in problem.initial_weights().items():
        a, p, v, last = curvature(x.shape), np.full(x.shape, 0.1), np.zeros(x.shape), np.zeros(x.shape)
        for _ in range(6):
            g = a * x
            v = γ * v + (1 - γ) * g**2
            p = p * np.where(v > 0, np.maximum(0.5, 1 + k * g * last / np.where(v > 0, v, 1)), 1)
            x, last = x - p * g, g
        np.testing.assert_allclose(np.exp(block.hyper["learning_rate"][name]), p, rtol=1e-12)
        np.testing.assert_allclose(block.state["w"][name], x, rtol=1e-12, atol=1e-15)


@gpu_slowly
def test_rates_stay_in_their_bounds_and_other_kinds_where_they_are(make, engine):
    problem = make(L2("layer", 1e-2), LearningRate("parameter", 0.2, bounds=(0.1, 0.3)))
    for method in (HypergradientDescent(beta=1e3, block=6), Almeida(k=50.0, block=6)):
        (block,) = run(engine, problem, method)
        rates = np.exp(flat(block.hyper["learning_rate"]))
        assert rates.min() == pytest.approx(0.1)
        assert rates.max() == pytest.approx(0.3)
        assert_close(block.hyper["l2"], problem.initial_hyper()["l2"], 1e-15)


# -- T1–T2 and forward mode ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "limit"), on(1e-3, 1e9))
def test_t1t2_moves_the_penalties_themselves_by_gradient_and_norm(make, engine, limit):
    """λ' = max(bound, λ − η₂ h), h cut to a norm over all hyperparameters together (or not); learning rates stay."""
    declared = (L2("unit", 2e-2, bounds=(1e-2, 1.0)), L1("network", 3e-3), LearningRate("layer", 0.2))
    problem = make(*declared, dynamics=DAMPED, steps=3)
    method = T1T2(every=3, block=3, outer=GradientDescent(0.5), validation_batches=0, clip_norm=limit)
    (block,) = run(engine, problem, method)
    h, size = block.gradient, np.linalg.norm(flat(block.gradient))
    assert set(h) == {"l2", "l1"}
    assert size > 1e-3
    for kind, one in (("l2", declared[0]), ("l1", declared[1])):
        for key, u in problem.initial_hyper()[kind].items():
            moved = one.value(u) - 0.5 * min(1.0, limit / size) * h[kind][key]
            np.testing.assert_allclose(one.value(block.hyper[kind][key]), np.clip(moved, *one.bounds), rtol=1e-11)
    assert_close(block.hyper["learning_rate"], problem.initial_hyper()["learning_rate"], 1e-15)


@gpu_slowly
def test_t1t2_at_the_published_bound_of_zero(make, engine):
    """λ ← max(0, λ − …): a penalty that came to 0 has a gradient there and may leave it again."""
    problem = make(L2("layer", 1e-3, bounds=(0.0, 1.0)), dynamics=DAMPED, steps=4)
    zero = {"l2": {key: np.full_like(u, -np.inf) for key, u in problem.initial_hyper()["l2"].items()}}
    (block,) = engine.adapt(problem, zero, T1T2(every=4, block=4, outer=GradientDescent(0.5), validation_batches=0))
    assert block.skipped == 0
    for key, h in block.gradient["l2"].items():
        assert np.isfinite(h)
        assert 10 ** block.hyper["l2"][key] == pytest.approx(max(0.0, -0.5 * h), rel=1e-11)
    assert any(h < 0 for h in block.gradient["l2"].values()), "one of them leaves"


@gpu_slowly
def test_t1t2_with_moves_in_the_place_of_steps(make, engine):
    """Of three batches two are trained on; ∇C₂ and the penalties are taken at the same w; the next block begins with batch 3."""
    problem = make(L2("unit", 2e-2), L1("network", 3e-3), dynamics=DAMPED, steps=6)
    method = T1T2(every=3, block=3, outer=GradientDescent(0.5), at="same", clip_norm=1e9)
    first, second = run(engine, problem, method)
    values = problem.values(problem.initial_hyper())
    *_, last = forward(problem, values, problem.initial_weights(), problem.initial_velocity(), 0, 2)
    w, valid, rows = last.w_next, problem.splits.valid, validation_rows(problem, 1, 2)
    _, d, _ = hyper_gradient(problem, w, values, (valid.x[rows].astype(float), valid.y[rows]))
    assert_close(first.state["w"], w)
    assert_close(first.state["v"], last.v_next)
    matrices = [name for name in w if name.endswith("W")]
    assert_close(first.gradient["l2"], {name: np.sum(-2 * w[name] * d[name], axis=0) for name in matrices})
    assert_close(first.gradient["l1"], {"network": sum(np.sum(-np.sign(w[name]) * d[name]) for name in matrices)})
    loss, _, _ = elementary_gradient(problem, w, problem.values(first.hyper), *batch(problem, 3), 3)
    assert second.losses[0] == pytest.approx(loss, rel=TIGHT)
    assert (first.losses.size, first.cost.gradients, second.start) == (2, 3, 3)


@gpu_slowly
def test_t1t2_cuts_each_tensor_by_itself(make, engine):
    """First each tensor of ∇C₂, then each array of h: at this limit some are longer and some are not."""
    problem = make(L2("unit", 2e-2), L1("layer", 3e-3), dynamics=DAMPED, steps=3)
    method = T1T2(every=3, block=3, outer=GradientDescent(0.5), validation_batches=0, clip="each-tensor", clip_norm=0.2)
    (block,) = run(engine, problem, method)
    values, lengths = problem.values(problem.initial_hyper()), []

    def cut(array: np.ndarray) -> np.ndarray:
        lengths.append(np.linalg.norm(array))
        return array * min(1.0, 0.2 / lengths[-1])

    *_, last = forward(problem, values, problem.initial_weights(), problem.initial_velocity(), 0, 3)
    _, d, _ = hyper_gradient(problem, last.w_next, values)
    for name in ("dense1/W", "logits/W"):
        u = cut(-d[name])
        assert_close(block.gradient["l2"][name], cut(np.sum(2 * last.w[name] * u, axis=0)))
        assert_close(block.gradient["l1"][name], cut(np.sum(np.sign(last.w[name]) * u)))
        λ = 3e-3 - 0.5 * block.gradient["l1"][name]
        assert np.exp(block.hyper["l1"][name]) == pytest.approx(max(λ, problem.declared("l1").bounds[0]), rel=TIGHT)
    assert min(lengths) < 0.2 < max(lengths)


@gpu_slowly
def test_t1t2_moves_with_zeros_for_what_is_not_finite(make, engine):
    """As below, where a move is skipped: the penalties of the first layers move, that of the third stays."""
    network = mlp((8, 8, 1), (5, 4), nonlinearity="relu")
    problem = make(L2("layer", 1e-2), dynamics=Dynamics("damped", 1e100, 0.0), steps=1, network=network)
    method = T1T2(every=1, block=1, validation_batches=0, clip="each-tensor", nonfinite="zero")
    (block,) = run(engine, problem, method)
    assert block.skipped == 0
    assert np.isfinite(flat(block.gradient)).all()
    assert np.isfinite(flat(block.hyper)).all()


@gpu_slowly
def test_t1t2_skips_a_move_that_overflows(make, engine):
    """Two layers of units of 1e100 each: every loss is finite, the gradient of the third layer is not in square."""
    network = mlp((8, 8, 1), (5, 4), nonlinearity="relu")
    problem = make(L2("layer", 1e-2), dynamics=Dynamics("damped", 1e100, 0.0), steps=1, network=network)
    (block,) = run(engine, problem, T1T2(every=1, block=1, validation_batches=0))
    assert block.skipped == 1
    assert np.isfinite(block.hyper_losses).all()
    assert_close(block.hyper, problem.initial_hyper(), 1e-15)


@pytest.mark.parametrize(("engine", "kind"), on("damped", "heavy-ball", "nesterov", "adam", "damped-old"))
def test_marthe_with_mu_1_and_constant_hyperparameters_is_forward_mode(make, engine, kind):
    dynamics = Dynamics(kind, 0.1, 0.6, schedule=((3, 0.5),))
    declared: tuple = (L2("layer", 2e-2), LearningRate("layer", 0.1), Momentum("network", 0.6))
    problem = make(*declared, dynamics=dynamics, steps=5)
    hyper = problem.initial_hyper()
    exact = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Forward())
    (block,) = run(engine, problem, MARTHE(mu=1.0, every=5, block=5, validation_batches=0))
    assert block.hyper_losses[0] == pytest.approx(exact.hyper_loss, rel=TIGHT)
    assert_close(block.gradient, exact.gradient)


@gpu_slowly
def test_marthe_with_mu_0_looks_one_step_back(make, engine):
    """h = −α ∇f(w_{t+1}) ∇L(w_t) for one ln α, μ = 0, no momentum: hypergradient descent on the validation loss."""
    problem = make(LearningRate("network", 0.2), steps=3)
    method = MARTHE(mu=0.0, every=1, block=1, validation_batches=0, outer=GradientDescent(0.1))
    first, second = run(engine, problem, method, blocks=2)
    alpha = np.exp(first.hyper["learning_rate"]["network"])
    assert first.hyper["learning_rate"]["network"] != np.log(0.2)
    _, g, _ = elementary_gradient(problem, first.state["w"], problem.values(first.hyper), *batch(problem, 1), 1)
    _, df, _ = hyper_gradient(problem, second.state["w"], problem.values(first.hyper))
    assert second.gradient["learning_rate"]["network"] == pytest.approx(-alpha * (flat(df) @ flat(g)), rel=TIGHT)


@gpu_slowly
def test_rtho_restarted_is_exact_over_the_last_steps(make, engine):
    """With Z set to 0 after each move, h is the derivative of the last Δ steps, as the adaptive method has it with K = n."""
    problem = make(L2("layer", 2e-2), LearningRate("layer", 0.2), dynamics=DAMPED, steps=8)
    still = {"outer": GradientDescent(1e-300), "validation_batches": 0}
    warm = run(engine, problem, RTHO(every=4, block=4, restart=True, **still))
    moves = (("l2", 1e-300), ("learning_rate", 1e-300))
    exact = run(engine, problem, Adaptive(4, 0, 4, moves=moves, average_output=False))
    plain = run(engine, problem, RTHO(every=4, block=4, **still))
    assert_close(warm[1].gradient, exact[1].gradient)
    assert_close(plain[0].gradient, exact[0].gradient)
    gap = np.linalg.norm(flat(plain[1].gradient) - flat(exact[1].gradient))
    assert gap > 1e-3 * np.linalg.norm(flat(exact[1].gradient))
