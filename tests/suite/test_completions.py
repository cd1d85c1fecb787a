"""completions-mnist, drmad-vs-exact and learned-data-mnist, tiny: what must be equal is, folders are whole, reports come back."""

from __future__ import annotations

import numpy as np
import pytest

import hypertrail_data
from hypertrail import cli, engines
from hypertrail.experiments import completions_mnist, drmad_vs_exact, learned_data_mnist
from hypertrail.runs import read_metrics


@pytest.fixture
def small_mnist(monkeypatch):
    """Noise with the labels of a linear rule, in MNIST's shape; the last 20 images are the test set."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 28, 28, 1), dtype=np.uint8)
    y = (x.reshape(120, -1).astype(float) @ rng.normal(size=(784, 10))).argmax(axis=1).astype(np.int32)
    data = hypertrail_data.Dataset("mnist", x, y, 10, 20, 255)
    monkeypatch.setattr(hypertrail_data, "load", lambda name, data_dir=None: data)


def run(capsys, folder, name, *words):
    assert cli.main(["run", name, "--run-dir", str(folder), *words]) == 0
    said = capsys.readouterr().out
    before = (folder / "report.html").read_text()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == before
    return said


@pytest.mark.slow
def test_completions(small_mnist, tmp_path, capsys):
    """A line of full length fed by every state is exact; a truncation that is longer than the run is, too."""
    words = ["--lengths", "12", "--meta-iterations", "2", "--train", "60", "--valid", "20", "--test", "10"]
    methods = ["--methods", "drmad-C0", "drmad-C4", "drmad-C6", "truncated-3", "truncated-200"]
    said = run(capsys, tmp_path / "a", "completions-mnist", *words, *methods, "--precision", "float64")
    lines = read_metrics(tmp_path / "a")
    found = {(line["update"], line["method"]): line for line in lines}
    assert [k for k, name in found if name == "drmad-C0"] == [0]
    assert set(found[0, "drmad-C0"]["agreement"]) == {"l2"}
    for k in range(2):
        assert found[k, "exact"]["N"] == found[k, "truncated-200"]["N"] == 12
        for kind in ("l2", "learning_rate"):
            assert found[k, "truncated-200"]["agreement"][kind]["cosine"] == pytest.approx(1, abs=1e-12)
            assert found[k, "truncated-3"]["agreement"][kind]["cosine"] < 1 - 1e-9
    assert found[0, "exact"]["hyper_loss"] != found[1, "exact"]["hyper_loss"]
    assert "T = 12" in said
    for name in ("cosine", "signs", "norm-ratio"):
        assert (tmp_path / "a" / "figures" / f"{name}.png").stat().st_size > 10_000
    (table,) = [one for one in completions_mnist.show(tmp_path / "a") if one.rows]
    of = dict(zip(table.columns, next(row for row in table.rows if row[0] == "truncated-3"), strict=True))
    three = [found[k, "truncated-3"]["agreement"] for k in (0, 1)]
    signs, norms = (
        [[one[kind][key] for one in three] for kind in ("l2", "learning_rate")] for key in ("signs", "norm_ratio")
    )
    assert of["mean signs, %"] == " / ".join(f"{100 * np.mean(one):.0f}" for one in signs)
    assert of["median norm"] == " / ".join(f"{np.median(one):.2g}" for one in norms)
    assert of["s"]
    assert of["MB"]


@pytest.mark.slow
def test_every_exact_way_is_the_same(small_mnist, tmp_path, capsys):
    words = ["--steps", "20", "--reference-steps", "6", "--train", "60", "--valid", "20"]
    said = run(capsys, tmp_path / "a", "drmad-vs-exact", *words)
    lines = read_metrics(tmp_path / "a")
    assert {(line["engine"], line["way"]) for line in lines} == {
        *(("gpu", way) for way in drmad_vs_exact.LABELS if way != "unbounded"),
        *(("cpu", way) for way in drmad_vs_exact.LABELS),
    }
    for line in lines:
        if line["way"] in ("memory", "disk", "checkpoints", "reversible", "unbounded"):
            assert line["cosine"] == pytest.approx(1, abs=1e-6)  # γ = .95 is rounded by 1.5e-5 where it is undone
            assert line["N"] == (20 if line["engine"] == "gpu" else 6)
    assert not (tmp_path / "a" / "trajectory").exists()
    assert "exact, undone with Python integers" in said


@pytest.mark.usefixtures("without_figures")
def test_ten_images_are_learned(small_mnist, tmp_path, capsys):
    config = learned_data_mnist.Config(valid=60, select=10, test=10, precision="float64")
    problem = learned_data_mnist.problem(config)
    assert problem.splits.train.x.shape == (10, 28, 28, 1)
    assert not problem.splits.train.x.any()
    assert problem.splits.train.y.tolist() == list(range(10))
    blank = engines.load("gpu").train(problem, problem.initial_hyper())
    start = problem.initial_weights()["logits/W"]
    np.testing.assert_array_equal(blank.final["logits/W"], start)  # black pixels move no weight
    said = run(capsys, tmp_path / "a", "learned-data-mnist", "--valid", "60", "--select", "10", "--test", "10",
               "--meta-iterations", "3", "--outer-rate", "0.01")  # fmt: skip
    losses = [line["hyper_loss"] for line in read_metrics(tmp_path / "a")]
    assert losses == sorted(losses, reverse=True)
    assert "After 3 updates" in said


def test_settings_that_cannot_be(capsys):
    for words in (["--lengths", "5"], ["--methods", "drmad-C9"], ["--l2", "0"]):
        assert cli.main(["run", "completions-mnist", *words]) == 2
    assert cli.main(["run", "drmad-vs-exact", "--steps", "3"]) == 2
    assert cli.main(["run", "learned-data-mnist", "--images", "0"]) == 2
    assert completions_mnist.Config().lengths == (200, 2000, 20_000)
