"""Races: who is chosen by what, verdicts whose intervals are known, and the three adaptive experiments at their smallest."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hypertrail_data
from hypertrail import UsageError, cli
from hypertrail.adapting import refuse
from hypertrail.experiments import _adaptive, adaptive_densenet, adaptive_digits, adaptive_mnist
from hypertrail.hyperparameters import count
from hypertrail.online import Plain
from hypertrail.race import drawing, race, report
from hypertrail.race.arms import Arm
from hypertrail_nets import count_params


def record(select, test, valid=0.1, failed=None, name="plain", seconds=(9.0, 1.0, 1.0), steps=10):
    def metrics(error):
        return {"error": error, "loss": error, "examples": 1000}

    ends = {"train": metrics(0.0), "valid": metrics(valid), "select": metrics(select), "test": metrics(test)}
    return {
        "failed": failed,
        "points": [] if failed else [{"block": 2, "gradients": 30, "metrics": ends}],
        "method": {"name": name},
        "schedule": "constant",
        "start": {},
        "seed": 0,
        "budget": 36,
        "gradients": 36,
        "price": steps + 2,
        "steps": 3 * steps,
        "block": {"steps": [steps] * 3, "processor": list(seconds), "seconds": list(seconds)},
        "hyper": {},
    }


@pytest.fixture
def folder(tmp_path):
    """Two baselines with two settings and one method, two seeds."""
    found = {
        "a1": [record(0.10, 0.20), record(0.20, 0.30)],
        "a2": [record(0.05, 0.40), record(0.05, 0.50)],  # best on select, not on test
        "a3": [record(0.00, 0.00), record(0.0, 0.0, failed="loss is not finite at step 3")],
        "b1": [record(0.06, 0.10), record(0.06, 0.10)],
        "m": [record(0.3, 0.31, name="m", seconds=(9, 2, 2)), record(0.3, 0.41, name="m", seconds=(9, 2, 4))],
        "x": [record(0, 0, failed="it fell"), record(0, 0, failed="it fell")],
    }
    (tmp_path / "parts").mkdir()
    for name, ones in found.items():
        for seed, one in enumerate(ones):
            (tmp_path / "parts" / f"s{seed}-{name}.json").write_text(json.dumps(one))
    families = {"a": ["a1", "a2", "a3"], "b": ["b1"], "method": ["m"], "x": ["x"]}
    line = {"families": families, "baselines": ["a", "b"], "seeds": [0, 1], "budget": 36, "clock": "processor"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


def test_choices_are_made_on_select_and_judged_on_test(folder):
    result = race.read(folder)
    assert [(one.family, one.arm) for one in result.runners] == [("a", "a2"), ("b", "b1"), ("method", "m")]
    assert result.tuned is result.runners[0], "the best on select, though b is better on test"
    assert result.failed == ["a3", "x"]
    np.testing.assert_array_equal(result.tuned.at_end("test"), [0.40, 0.50])
    assert result.plain_seconds == pytest.approx(0.1), "without the first block"
    assert result.runners[2].seconds == 2


def test_what_it_shows(folder):
    who, loss, cost, pictures = report.show(folder)
    assert [row[0] for row in who.rows] == ["a", "b", "method"]
    assert [row[-1] for row in who.rows] == ["tuned", "2 seeds: no verdict", "2 seeds: no verdict"]
    assert who.rows[2][5:8] == ["36.00 (0.00 to 99.53)", "+26.00", "-9.00 ± 0.10"], "one example of 1,000"
    assert loss.rows[2][5:8] == ["360.0 ± 635.3", "+260.0", "-90.0 ± 0.0"]
    assert "Not finite with some seed, and out: a3, x" in who.text
    assert [row[-1] for row in cost.rows] == ["1.00", "1.00", "2.00"]
    assert cost.rows[2][4:7] == ["2000.0", "1000.0", "1000.0"]
    assert len(pictures.pictures) == 4
    assert all(path.stat().st_size > 10_000 for path in pictures.pictures.values())


def race_of(folder, found, families, baselines, seeds):
    (folder / "parts").mkdir(parents=True)
    for name, ones in found.items():
        for seed, one in zip(seeds, ones, strict=True):
            (folder / "parts" / f"s{seed}-{name}.json").write_text(json.dumps(one | {"seed": seed}))
    line = {"families": families, "baselines": baselines, "seeds": seeds, "budget": 36, "clock": "processor"}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return race.read(folder)


def three(select, test, **more):
    return [record(select, test + i / 1000) | more for i in range(3)]


def verdicts_of(result):
    return {row[0]: row[-1] for row in report.ranks(result, "error", 100, 2)}


def test_a_start_at_the_edge_of_its_grid_is_marked_beside_the_verdict(tmp_path):
    """Three rates and one penalty: the tuned one is the largest rate, the method's the middle one; a single arm has no grid."""
    found = {
        f"{name}-{rate}": three(select, test, start={"learning_rate": rate, "l2": 1e-3})
        for name, rate, select, test in (
            ("plain", 0.1, 0.3, 0.3), ("plain", 0.3, 0.2, 0.2), ("plain", 1.0, 0.1, 0.1),
            ("m", 0.1, 0.3, 0.3), ("m", 0.3, 0.2, 0.2), ("m", 1.0, 0.3, 0.3),
        )
    }  # fmt: skip
    found["one"] = three(0.2, 0.3, start={"learning_rate": 1.0})
    families = {"plain": list(found)[:3], "m": list(found)[3:6], "one": ["one"]}
    assert verdicts_of(race_of(tmp_path, found, families, ["plain"], [0, 1, 2])) == {
        "plain": "tuned; α 1 at the edge of the grid",
        "m": "loses",
        "one": "loses",
    }


def test_the_grid_of_a_method_is_what_differs_in_numbers_alone():
    """Δ 10 among 10 and 50 is at the edge; another method, or another word, is no point of the grid."""
    settings = {
        "a": {"name": "rtho", "every": 10, "restart": False},
        "b": {"name": "rtho", "every": 50, "restart": False},
        "c": {"name": "rtho", "every": 5, "restart": True},
        "d": {"name": "marthe", "every": 1, "restart": False},
    }
    records = {name: [record(0.1, 0.1) | {"method": method}] for name, method in settings.items()}
    assert race.edge_of("a", list(records), records) == "Δ 10 at the edge of the grid"
    assert race.edge_of("d", list(records), records) == ""


def test_unequal_budgets_and_lost_trainings_are_said_beside_the_verdict(tmp_path):
    """A whole block of 12 gradients is missing; one step of it, two gradients, would not be worth a word."""
    found = {
        "plain": three(0.1, 0.1),
        "short": three(0.2, 0.2, gradients=24),
        "nearly": three(0.2, 0.2, gradients=34),
        "lost": [record(0.2, 0.2), record(0.2, 0.2), record(0.2, 0.2) | {"blown_up": "‖w‖ grew from 1 to 4e28"}],
    }
    result = race_of(tmp_path, found, {name: [name] for name in found}, ["plain"], [0, 1, 2])
    assert verdicts_of(result) == {
        "plain": "tuned",
        "short": "loses; only 24 of 36 gradients",
        "nearly": "loses",
        "lost": "loses; blown up with seed 2",
    }
    assert "blown up with some seed: lost" in report.standings(result).text


def test_the_start_and_a_single_measurement_are_drawn(tmp_path):
    start = {split: {"error": 0.9, "loss": 2.3, "examples": 1000} for split in ("train", "valid", "select", "test")}
    ones = [record(0.1, 0.1) for _ in range(3)]
    for one in ones:
        one["points"].insert(0, {"block": -1, "gradients": 0, "step": 0, "metrics": start})
    result = race_of(tmp_path, {"plain": ones}, {"plain": ["plain"]}, ["plain"], [0, 1, 2])
    (line,) = drawing.errors(result).axes[0].get_lines()
    assert list(line.get_xdata()) == [0, 30]
    assert list(line.get_ydata()) == pytest.approx([90, 10])
    alone = race_of(tmp_path / "alone", {"plain": [record(0.1, 0.1)]}, {"plain": ["plain"]}, ["plain"], [0])
    assert len(drawing.errors(alone).axes[0].get_lines()[0].get_xdata()) == 1


def test_no_seed_chooses_on_test_images_of_another():
    """Five seeds of the digits: one set of test rows, in nobody's select; the other splits are each seed's own."""
    splits = [adaptive_digits.problem(adaptive_digits.Config(seed=seed)).splits for seed in range(5)]
    test = set(splits[0].test.rows.tolist())
    assert len(test) == 497
    for one in splits:
        assert set(one.test.rows.tolist()) == test
        for split in (one.train, one.valid, one.select):
            assert not test & set(split.rows.tolist())
    assert set(splits[0].select.rows.tolist()) != set(splits[1].select.rows.tolist())


def test_train_and_valid_together():
    problem = adaptive_digits.problem(adaptive_digits.Config(train=20, valid=40, select=5, test=5, batch=4))
    both = race.joined(problem)
    assert len(both.splits.train) == both.schedule.examples == 60
    assert both.schedule.indices(0, 15).max() == 59
    np.testing.assert_array_equal(both.splits.train.x[20:], problem.splits.valid.x)
    np.testing.assert_array_equal(both.splits.train.y[:20], problem.splits.train.y)
    assert both.splits.valid is problem.splits.valid
    assert len(np.unique(both.splits.train.rows)) == 60


def test_families_must_be_those_of_the_arms():
    arm = Arm("a", Plain(5))
    for arms, families, baselines in (
        ([arm], {"f": ["b"]}, ["f"]),
        ([arm, arm], {"f": ["a"]}, ["f"]),
        ([arm], {"f": ["a"]}, ["g"]),
    ):
        with pytest.raises(UsageError, match="do not fit the arms"):
            race.run(None, None, None, lambda seed: None, arms, families, baselines, [0], 10, 1)


def test_an_arm_that_cannot_run_is_refused_before_any_is_trained():
    """Ten validation batches of 64 are more than 400 images; without an engine, training would be an AttributeError."""
    config = adaptive_digits.Config(batch=64)
    both = [Arm("plain", Plain(131)), Arm("adaptive", _adaptive.adaptive(131, 4))]
    families = {"plain": ["plain"], "adaptive": ["adaptive"]}
    with pytest.raises(UsageError, match="10 validation batches of 64 are more than the 400 examples"):
        race.run(None, None, None, lambda seed: adaptive_digits.problem(config), both, families, [], [0], 10_000, 1)


@pytest.fixture
def blank_data(monkeypatch):
    def load(name, data_dir=None):
        rng = np.random.default_rng(0)  # the same data at every call: a run refuses others than it began with
        n, official, shape = {
            "mnist": (90, 20, (28, 28, 1)),
            "cifar10": (90, 20, (32, 32, 3)),
            "digits": (90, 0, (8, 8, 1)),
        }[name]
        x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        return hypertrail_data.Dataset(name, x, rng.integers(0, 10, n).astype(np.int32), 10, official, 255)

    monkeypatch.setattr(hypertrail_data, "load", load)


SMALL = "--repeats 1 --rates 0.3 --batch 4 --train 8 --valid 40 --select 10 --test 10 --engine cpu"


def run(capsys, folder, name, words):
    assert cli.main(["run", name, "--run-dir", str(folder), *f"{SMALL} {words}".split()]) == 0
    said = capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    return said, page


@pytest.mark.slow
def test_adaptive_digits(tmp_path, capsys):
    words = "--budget 160 --every 1 --penalties 1e-4 --hidden 3"
    said, page = run(capsys, tmp_path / "run", "adaptive-digits", words)
    result = race.read(tmp_path / "run")
    assert [one.family for one in result.runners] == [
        "constant rate",
        "step schedule",
        "cosine schedule",
        "cosine, valid trained on",
        "adaptive 131-4",
        "adaptive 131-4, start chosen",
        "adaptive 131-4, look-ahead",
        "adaptive 100-5",
        "only rates move",
        "only L2 moves, cosine rates",
    ]
    for one in result.runners:
        assert one.family in said
        assert one.family in page
        assert one.first["gradients"] == 160
    pictures = {p.stem for p in (tmp_path / "run" / "figures").iterdir()}
    assert {"race-error", "race-splits", "race-gap", "race-overhead", "race-l2-adaptive-131-4"} <= pictures
    assert "race-learning_rate-only-l2-moves-cosine-rates" not in pictures
    assert {p.name for p in (tmp_path / "run" / "arms").iterdir()} == set()


@pytest.mark.slow
def test_adaptive_mnist(blank_data, tmp_path, capsys):
    words = "--budget 160 --every 1 --penalties 1e-4 --hidden 3"
    assert "adaptive 100-5" in run(capsys, tmp_path / "run", "adaptive-mnist", words)[0]


def test_adaptive_densenet_as_published():
    """Go on from w_{T−K} and skip the K batches, steps undone in floating point, the output layer averaged."""
    config = adaptive_densenet.Config(as_published=True, rates=(0.1,), baselines=("constant",))
    assert config.modes == ("as-published",)
    _, arms = adaptive_densenet.families(config).items()
    assert arms[0] == "adaptive 131-4, as-published"
    (arm,) = arms[1]
    assert (arm.method.mode, arm.method.states, arm.method.average_output) == ("as-published", "undone", True)


@pytest.mark.slow
def test_adaptive_densenet(blank_data, tmp_path, capsys):
    words = "--block 3 --validation-batches 2 --budget 20 --every 1 --depth 7 --growth 2 --first-output 2"
    said, _ = run(capsys, tmp_path / "run", "adaptive-densenet", f"--setting 100-5 {words}")
    assert "adaptive 3-2, restore" in said
    assert "adaptive 3-2, look-ahead" in said


def test_the_settings_are_the_published_ones(blank_data):
    for name, n, K, train, valid in (
        ("100-5", 100, 5, 38_000, 10_000),
        ("131-4-14k", 131, 4, 34_000, 14_000),
        ("131-4-22k", 131, 4, 26_000, 22_000),
    ):
        config = adaptive_densenet.Config(setting=name)
        assert config.sizes == (train, valid)
        method = adaptive_densenet.families(config)[f"adaptive {n}-{K}, restore"][0].method
        assert (method.steps, method.last, method.validation_batches) == (n, K, 10)
        assert (method.move("l2"), method.move("learning_rate"), method.mass) == (0.01, 0.1, 0.0)
    problem = adaptive_densenet.problem(adaptive_densenet.Config(train=20, valid=20, select=10, test=10, batch=5))
    hyper = problem.initial_hyper()
    assert (count({"l2": hyper["l2"]}), count(hyper)) == (1_010_664, 1_010_664 + count_params(problem.network))
    assert {kind: one.bounds for kind, one in ((h.kind, h) for h in problem.hyperparameters)} == {
        "l2": (1e-7, 1e-2),
        "learning_rate": (1e-5, 1.0),
    }
    for module in (adaptive_digits, adaptive_mnist):
        config = module.Config(train=20, valid=40, select=5, test=5, batch=4)
        for families in adaptive_families(config):
            for arm in families:
                refuse(module.problem(config), arm.method)
                arm.first_hyper(module.problem(config))


def adaptive_families(config):
    return _adaptive.small_families(config).values()


def test_settings_that_cannot_be():
    for words in ({"repeats": 0}, {"rates": ()}, {"penalties": (0.0,)}, {"budget": 0}, {"every": 0}):
        for module in (adaptive_digits, adaptive_mnist, adaptive_densenet):
            with pytest.raises(UsageError, match="expected"):
                module.Config(**words)
    for words in ({"block": 1}, {"modes": ()}, {"baselines": ()}):
        with pytest.raises(UsageError, match="expected"):
            adaptive_densenet.Config(**words)
