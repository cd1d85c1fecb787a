"""Every exact way back against every other, the reversal to the bit, and the negative control that must fail."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypertrail_gpu as gpu
from hypertrail import (
    L2,
    Checkpoints,
    DrMAD,
    Dynamics,
    Exact,
    FloatReversed,
    Forward,
    Last,
    LearningRate,
    Momentum,
    NumericalFailure,
    Reversible,
    Truncated,
    UsageError,
    VerificationFailure,
    tolerances,
)
from hypertrail_data import StoredTrajectory
from hypertrail_gpu import keeping, reversal
from hypertrail_gpu.compiled import Compiled, compiled, precision
from hypertrail_nets import mlp

STEPS = 30
RATES = (L2("layer", 1e-2), LearningRate("layer", 0.3), Momentum("network", 0.5))
SETTINGS: dict[str, Any] = {
    "hyperparameters": RATES,
    "steps": STEPS,
    "dynamics": Dynamics("damped", 0.3, 0.5, ((20, 0.5),)),
}


@pytest.fixture(scope="module")
def case(make):
    """γ = 1/2 is a fraction over 2^16, so the reversible run is the float run but for the rounding to fixed point."""
    problem = make("mlp", "everything", **SETTINGS)
    hyper = problem.initial_hyper()
    training = gpu.train(problem, hyper, "memory")
    return problem, hyper, training, gpu.hypergradient(problem, hyper, training, Exact())


@cache
def trained(problem: Any, keep: Any) -> Any:
    return gpu.train(problem, problem.initial_hyper(), keep)


@cache
def stored(problem: Any, gamma: float) -> tuple[Any, Any]:
    """(hyper, exact hypergradient over the states in memory) at a momentum; no other program is compiled for it."""
    hyper = problem.initial_hyper() | {"momentum": {"network": np.log(gamma) - np.log1p(-gamma)}}
    return hyper, gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, "memory"), Exact())


@pytest.mark.parametrize("gamma", [0.5, 0.9])
@pytest.mark.parametrize(
    "keep", ["host", "auto", "disk", Checkpoints(), Checkpoints(1), pytest.param(Checkpoints(7), marks=pytest.mark.slow),
             pytest.param(Checkpoints(STEPS), marks=pytest.mark.slow), Reversible()],
    ids=str,
)  # fmt: skip
def test_every_exact_provider_equals_every_other(case, relative, tmp_path, keep, gamma):
    """The reversed one at .9: equal to the states kept at its effective momentum, but for what fills the low end of v."""
    problem, *_ = case
    hyper, exact = stored(problem, gamma)
    training = gpu.train(problem, hyper, tmp_path / "states" if keep == "disk" else keep)
    result = gpu.hypergradient(problem, hyper, training, Exact())
    allowed = 1e-10
    if keep == Reversible() and gamma == 0.9:
        (gamma,) = set(training.trajectory.momentum.values())
        _, exact = stored(problem, gamma)
        allowed = tolerances.reversible(STEPS, gamma, 0.3).epsilon
    for kind in hyper:
        assert relative(result.gradient[kind], exact.gradient[kind]) < allowed, kind
    assert relative(result.initial_weights, exact.initial_weights) < allowed
    np.testing.assert_allclose(result.adjoint_norms, exact.adjoint_norms, rtol=allowed)


@pytest.mark.optimised
def test_recomputed_states_are_the_stored_ones_to_the_bit(case):
    problem, hyper, _, exact = case
    result = gpu.hypergradient(problem, hyper, trained(problem, Checkpoints()), Exact())
    for kind in hyper:
        for name, one in result.gradient[kind].items():
            np.testing.assert_array_equal(one, exact.gradient[kind][name])


def test_forward_mode_equals_reverse_mode(case, relative):
    problem, hyper, training, exact = case
    result = gpu.hypergradient(problem, hyper, training, Forward())
    for kind in hyper:
        assert relative(result.gradient[kind], exact.gradient[kind]) < 1e-12, kind


def test_forward_mode_refuses_a_million_hyperparameters(make):
    problem = make("mlp", "penalties")
    with pytest.raises(UsageError, match="too many"):
        gpu.hypergradient(problem, problem.initial_hyper(), trained(problem, "ends"), Forward())


@pytest.mark.parametrize("keep", ["memory", Checkpoints(), Reversible(), Last(9)], ids=str)
def test_truncated_is_the_end_of_the_exact_pass(case, relative, keep):
    """K = T is exact; for less, every way of finding the last K states gives the same."""
    problem, hyper, training, exact = case
    whole = gpu.hypergradient(problem, hyper, training, Truncated(STEPS))
    assert relative(whole.gradient, exact.gradient) == 0.0
    reference = gpu.hypergradient(problem, hyper, training, Truncated(9))
    result = gpu.hypergradient(problem, hyper, trained(problem, keep), Truncated(9))
    assert result.diagnostics["N"] == 9
    assert relative(result.gradient, reference.gradient) < 1e-10
    np.testing.assert_allclose(result.adjoint_norms, exact.adjoint_norms[:9], rtol=1e-9)
    assert relative(result.gradient, exact.gradient) > 1e-2


def test_truncated_needs_its_states(case):
    problem, hyper, _, _ = case
    with pytest.raises(UsageError, match="holds 9 of the 10"):
        gpu.hypergradient(problem, hyper, trained(problem, Last(9)), Truncated(10))
    with pytest.raises(UsageError, match="holds 9 of the 30"):
        gpu.hypergradient(problem, hyper, trained(problem, Last(9)), Exact())


def test_piecewise_line_with_a_state_at_every_step_is_exact(case, relative):
    problem, hyper, _, exact = case
    result = gpu.hypergradient(problem, hyper, trained(problem, Checkpoints(STEPS)), DrMAD("C6"))
    assert relative(result.gradient, exact.gradient) < 1e-12
    coarse = gpu.hypergradient(problem, hyper, trained(problem, Checkpoints(3)), DrMAD("C6"))
    assert 1e-3 < relative(coarse.gradient, exact.gradient) < 1.0


def test_tail_then_line_between_exact_and_line(case, relative):
    """K = T is exact (γ = ½ costs a bit a step, float64 has enough for 30), K = 0 is C4, in between it is better than C4."""
    problem, hyper, training, exact = case
    line, none, some, all_of_it = (
        gpu.hypergradient(problem, hyper, training, method)
        for method in (DrMAD("C4"), DrMAD("C5", tail=0), DrMAD("C5", tail=8), DrMAD("C5", tail=STEPS))
    )
    assert relative(none.gradient, line.gradient) < 1e-14
    assert relative(all_of_it.gradient, exact.gradient) < 1e-6
    assert relative(some.gradient["l2"], exact.gradient["l2"]) < relative(line.gradient["l2"], exact.gradient["l2"])


@pytest.fixture(scope="module", params=[("float32", 24), pytest.param(("float64", 53), marks=pytest.mark.slow)])
def long(make, request):
    """(a problem long enough for γ = .95, bits of its mantissa)."""
    dtype, bits = request.param
    settings = {"steps": int(1.3 * bits / -np.log2(0.95)), "precision": dtype, "dynamics": Dynamics("damped", 0.1, 0.9)}
    problem = make("mlp", "penalties", **settings, hyperparameters=(L2("layer", 1e-2), Momentum("network", 0.9)))
    return problem.with_(network=mlp((8, 8, 1), (6,))), bits


@pytest.mark.parametrize("gamma", [0.9, 0.95])
def test_float_reversal_dies_where_its_mantissa_ends(long, relative, gamma):
    """The rule of the reference engine's test: after about mantissa / log2(1/γ) steps back, 158 and 324 with the 24 bits of
    float32, the error of the velocity is as large as it; step by step against the states of this very run."""
    problem, bits = long
    hyper = problem.initial_hyper() | {"momentum": {"network": np.log(gamma) - np.log1p(-gamma)}}
    training = gpu.train(problem, hyper, "memory")
    gaps: dict[str, list[float]] = {"w": [], "v": []}
    with precision(problem):
        programs = compiled(problem)
        values = programs.values(jax.tree.map(lambda u: np.asarray(u, problem.dtype), hyper))
        _, dw, dvalues = programs.hyper_gradient(training.final, values, programs.valid_data)
        w, v = jax.tree.map(jnp.asarray, (training.final, training.velocity))
        state = (w, v, dw, jax.tree.map(jnp.zeros_like, dw), dvalues)
        for segment in training.trajectory.backwards():
            steps = len(next(iter(segment.states.values())))
            xs = programs.steps(segment.start, segment.start + steps)
            truth = jax.tree.map(np.asarray, segment.states)
            for i in reversed(range(steps)):
                state, _ = programs.undo_chunk(state, values, programs.train_data, xs, (np.int32(i), np.int32(i + 1)))
                for what, one in zip(gaps, state[:2], strict=True):
                    true = {name: truth[f"{what}/{name}"][i] for name in one}
                    size = np.linalg.norm(np.concatenate([np.ravel(a) for a in true.values()]))
                    gap = np.concatenate([np.ravel(np.asarray(one[name]) - a) for name, a in true.items()])
                    gaps[what].append(float(np.linalg.norm(gap) / size) if size else np.inf)
    lost = {what: int(np.argmax(~(np.array(errors) < 1))) for what, errors in gaps.items()}
    assert lost["v"] == pytest.approx(bits / -np.log2(gamma), rel=0.2)
    assert lost["v"] < lost["w"], "the weights are lost after it"
    assert max(errors[0] for errors in gaps.values()) < 1e-6
    if gamma == 0.9:
        exact = gpu.hypergradient(problem, hyper, training, Exact())
        try:
            result = gpu.hypergradient(problem, hyper, training, FloatReversed(beyond=True))
        except NumericalFailure:
            return
        assert relative(result.gradient, exact.gradient) > 1.0


def lasts(gamma: float) -> int:
    """The steps that a buffer lasts at one momentum."""
    return reversal.capacity(np.full((1, 2000), gamma))


def test_fixed_point_multiplication_is_undone_to_the_bit():
    """Also for negative numbers and at the ends of the range; and it is Python's floor and mod."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for numerator, n, shift in (
            (1, 1, 16), (49152, 3, 2), (40960, 5, 3), (2047, 2047, 16), (2048, 1, 5), (32768, 1, 1),
            (58983, 58983, 16), (64226, 32113, 15),
        ):  # fmt: skip
            assert [int(one) for one in reversal.lowest(jnp.asarray(numerator))] == [n, shift]
            d = 2**shift
            V = jnp.asarray(np.concatenate([rng.integers(-(2**62), 2**62, 500), [0, 1, -1, 2**62 - 1, -(2**62)]]))
            B = jnp.zeros_like(V)
            states = []
            for _ in range(lasts(n / d)):
                states.append((np.asarray(V), np.asarray(B)))
                new, kept = reversal.scale(V, B, jnp.asarray(n), jnp.asarray(shift))
                expected = [(v // d * n + (b * d + v % d) % n, (b * d + v % d) // n)
                            for v, b in zip(np.asarray(V)[:20].tolist(), np.asarray(B)[:20].tolist(), strict=True)]  # fmt: skip
                V, B = new, kept
                assert list(zip(np.asarray(V)[:20].tolist(), np.asarray(B)[:20].tolist(), strict=True)) == expected
            assert np.all(np.asarray(B) >= 0)
            for v, b in reversed(states):
                V, B = reversal.unscale(V, B, jnp.asarray(n), jnp.asarray(shift))
                np.testing.assert_array_equal(V, v)
                np.testing.assert_array_equal(B, b)


def test_buffer_schedule_and_effective_momentum(make):
    assert [lasts(g) for g in (0.9, 0.95, 0.98)] == [274, 549, 1350]
    problem = make("mlp", "penalties", dynamics=Dynamics("damped", 0.1, 0.9), steps=300)
    kept = trained(problem, Reversible()).trajectory
    assert all(0 <= g - 0.9 <= 1.5e-5 for g in kept.momentum.values())
    buffers = [one for _, B in kept.lost for one in B.values()]
    assert len(buffers) == 2 * len(problem.params)
    assert kept.bits == 64 * 2 / 300
    assert all(one.dtype == np.int64 for one in buffers)
    assert kept.nbytes == sum(one.nbytes for one in [*kept.w.values(), *kept.v.values(), *buffers])
    assert kept.nbytes < 300 * 8 * sum(p.size for p in problem.params) / 50


def test_reversible_run_is_the_damped_run_with_the_effective_momentum(make, relative):
    problem = make("mlp", "penalties", dynamics=Dynamics("damped", 0.1, 0.9), steps=60)
    reversible = trained(problem, Reversible())
    effective = next(iter(reversible.trajectory.momentum.values()))
    same = problem.with_(dynamics=Dynamics("damped", 0.1, effective))
    hyper = problem.initial_hyper()
    stored = gpu.train(same, hyper, "memory")
    allowed = tolerances.reversible(60, effective, 0.1).epsilon
    assert relative(reversible.final, stored.final) < allowed
    a = gpu.hypergradient(problem, hyper, reversible, Exact())
    b = gpu.hypergradient(same, hyper, stored, Exact())
    assert relative(a.gradient, b.gradient) < allowed


def test_a_bit_that_was_changed_is_noticed(make):
    problem = make("mlp", "penalties", dynamics=Dynamics("damped", 0.1, 0.9), steps=60)
    training = gpu.train(problem, problem.initial_hyper(), Reversible())
    name = "dense1/W"
    with jax.enable_x64(True):
        training.trajectory.w[name] = training.trajectory.w[name].at[3, 2].add(1)
    with pytest.raises(VerificationFailure, match="did not come back"):
        gpu.hypergradient(problem, problem.initial_hyper(), training, Exact())


@pytest.mark.slow
def test_reversal_works_on_float32_gradients_too(make, relative):
    problem = make("densenet", "penalties", precision="float32", dynamics=Dynamics("damped", 0.3, 0.9), steps=12)
    hyper = problem.initial_hyper()
    a = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, Reversible()), Exact())
    b = gpu.hypergradient(problem, hyper, gpu.train(problem, hyper, "memory"), Exact())
    assert relative(a.gradient, b.gradient) < 1e-3


def test_overflow_of_the_fixed_point_raises(make):
    problem = make("mlp", "penalties", dynamics=Dynamics("damped", 3e4, 0.5), hyperparameters=(L2("layer", 1e-9),))
    with pytest.raises(NumericalFailure, match=r"fixed point range|elementary loss"):
        gpu.train(problem, problem.initial_hyper(), Reversible())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dynamics": Dynamics("heavy-ball", 0.1, 0.5)}, "not heavy-ball"),
        ({"dynamics": Dynamics("damped", 0.1, 0.0)}, "momentum between"),
    ],
)
def test_what_cannot_be_reversed_is_refused_with_the_reason(make, changes, reason):
    problem = make("mlp", "penalties", **changes)
    with pytest.raises(UsageError, match=reason):
        gpu.train(problem, problem.initial_hyper(), Reversible())


def test_a_device_whose_gradients_do_not_repeat_is_refused(make, monkeypatch):
    """The probe's two evaluations differ in the last bit of one number."""
    problem = make("mlp", "penalties").with_()  # programs of its own
    build_once, calls = Compiled.program, []

    def shaky(self: Any, key: str, build: Any) -> Any:
        program = build_once(self, key, build)
        if key != "probe":
            return program

        def run(*arguments: Any) -> Any:
            g = dict(program(*arguments))
            calls.append(key)
            if len(calls) == 2:
                g["dense1/W"] = g["dense1/W"].at[3, 2].set(np.nextafter(float(g["dense1/W"][3, 2]), np.inf))
            return g

        return run

    monkeypatch.setattr(Compiled, "program", shaky)
    with pytest.raises(UsageError, match=r"repeat to the bit, this device's do not; set .*xla_gpu_deterministic_ops"):
        gpu.train(problem, problem.initial_hyper(), Reversible())
    assert calls == ["probe", "probe"]


def test_unbounded_buffer_belongs_to_the_reference(make):
    problem = make("mlp", "penalties")
    with pytest.raises(UsageError, match="reference engine"):
        gpu.train(problem, problem.initial_hyper(), Reversible(unbounded=True))


def test_c2_and_c3(make, relative):
    """N = T for both on a short run; C2 reads each step's own learning rate, C3 the last one."""
    problem = make("mlp", "penalties", steps=20)
    hyper = problem.initial_hyper()
    training = trained(problem, "ends")
    two, three = (gpu.hypergradient(problem, hyper, training, DrMAD(c)) for c in ("C2", "C3"))
    assert two.diagnostics["N"] == three.diagnostics["N"] == 20
    assert relative(two.gradient, three.gradient) > 1e-6, "the schedule halves the rate on the way"
    flat = make("mlp", "penalties", steps=20, dynamics=Dynamics("damped", 0.3, 0.8))
    training = trained(flat, "ends")
    two, three = (gpu.hypergradient(flat, hyper, training, DrMAD(c)) for c in ("C2", "C3"))
    assert relative(two.gradient, three.gradient) < 1e-12


# -- what must be noticed -------------------------------------------------------------------------------------------------


def test_recomputing_another_run_is_caught(case):
    problem, hyper, _, _ = case
    training = gpu.train(problem, hyper, Checkpoints(3))
    other = {kind: {key: u + 0.1 for key, u in arrays.items()} for kind, arrays in hyper.items()}
    with pytest.raises(VerificationFailure, match="arrives at step 30"):
        gpu.hypergradient(problem, other, training, Exact())
    with jax.enable_x64(True):
        state = training.trajectory.states[1]
        state["w/dense1/W"] = state["w/dense1/W"] + 1e-3
    with pytest.raises(VerificationFailure, match="arrives at step 20"):
        gpu.hypergradient(problem, hyper, training, Exact())
    training = gpu.train(problem, hyper, Checkpoints(3))
    training.trajectory.states[2] = dict(trained(problem, Checkpoints(3)).trajectory.states[1])
    with pytest.raises(VerificationFailure, match="arrives at step 30"):
        gpu.hypergradient(problem, hyper, training, Truncated(12))


def test_a_walk_that_ends_inside_a_span_takes_the_gradient_apart(make, relative, monkeypatch):
    """There no empty buffer would show that the g beside the HVP is not the forward pass's; here it never is."""
    changes = {"dynamics": Dynamics("damped", 0.1, 0.9), "steps": 60}
    problem = make("mlp", "penalties", **changes)
    hyper = problem.initial_hyper()
    good = gpu.hypergradient(problem, hyper, trained(problem, Reversible()), Truncated(40))
    whole = reversal.linearise

    def rough(*args: Any) -> Any:
        g, tangent = whole(*args)
        return {name: one * (1 + 1e-3) for name, one in g.items()}, tangent

    monkeypatch.setattr(reversal, "linearise", rough)
    problem = problem.with_()
    training = gpu.train(problem, hyper, Reversible())
    result = gpu.hypergradient(problem, hyper, training, Truncated(40))
    assert relative(result.gradient, good.gradient) < 1e-12


@pytest.mark.parametrize(
    "declared", [RATES[:1], pytest.param(RATES, marks=pytest.mark.slow)], ids=["fixed", "declared"]
)
def test_forward_mode_takes_the_effective_momentum(make, relative, declared):
    """Of a reversible run, whether γ is declared or not."""
    dynamics = Dynamics("damped", 0.3, 0.9)
    problem = make("mlp", "penalties", steps=12, hyperparameters=declared, dynamics=dynamics)
    hyper = problem.initial_hyper()
    if "momentum" in hyper:
        hyper = hyper | {"momentum": {"network": np.log(9.0)}}
    training = gpu.train(problem, hyper, Reversible())
    assert all(g != 0.9 for g in training.trajectory.momentum.values())
    exact, result = (gpu.hypergradient(problem, hyper, training, method) for method in (Exact(), Forward()))
    for kind in hyper:
        assert relative(result.gradient[kind], exact.gradient[kind]) < 1e-9, kind


def test_forward_mode_refuses_a_hyper_loss_that_is_not_finite(make):
    """Every elementary loss is finite: what the last step did is seen by the hyper loss alone."""
    changes = {"steps": 1, "dynamics": Dynamics("damped", 1e140, 0.0), "hyperparameters": (L2("network", 1e-9),)}
    deep = mlp((8, 8, 1), (5, 5), nonlinearity="relu")
    problem = make("mlp", "penalties", **changes).with_(network=deep)
    training = gpu.train(problem, problem.initial_hyper())
    with pytest.raises(NumericalFailure, match="hyper loss"):
        gpu.hypergradient(problem, problem.initial_hyper(), training, Forward())


def test_another_engine_s_digits_are_refused(case):
    problem, hyper, _, _ = case
    training = replace(trained(problem, Reversible()))
    training.trajectory = replace(training.trajectory, lost=("n", "digits"))
    with pytest.raises(UsageError, match="another engine's"):
        gpu.hypergradient(problem, hyper, training, Exact())


def test_a_declared_momentum_that_rounds_up_to_one_is_refused(make):
    declared = (Momentum("network", 0.99999, bounds=(1e-4, 0.999999)),)
    problem = make("mlp", "penalties", hyperparameters=declared)
    with pytest.raises(UsageError, match=r"between 2\^-16 and 1 − 2\^-16, got 0\.99999"):
        gpu.train(problem, problem.initial_hyper(), Reversible())


def test_arrays_of_another_length_are_refused(make):
    problem = make("mlp", "per-step")
    with pytest.raises(UsageError, match=r"learning_rate .* this problem declares \(7, "):
        gpu.train(problem, problem.with_(steps=5).initial_hyper())


def test_auto_goes_to_disk_where_memory_is_short_and_leaves_nothing(case, relative, monkeypatch):
    problem, hyper, _, exact = case
    monkeypatch.setattr(keeping.os, "sysconf", lambda name: 1)
    training = gpu.train(problem, hyper, "auto")
    assert isinstance(training.trajectory, StoredTrajectory)
    folder = training.trajectory.folder
    assert folder.is_dir()
    assert relative(gpu.hypergradient(problem, hyper, training, Exact()).gradient, exact.gradient) == 0.0
    training.trajectory.close()
    assert not folder.parent.exists()
    training = gpu.train(problem, hyper, "auto")  # and where nobody closes it
    folder = training.trajectory.folder
    del training
    gc.collect()
    assert not folder.parent.exists()


# -- lines with few steps -------------------------------------------------------------------------------------------------


def test_short_stretches_keep_to_max_steps(case):
    """As on the reference engine: 4 steps before the tail, stretches of 4 steps."""
    problem, hyper, training, _ = case
    result = gpu.hypergradient(problem, hyper, training, DrMAD("C5", tail=STEPS - 4, max_steps=2))
    assert result.diagnostics["N"] == STEPS - 4 + 2
    assert result.diagnostics["tail"] == STEPS - 4
    result = gpu.hypergradient(problem, hyper, trained(problem, Checkpoints(10)), DrMAD("C6", max_steps=2))
    assert result.diagnostics["pieces"] == [2] * 10


def test_each_way_back_tells_its_own(case):
    problem, hyper, training, _ = case
    drift = gpu.hypergradient(problem, hyper, training, FloatReversed()).diagnostics["drift"]
    assert 0 < drift < 1e-6
    assert gpu.hypergradient(problem, hyper, training, DrMAD("C5", tail=STEPS)).diagnostics["tail"] == STEPS
    pieces = gpu.hypergradient(problem, hyper, trained(problem, Checkpoints(3)), DrMAD("C6")).diagnostics
    assert len(pieces["pieces"]) == 3
    assert sum(pieces["pieces"]) == pieces["N"]
