"""The meta loop, on an engine in closed form: f = ½ Σ (u + 3)², exact hypergradient u + 3."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import hypertrail_data
from hypertrail import (
    L2,
    Checkpoints,
    DrMAD,
    Exact,
    Implicit,
    Last,
    LearningRate,
    NumericalFailure,
    Reversible,
    UsageError,
    cli,
    display,
    outer,
    rows,
    runs,
    tuning,
)
from hypertrail.methods import parse_method
from hypertrail.records import Metrics
from hypertrail.report import writing
from hypertrail.runs import arrays
from hypertrail.tuning import tune


def flat(hyper):
    return np.concatenate([np.ravel(u) for a in hyper.values() for u in a.values()])


def test_updates_follow_the_rule_and_the_end_is_trained_too(problem, engine, rule):
    records = list(tune(problem, engine, Exact(), rule, 3))
    assert [r.index for r in records] == [0, 1, 2, 3]
    assert len(engine.trainings) == 4
    u = flat(problem.initial_hyper())
    for k, record in enumerate(records):
        np.testing.assert_allclose(flat(record.hyper), u, rtol=1e-14)
        assert record.hyper_loss == pytest.approx(((u + 3) ** 2).sum() / 2, rel=1e-12)
        if k < 3:
            u = np.clip(u - 0.1 * (u + 3), -9, 10)  # the bounds of L2 and of the learning rate are not reached
            np.testing.assert_allclose(flat(record.after), u, rtol=1e-14)
        np.testing.assert_array_equal(flat(engine.trainings[k].hyper), flat(record.hyper))
    last = records[-1]
    assert last.hypergradient is None
    assert last.after is last.hyper
    assert last.state.count == 3


def test_a_problem_of_its_own_for_every_meta_iteration(problem, engine, rule):
    """The closing training too; without `problem_for` it is one and the same problem."""
    asked = []

    def problem_for(k):
        asked.append(k)
        return problem.reseeded(100 + k)

    list(tune(problem, engine, Exact(), rule, 2, problem_for=problem_for))
    assert asked == [0, 1, 2]
    assert [one.problem.seed for one in engine.trainings] == [100, 101, 102]
    assert [one.problem.schedule.seed for one in engine.trainings] == [100, 101, 102]
    assert all(one.problem.splits is problem.splits for one in engine.trainings)
    engine.trainings.clear()
    list(tune(problem, engine, Exact(), rule, 2))
    assert all(one.problem is problem for one in engine.trainings)


def test_problems_of_other_hyperparameters_are_refused(problem, engine, rule):
    other = problem.with_(hyperparameters=problem.hyperparameters[:1])
    with pytest.raises(UsageError, match="the problem of meta-iteration 1 declares hyperparameters of other kinds"):
        list(tune(problem, engine, Exact(), rule, 2, problem_for=lambda k: other if k else problem))


def test_metrics_of_every_split_that_is_not_empty(problem, engine, rule):
    record = next(tune(problem, engine, Exact(), rule, 1))
    assert {split: m.examples for split, m in record.metrics.items()} == {"train": 40, "valid": 30, "test": 20}
    assert record.metrics["test"].loss == pytest.approx(record.hyper_loss + 0.3)


def test_only_the_method_moves_the_hyperparameters(problem, engine, rule):
    engine.error = 1000.0
    record = next(tune(problem, engine, DrMAD("C1"), rule, 1, compare_exact=True))
    np.testing.assert_allclose(flat(record.hypergradient.gradient), flat(record.hyper) + 1003, rtol=1e-12)
    np.testing.assert_allclose(flat(record.exact.gradient), flat(record.hyper) + 3, rtol=1e-12)
    lowest = np.concatenate([np.full(370, -9.0), [np.log(1e-7)]])  # both end at their lower bounds
    np.testing.assert_allclose(flat(record.after), lowest, rtol=1e-14)


def test_agreement_is_measured_in_the_order_of_the_network(problem, engine, rule):
    record = next(tune(problem, engine, DrMAD("C1"), rule, 1, compare_exact=True))
    found = record.agreement["l2"]
    assert list(found.layers) == list(problem.initial_hyper()["l2"]) == ["dense1/W", "logits/W"]
    # u = −4 everywhere: exact −1, the method −.5: the same direction, half as long
    assert (found.total.cosine, found.total.signs, found.total.norm_ratio) == (
        pytest.approx(1.0),
        1.0,
        pytest.approx(0.5),
    )
    assert found.total.size == 64 * 5 + 5 * 10


@pytest.mark.parametrize(
    ("method", "compare", "keeps"),
    [
        (DrMAD("C1"), False, ["ends", "ends", "ends"]),
        (DrMAD("C1"), True, ["memory", "memory", "memory"]),
        (Exact(), False, ["memory", "memory", "memory"]),
        (Exact(), True, ["memory", "memory", "memory"]),
    ],
)
def test_states_are_kept_only_where_they_are_needed_and_let_go(problem, engine, rule, method, compare, keeps):
    records = list(tune(problem, engine, method, rule, 2, compare_exact=compare))
    assert [t.keep for t in engine.trainings] == keeps
    assert all(t.trajectory is None or t.trajectory.closed for t in engine.trainings)
    assert [r.agreement is None for r in records] == (
        [True] * 3 if method == Exact() or not compare else [False, False, True]
    )


def test_a_training_that_has_blown_up_without_overflow_is_said(problem, engine, rule):
    """‖w‖ grew to 4e28 times its start: finite, with a finite loss, and not a word was said."""
    engine.growth = 4e28
    records = list(tune(problem, engine, Exact(), rule, 1))
    for record in records:
        (sentence,) = record.warnings
        assert sentence.startswith("the training has blown up: ‖w‖ grew from 2 to 8e+28")
        assert record.as_json()["warnings"] == [sentence]
    assert tuning.warnings_of([r.as_json() for r in records])[1].startswith("meta-iteration 1: the training has")
    engine.growth = 100.0
    assert [r.warnings for r in tune(problem, engine, Exact(), rule, 1)] == [(), ()]
    assert "warnings" not in next(tune(problem, engine, Exact(), rule, 1)).as_json()


@pytest.mark.usefixtures("without_figures")
def test_what_has_blown_up_is_in_log_report_and_collection(make_run, tmp_path, capsys):
    folder = make_run(tmp_path / "drmad-digits" / "a", growth=4e28)
    sentence = "the training has blown up: ‖w‖ grew from 2 to 8e+28"
    page = writing.write_report(folder).read_text(encoding="utf-8")
    assert page.count(f"Warning: meta-iteration 0: {sentence}") == 1
    display.show_end(display.Voice(), runs.read_metrics(folder), [], folder)
    assert capsys.readouterr().out.count(sentence) == 4, "a training before each of three updates and one after them"
    assert cli.main(["collect", str(tmp_path)]) == 0
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_two_hypergradients_of_zero_have_no_cosine(make_run, tmp_path, capsys):
    """It was 1.000: the same direction. Tables show a dash, figures a gap, collections nothing."""
    folder = make_run(tmp_path / "drmad-digits" / "a", zero=True)
    lines = runs.read_metrics(folder)
    assert lines[0]["agreement"]["l2"]["total"]["cosine"] is None
    display.show_end(display.Voice(), lines, [], folder)
    assert re.search(r"l2 +0 +– +100.0 %", capsys.readouterr().out)
    page = writing.write_report(folder).read_text(encoding="utf-8")
    assert "<td>l2</td><td>–</td><td>100.00 %</td>" in page
    assert not any("l2_cosine" in row.values for row in rows.of_run(folder))
    assert cli.main(["compare", str(folder), str(folder)]) == 0
    assert "–" in capsys.readouterr().out


def test_the_length_of_training_may_change(problem, engine, rule):
    records = list(tune(problem, engine, DrMAD("C1"), rule, 2, steps=lambda k: 6 + k))
    assert [r.steps for r in records] == [6, 7, 8]
    assert [t.problem.steps for t in engine.trainings] == [6, 7, 8]
    assert engine.trainings[0].problem is problem  # a new problem compiles anew, so only where T changes
    same = list(tune(problem, engine, DrMAD("C1"), rule, 2))
    assert [t.problem for t in engine.trainings[3:]] == [problem] * len(same)


def test_the_length_of_a_schedule_may_not(make_problem, engine, rule):
    scheduled = make_problem(hyperparameters=(LearningRate(init=0.3, per_step=True),))
    with pytest.raises(UsageError, match=r"learning_rate per step: the 6 values .* a training of 7 steps"):
        next(tune(scheduled, engine, DrMAD("C1"), rule, 2, steps=lambda k: 6 + k))
    assert not engine.trainings
    assert len(list(tune(scheduled, engine, DrMAD("C1"), rule, 1, steps=lambda k: 6))) == 2


@pytest.mark.parametrize(
    ("method", "steps", "match"),
    [
        (DrMAD("C4"), lambda k: 6 - k, "this run has 4"),
        (Implicit("dense", most=9), None, r"parameters, allowed are 9; use implicit-cg"),
    ],
)
def test_what_cannot_go_back_is_refused_before_the_first_training(make_problem, engine, rule, method, steps, match):
    """At any of the lengths that are to come."""
    with pytest.raises(UsageError, match=match):
        next(tune(make_problem(hyperparameters=(L2(),)), engine, method, rule, 3, steps=steps))
    assert not engine.trainings


def test_an_empty_valid_split_is_refused_before_anything_is_computed(make_problem, engine, rule):
    splits = hypertrail_data.make_splits(hypertrail_data.load("digits"), 40, 0, 0, 20, seed=0)
    with pytest.raises(UsageError, match="the valid split is empty"):
        next(tune(make_problem(splits=splits), engine, Exact(), rule, 0))
    assert not engine.trainings


@pytest.mark.parametrize("stage", ["evaluate", "hypergradient"])
def test_states_are_let_go_after_a_failure(problem, engine, rule, monkeypatch, stage):
    def fails(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, stage, fails)
    with pytest.raises(KeyboardInterrupt):
        next(tune(problem, engine, Exact(), rule, 1))
    assert engine.trainings[0].trajectory.closed


def test_states_are_let_go_after_a_failure_at_the_end(problem, engine, rule, monkeypatch):
    monkeypatch.setattr(engine, "hyper_loss", lambda *_: 1 / 0 if engine.trainings else 0.0)
    monkeypatch.setattr(engine, "evaluate", lambda *_: Metrics(0.0, 0.0, 1))
    with pytest.raises(ZeroDivisionError):
        next(tune(problem, engine, Exact(), rule, 0))
    assert engine.trainings[0].trajectory.closed


def test_no_meta_iterations_only_measures(problem, engine, rule):
    records = list(tune(problem, engine, Exact(), rule, 0))
    assert [r.hypergradient for r in records] == [None]
    with pytest.raises(UsageError, match="meta-iterations -1"):
        list(tune(problem, engine, Exact(), rule, -1))


def test_a_nan_hypergradient_stops_the_loop_before_anything_moves(problem, engine, rule):
    engine.fails = 1
    loop = tune(problem, engine, DrMAD("C1"), rule, 3)
    first = next(loop)
    assert first.index == 0
    with pytest.raises(NumericalFailure, match=r"hypergradient of l2 for .* at step 1"):
        next(loop)


def test_a_split_whose_loss_is_not_finite_is_named(problem, engine, rule, monkeypatch):
    good = engine.evaluate
    monkeypatch.setattr(
        engine, "evaluate", lambda p, t, s: replace(good(p, t, s), loss=np.inf) if s == "test" else good(p, t, s)
    )
    with pytest.raises(NumericalFailure, match="loss on test in meta-iteration 0"):
        next(tune(problem, engine, Exact(), rule, 1))


def test_progress_names_meta_iteration_and_stage(problem, engine, rule):
    heard = []
    list(tune(problem, engine, Exact(), rule, 1, report=lambda *words: heard.append(words)))
    train = [(0, "train", 0, 6), (0, "train", 6, 6)]
    assert heard == [*train, (0, "hypergradient", 0, 6), *[(1, *words) for _, *words in train]]


# -- what lies in the folder ----------------------------------------------------------------------------------------------


def test_a_line_of_metrics_per_meta_iteration(run_folder):
    lines = runs.read_metrics(run_folder)
    assert [line["meta_iteration"] for line in lines] == [0, 1, 2, 3]
    first, last = lines[0], lines[-1]
    assert set(first["metrics"]) == {"train", "valid", "select", "test"}
    assert set(first["metrics"]["test"]) == {"loss", "error", "examples"}
    assert first["metrics"]["test"]["loss"] == pytest.approx(first["hyper_loss"] + 0.3)
    assert first["method"] == "drmad-C4"
    assert first["diagnostics"]["N"] == 7
    assert first["cost"]["train"] == {"gradients": 6, "hvps": 0, "seconds": 0.5, "trajectory_bytes": 1000}
    assert set(first["cost"]) == {"train", "evaluate", "hypergradient", "exact"}
    assert first["steps"] == 6
    assert first["hyper"]["l2"] == {"mean": -4.0, "min": -4.0, "max": -4.0}
    total = first["agreement"]["l2"]["total"]
    assert (total["cosine"], total["norm_ratio"]) == (pytest.approx(1.0), pytest.approx(0.5))
    assert len(first["agreement"]["l2"]["layers"]) == 19
    assert "agreement" not in last
    assert "method" not in last
    assert set(last["cost"]) == {"train", "evaluate"}
    for text in (run_folder / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in metrics.jsonl"))


def test_states_and_hypergradients_lie_beside_the_lines(run_folder, digits_experiment):
    names = [sorted(p.name for p in (run_folder / folder).iterdir()) for folder in ("states", "hypergradients")]
    assert names == [[f"000{k}.npz" for k in range(4)], [f"000{k}.npz" for k in range(3)]]
    config = digits_experiment.Config(outer_rate=0.2)
    rule = digits_experiment.rule(config)
    declared = digits_experiment.problem(config).hyperparameters
    for k in range(3):
        hyper, state = arrays.load_state(run_folder / "states" / f"000{k}.npz")
        after, state_after = arrays.load_state(run_folder / "states" / f"000{k + 1}.npz")
        h = arrays.load(run_folder / "hypergradients" / f"000{k}.npz")
        again, state_again = outer.update(rule, declared, hyper, h["hypergradient"], state)
        np.testing.assert_array_equal(flat(again), flat(after))
        np.testing.assert_array_equal(flat(state_again.slots["u"]), flat(state_after.slots["u"]))
        assert (state.count, state_after.count) == (k, k + 1)
        np.testing.assert_allclose(flat(h["exact"]), flat(hyper) + 3, rtol=1e-12)


def test_what_was_measured_at_every_step_lies_beside_them_too(run_folder):
    """(T,) losses of every training, (N,) adjoint norms of the method's way back and of the exact one's."""
    files = sorted((run_folder / "steps").iterdir())
    assert [file.name for file in files] == [f"000{k}.npz" for k in range(4)]
    for k, file in enumerate(files):
        found = {key: one.shape for key, one in arrays.load(file).items()}
        assert found == {"loss": (6,)} | ({} if k == 3 else {"adjoint": (7,), "exact_adjoint": (7,)})
    hyper, _ = arrays.load_state(run_folder / "states" / "0002.npz")
    assert arrays.load(files[2])["loss"][-1] == pytest.approx(((flat(hyper) + 3) ** 2).sum() / 2 / 1e4)
    line = runs.read_metrics(run_folder)[1]
    assert line["memory"]["host"] > 1e6
    assert line["memory"]["device"] is None


@pytest.mark.usefixtures("without_figures")
def test_a_failed_run_keeps_its_last_good_state(make_run, tmp_path):
    with pytest.raises(NumericalFailure):
        make_run(tmp_path / "folder", fails=2)
    folder = tmp_path / "folder"
    assert runs.status(folder).startswith("failed: NumericalFailure: hypergradient of l2 for first.conv/W")
    assert not (folder / "DONE").exists()
    assert [line["meta_iteration"] for line in runs.read_metrics(folder)] == [0, 1]
    hyper, state = arrays.load_state(folder / "states" / "0002.npz")
    assert state.count == 2
    assert np.isfinite(flat(hyper)).all()
    assert not (folder / "states" / "0003.npz").exists()
    assert "failed: NumericalFailure" in (folder / "log.txt").read_text()
    assert "failed: NumericalFailure" in (folder / "report.html").read_text()


def test_a_trajectory_on_disk_lies_in_the_folder(make_run):
    folder = make_run(trajectory="disk")
    assert (folder / "trajectory").is_dir()
    assert len(runs.read_metrics(folder)) == 4


@pytest.mark.parametrize(
    ("method", "also_exact", "keep", "kept"),
    [
        ("drmad-C4", False, "memory", "ends"),
        ("drmad-C4", True, "memory", "memory"),
        ("exact", False, Reversible(), Reversible()),
        ("drmad-C6", False, "memory", Checkpoints()),
        ("drmad-C6", True, "memory", Checkpoints()),
        ("drmad-C6", True, Checkpoints(3), Checkpoints(3)),
        ("truncated-7", False, "memory", Last(7)),
        ("truncated-7", True, "auto", "auto"),
        ("forward", False, "memory", "ends"),
    ],
)
def test_a_training_run_keeps_what_its_method_needs(method, also_exact, keep, kept):
    assert tuning.keep_for(parse_method(method), also_exact, keep) == kept
