"""The study on two weights: its numbers against a computation that shares no line with it."""

from __future__ import annotations

import numpy as np
import pytest

from hypertrail import NumericalFailure, cli, experiments, runs
from hypertrail.experiments import rosenbrock
from hypertrail.runs import arrays


def loss(y, x):
    r = 100 * (x - y**2) ** 2 + (1 - y) ** 2 + 200 * y
    return 800 / (1 + np.exp(-r / 500))


def final_loss(log_rate, momentum):
    """The whole training on complex numbers: gradients by the complex step, so the result is good for differences only."""
    w, v = np.array([1.4, 3.9]), np.zeros(2)
    for α, γ in zip(np.exp(log_rate), 1 / (1 + np.exp(-momentum)), strict=True):
        g = np.imag([loss(w[0] + 1e-30j, w[1]), loss(w[0], w[1] + 1e-30j)]) / 1e-30
        v = γ * v - (1 - γ) * g
        w = w + α * v
    return loss(*w)


@pytest.fixture(scope="module", params=["gpu", "cpu"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("rosenbrock") / request.param
    words = ["--engine", request.param, "--steps", "12", "--updates", "2"]
    assert cli.main(["run", "rosenbrock", *words, "--run-dir", str(path)]) == 0
    return path


def test_losses_and_hypergradients_are_those_of_another_computation(folder):
    lines = runs.read_metrics(folder)
    assert [line["update"] for line in lines] == [0, 1, 2]
    rng = np.random.default_rng(0)
    for k, line in enumerate(lines):
        one = arrays.load(rosenbrock.file_of(folder, k))
        λ, h = one["hyper"], one["gradient"]
        assert line["start"] == pytest.approx(loss(1.4, 3.9), rel=1e-13)
        assert line["end"] == pytest.approx(final_loss(**λ), rel=1e-11)
        for name in λ:
            d = rng.choice([-1.0, 1.0], 12)
            ends = [final_loss(**{**λ, name: λ[name] + ε * d}) for ε in (1e-4, -1e-4)]
            assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(h[name] @ d, rel=1e-6)


def test_the_schedules_move_by_damped_momentum(folder):
    first, second, third = (arrays.load(rosenbrock.file_of(folder, k)) for k in range(3))
    for name in ("log_rate", "momentum"):
        h0, h1 = first["gradient"][name], second["gradient"][name]
        np.testing.assert_allclose(second["hyper"][name] - first["hyper"][name], -0.01 * 0.1 * h0, rtol=1e-9)
        moved = third["hyper"][name] - second["hyper"][name]
        np.testing.assert_allclose(moved, -0.01 * (0.9 * 0.1 * h0 + 0.1 * h1), rtol=1e-9)
    assert set(first["hyper"]["log_rate"]) == {-4.5}
    np.testing.assert_allclose(first["hyper"]["momentum"], np.log(99))


def test_the_folder_is_whole_and_its_report_comes_again(folder):
    assert (folder / "DONE").is_file()
    assert {p.stem for p in (folder / "figures").iterdir()} == {"valley", "schedules"}
    page = (folder / "report.html").read_text()
    assert f"{runs.read_metrics(folder)[-1]['end']:.2f}" in page
    (folder / "figures" / "valley.png").unlink()
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page


def test_a_training_that_explodes_names_the_step(tmp_path):
    config = rosenbrock.Config(engine="cpu", steps=12, log_rate=500.0)
    with (
        runs.Run(tmp_path / "run", runs.config_record("rosenbrock", config)) as run,
        np.errstate(all="ignore"),
        pytest.raises(NumericalFailure, match="loss in training 0 is not finite at step"),
    ):
        rosenbrock.study(config, run, None)


@pytest.mark.parametrize("engine", ["gpu", "cpu"])
@pytest.mark.parametrize(("as_published", "published"), [(True, 395.3049), (False, 395.3552)])
def test_their_fraction_of_the_momentum_gives_their_loss(engine, as_published, published):
    """395.3049 is what their program prints; 395.3552 what it prints with plain floats in the place of its fixed point."""
    config = rosenbrock.Config(engine=engine, as_published=as_published)
    γ = np.log(config.momentum / (1 - config.momentum))
    hyper = {"log_rate": np.full(50, config.log_rate), "momentum": np.full(50, γ)}
    _, losses, gradient = {"gpu": rosenbrock.compiled, "cpu": rosenbrock.by_hand}[engine](config)(hyper)
    assert round(float(losses[-1]), 4) == published
    other = {"cpu": rosenbrock.compiled, "gpu": rosenbrock.by_hand}[engine](config)(hyper)[2]
    for name, h in gradient.items():
        np.testing.assert_allclose(h, other[name], rtol=1e-9, atol=1e-12)


def test_their_fraction():
    assert rosenbrock.fraction(0.99, np) == 64881 / 65536


def test_it_draws_nothing_whatever_the_seed(tmp_path):
    """What it declares: the same numbers to the last digit, and `launch` refuses several seeds."""
    found = []
    for seed in ("0", "7"):
        words = ["--engine", "cpu", "--steps", "5", "--updates", "1", "--seed", seed, "--run-dir", str(tmp_path / seed)]
        assert cli.main(["run", "rosenbrock", *words]) == 0
        found.append(runs.read_metrics(tmp_path / seed))
    assert found[0] == found[1]
    assert not experiments.draws(rosenbrock)
    assert [name for name in experiments.names() if not experiments.draws(experiments.load(name))] == ["rosenbrock"]
