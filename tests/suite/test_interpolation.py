"""The study of the line from w_0 to w_T: its ends are the training's own, its numbers are what their names say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hypertrail
import hypertrail_data
from hypertrail import L2, Problem, UsageError, cli, runs
from hypertrail.experiments import interpolation
from hypertrail.runs import arrays
from hypertrail_nets import mlp


@pytest.mark.parametrize("engine", ["gpu", "cpu"])
def test_the_ends_are_the_losses_of_the_training(engine):
    """Whole-split batches, no dropout and no batch norm: the first elementary loss is the train loss at w_0."""
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), 40, 30, 0, 0, seed=0)
    problem = Problem(
        network=mlp((8, 8, 1), (5,), 10),
        splits=splits,
        schedule=hypertrail_data.BatchSchedule(40, 40, seed=0),
        steps=6,
        hyperparameters=(L2(level="network", init=1e-9),),
        precision="float64",
    )
    engine = hypertrail.load(engine)
    hyper = problem.initial_hyper()
    training = engine.train(problem, hyper)
    β = np.array([-0.5, 0.0, 0.5, 1.0])
    curves = interpolation.along_the_line(engine, problem, training, β)
    penalty = 1e-9 * sum((w**2).sum() for name, w in training.initial.items() if name.endswith("/W"))
    assert curves["train"][1] == pytest.approx(training.losses[0] - penalty, rel=1e-12)
    for split in ("train", "valid"):
        assert curves[split][3] == pytest.approx(engine.evaluate(problem, training, split).loss, rel=1e-12)
    for i, b in ((0, -0.5), (2, 0.5)):
        w = {name: (1 - b) * one + b * training.final[name] for name, one in training.initial.items()}
        elsewhere = replace(training, weights=w)
        assert curves["train"][i] == pytest.approx(engine.evaluate(problem, elsewhere, "train").loss, rel=1e-12)


def test_the_numbers_of_a_curve():
    β = np.arange(-1, 6) / 4
    found = interpolation.shape(β, np.array([9.0, 4.0, 5.0, 1.0, 3.0, 2.0, 0.5]))
    # between the ends 4, 5, 1, 3, 2 above the chord 4, 3.5, 3, 2.5, 2: 1.5 at most; the longest way up is from 1 to 3
    assert found == {"start": 4, "end": 2, "falls": 0.5, "barrier": 1.5, "max_rise": 2, "lowest_at": 1.25}
    falling = interpolation.shape(β, (2 - β) ** 2)
    assert (falling["falls"], falling["barrier"], falling["max_rise"]) == (1, 0, 0)


def test_the_folder_is_whole_and_its_report_comes_again(tmp_path):
    folder = tmp_path / "run"
    words = [
        "--networks",
        "softmax",
        "lenet",
        "--engine",
        "cpu",
        "--steps",
        "3",
        "--points",
        "4",
        "--run-dir",
        str(folder),
    ]
    assert cli.main(["run", "interpolation", *words]) == 0
    lines = runs.read_metrics(folder)
    assert [(line["network"], line["split"]) for line in lines] == [
        ("softmax", "train"), ("softmax", "valid"), ("lenet", "train"), ("lenet", "valid")
    ]  # fmt: skip
    curve = arrays.load(folder / "lenet.npz")
    np.testing.assert_array_equal(curve["beta"], np.arange(-1, 6) / 4)
    assert lines[2]["end"] == curve["train"][5]
    page = (folder / "report.html").read_text()
    assert f"<td>{lines[0]['start']:.3f}</td>" in page
    for path in (folder / "report.html", folder / "figures" / "line.png"):
        path.unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    assert (folder / "DONE").is_file()


def test_every_network_can_be_built(monkeypatch):
    from hypertrail.experiments import drmad_mnist

    asked = []
    monkeypatch.setattr(drmad_mnist, "problem", asked.append)
    config = interpolation.Config(steps=7, seed=3)
    for name in config.networks[:-1]:
        problem = interpolation.problem_of(config, name)
        assert (problem.steps, problem.seed if name == "densenet" else 3, problem.precision) == (7, 3, "float32")
    interpolation.problem_of(config, "mnist-mlp")
    assert asked == [drmad_mnist.Config(steps=7, seed=3)]


def test_it_crashes_on_bad_arguments():
    for words in ({"networks": ()}, {"points": 3}, {"steps": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match="expected at least"):
            interpolation.Config(**words)
