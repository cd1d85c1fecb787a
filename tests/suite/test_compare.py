"""compare: two runs side by side, from equal to entirely different."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

import hypertrail_data
from hypertrail import UsageError, diagnostics, runs
from hypertrail.report import compare, compare_figure
from hypertrail.runs import arrays
from hypertrail_data.sealed import seal


def test_a_run_agrees_with_itself(run_folder, capsys):
    found = compare.pairs(run_folder, run_folder)
    assert [pair.index for pair in found] == [0, 1, 2, 3]
    assert [pair.largest()[1] for pair in found] == [0.0] * 4
    assert [list(pair.agreement) for pair in found] == [["l2", "l2, exact"]] * 3 + [[]]
    assert found[0].agreement["l2"].total.cosine == 1.0
    assert [[(one.what, len(one.a)) for one in pair.steps] for pair in found] == [
        [(compare.LOSS, 6), (compare.ADJOINT, 7)]
    ] * 3 + [[(compare.LOSS, 6)]]
    assert [pair.hyper for pair in found] == [{"l2": 0.0}] * 4
    assert set(found[0].metrics) == {"hyper loss"} | {
        f"{s} {w}" for s in ("train", "valid", "select", "test") for w in ("loss", "error")
    }
    assert compare.main(run_folder, run_folder) == 0
    said = capsys.readouterr().out
    assert "the runs agree in all 4 meta-iterations to 1e-04 (largest difference 0.0e+00)" in said
    assert "config: no difference" in said


def test_where_two_runs_part(run_folder, make_run, capsys):
    """Both start at u = −4, where the methods give −.5 and −.9: equal metrics, hypergradients of other lengths."""
    other = make_run(error=0.1)
    found = compare.pairs(run_folder, other)
    assert found[0].metrics["hyper loss"][2] == 0.0
    assert found[0].agreement["l2"].total.difference == pytest.approx(0.4 / 0.9)
    assert found[0].agreement["l2, exact"].total.difference == 0.0
    assert compare.parting(found, 1e-4) == compare.Parting(0, "hypergradient of l2", pytest.approx(0.4 / 0.9))
    assert compare.parting(found, 1.0) is None
    compare.main(run_folder, other)
    said = capsys.readouterr().out
    assert (
        "part in meta-iteration 0: relative difference of hypergradient of l2 4.4e-01, more than 1e-04 (float32: "
        in said
    )
    assert "weights: not compared, A kept no trajectory on the disk; run both with --trajectory disk" in said


def test_another_seed_is_named(run_folder, make_run, capsys):
    compare.main(run_folder, make_run(seed=3, meta_iterations=1))
    said = capsys.readouterr().out
    assert "config: meta_iterations 3, not 1; seed 0, not 3" in said


@pytest.mark.parametrize(("a", "b", "expected"), [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (2.0, 1.0, 0.5)])
def test_relative_difference(a, b, expected):
    assert compare.relative(a, b) == compare.relative(b, a) == expected


# -- step by step -------------------------------------------------------------------------------------------------------


def steps(what, *differences):
    d = np.array(differences)
    return compare.Steps(what, np.ones(len(d)), 1 - d, d)


def pair(index=0, metric=0.0, hyper=0.0, gradient=0.0, forward=(), error=0.0):
    of = diagnostics.agreement({"l2": {"W": np.array([1.0])}}, {"l2": {"W": np.array([1.0 - gradient])}})
    metrics = {"test loss": (1.0, 1.0, metric), "test error": (0.1, 0.1, error)}
    return compare.Pair(index, metrics, of, {"l2": hyper}, forward)


def test_the_first_that_parts_in_time_is_named_with_its_step():
    late, early = steps(compare.LOSS, 0, 0, 0, 0.5), steps(compare.WEIGHTS, 0, 0.02, 0.03, 0.9)
    back = steps(compare.ADJOINT, 0.9, 0.9)
    assert compare.parting([pair(), pair(1, metric=0.7, forward=[late, early, back])], 0.01) == compare.Parting(
        1, compare.WEIGHTS, 0.02, 1
    )
    assert (
        str(compare.Parting(1, compare.WEIGHTS, 0.02, 1))
        == "meta-iteration 1, step 1: relative difference of weights 2.0e-02"
    )
    assert compare.parting([pair(hyper=0.2, forward=[late])], 0.01) == compare.Parting(0, "hyperparameters of l2", 0.2)
    assert compare.parting([pair(metric=0.2, gradient=0.5)], 0.01) == compare.Parting(0, "test loss", 0.2)
    assert compare.parting([pair(gradient=0.5, forward=[back])], 0.01) == compare.Parting(0, compare.ADJOINT, 0.9, 0)
    assert "step 0 of the way back" in str(compare.Parting(0, compare.ADJOINT, 0.9, 0))


def test_errors_are_shown_and_not_judged():
    """One example of 597 more or less is no parting where every loss agrees."""
    assert compare.parting([pair(error=0.5)], 1e-9) is None


def test_what_is_not_a_number_is_beyond_every_tolerance():
    one = steps(compare.LOSS, 0.0, np.nan, 0.0)
    assert one.first_beyond(1.0) == 1
    assert compare.largest(one.difference) == np.inf
    assert compare.parting([pair(forward=[one])], 1.0).step == 1


def change_step(folder, meta_iteration, step, factor):
    path = folder / "steps" / f"{meta_iteration:04d}.npz"
    found = arrays.load(path)
    found["loss"][step] *= factor
    lines = runs.read_metrics(folder)
    lines[meta_iteration]["files"][f"steps/{path.name}"] = arrays.save(path, found)
    (folder / "metrics.jsonl").write_bytes(b"".join(map(seal, lines)))
    (folder / "DONE").unlink()


def test_a_changed_loss_is_found_in_the_folders(run_folder, tmp_path, capsys):
    other = shutil.copytree(run_folder, tmp_path / "other")
    change_step(other, 2, 4, 1.001)
    found = compare.parting(compare.pairs(run_folder, other), 1e-4)
    assert (found.index, found.what, found.step) == (2, compare.LOSS, 4)
    assert found.difference == pytest.approx(1 - 1 / 1.001)
    assert compare.main(run_folder, other, tmp_path / "out") == 0
    assert (
        "the runs part in meta-iteration 2, step 4: relative difference of elementary loss 1.0e-03"
        in capsys.readouterr().out
    )
    with open(tmp_path / "out" / "compare.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    beyond = [row for row in rows if row["relative_difference"] and float(row["relative_difference"]) > 1e-4]
    assert [(row["meta_iteration"], row["step"], row["quantity"]) for row in beyond] == [("2", "4", "elementary loss")]
    with Image.open(tmp_path / "out" / "compare.png") as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert (tmp_path / "out" / "compare.pdf").read_bytes().startswith(b"%PDF")


def test_a_long_curve_is_thinned_and_keeps_what_stands_out():
    d = np.full(20_001, 1e-12)
    d[12_345] = 0.5
    starts, values = compare_figure.worst(d)
    assert len(starts) <= compare_figure.MOST
    assert values.max() == 0.5
    assert starts[np.argmax(values)] <= 12_345 < starts[np.argmax(values) + 1]
    np.testing.assert_array_equal(compare_figure.worst(d[:7])[0], np.arange(7))


def test_runs_without_steps_are_compared_as_far_as_they_go(run_folder, tmp_path, capsys):
    other = shutil.copytree(run_folder, tmp_path / "other")
    shutil.rmtree(other / "steps")
    assert all(not pair.steps for pair in compare.pairs(run_folder, other))
    compare.main(run_folder, other)
    said = capsys.readouterr().out
    assert "elementary losses: not compared" in said
    assert "the runs agree in all 4 meta-iterations" in said


def with_trajectory(run_folder, folder, weights, meta=None):
    """A copy of the run that has kept these weights (T, 3) of its last hypergradient's training."""
    shutil.copytree(run_folder, folder)
    meta = {"meta_iteration": 2} if meta is None else meta
    with hypertrail_data.StoredTrajectory.create(folder / "trajectory", meta=meta) as stored:
        stored.append(0, {"w/conv/W": weights, "v/conv/W": np.zeros_like(weights)})
    return folder


def test_weights_are_compared_where_both_kept_them(run_folder, tmp_path):
    w = np.linspace(1.0, 2.0, 18).reshape(6, 3)
    moved = w.copy()
    moved[3:] *= 1.01
    a, b = with_trajectory(run_folder, tmp_path / "a", w), with_trajectory(run_folder, tmp_path / "b", moved)
    assert compare.why_no_weights(a, b) == ""
    found = compare.pairs(a, b)
    assert [[one.what for one in pair.steps if one.what in (compare.WEIGHTS, compare.VELOCITY)] for pair in found] == [
        [], [], [compare.WEIGHTS, compare.VELOCITY], []]  # fmt: skip
    weights = found[2].steps[2]
    np.testing.assert_allclose(weights.difference, [0, 0, 0] + [0.01 / 1.01] * 3, atol=1e-12)
    np.testing.assert_allclose(weights.a, np.linalg.norm(w, axis=1))
    assert compare.parting(found, 1e-4) == compare.Parting(2, compare.WEIGHTS, pytest.approx(0.01 / 1.01), 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda b: (b / "DONE").unlink(),
            "B is unfinished, and its trajectory may change at any time",
        ),
        (
            lambda b: shutil.rmtree(b / "trajectory"),
            "B kept no trajectory on the disk; run both with --trajectory disk",
        ),
        (lambda b: (b / "trajectory" / "manifest.jsonl").unlink(), "the trajectory of B cannot be read: "),
    ],
    ids=["unfinished", "none", "damaged"],
)
def test_why_weights_are_not_compared(run_folder, tmp_path, change, said):
    w = np.ones((6, 3))
    a, b = with_trajectory(run_folder, tmp_path / "a", w), with_trajectory(run_folder, tmp_path / "b", w)
    change(b)
    assert said in compare.why_no_weights(a, b)
    assert compare.trajectories(a, b) == (None, [])


def failed(folder):
    (folder / "DONE").unlink()
    (folder / "FAILED").write_text("NaN\n")
    return folder


def test_weights_of_failed_runs_are_those_that_the_trajectory_names(run_folder, tmp_path, capsys):
    """Where the closing training failed the folder holds the trajectory of the meta-iteration before."""
    w = np.linspace(1.0, 2.0, 18).reshape(6, 3)
    a, b = (with_trajectory(run_folder, tmp_path / name, x) for name, x in (("a", w), ("b", 1.01 * w)))
    for folder in map(failed, (a, b)):
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    found = compare.pairs(a, b)
    assert [any(one.what == compare.WEIGHTS for one in pair.steps) for pair in found] == [False, False, True]
    assert compare.main(a, b) == 0
    assert "the runs part in meta-iteration 2, step 0: relative difference of weights" in capsys.readouterr().out


def test_trajectories_of_other_meta_iterations_are_told_of(run_folder, tmp_path, capsys):
    a, b, c = (
        with_trajectory(run_folder, tmp_path / name, np.ones((6, 3)), {"meta_iteration": k})
        for name, k in (("a", 2), ("b", 1), ("c", 2))
    )
    assert (
        compare.why_no_weights(a, b) == "the trajectory of A is of meta-iteration 2, that of B of 1; run both as often"
    )
    lines = (c / "metrics.jsonl").read_text().splitlines(keepends=True)
    (failed(c) / "metrics.jsonl").write_text("".join(lines[:2]))
    compare.main(a, c)
    said = " ".join(capsys.readouterr().out.split())
    assert "weights: not compared, the trajectories are of meta-iteration 2, in which B failed" in said


def test_trajectories_of_earlier_versions_say_nothing_of_themselves(run_folder, tmp_path):
    a, b = (with_trajectory(run_folder, tmp_path / name, np.ones((6, 3)), {}) for name in "ab")
    assert compare.common_weights(a, b) == (2, "")
    assert "which meta-iteration the trajectory of B is of is not certain" in compare.why_no_weights(a, failed(b))


def test_other_networks_have_no_weights_in_common(run_folder, tmp_path):
    a = with_trajectory(run_folder, tmp_path / "a", np.ones((6, 3)))
    b = with_trajectory(run_folder, tmp_path / "b", np.ones((6, 4)))
    assert "different networks" in compare.why_no_weights(a, b)


def test_what_cannot_be_compared(run_folder, tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a run"):
        compare.main(run_folder, tmp_path)
    empty = tmp_path / "empty"
    shutil.copytree(run_folder, empty)
    (empty / "metrics.jsonl").unlink()
    (empty / "DONE").unlink()
    with pytest.raises(UsageError, match="no meta-iteration in common"):
        compare.main(run_folder, empty)
