"""The study of one learning rate: its hypergradients against differences, and what it calls smooth and chaotic."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import hypertrail
import hypertrail_data
from hypertrail import NumericalFailure, UsageError, cli
from hypertrail.experiments import chaos
from hypertrail.runs import arrays

TINY = {
    "values": 5,
    "hidden": (6,),
    "steps": 8,
    "batch": 10,
    "train": 30,
    "low": 0.5,
    "high": 0.504,
    "precision": "float64",
}


@pytest.fixture
def small_mnist(monkeypatch):
    """Blurred noise with the labels of a linear rule, in MNIST's shape."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)
    y = (x.reshape(60, -1).astype(float) @ rng.normal(size=(784, 10))).argmax(axis=1).astype(np.int32)
    data = hypertrail_data.Dataset("mnist", x, y, 10, 10, 255)
    monkeypatch.setattr(hypertrail_data, "load", lambda name, data_dir=None: data)


@pytest.fixture
def compilations():
    """A list that grows by one entry for every program XLA compiles."""
    import jax

    events = []

    def listen(event, duration, **rest):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def check(x, f, h):
    """The middle one of five hypergradients, against the five-point formula."""
    assert abs(h[2]) > 1e-3
    assert (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * (x[1] - x[0])) == pytest.approx(h[2], rel=1e-6)


def test_the_hypergradient_is_the_slope_and_nothing_compiles_twice(small_mnist, compilations):
    problem, engine = chaos.problem(chaos.Config(**TINY)), hypertrail.load("gpu")
    x = np.linspace(0.5, 0.504, 5)
    curve = [chaos.one_value(engine, problem, x[0])]
    assert compilations, "the first value compiles, or this test sees nothing"
    compilations.clear()
    curve += [chaos.one_value(engine, problem, one) for one in x[1:]]
    assert compilations == []
    check(x, *np.array(curve).T)


def test_a_whole_run(small_mnist, tmp_path):
    folder = tmp_path / "run"
    words = [f"--{k}={v}" for k, v in TINY.items() if k != "hidden"] + ["--hidden", "6", "--engine", "cpu"]
    assert cli.main(["run", "chaos", *words, "--run-dir", str(folder)]) == 0
    curve = arrays.load(folder / "curve.npz")
    np.testing.assert_allclose(curve["values"], np.linspace(0.5, 0.504, 5))
    check(curve["values"], curve["losses"], curve["slopes"])
    np.testing.assert_allclose(chaos.differences(curve["values"], curve["losses"]), curve["slopes"][1:-1], rtol=1e-3)

    (line,) = [json.loads(one) for one in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [one["part"] for one in line["parts"]] == ["smooth"]
    page = (folder / "report.html").read_text()
    assert "The curve is smooth everywhere." in page
    assert {p.stem for p in (folder / "figures").iterdir()} == {"chaos"}
    for path in (folder / "report.html", folder / "figures" / "chaos.png"):
        path.unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page


def test_the_hyper_loss_is_that_of_the_train_split(small_mnist):
    problem = chaos.problem(chaos.Config(**TINY))
    assert problem.splits.valid is problem.splits.train
    assert problem.l2 == 0
    assert chaos.Config().values == 1000
    with pytest.raises(UsageError, match=r"high - low -0\.1, expected a positive number"):
        chaos.Config(low=1.0, high=0.9)


def test_smooth_then_chaotic_is_told_apart():
    x = np.linspace(0, 1, 201)
    f, h = np.sin(3 * x), 3 * np.cos(3 * x)
    rng = np.random.default_rng(0)
    noisy = x > 0.6
    f = f + noisy * rng.normal(size=201)
    h = np.where(noisy, 1e6 * rng.normal(size=201), h)
    h[-5:] = np.nan
    smooth, chaotic = chaos.parts(x, f, h)
    assert chaotic["from"] == pytest.approx(0.6, abs=0.011)
    assert smooth["values"] + chaotic["values"] == 199
    assert smooth["median_difference"] < 1e-3
    assert smooth["largest_hypergradient"] == pytest.approx(3, abs=0.01)
    assert chaotic["median_difference"] > 0.9
    assert (smooth["overflowed"], chaotic["overflowed"]) == (0, 4)
    assert [one["part"] for one in chaos.parts(x, np.sin(3 * x), 3 * np.cos(3 * x))] == ["smooth"]


def test_what_is_not_finite_is_left_out():
    def fail(*words):
        raise NumericalFailure("adjoint", 3)

    kept = SimpleNamespace(close=lambda: closed.append(True))
    closed = []
    engine = SimpleNamespace(
        train=lambda *words: SimpleNamespace(trajectory=kept), hypergradient=fail, hyper_loss=lambda *words: 2.5
    )
    loss, slope = chaos.one_value(engine, None, 30.0)
    assert (loss, np.isnan(slope), closed) == (2.5, True, [True])
    engine.train = fail
    assert np.isnan(chaos.one_value(engine, None, 30.0)).all()
    assert chaos.disagreement(np.arange(3.0), np.arange(3.0), np.array([0.0, slope, 0.0])) == [1.0]
