"""Figures and report: they exist, they show something, the page needs nothing but itself, and it tells the truth."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from hypertrail import (
    DrMAD,
    ExampleWeight,
    InitialScale,
    TrainingInput,
    UsageError,
    figures,
    outer,
    runs,
    tuning,
)
from hypertrail.report import write_report

NAMES = ("metrics", "agreement", "agreement-layers", "hyper-l2-W", "hyper-l2-scale")


@pytest.fixture(scope="module")
def page(run_folder):
    return write_report(run_folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_a_picture_of_something(run_folder, page, name):
    with Image.open(run_folder / "figures" / f"{name}.png") as image:
        image.load()
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert image.width >= 1000
    white = (pixels == 255).all(axis=1).mean()
    assert 0.1 < white < 0.97
    assert len(np.unique(pixels, axis=0)) > 20


def test_no_other_figures(run_folder, page):
    assert {p.stem for p in (run_folder / "figures").iterdir()} == set(NAMES)


def test_figures_change_with_what_happened(run_folder, page, make_run):
    other = make_run(error=2.0)
    figures.draw_all(other)
    for name in ("agreement", "hyper-l2-W", "metrics"):
        assert (other / "figures" / f"{name}.png").read_bytes() != (run_folder / "figures" / f"{name}.png").read_bytes()


def test_without_a_comparison_there_is_no_agreement(make_run):
    folder = make_run(compare_exact=False)
    assert sorted(p.stem for p in figures.draw_all(folder).values()) == ["hyper-l2-W", "hyper-l2-scale", "metrics"]
    assert "Agreement" not in write_report(folder).read_text()


def test_the_page_needs_nothing_but_itself(page):
    assert not re.search(r"https?://|//\w+\.\w|@import|<script|<link|url\(", page)
    assert page.count("src=") == page.count('src="data:image/png;base64,') == len(NAMES)
    assert page.startswith("<!DOCTYPE html>")
    assert "@media print" in page


def test_the_page_holds_the_numbers(run_folder, page):
    lines = runs.read_metrics(run_folder)
    for line in lines:
        for split in ("train", "valid", "select", "test"):
            assert f"<td>{line['metrics'][split]['loss']:.4f}</td>" in page
    total = lines[0]["agreement"]["l2"]["total"]
    assert f"<td>{total['cosine']:.4f}</td><td>{100 * total['signs']:.2f} %</td>" in page
    assert "<td>steps</td><td>6</td>" in page
    assert "hypertrail run drmad-digits" in page
    assert 'class="state">done<' in page


def test_what_a_user_names_is_escaped(make_run, tmp_path):
    folder = make_run(tmp_path / "a<b>&c", data_dir=tmp_path / "<script>")
    page = write_report(folder).read_text()
    assert "<script" not in page
    assert "a&lt;b&gt;&amp;c" in page


def test_a_run_without_a_line_yet_has_a_page_too(tmp_path, digits_experiment):
    with runs.Run(tmp_path / "run", runs.config_record("drmad-digits", digits_experiment.Config())) as run:
        run.describe(["run", "drmad-digits"], {})
        page = write_report(run.path).read_text()
    assert 'class="state bad">unfinished<' in page
    assert "<img" not in page


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kinds_that_live_on_examples_are_drawn(tmp_path, engine, make_problem, digits_experiment):
    """A spread for each, named for what it is; the learned images as pictures; one row of agreement for each kind."""
    declared = (InitialScale("unit"), ExampleWeight(), TrainingInput())
    record = runs.config_record("drmad-digits", digits_experiment.Config())
    with runs.Run(tmp_path / "run", record) as run:
        run.describe(["run", "drmad-digits"], {})
        tuning.into_run(
            run, make_problem(hyperparameters=declared), engine, DrMAD("C1"), outer.Sign(0.1), 2, compare_exact=True
        )
    drawn = {path.stem: caption for caption, path in figures.draw_all(run.path).items()}
    assert {"hyper-example_weight-train", "hyper-training_input-x", "hyper-initial_scale-W", "learned-images"} <= set(
        drawn
    )
    assert (
        drawn["hyper-example_weight-train"]
        == "Hyperparameters of kind example_weight, training examples: how they spread"
    )
    line = runs.read_metrics(run.path)[0]
    assert {kind: len(one["layers"]) for kind, one in line["agreement"].items()} == {
        "initial_scale": 4,
        "example_weight": 1,
        "training_input": 1,
    }
    page = write_report(run.path).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(drawn)


def test_many_tensors_and_one_number_are_both_drawn(tmp_path):
    rng = np.random.default_rng(0)
    many = {f"block{i}.conv/W": [rng.normal(size=9) for _ in range(4)] for i in range(41)}
    one = {"network": [np.array([0.1 * k]) for k in range(4)]}
    for kind, tensors, panels in (("l2", many, 41), ("learning_rate", one, 1)):
        figure = figures.hyperparameters(kind, tensors)
        figure.savefig(tmp_path / "one.png")
        assert sum(axes.get_visible() for axes in figure.axes) == panels
        assert figures.REPRESENTATION[kind] in [text.get_text() for text in figure.texts]
