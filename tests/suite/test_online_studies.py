"""The studies of the online methods: tiny ones, end to end, their numbers against computations of their own."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

import hypertrail_data
from hypertrail import Almeida, HypergradientDescent, Plain, Problem, UsageError, cli, runs
from hypertrail.experiments import almeida_quadratic, hd_mnist, rtho_mnist, t1t2_mnist
from hypertrail.outer import Adam
from hypertrail.race import race
from hypertrail.race.arms import Arm, refuse_arm
from hypertrail.records import Cost
from hypertrail_nets import count_params


@pytest.fixture
def blank_mnist(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (90, 28, 28, 1), dtype=np.uint8)
    blank = hypertrail_data.Dataset("mnist", x, rng.integers(0, 10, 90).astype(np.int32), 10, 20, 255)
    monkeypatch.setattr(hypertrail_data, "load", lambda name, data_dir=None: blank)


def taken_up(name, folder, *words):
    """The same run without its end: the same line again, and no part computed anew; how many parts there are."""
    (folder / "DONE").unlink()
    before, line = parts(folder), runs.read_metrics(folder)[-1]
    assert run(name, folder, *words) == line
    assert parts(folder) == before
    return len(before)


def parts(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}


def run(name, folder, *words):
    """A whole run on the reference engine, and what it drew; a second start of the same folder does nothing."""
    command = ["run", name, "--engine", "cpu", *words, "--run-dir", str(folder)]
    assert cli.main(command) == 0
    page = (folder / "report.html").read_text()
    assert page.count("<img") == len(list((folder / "figures").iterdir())) > 0
    return runs.read_metrics(folder)[-1]


# -- almeida-quadratic ---------------------------------------------------------------------------------------------------


def test_quadratics_are_walked_as_by_hand(tmp_path):
    """Every rule on the deterministic turned problem, in a loop that shares no line with the engine."""
    config = almeida_quadratic.Config(weights=4, condition=10, steps=40, examples=32, repeats=1)
    here = almeida_quadratic.problem(config, "turned", "parameter")
    assert np.linalg.eigvalsh(here.H) == pytest.approx(np.logspace(-1, 0, 4))
    from hypertrail import engines

    engine = engines.load("cpu")
    for method, rule in (
        (Plain(20), lambda s, g: s["p"]),
        (Almeida(0.05, block=20), almeida),
        (HypergradientDescent("additive", 0.05, 20), lambda s, g: s["p"] + 0.05 * g * s["last"]),
    ):
        found = almeida_quadratic.walk(engine, here, 0.3, method)
        w = here.initial_weights()["logits/W"].ravel()
        start, curve = here.excess(w), []
        s = {"p": np.full(4, 0.3), "last": np.zeros(4), "v": np.zeros(4)}
        for t in range(40):
            g = here.H @ w
            s["p"] = rule(s, g)
            w, s["last"] = w - s["p"] * g, g
            if t % 20 == 19:
                curve.append(here.excess(w) / start)
        assert found == {"curve": pytest.approx(curve, rel=1e-9), "diverged": None}


def almeida(s, g):
    s["v"] = 0.9 * s["v"] + 0.1 * g**2
    return s["p"] * np.maximum(0.5, 1 + 0.05 * g * s["last"] / s["v"])


def test_noise_has_mean_0_and_the_size_asked_for():
    config = almeida_quadratic.Config(examples=4096, batch=16)
    ξ = almeida_quadratic.problem(config).splits.train.x[:, 0, :, 0]
    assert np.abs(ξ.mean(axis=0)).max() < 1e-12
    assert ξ.std() / 4 == pytest.approx(0.3, rel=0.02)
    assert not almeida_quadratic.problem(config, "turned").splits.train.x.any()


def test_what_is_said_of_a_run():
    good = {"curve": [0.5, 0.25, 0.001], "diverged": None}
    assert almeida_quadratic.regret(good) == pytest.approx(0.751 / 3)
    assert [almeida_quadratic.arrival(good, x) for x in (0.3, 1e-9)] == [40, np.inf]
    assert almeida_quadratic.regret({"curve": [], "diverged": 7}) == np.inf


def test_almeida_quadratic(tmp_path, capsys):
    words = ["--weights", "3", "--steps", "20", "--examples", "32", "--repeats", "1", "--rates", "0.1", "5"]
    line = run("almeida-quadratic", tmp_path / "run", *words)
    arms = [label for label in almeida_quadratic.ARMS if not label.startswith("HDM")]
    assert [one["arm"] for one in line["runs"]] == 4 * arms, "the reference engine has no HDM"
    plain = line["runs"][0]["runs"]
    assert plain[0]["diverged"] is None
    assert plain[1]["diverged"] == 10, "5 is above 2 over the largest curvature"
    said = capsys.readouterr().out
    assert "diverges" in said
    assert "Turned, noisy" in said
    with pytest.raises(UsageError, match="condition - 1"):
        almeida_quadratic.Config(condition=1)


def test_almeida_quadratic_on_the_engine_of_the_command(tmp_path):
    """The compiled engine passes every argument of a loss, and has HDM."""
    from hypertrail import engines

    config = almeida_quadratic.Config(weights=3, steps=20, examples=32, rates=(0.1,))
    here = almeida_quadratic.problem(config, "turned", "parameter")
    found = almeida_quadratic.walk(engines.load("gpu"), here, 0.1, almeida_quadratic.ARMS["HDM, η .1"][1](10))
    assert (len(found["curve"]), found["diverged"]) == (1, None)
    assert found["curve"][0] < 0.9


def test_every_rule_has_the_same_budget_of_gradients():
    """An engine whose steps cost two: half of them, looked at as often."""
    config = almeida_quadratic.Config(weights=3, steps=60, examples=32)
    here = almeida_quadratic.problem(config)
    taken = []

    class Engine:
        def adapt(self, problem, hyper, method):
            for k in range(100):
                taken.append(k)
                w = {"logits/W": 0.9**k * np.ones((3, 1))}
                yield SimpleNamespace(cost=Cost(gradients=2 * method.block_steps), state={"w": w})

    found = almeida_quadratic.walk(Engine(), here, 0.1, Plain(almeida_quadratic.STEPS))
    assert (len(taken), len(found["curve"]), found["diverged"]) == (3, 3, None)


def test_the_gain_is_a_range_over_starts_and_draws():
    def part(label, draw, *regrets):
        runs = [{"curve": [x], "diverged": None if x < 9 else 40} for x in regrets]
        return {"problem": "turned", "arm": label, "draw": draw, "runs": runs}

    found = [part("fixed", 0, 0.4, 0.2), part("fixed", 1, 0.1, 9), part("a", 0, 0.8, 0.02), part("a", 1, 0.1, 0.05)]
    np.testing.assert_allclose(almeida_quadratic.gains(found, "turned", "a"), [[0.25, 10], [1, 2]])
    assert almeida_quadratic.spread(almeida_quadratic.gains(found, "turned", "a")) == "0.25 to 10"
    assert almeida_quadratic.gains([*found, part("b", 0, 9), part("b", 1, 9)], "turned", "b").max() == 0


def test_one_draw_is_no_verdict_and_a_best_rate_at_the_edge_is_marked():
    def part(draw, *regrets):
        runs = [{"curve": [x], "diverged": None} for x in regrets]
        return {"problem": "turned", "arm": "fixed", "draw": draw, "runs": runs}

    rates = (0.001, 0.1, 1.9)
    inside, last = (0.5, 0.2, 0.3), (0.5, 0.4, 0.3)
    assert almeida_quadratic.remarks([part(0, *last)], "turned", rates) == [
        "1 draw: no verdict",
        "best fixed rate α 1.9 at the edge of the grid",
    ]
    three = [part(0, *inside), part(1, *inside), part(2, *last)]
    assert almeida_quadratic.remarks(three, "turned", rates) == [
        "best fixed rate α 0.1",
        "best fixed rate α 1.9 at the edge of the grid",
    ]


def test_a_chosen_rate_at_the_edge_of_its_grid_is_marked():
    def ends(*losses):
        return [
            {"optimiser": "sgd", "rate": α, "failed": None, "points": [{"metrics": {"select": {"loss": x}}}]}
            for α, x in zip((1e-3, 1e-2, 1e-1), losses, strict=True)
        ]

    assert hd_mnist.at_edge(ends(0.3, 0.2, 0.1), "sgd") == " (α 0.1 at the edge of the grid)"
    assert hd_mnist.at_edge(ends(0.3, 0.1, 0.2), "sgd") == ""
    assert hd_mnist.at_edge([], "sgd") == ""


def test_a_loss_of_ones_own_takes_what_the_engines_pass():
    takes, wanted = (inspect.signature(one.data_loss).parameters for one in (almeida_quadratic.Quadratic, Problem))
    assert list(takes) == list(wanted)


# -- hd-mnist ------------------------------------------------------------------------------------------------------------


def test_hd_mnist_is_the_released_setting(blank_mnist):
    paper = hd_mnist.Config()
    assert (paper.batch, paper.epochs, paper.learning_rate, paper.beta, paper.adam_beta) == (128, 10, 1e-3, 1e-3, 1e-7)
    small = hd_mnist.Config(train=20, select=5, test=10, batch=5)
    here = hd_mnist.problem(small, "mlp", "sgdn")
    assert count_params(here.network) == 784 * 1000 + 1000 + 1000 * 1000 + 1000 + 10_000 + 10
    assert (here.dynamics.kind, here.dynamics.momentum, here.l2) == ("nesterov", 0.9, 5e-5)
    for name, w in here.initial_weights().items():
        edge = 784**-0.5 if name.startswith("dense1") else 1000**-0.5
        assert np.abs(w).max() <= edge
        assert np.abs(w).max() > 0.8 * edge or w.size < 20
    assert here.steps == 40
    assert [arm.name for arm in hd_mnist.contenders(small, "logreg", "adam", 2)] == [
        "logreg-adam",
        "logreg-adam-hd",
        "logreg-adam-hdm",
    ]


def test_hd_mnist_as_published_has_the_decay_on_biases(blank_mnist):
    for as_published, matrices_alone in ((False, True), (True, False)):
        here = hd_mnist.problem(hd_mnist.Config(train=20, select=5, test=10, batch=5, as_published=as_published))
        values = here.values(here.initial_hyper())
        assert set(values["l2"]) == ({"logits/W"} if matrices_alone else {"logits/W", "logits/b"})


def test_hd_mnist(blank_mnist, tmp_path, capsys):
    words = ["--train", "40", "--test", "10", "--batch", "5", "--epochs", "2", "--mlp-epochs", "3", "--hidden", "4"]
    words += ["--rates", "0.001", "0.05", "--select", "15", "--repeats", "2"]  # .001 is trained anyway
    line = run("hd-mnist", tmp_path / "run", *words)
    labels = ["SGD", "SGD-HD", "SGD-HD×", "SGD, α 0.05", "SGDN", "SGDN-HD", "SGDN-HD×", "SGDN, α 0.05", "Adam",
              "Adam-HD", "Adam-HD×"]  # fmt: skip
    assert [hd_mnist.label(one) for one in line["arms"] if one["model"] == "logreg"] == 2 * labels
    assert [one["seed"] for one in line["arms"]] == 11 * [0] + 11 * [1] + 6 * [0], "the perceptron has one seed"
    published = ["SGD", "SGD-HD", "SGDN", "SGDN-HD", "Adam", "Adam-HD"]
    assert [hd_mnist.label(one) for one in line["arms"] if one["model"] == "mlp"] == published
    assert all(one["failed"] is None for one in line["arms"])
    rates = {hd_mnist.label(one): hd_mnist.last_rate(one) for one in line["arms"] if one["model"] == "logreg"}
    assert rates["SGD"] == pytest.approx(1e-3, rel=1e-4)
    assert rates["SGD, α 0.05"] == pytest.approx(0.05, rel=1e-4)
    assert abs(rates["SGD-HD"] / 1e-3 - 1) > 0.01
    assert 0.02 * 16 > abs(np.log(rates["SGD-HD×"] / 1e-3)) > 1e-4, "at most β in each of 16 steps"
    choices = line["choices"]
    assert [(one["seed"], one["optimiser"], one["rate"]) for one in choices] == [
        (seed, name, rate) for seed in (0, 1) for name in ("sgd", "sgdn") for rate in (1e-3, 0.05)
    ]
    assert {one["steps"] for one in choices} == {10}, "two epochs of the 25 images that are not select"
    assert set(choices[0]["points"][-1]["metrics"]) == {"train", "valid", "select", "test"}
    said = capsys.readouterr().out
    assert len(parts(tmp_path / "run")) == 2 * (11 + 4) + 6, "no two trainings have the same name"
    assert "0.3737" in said, "the published loss stands beside ours"
    assert (tmp_path / "run" / "report.html").read_text().count("(chosen)<") == 2
    steps = {one["model"]: {point["step"] for point in one["points"]} for one in line["arms"]}
    assert steps == {"logreg": set(range(0, 18, 2)), "mlp": {0, 8, 16, 24}}, (
        "the start, every quarter of an epoch, every epoch"
    )


def test_a_rate_is_chosen_on_select_whatever_the_test_loss():
    def end(rate, select, test, failed=None):
        metrics = {"select": {"loss": select}, "test": {"loss": test}}
        return {"optimiser": "sgd", "rate": rate, "failed": failed, "points": [{"metrics": metrics}]}

    choices = [
        end(0.1, 0.2, 9),
        end(0.1, 0.4, 9),
        end(1, 0.1, 0),
        end(1, 0.6, 0),
        end(5, 0, 0),
        end(5, 0, 0, "it fell"),
    ]
    assert hd_mnist.chosen(choices, "sgd") == 0.1
    assert hd_mnist.chosen(choices, "adam") is None
    assert hd_mnist.chosen(choices[-1:], "sgd") is None


# -- t1t2-mnist ----------------------------------------------------------------------------------------------------------


def test_t1t2_mnist(blank_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(t1t2_mnist, "BLOCK", 20)
    words = ["--train", "20", "--valid", "20", "--select", "10", "--test", "10", "--batch", "5", "--hidden", "4"]
    words += ["--penalties", "1e-4", "1e-2", "--noises", "0.1", "1", "--starts", "2", "--steps", "40"]
    words += ["--repeats", "2"]
    line = run("t1t2-mnist", tmp_path / "run", *words)
    points = [(1e-4, 0.1), (1e-4, 1), (1e-2, 0.1), (1e-2, 1)]
    assert [(one["seed"], one["l2"], one["noise"]) for one in line["grid"]] == [
        (s, *at) for s in (0, 1) for at in points
    ]
    assert [one["steps"] for one in line["grid"]] == [40] * 8
    assert [(one["seed"], one["start"]) for one in line["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert line["runs"][0]["path"][0] != line["runs"][2]["path"][0], "each seed has its own starts"
    for one in line["runs"]:
        path = np.array(one["path"])
        assert one["moved"]["steps"] == 31, (
            "20 steps cost 26 gradients, 10 more cost 13, the last gradient is a plain step"
        )
        assert path.shape == (4, 2)
        assert np.all(path[0] != path[1])
        assert 1e-4 <= path[0, 0] <= 1e-2
        assert 0.1 <= path[0, 1] <= 1
    again = runs.read_part(tmp_path / "run", "s0-start-1-again")
    end = line["runs"][1]["path"][-1]
    assert [again["start"]["l2"], again["start"]["noise"]] == pytest.approx(end)
    said = capsys.readouterr().out
    assert taken_up("t1t2-mnist", tmp_path / "run", *words) == 2 * (4 + 2 * 3)
    for words in ("grid, chosen on select", "start 1", "worst", "; less kept"):
        assert words in said


def test_t1t2_as_published():
    """What is replaced is what the configuration says, so that config.json has the values that were used."""
    config = t1t2_mnist.Config(as_published=True)
    assert (config.representation, config.outer_rate, config.learning_rate) == ("value", 1e-3, 2e-3)
    method = t1t2_mnist.moving(config)
    assert (method.at, method.clip, method.nonfinite, method.clip_norm) == ("same", "each-tensor", "zero", 3.0)
    assert (method.representation, method.outer, method.every) == ("value", Adam(1e-3), 10)
    default = t1t2_mnist.moving(t1t2_mnist.Config())
    assert (default.at, default.clip, default.nonfinite) == ("after", "all", "skip")


def t1t2_end(select, test):
    return {"metrics": {"select": {"error": select}, "test": {"error": test, "examples": 100}}}


def t1t2_runs(*errors):
    return [
        {"seed": s, "kept": t1t2_end(0, a), "moved": t1t2_end(0, b), "again": t1t2_end(0, 0.5)} for s, a, b in errors
    ]


def test_t1t2_is_said_over_seeds():
    """The grid's point is chosen over all seeds' select; each seed counts by the mean of its starts."""
    grid = [{"seed": s, "l2": λ, "noise": 1.0} | t1t2_end(x, y) for s, λ, x, y in
            ((0, 0.1, 0.2, 0.5), (1, 0.1, 0.2, 0.6), (2, 0.1, 0.2, 0.7), (0, 0.3, 0.1, 0.0), (1, 0.3, 0.4, 0.0),
             (2, 0.3, 0.4, 0.0))]  # fmt: skip
    runs = t1t2_runs((0, 0.1, 0.2), (0, 0.3, 0.2), (1, 0.4, 0.4), (1, 0.4, 0.6), (2, 0.3, 0.4))
    first, kept, moved, _ = t1t2_mnist.verdicts(grid, runs)
    assert first == "grid, chosen on select: test error 60.00 ± 24.84 % (λ 0.1 at the edge of the grid)"
    assert kept.startswith("kept at the start: 30.00 ± 24.84 %; less the grid's -30.00 ± ")
    assert "less kept +6.67 ± 14.34, ties" in moved
    broken = [runs[0] | {"moved": {"metrics": None}}, *runs[1:]]
    assert "diverged once" in t1t2_mnist.verdicts(grid, broken)[2]


def test_two_seeds_that_differ_by_one_image_are_no_loss():
    """Two seeds whose errors are apart by .20 points each gave "+0.20 ± 0.00" once, and a verdict by its sign."""
    runs = [
        {"seed": s, "kept": t1t2_end(0, a), "moved": t1t2_end(0, a + 0.01), "again": t1t2_end(0, a)}
        for s, a in ((0, 0.10), (1, 0.12))
    ]
    _, moved, _ = t1t2_mnist.verdicts([], runs)
    assert "less kept +1.00 ± 1.00, 2 seeds: no verdict" in moved


def test_an_interval_of_errors_stays_within_what_errors_can_be():
    _, moved, _ = t1t2_mnist.verdicts([], t1t2_runs((0, 0.0, 0.9), (1, 0.0, 0.1)))
    assert moved.startswith("moved by T1–T2: 50.00 (0.00 to 100.00) %; less kept +50.00 (-100.00 to +100.00)")


# -- rtho-mnist ----------------------------------------------------------------------------------------------------------


def test_rtho_mnist(blank_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rtho_mnist, "BLOCK", 4)
    monkeypatch.setattr(rtho_mnist, "GRID", ((0.1,), (0.5, 0.9), (1e-4,)))
    words = ["--train", "20", "--valid", "10", "--select", "10", "--test", "10", "--batch", "5", "--hidden", "3"]
    words += ["--steps", "8", "--every", "1", "2", "4", "--others", "2", "--repeats", "2"]
    line = run("rtho-mnist", tmp_path / "run", *words)
    assert {one["steps"] for one in line["arms"]} == {8}
    grid = [one for one in line["arms"] if one["label"] == "grid"]
    assert [list(one["start"].values()) for one in grid] == 2 * [[0.1, 0.5, 1e-4], [0.1, 0.9, 1e-4]]
    assert [one["seed"] for one in grid] == [0, 0, 1, 1]
    labels = [one["label"] for one in rtho_mnist.of_start(line["arms"], 0)]
    assert labels == 2 * ["kept", "RTHO, Δ 1", "RTHO, Δ 2", "its end, kept", "RTHO, Δ 4", "RTHO, Δ 2, emptied",
                          "MARTHE(0.99), Δ 2"]  # fmt: skip
    kept, moved = line["checks"]
    for one in kept["at"]:
        for kind in rtho_mnist.KINDS:
            assert one["rtho"][kind] == pytest.approx(one["exact"][kind], rel=1e-9)
    assert [one["step"] for one in moved["at"]] == [2, 4, 8]
    first, *later = moved["at"]
    for kind in rtho_mnist.KINDS:
        assert first["rtho"][kind] == pytest.approx(first["exact"][kind], rel=1e-9), "nothing has moved yet"
        assert abs(later[-1]["rtho"][kind] / later[-1]["exact"][kind] - 1) > 1e-4
    said = capsys.readouterr().out
    assert len(parts(tmp_path / "run")) == 2 * (2 + 2 * 7) + 2, "no two trainings have the same name"
    assert "grid of 2" in said
    assert said.count("select chooses") >= 2


def rtho_record(arm, seed, select, test, failed=None, every=None, start=None, price=20):
    metrics = {split: {"error": x, "loss": x, "examples": 100} for split, x in (("select", select), ("test", test))}
    method = {"name": "plain"} if every is None else {"name": "rtho", "every": every}
    return {
        "arm": arm, "label": "grid" if arm.startswith("grid") else arm, "seed": seed, "failed": failed,
        "points": [{"metrics": metrics}], "method": method, "schedule": "constant", "start": start or {},
        "budget": price, "gradients": price, "price": 10, "block": {"steps": [10]},
    }  # fmt: skip


def test_rtho_is_judged_by_the_rule_that_select_chooses():
    """Δ 10 has the lowest test error, Δ 50 the lowest on select; Δ 200 would be best, but for one seed."""
    one, seeds = rtho_record, (0, 1, 2)
    found = [one("grid-0", seed, 0.2, 0.1 + seed / 100, start={"l2": 0.1}) for seed in seeds]
    found += [one("grid-1", seed, 0.3, 0.9, start={"l2": 0.2}) for seed in seeds]
    for s in (0, 1):
        for seed in seeds:
            found += [
                one(f"start-{s}-moved-0", seed, 0.4, 0.1, every=10, price=50),
                one(f"start-{s}-moved-1", seed, 0.3, 0.2 + seed / 100, every=50, price=50),
                one(f"start-{s}-moved-2", seed, 0.0, 0.0, "it fell" if seed else None, every=200, price=50),
            ]
    first, _ = rtho_mnist.verdicts(found)
    assert first.startswith("slow: select chooses start-0-moved-1, test error 21.00 ± 2.48 %"), "Δ 50 is inside"
    assert "less that of the grid, 11.00 ± 2.48 % (λ 0.1 at the edge of the grid): +10.00 ± 1.00, loses" in first
    assert "the best of 2 trainings of the grid, 11.00 ± 2.48 %: +10.00 ± 1.00, loses" in first
    two = [record for record in found if record["seed"] < 2]
    assert rtho_mnist.verdicts(two)[0].count("2 seeds: no verdict") == 2


def test_a_random_search_wins_what_its_draws_win_on_average():
    """Against every choice of n of the grid's points, one by one."""
    from itertools import combinations

    rng = np.random.default_rng(0)
    grid = [rtho_record(f"grid-{i}", 0, *rng.uniform(size=2), start={"l2": i}) for i in range(6)]
    for price in (20, 45, 60, 120):
        moved = race_runner([rtho_record("start-0-moved-0", 0, 0.1, 0.1, every=10, price=price)])
        n, (found,) = rtho_mnist.searches(grid, moved)
        assert n == price // 20
        winners = [min(drawn, key=lambda one: rtho_mnist.end(one, "select")) for drawn in combinations(grid, n)]
        assert found == pytest.approx(100 * np.mean([rtho_mnist.end(one, "test") for one in winners]))
    assert rtho_mnist.searches(grid, race_runner([rtho_record("a", 0, 0, 0, every=1, price=10)]))[0] == 0


def race_runner(records):
    return race.Runner("moved", records[0]["arm"], records, "seconds")


def test_rtho_moves_at_every_step_if_asked(monkeypatch):
    """--every 1 --valid 8000: 16 batches of 500 at each step, so that T steps cost more than 20 T gradients."""
    black = hypertrail_data.Dataset(
        "mnist", np.zeros((8040, 28, 28, 1), np.uint8), np.zeros(8040, np.int32), 10, 10, 255
    )
    monkeypatch.setattr(hypertrail_data, "load", lambda name, data_dir=None: black)
    config = rtho_mnist.Config(train=20, valid=8000, select=5, test=10, batch=5, steps=200, every=(1,), others=1)
    here = rtho_mnist.problem(config)
    for method in rtho_mnist.moving(config).values():
        assert rtho_mnist.budget(method, here, config) > 20 * 200
        refuse_arm(here, Arm("moved", method), rtho_mnist.budget(method, here, config))


def test_arms_that_cannot_run_are_refused_before_the_grid(blank_mnist, tmp_path):
    few = ["--train", "20", "--select", "10", "--test", "10", "--hidden", "3", "--engine", "cpu"]
    for i, (words, name) in enumerate(
        (("--valid 4 --batch 5", "t1t2-mnist"), ("--valid 10 --batch 5 --mu 2", "rtho-mnist"))
    ):
        folder = tmp_path / str(i)
        assert cli.main(["run", name, *few, *words.split(), "--run-dir", str(folder)]) == 2
        assert not (folder / "parts").exists()


@pytest.mark.parametrize(
    ("module", "setting", "said"),
    [
        (rtho_mnist, {"steps": 300}, "steps 300, expected a multiple of 200 (the steps between two records)"),
        (rtho_mnist, {"every": (10, 30)}, "every 30, expected a divisor of 200 (the steps between two records)"),
        (t1t2_mnist, {"steps": 250}, "steps 250, expected a multiple of 100 (the steps between two records)"),
        (t1t2_mnist, {"every": 0}, "every 0, expected at least 1"),
        (
            almeida_quadratic,
            {"steps": 30},
            "steps 30, expected a multiple of 20 (the gradients between two looks at f)",
        ),
    ],
    ids=str,
)
def test_steps_that_do_not_fit_are_refused(module, setting, said):
    with pytest.raises(UsageError) as refused:
        module.Config(**setting)
    assert str(refused.value) == said
