"""compare: two runs side by side, from equal to entirely different."""

from __future__ import annotations

import shutil

import pytest

from hypertrail import UsageError, compare


def test_a_run_agrees_with_itself(run_folder, capsys):
    found = compare.pairs(run_folder, run_folder)
    assert [pair.index for pair in found] == [0, 1, 2, 3]
    assert [pair.largest()[1] for pair in found] == [0.0] * 4
    assert [list(pair.agreement) for pair in found] == [["l2"], ["l2"], ["l2"], []]
    assert found[0].agreement["l2"].cosine == 1.0
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
    assert found[0].agreement["l2"].difference == pytest.approx(0.4 / 0.9)
    assert compare.parting(found, 1e-4) == (0, "hypergradient of l2", pytest.approx(0.4 / 0.9))
    assert compare.parting(found, 1.0) is None
    compare.main(run_folder, other)
    assert (
        "part in meta-iteration 0: hypergradient of l2 differs by 4.4e-01, more than 1e-04 (float32)"
        in capsys.readouterr().out
    )


def test_another_seed_is_named(run_folder, make_run, capsys):
    compare.main(run_folder, make_run(seed=3, meta_iterations=1))
    said = capsys.readouterr().out
    assert "config: meta_iterations 3, not 1; seed 0, not 3" in said


@pytest.mark.parametrize(("a", "b", "expected"), [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (2.0, 1.0, 0.5)])
def test_relative_difference(a, b, expected):
    assert compare.relative(a, b) == compare.relative(b, a) == expected


def test_what_cannot_be_compared(run_folder, tmp_path):
    with pytest.raises(UsageError, match="is not the folder of a run"):
        compare.main(run_folder, tmp_path)
    empty = tmp_path / "empty"
    shutil.copytree(run_folder, empty)
    (empty / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="no meta-iteration in common"):
        compare.main(run_folder, empty)
