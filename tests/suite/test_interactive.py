"""The interactive figures: plotly itself accepts every one of them, and they hold the numbers of the run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hypertrail import runs
from hypertrail.report import interactive
from hypertrail.report.catalogue import catalogue, of_one
from hypertrail.report.view import View, views

go = pytest.importorskip("plotly.graph_objects", reason="the report extra is not installed")


@pytest.fixture(scope="module")
def several(run_folder, make_run):
    return views([run_folder, make_run(error=2.0, meta_iterations=2), make_run(compare_exact=False, seed=3)])


def forms(figure):
    """Every figure that a menu of this one can show."""
    return [{"data": one["data"], "layout": figure["layout"]} for one in figure.get("choices", [figure])]


def test_plotly_accepts_every_figure(run_folder, several):
    """Its own checker knows every attribute of every trace; what we write is JSON without NaN."""
    drawings = [*catalogue([View(run_folder)]), *catalogue(several), *of_one(several[0])]
    assert len(drawings) == 8 + 7 + 1
    for drawing in drawings:
        figure = drawing.interact()
        json.dumps(figure, allow_nan=False)
        for one in forms(figure):
            assert go.Figure(one).data


def test_the_curves_are_the_numbers_of_the_run(run_folder):
    lines = runs.read_metrics(run_folder)
    figure = interactive.metrics([View(run_folder)])
    curves = {trace["name"]: trace["y"] for trace in figure["data"] if trace["yaxis"] == "y"}
    np.testing.assert_allclose(curves["test"], [line["metrics"]["test"]["loss"] for line in lines], rtol=1e-5)
    np.testing.assert_allclose(curves["hyper loss f"], [line["hyper_loss"] for line in lines], rtol=1e-5)


def test_shares_of_a_distribution_add_up_to_one(run_folder):
    view = View(run_folder)
    figure = interactive.hyperparameters("l2", "W", [view])
    tensors = view.spreads["l2"]["W"]
    assert [one["name"].split(" (")[0] for one in figure["choices"]] == [f"all {len(tensors)} tensors", *tensors]
    for choice in figure["choices"]:
        (bins,) = (trace for trace in choice["data"] if trace["type"] == "heatmap")
        np.testing.assert_allclose(np.sum(bins["z"], axis=0), 1.0, atol=1e-5)
    pooled = np.concatenate([u[1] for u in tensors.values()])
    median = next(trace for trace in figure["choices"][0]["data"] if trace.get("name") == "median")
    assert median["y"][1] == pytest.approx(np.median(pooled), rel=1e-5)


def test_one_number_for_each_tensor_needs_no_menu():
    view = View("nowhere")
    values = {f"layer{i}": [np.array([0.1 * i + k]) for k in range(3)] for i in range(4)}
    view.__dict__["spreads"] = {"learning_rate": {"network": values}}
    figure = interactive.hyperparameters("learning_rate", "network", [view])
    assert [trace["y"] for trace in figure["data"]] == [
        [pytest.approx(0.1 * i + k) for k in range(3)] for i in range(4)
    ]
    assert go.Figure(figure)


def test_names_are_shown_unread(make_run, tmp_path):
    """Plotly reads <b> and &amp; in names; ours must come out as they are."""
    shown = views([make_run(tmp_path / "a <b>&"), make_run(tmp_path / "second")])
    names = {trace["name"] for trace in interactive.metrics(shown)["data"]}
    assert names == {"A: a &lt;b&gt;&amp;", "B: second"}


def test_a_legend_of_many_runs_gets_its_room():
    few = interactive.whole([{"name": "x"}] * 2, {"height": 400, "margin": {"b": 80}})["layout"]
    many = interactive.whole([{"name": "x" * 60}] * 9, {"height": 400, "margin": {"b": 80}})["layout"]
    assert few == {"height": 400, "margin": {"b": 80}}
    assert many["height"] - 400 == many["margin"]["b"] - 80 >= 60
