"""Figures and report: they exist, they show something, the page needs nothing but itself, and it tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypertrail import DrMAD, ExampleWeight, InitialScale, TrainingInput, UsageError, figures, outer, runs, tuning
from hypertrail.report import static, writing
from hypertrail.report.catalogue import catalogue, draw
from hypertrail.report.view import View, views
from hypertrail.report.writing import write_report

pytestmark = pytest.mark.pictures

NAMES = ("metrics", "training", "hyper-l2-W", "hyper-l2-scale", "norms", "agreement", "agreement-layers", "cost")


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
    names = ("agreement", "metrics", "norms", "training")
    draw([one for one in catalogue([View(other)]) if one.name in names], other)
    for name in names:
        assert (other / "figures" / f"{name}.png").read_bytes() != (run_folder / "figures" / f"{name}.png").read_bytes()


def test_without_a_comparison_there_is_no_agreement(make_run, monkeypatch):
    folder = make_run(compare_exact=False)
    assert [one.name for one in catalogue([View(folder)])] == [
        name for name in NAMES if not name.startswith("agreement")
    ]
    monkeypatch.setattr(writing, "catalogue", lambda shown: [])  # the words alone
    page = write_report(folder).read_text()
    assert "Agreement" not in page
    assert "exact norm" not in page


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


def test_what_a_user_names_is_escaped(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "catalogue", lambda shown: [])
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
    drawn = {one.name: one.caption for one in catalogue([View(run.path)])}
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


def made_up(kind, role, tensors, letter="A", alone=True):
    """A view of a run that has these hyperparameters."""
    one = View(Path("nowhere"), letter, f"{letter}: made up", ord(letter) - ord("A"), alone)
    one.__dict__["spreads"] = {kind: {role: tensors}}
    return one


def test_many_tensors_and_one_number_are_both_drawn(tmp_path):
    rng = np.random.default_rng(0)
    many = {f"block{i}.conv/W": [rng.normal(size=9) for _ in range(4)] for i in range(41)}
    one = {"network": [np.array([0.1 * k]) for k in range(4)]}
    for kind, role, tensors, panels in (("l2", "W", many, 41), ("learning_rate", "network", one, 1)):
        beside = [made_up(kind, role, tensors, "B", alone=False)] if panels == 1 else []
        figure = static.hyperparameters(kind, role, [made_up(kind, role, tensors, alone=not beside), *beside])
        figure.savefig(tmp_path / "one.png", dpi=50)
        assert sum(axes.get_visible() for axes in figure.axes) == panels
        assert figures.REPRESENTATION[kind] in [text.get_text() for text in figure.texts]


# -- several runs side by side ------------------------------------------------------------------------------------------


def test_several_runs_share_their_figures(run_folder, make_run):
    """What is alike is drawn together, a line for each run with its name; what only one can have is not among them."""
    shown = views([run_folder, make_run(error=2.0, meta_iterations=2), make_run(compare_exact=False, seed=3)])
    drawings = {one.name: one for one in catalogue(shown)}
    assert set(drawings) == set(NAMES) - {"agreement-layers"}
    for name, lines in (("metrics", 3), ("training", 3), ("agreement", 2)):
        figure = drawings[name].draw()
        (legend,) = figure.legends
        assert len(legend.get_texts()) == lines


def test_a_run_has_one_colour_in_every_figure(run_folder, make_run):
    """Also where another run is left out of a figure that it has nothing for."""
    shown = views([make_run(compare_exact=False, meta_iterations=1), run_folder])
    drawings = {one.name: one for one in catalogue(shown)}
    for name, panels in (("metrics", 9), ("agreement", 3), ("norms", 1)):
        axes = drawings[name].draw().axes
        assert len([one for one in axes if one.get_visible()]) == panels
        lines = [line for line in axes[0].lines if line.get_label().startswith("B: ")]
        assert [line.get_color() for line in lines] == [figures.RUNS[1]] * len(lines) != []
        live = [trace for trace in drawings[name].interact()["data"] if trace["name"].startswith("B: ")]
        assert {trace["line"]["color"] for trace in live} == {figures.RUNS[1]}


def test_smoothing_keeps_the_mean_and_the_length():
    losses = np.arange(1003, dtype=float)
    steps, means = static.smoothed(losses)
    assert len(steps) == len(means) == 50
    np.testing.assert_array_equal(means, steps)  # the loss is the step here
    assert means[0] == np.arange(20).mean()
    short = np.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(static.smoothed(short)[1], short)


def test_the_same_picture_is_the_same_file_in_every_format(run_folder, tmp_path):
    drawing = next(one for one in catalogue([View(run_folder)]) if one.name == "norms")
    for place in ("a", "b"):
        with figures.into(tmp_path / place, "png", "pdf", "svg"), figures.style():
            assert figures.save(run_folder, "norms", drawing.draw()) == tmp_path / place / "norms.png"
    for form in ("png", "pdf", "svg"):
        one, two = ((tmp_path / place / f"norms.{form}").read_bytes() for place in ("a", "b"))
        assert one == two
        assert len(one) > 3000
    assert not (run_folder / "figures" / "norms.svg").exists()


@pytest.mark.parametrize(
    ("y", "lone"),
    [
        ([1.0], [0]),
        ([1.0, 2.0], []),
        ([np.nan, 1.0, np.nan], [1]),
        ([1.0, np.nan, 2.0, 3.0], [0]),
        ([], []),
        ([np.nan], []),
    ],
    ids=str,
)
def test_a_point_without_a_neighbour_gets_a_marker(y, lone):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    (line,) = axes.plot(range(len(y)), y)
    (own,) = axes.plot(range(len(y)), y, marker="x")
    (bare,) = axes.plot(range(len(y)), y, linestyle="none")
    figures.mark_lone_points(figure)
    assert (line.get_marker(), own.get_marker(), bare.get_marker()) == ("o" if lone else "None", "x", "None")
    assert line.get_markevery() == (lone or None)


def test_a_curve_of_one_point_is_seen_in_the_file(tmp_path):
    """The plots of a run with a small budget were empty: one measurement, a line without marker."""
    from matplotlib.figure import Figure

    def ink(points):
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.set_axis_off()
        axes.plot(range(points), [1.0] * points, color="black")
        with Image.open(figures.save(tmp_path, f"{points}", figure)) as image:
            return (np.asarray(image.convert("L")) < 100).sum()

    assert ink(0) == 0
    assert ink(1) > 20
