"""A study that is stopped after each of its parts ends as one that is not, and computes no part twice."""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail_data
from hypertrail import cli, runs, sections, stopping
from hypertrail.experiments import chaos
from hypertrail.report import writing

TINY = {
    "chaos": "--values 5 --high .504 --hidden 6 --steps 4 --batch 10 --train 30",
    "completions-mnist": "--lengths 10 --meta-iterations 2 --train 60 --valid 20 --test 10 --methods drmad-C4 truncated-3",
    "drmad-vs-exact": "--steps 20 --reference-steps 0 --train 60 --valid 20",
    "interpolation": "--networks softmax mlp --steps 3 --points 4",
    "rosenbrock": "--steps 12 --updates 2",
}
PARTS = {"chaos": 3, "completions-mnist": 2, "drmad-vs-exact": 7, "interpolation": 2, "rosenbrock": 3}
SLOW = ("completions-mnist", "drmad-vs-exact")  # 50,000 hyperparameters in the reference engine; seven ways, each twice
CLOCKS = ("seconds", "training_seconds", "training", "reverse")


@pytest.fixture
def small_mnist(monkeypatch):
    """Noise with the labels of a linear rule, in MNIST's shape; the last 20 images are the test set."""
    load = hypertrail_data.load
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 28, 28, 1), dtype=np.uint8)
    y = (x.reshape(120, -1).astype(float) @ rng.normal(size=(784, 10))).argmax(axis=1).astype(np.int32)
    data = hypertrail_data.Dataset("mnist", x, y, 10, 20, 255)
    monkeypatch.setattr(hypertrail_data, "load", lambda name, data_dir=None: data if name == "mnist" else load(name))


def plain(folder):
    lines = [{key: one for key, one in line.items() if key not in CLOCKS} for line in runs.read_metrics(folder)]
    return lines, {path.name: path.read_bytes() for path in folder.rglob("*.npz")}


@pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in TINY])
def test_stopped_after_every_part(name, small_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writing, "write_report", lambda folder, *_: folder)  # figures take seconds
    monkeypatch.setattr(sections, "own_sections", lambda folder: [])
    monkeypatch.setattr(chaos, "PART", 2)
    words = ["run", name, *TINY[name].split(), "--engine", "cpu"]
    assert cli.main([*words, "--run-dir", str(tmp_path / "whole")]) == 0

    computed, part = [], runs.Run.part

    def and_stop(run, name, compute, files=()):
        def computing():
            computed.append(name)
            found = compute()
            stopping.ask("SIGTERM")
            return found

        return part(run, name, computing, files)

    monkeypatch.setattr(runs.Run, "part", and_stop)
    folder = tmp_path / "run"
    for k in range(PARTS[name]):
        assert cli.main([*words, "--run-dir", str(folder)]) == 75
        assert len(computed) == k + 1
        assert f"stopped by SIGTERM after part {computed[-1]}; run the same" in capsys.readouterr().err
    assert cli.main([*words, "--run-dir", str(folder)]) == 0
    assert len(computed) == len(set(computed)) == PARTS[name]
    assert plain(folder) == plain(tmp_path / "whole")
    assert runs.status(folder) == "done"
