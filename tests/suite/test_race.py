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
from hypertrail.interval import with_half
from hypertrail.online import Plain
from hypertrail.race import race, report
from hypertrail.race.arms import Arm
from hypertrail_nets import count_params


def record(select, test, valid=0.1, failed=None, name="plain", seconds=(9.0, 1.0, 1.0), steps=10):
    def metrics(error):
        return {"error": error, "loss": error}

    ends = {"train": metrics(0.0), "valid": metrics(valid), "select": metrics(select), "test": metrics(test)}
    return {
        "failed": failed,
        "points": [] if failed else [{"block": 2, "gradients": 30, "metrics": ends}],
        "method": {"name": name},
        "schedule": "constant",
        "start": {},
        "seed": 0,
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
    assert [row[-1] for row in who.rows] == ["tuned", "ties", "helps"]
    assert who.rows[2][5:8] == ["36.00 ± 63.53", "+26.00", "-9.00 ± 0.00"]
    assert loss.rows[2][5:8] == ["360.0 ± 635.3", "+260.0", "-90.0 ± 0.0"]
    assert "Not finite with some seed, and out: a3, x" in who.text
    assert [row[-1] for row in cost.rows] == ["1.00", "1.00", "2.00"]
    assert cost.rows[2][4:7] == ["2000.0", "1000.0", "1000.0"]
    assert len(pictures.pictures) == 4
    assert all(path.stat().st_size > 10_000 for path in pictures.pictures.values())


def test_intervals_and_verdicts():
    assert with_half(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), ".3f") == "3.000 ± 1.963"  # t 2.7764
    assert with_half(np.array([1.0]), "+.1f") == "+1.0"
    hundred = np.arange(100.0)  # t 1.98422, which the normal distribution's 1.96 is not
    assert with_half(hundred, ".2f") == f"49.50 ± {1.98422 * np.std(hundred, ddof=1) / 10:.2f}"
    far = (
        np.tile([0.0, 1.0], 10) - 0.5 + 0.235
    )  # 20 seeds: mean .235, t 2.0930 · sd / √20 = .2401, and 1.96 would be .2248
    assert race.verdict(far) == "ties"
    assert race.verdict(np.array([-2.0, -2.1, -1.9])) == "helps"
    assert race.verdict(np.array([2.0, 2.1, 1.9])) == "loses"
    assert race.verdict(np.array([-1.0, 1.1, 0.2])) == "ties"
    assert race.verdict(np.array([-1.0])) == "one seed"


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
    rng = np.random.default_rng(0)

    def load(name, data_dir=None):
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
        assert one.first["gradients"] <= 160
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
