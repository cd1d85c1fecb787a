"""The identities that prove the online methods, on the reference engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import hypertrail_cpu as cpu
from hypertrail import (
    L1,
    L2,
    MARTHE,
    OSGM,
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
    NumericalFailure,
    Problem,
    UsageError,
    arrays,
)
from hypertrail.adapting import gather, validation_rows
from hypertrail.outer import Adam, GradientDescent
from hypertrail_cpu.losses import elementary_gradient, hyper_gradient, hyper_loss
from hypertrail_cpu.online.adaptive import AdaptiveRule
from hypertrail_cpu.training import batch, forward
from hypertrail_nets import mlp

SGD = Dynamics("damped", 0.2, 0.0)
NOISY = mlp((8, 8, 1), (12, 8), dropout=0.2, noise=True)
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


def test_one_step_back_without_momentum_is_t1t2_times_the_learning_rate(make):
    declared = (*BOTH, L1("layer", 3e-3), Noise("unit", 0.3))
    problem = make(dynamics=SGD, steps=4).with_(network=NOISY, hyperparameters=declared)
    moves = (("learning_rate", 0.1), ("l2", 0.01), ("l1", 0.01), ("noise", 0.1))
    (one,) = run(problem, Adaptive(4, 0, 1, moves=moves))
    settings = {"every": 4, "block": 4, "validation_batches": 0, "clip_norm": 1e9}
    (other,) = run(problem, T1T2(representation="free", outer=GradientDescent(1.0), **settings))
    assert one.hyper_losses == other.hyper_losses
    for kind in ("l2", "l1", "noise"):
        assert_close(one.gradient[kind], {k: 0.2 * d for k, d in other.gradient[kind].items()})


def test_learning_rates_one_step_back_are_the_product_of_two_gradients(make):
    """dr_i = −e^{r_i} ∇f(w_{t+1})_i ∇L(w_t)_i."""
    problem = make(hyperparameters=BOTH, dynamics=SGD, steps=3)
    blocks = run(problem, Adaptive(1, 1, 1))
    before, after = blocks[1].state, blocks[2]
    values = problem.values(before["hyper"])
    _, g, _ = elementary_gradient(problem, before["w"], values, *batch(problem, 2), 2)
    valid, rows = problem.splits.valid, validation_rows(problem, 1, 2)
    _, df, _ = hyper_gradient(problem, after.state["w"], values, (valid.x[rows].astype(float), valid.y[rows]))
    assert_close(after.gradient["learning_rate"], {p: -values["learning_rate"][p] * df[p] * g[p] for p in g})


@pytest.mark.parametrize(
    "dynamics", [DAMPED, Dynamics("heavy-ball", 0.1, 0.6), Dynamics("adam", 0.05, 0.6, epsilon=1e-3)]
)
def test_a_whole_block_back_is_the_derivative_of_the_block(make, dynamics, scatter):
    """K = n, from the second block on (v is not 0 there): finite differences along a random direction, rel 1e-6."""
    declared = (*BOTH, Momentum("network", 0.6), Noise("layer", 0.3))
    problem = make(dynamics=dynamics, steps=8).with_(network=NOISY, hyperparameters=declared)
    moves = (("learning_rate", 0.1), ("l2", 0.01), ("momentum", 0.1), ("noise", 0.1))
    first, second = run(problem, Adaptive(4, 0, 4, moves=moves))

    def after(hyper: Any) -> float:
        values = problem.values(hyper)
        *_, last = forward(problem, values, first.state["w"], first.state["v"], 4, 8)
        return hyper_loss(problem, problem.effective(np, last.w_next, values))

    assert after(first.hyper) == second.hyper_losses[0]
    rng = np.random.default_rng(0)
    for kind in first.hyper:
        zero = {k: {key: 0 * u for key, u in arrays.items()} for k, arrays in first.hyper.items()}
        direction = zero | {kind: scatter(zero[kind], rng, 1.0)}

        def at(e: float, direction: Any = direction) -> float:
            moved = {
                k: {key: u + e * direction[k][key] for key, u in arrays.items()} for k, arrays in first.hyper.items()
            }
            return after(moved)

        e = 1e-3
        slope = (8 * (at(e) - at(-e)) - (at(2 * e) - at(-2 * e))) / (12 * e)
        assert flat(second.gradient) @ flat(direction) == pytest.approx(slope, rel=1e-6), kind


def test_every_sign_step_has_its_length_or_ends_at_a_bound(make):
    declared = (
        L2("parameter", 2e-2, bounds=(1e-7, 2.1e-2)),
        LearningRate("parameter", 0.2, bounds=(0.19, 1.0)),
    )
    problem = make(hyperparameters=declared, dynamics=DAMPED, steps=12)
    hyper, method = problem.initial_hyper(), Adaptive(4, 2, 2, average_output=False)
    ended = 0
    for block in run(problem, method):
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


def test_the_sign_of_nothing_is_nothing(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED)
    hyper = problem.initial_hyper()
    nothing = {kind: {key: 0.0 * u for key, u in arrays.items()} for kind, arrays in hyper.items()}
    moved, _ = AdaptiveRule(problem, Adaptive()).move(hyper, nothing, {})
    np.testing.assert_array_equal(flat(moved), flat(hyper))


def test_the_output_layer_is_averaged_over_its_classes(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED, steps=4)
    (plain,), (averaged,) = (run(problem, Adaptive(4, 2, 2, average_output=yes)) for yes in (False, True))
    for kind in plain.hyper:
        for key, u in plain.hyper[kind].items():
            if key.startswith("logits"):
                u = np.broadcast_to(u.mean(axis=-1, keepdims=True), u.shape)
                assert len(np.unique(plain.hyper[kind][key])) > 1
            np.testing.assert_allclose(averaged.hyper[kind][key], u, rtol=1e-14)


def test_sign_momentum(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED, steps=8)
    m, s = 0.7, 0.01
    first, second = run(problem, Adaptive(4, 2, 2, mass=m, average_output=False))
    key, start = "dense1/W", problem.initial_hyper()["l2"]["dense1/W"]
    u = -(1 - m) * np.sign(first.gradient["l2"][key])
    np.testing.assert_allclose(first.hyper["l2"][key], start + s * u, rtol=1e-14)
    u = m * u - (1 - m) * np.sign(second.gradient["l2"][key])
    np.testing.assert_allclose(second.hyper["l2"][key], first.hyper["l2"][key] + s * u, rtol=1e-14)


def test_where_the_next_block_begins(make):
    problem = make(hyperparameters=BOTH, dynamics=DAMPED, steps=20)
    steps = list(forward(problem, problem.values(problem.initial_hyper()), *start_of(problem), 0, 6))
    restored, ahead, published = (
        run(problem, Adaptive(6, 2, 2, mode=mode), blocks=2) for mode in ("restore", "look-ahead", "as-published")
    )
    assert_close(restored[0].state["w"], steps[5].w_next, 1e-15)
    for blocks in (ahead, published):
        assert_close(blocks[0].state["w"], steps[4].w, 1e-15)
        assert_close(blocks[0].state["v"], steps[4].v, 1e-15)
    assert [(b.start, b.stop) for b in ahead] == [(0, 6), (4, 10)], "the batches of the two steps are done again"
    assert [(b.start, b.stop) for b in published] == [(0, 6), (6, 12)], "and here they are skipped"
    assert ahead[1].losses[0] != published[1].losses[0]
    for one in (restored[0], ahead[0], published[0]):
        assert_close(one.hyper, restored[0].hyper, 1e-15)


def start_of(problem: Problem) -> tuple[Any, Any]:
    w = problem.initial_weights()
    return w, {p: np.zeros_like(one) for p, one in w.items()}


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


# -- learning rates that follow products of gradients ------------------------------------------------------------------------


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


def curvature(shape: tuple[int, ...]) -> np.ndarray:
    return np.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)


@pytest.fixture
def quadratic(make) -> Callable[..., Problem]:
    def quadratic(kind: type[Problem], **changes: Any) -> Problem:
        one = make(**changes)
        return kind(**{name: getattr(one, name) for name in one.__dataclass_fields__})

    return quadratic


@pytest.mark.parametrize("level", ["network", "layer", "parameter"])
def test_descent_on_a_quadratic_in_closed_form(quadratic, level):
    """w ← (1 − α a) w;  h_t = −Σ a² w_t w_{t−1}, summed over ALL that shares an α before α moves."""
    problem = quadratic(Quadratic, hyperparameters=(LearningRate(level, 0.1),), dynamics=SGD, steps=6)
    beta = 1e-3
    blocks = run(problem, HypergradientDescent(beta=beta, block=1))
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
        assert_close(block.state["w"], w, 1e-13)
    assert np.ptp(flat(alpha)) > 1e-5 or level == "network"
    assert np.abs(flat(alpha) - 0.1).max() > 1e-3


@pytest.mark.parametrize("kind", ["damped", "heavy-ball", "nesterov", "damped-old"])
def test_loss_times_c(quadratic, kind):
    """Additive: α₀ / c needs β / c³, whatever the momentum. Multiplicative: the same β."""
    dynamics = Dynamics(kind, 0.1, 0.6, schedule=((3, 0.5),))
    c = Steeper.c
    for rule, beta, scaled in (("additive", 3e-3, 3e-3 / c**3), ("multiplicative", 0.05, 0.05)):
        one = quadratic(Quadratic, hyperparameters=(LearningRate("layer", 0.1),), dynamics=dynamics, steps=6)
        other = quadratic(Steeper, hyperparameters=(LearningRate("layer", 0.1 / c),), dynamics=dynamics, steps=6)
        a = run(one, HypergradientDescent(rule, beta, block=6))[0]
        b = run(other, HypergradientDescent(rule, scaled, block=6))[0]
        assert_close(a.state["w"], b.state["w"], 1e-12)
        rates = [np.exp(flat(block.hyper["learning_rate"])) for block in (a, b)]
        np.testing.assert_allclose(rates[0], c * rates[1], rtol=1e-12)
        assert np.abs(rates[0] - 0.1).max() > 1e-3


def test_descent_with_the_next_batch_in_place_of_validation(make):
    """Per parameter: α_{t+1} − α_t = −β ∂L_{t+1}/∂α, the product that the adaptive method takes of validation and training."""
    problem = make(hyperparameters=(LearningRate("parameter", 0.2),), dynamics=SGD, steps=2)
    first, second = run(problem, HypergradientDescent(beta=1e-2, block=1))
    values = problem.values(first.hyper)
    _, g0, _ = elementary_gradient(problem, problem.initial_weights(), values, *batch(problem, 0), 0)
    _, g1, _ = elementary_gradient(problem, first.state["w"], values, *batch(problem, 1), 1)
    moved = {p: np.exp(u) - 0.2 for p, u in second.hyper["learning_rate"].items()}
    assert_close(moved, {p: 1e-2 * g1[p] * g0[p] for p in g0}, 1e-10)


def test_rates_stay_in_their_bounds_and_other_kinds_where_they_are(make):
    declared = (L2("layer", 1e-2), LearningRate("parameter", 0.2, bounds=(0.1, 0.3)))
    problem = make(hyperparameters=declared, dynamics=SGD, steps=6)
    for method in (HypergradientDescent(beta=1e3, block=6), Almeida(k=50.0, block=6)):
        (block,) = run(problem, method)
        rates = np.exp(flat(block.hyper["learning_rate"]))
        assert rates.min() == pytest.approx(0.1)
        assert rates.max() == pytest.approx(0.3)
        assert_close(block.hyper["l2"], problem.initial_hyper()["l2"], 1e-15)


def test_almeida_on_a_quadratic(quadratic):
    problem = quadratic(Quadratic, hyperparameters=(LearningRate("parameter", 0.1),), dynamics=SGD, steps=6)
    k, γ = 0.3, 0.8
    (block,) = run(problem, Almeida(k, γ, block=6))
    for name, x in problem.initial_weights().items():
        a, p, v, last = curvature(x.shape), np.full(x.shape, 0.1), np.zeros(x.shape), np.zeros(x.shape)
        for _ in range(6):
            g = a * x
            v = γ * v + (1 - γ) * g**2
            p = p * np.where(v > 0, np.maximum(0.5, 1 + k * g * last / np.where(v > 0, v, 1)), 1)
            x, last = x - p * g, g
        np.testing.assert_allclose(np.exp(block.hyper["learning_rate"][name]), p, rtol=1e-12)
        np.testing.assert_allclose(block.state["w"][name], x, rtol=1e-12, atol=1e-15)


# -- T1–T2 and forward mode ----------------------------------------------------------------------------------------------------


def test_t1t2_moves_the_penalties_themselves_by_gradient_and_norm(make):
    """λ' = max(bound, λ − η₂ h), h cut to norm 3 over all hyperparameters together; learning rates stay."""
    declared = (L2("unit", 2e-2, bounds=(1e-2, 1.0)), L1("network", 3e-3), LearningRate("layer", 0.2))
    problem = make(hyperparameters=declared, dynamics=DAMPED, steps=3)
    for limit in (1e9, 1e-3):
        method = T1T2(every=3, block=3, outer=GradientDescent(0.5), validation_batches=0, clip_norm=limit)
        (block,) = run(problem, method)
        h, size = block.gradient, np.linalg.norm(flat(block.gradient))
        assert set(h) == {"l2", "l1"}
        for kind, one in (("l2", declared[0]), ("l1", declared[1])):
            for key, u in problem.initial_hyper()[kind].items():
                moved = one.value(u) - 0.5 * min(1.0, limit / size) * h[kind][key]
                np.testing.assert_allclose(one.value(block.hyper[kind][key]), np.clip(moved, *one.bounds), rtol=1e-12)
        assert_close(block.hyper["learning_rate"], problem.initial_hyper()["learning_rate"], 1e-15)


def test_t1t2_at_the_published_bound_of_zero(make):
    """λ ← max(0, λ − …): a penalty that came to 0 has a gradient there and may leave it again."""
    declared = (L2("layer", 1e-3, bounds=(0.0, 1.0)),)
    problem = make(hyperparameters=declared, dynamics=DAMPED, steps=4)
    zero = {"l2": {key: np.full_like(u, -np.inf) for key, u in problem.initial_hyper()["l2"].items()}}
    method = T1T2(every=4, block=4, outer=GradientDescent(0.5), validation_batches=0)
    (block,) = cpu.adapt(problem, zero, method)
    assert block.skipped == 0
    for key, h in block.gradient["l2"].items():
        assert np.isfinite(h)
        assert 10 ** block.hyper["l2"][key] == pytest.approx(max(0.0, -0.5 * h), rel=1e-12)
    assert any(h < 0 for h in block.gradient["l2"].values()), "one of them leaves"


def test_t1t2_skips_a_move_that_overflows(make):
    """Two layers of units of 1e100 each: every loss is finite, the gradient of the third layer is not in square."""
    dynamics = Dynamics("damped", 1e100, 0.0)
    problem = make("relu", hyperparameters=(L2("layer", 1e-2),), dynamics=dynamics, steps=1)
    problem = problem.with_(network=mlp((8, 8, 1), (12, 8), nonlinearity="relu"))
    (block,) = run(problem, T1T2(every=1, block=1, validation_batches=0))
    assert block.skipped == 1
    assert np.isfinite(block.hyper_losses).all()
    assert_close(block.hyper, problem.initial_hyper(), 1e-15)


def test_t1t2_skips_what_is_not_finite_unless_told_otherwise(make, monkeypatch):
    from hypertrail_cpu.online import t1t2

    def broken(self: Any, one: Any, values: Any, hyper: Any) -> Any:
        return 1.0, {"l2": {key: u * np.nan for key, u in hyper["l2"].items()}}

    monkeypatch.setattr(t1t2.T1T2Rule, "gradient", broken)
    problem = make(hyperparameters=(L2("layer", 1e-2),), steps=4)
    (block,) = run(problem, T1T2(every=2, block=4))
    assert block.skipped == 2
    assert_close(block.hyper, problem.initial_hyper(), 1e-15)
    with pytest.raises(NumericalFailure, match="T1–T2 hypergradient is not finite at step 1"):
        run(problem, T1T2(every=2, block=4, skip=False))


@pytest.mark.parametrize("kind", ["damped", "heavy-ball", "nesterov", "adam", "damped-old"])
def test_marthe_with_mu_1_and_constant_hyperparameters_is_forward_mode(make, kind):
    dynamics = Dynamics(kind, 0.1, 0.6, schedule=((3, 0.5),))
    declared = (L2("layer", 2e-2), LearningRate("layer", 0.1), Momentum("network", 0.6), Noise("network", 0.3))
    problem = make(dynamics=dynamics, steps=5).with_(network=NOISY, hyperparameters=declared)
    hyper = problem.initial_hyper()
    exact = cpu.hypergradient(problem, hyper, cpu.train(problem, hyper), Forward())
    (block,) = run(problem, MARTHE(mu=1.0, every=5, block=5, validation_batches=0))
    assert block.hyper_losses[0] == exact.hyper_loss
    assert_close(block.gradient, exact.gradient)


def test_marthe_with_mu_0_looks_one_step_back(make):
    """h = −α ∇f(w_{t+1}) ∇L(w_t) for one ln α, μ = 0, no momentum: hypergradient descent on the validation loss."""
    problem = make(hyperparameters=(LearningRate("network", 0.2),), dynamics=SGD, steps=3)
    first, second = run(
        problem, MARTHE(mu=0.0, every=1, block=1, validation_batches=0, outer=GradientDescent(0.1)), blocks=2
    )
    alpha = np.exp(first.hyper["learning_rate"]["network"])
    assert first.hyper["learning_rate"]["network"] != np.log(0.2)
    _, g, _ = elementary_gradient(problem, first.state["w"], problem.values(first.hyper), *batch(problem, 1), 1)
    _, df, _ = hyper_gradient(problem, second.state["w"], problem.values(first.hyper))
    assert second.gradient["learning_rate"]["network"] == pytest.approx(-alpha * (flat(df) @ flat(g)), rel=1e-12)


def test_rtho_restarted_is_exact_over_the_last_steps(make):
    """With Z set to 0 after each move, h is the derivative of the last Δ steps, as the adaptive method has it with K = n."""
    problem = make(hyperparameters=(L2("layer", 2e-2), LearningRate("layer", 0.2)), dynamics=DAMPED, steps=8)
    still = {"outer": GradientDescent(1e-300), "validation_batches": 0}
    warm = run(problem, RTHO(every=4, block=4, restart=True, **still))
    exact = run(problem, Adaptive(4, 0, 4, moves=(("l2", 1e-300), ("learning_rate", 1e-300)), average_output=False))
    plain = run(problem, RTHO(every=4, block=4, **still))
    assert_close(warm[1].gradient, exact[1].gradient)
    assert_close(plain[0].gradient, exact[0].gradient)
    assert np.linalg.norm(flat(plain[1].gradient) - flat(exact[1].gradient)) > 1e-3 * np.linalg.norm(
        flat(exact[1].gradient)
    )


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
    assert adapted.cost.gradients == 2 * (4 + 2 + 2)
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
