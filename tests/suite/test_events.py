"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hypertrail import cli, experiments, runs
from hypertrail.runs import arrays

tensorboard = pytest.importorskip("tensorboard", reason="the track extra is not installed")


def read(folder):
    """tag → [(step, value)], scalars as numbers, histograms as (buckets, 3) arrays."""
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util

    (file,) = folder.glob("*tfevents*")
    found = {}
    for event in event_file_loader.EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, tensor_util.make_ndarray(value.tensor)))
    return found


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("logs")
    assert cli.main(["export-tensorboard", str(run_folder), "--out", str(out)]) == 0
    return out / run_folder.name


def test_scalars_are_those_of_the_run(run_folder, exported):
    found = read(exported)
    lines = runs.read_metrics(run_folder)
    for split in ("train", "valid", "select", "test"):
        assert [step for step, _ in found[f"loss/{split}"]] == [0, 1, 2, 3]
        expected = [line["metrics"][split]["loss"] for line in lines]
        np.testing.assert_allclose([value for _, value in found[f"loss/{split}"]], expected, rtol=1e-6)
    expected = [line["agreement"]["l2"]["total"]["cosine"] for line in lines[:-1]]
    np.testing.assert_allclose([value for _, value in found["agreement/cosine l2"]], expected, rtol=1e-6)
    assert [float(value) for _, value in found["cost/gradients exact"]] == [14.0, 14.0, 14.0]
    assert all(float(value) > 1 for _, value in found["memory/host"])


def test_histograms_are_those_of_the_hyperparameters(run_folder, exported):
    found = read(exported)
    for k in range(4):
        hyper, _ = arrays.load_state(run_folder / "states" / f"{k:04d}.npz")
        for name, u in hyper["l2"].items():
            step, buckets = found[f"l2/{name}"][k]
            assert step == k
            assert buckets[:, 2].sum() == u.size
            assert (buckets[0, 0], buckets[-1, 1]) == (pytest.approx(u.min()), pytest.approx(u.max()))


def test_every_training_is_a_run_of_its_own(run_folder, exported):
    for k in range(4):
        points = read(exported / f"training-{k:04d}")["training/elementary loss"]
        kept = arrays.load(run_folder / "steps" / f"{k:04d}.npz")["loss"]
        assert [step for step, _ in points] == list(range(len(kept)))
        np.testing.assert_allclose([value for _, value in points], kept, rtol=1e-6)


def test_tensorboard_shows_them(exported):
    """Its reader of whole folders, as its server uses it: the plugins by which the tags are shown."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    runs_found = EventMultiplexer().AddRunsFromDirectory(str(exported)).Reload()
    assert set(runs_found.Runs()) == {".", "training-0000", "training-0001", "training-0002", "training-0003"}
    plugin = {
        tag: runs_found.SummaryMetadata(".", tag).plugin_data.plugin_name for tag in ("loss/test", "l2/first.conv/W")
    }
    assert plugin == {"loss/test": "scalars", "l2/first.conv/W": "histograms"}


def test_into_the_run_itself_and_only_once(make_run, tmp_path, capsys):
    folder = make_run(tmp_path / "run", compare_exact=False)
    assert cli.main(["export-tensorboard", str(folder)]) == 0
    assert "agreement/cosine l2" not in read(folder / "tensorboard")
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in capsys.readouterr().out
    assert cli.main(["export-tensorboard", str(folder)]) == 2
    assert "holds event files already" in capsys.readouterr().err


def study(folder, name, *lines):
    config = experiments.load(name).Config()
    with runs.Run(folder, runs.config_record(name, config)) as run:
        run.describe(["run", name], {})
        for line in lines:
            run.append(line)
        run.done({})
    return folder


def test_the_numbers_of_a_study(tmp_path, monkeypatch, capsys):
    folder = study(
        tmp_path / "a", "rosenbrock", *({"update": k, "start": 4.0, "end": 2.0 - k, "norm": 0.5} for k in (0, 1))
    )
    assert cli.main(["export-tensorboard", str(folder)]) == 0
    found = read(folder / "tensorboard")
    assert found["end/all"] == [(0, 2.0), (1, 1.0)]
    assert set(found) == {"end/all", "start/all", "norm/all"}
    part = {"from": 1.0, "to": 2.0, "values": 3, "overflowed": 0, "median_difference": 0.25, "largest_slope": 2.0}
    parts = [{"part": name, "largest_hypergradient": None, **part} for name in ("smooth", "chaotic")]
    folder = study(tmp_path / "b", "chaos", {"parts": parts})
    assert cli.main(["export-tensorboard", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out" / "b")["median_difference/part=chaotic"] == [(0, 0.25)]
    done = (folder / "DONE").read_bytes()
    (folder / "DONE").unlink()
    assert cli.main(["export-tensorboard", str(folder)]) == 2
    assert "has nothing to export: the numbers of a study are there when it is done" in capsys.readouterr().err
    (folder / "DONE").write_bytes(done)
    monkeypatch.delattr("hypertrail.experiments.chaos.numbers")
    assert cli.main(["export-tensorboard", str(folder)]) == 2
    assert "has nothing to export: its experiment says no numbers" in capsys.readouterr().err


def test_what_is_refused(run_folder, tmp_path, digits_experiment, monkeypatch, capsys):
    with runs.Run(tmp_path / "empty", runs.config_record("drmad-digits", digits_experiment.Config())) as run:
        run.describe(["run", "drmad-digits"], {})
    assert (
        cli.main(["export-tensorboard", str(run_folder), str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    )
    assert "has nothing to export: it has not written a line; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for name in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cli.main(["export-tensorboard", str(run_folder), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'hypertrail[track]'" in capsys.readouterr().err
