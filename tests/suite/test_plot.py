"""`hypertrail plot`: the list of a run's figures, one of them in each format, and what is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from hypertrail import UsageError, cli, experiments, figures, runs
from hypertrail.report import plot, writing
from hypertrail.sections import Section


def test_the_list(run_folder, capsys):
    assert cli.main(["plot", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["metrics", "training", "hyper-l2-W", "hyper-l2-scale", "norms", "agreement", "agreement-layers", "cost"]
    assert [line.split()[0] for line in lines] == names
    assert lines[0].endswith("Loss and error of every split after each training run")


@pytest.mark.parametrize(("form", "first"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_one_figure_into_a_file(run_folder, tmp_path, form, first, capsys):
    out = tmp_path / "new" / f"cosine.{form}"
    before = sorted((run_folder / "figures").iterdir())
    assert cli.main(["plot", str(run_folder), "norms", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(first)
    assert capsys.readouterr().out == f"figure: {out}\n"
    assert sorted((run_folder / "figures").iterdir()) == before


def test_into_the_run_where_no_file_is_named(make_run, tmp_path):
    folder = make_run(tmp_path / "run", compare_exact=False)
    assert cli.main(["plot", str(folder), "norms"]) == 0
    with Image.open(folder / "figures" / "norms.png") as image:
        assert image.width > 1000


def test_what_an_experiment_draws_itself_is_there_too(run_folder, tmp_path, monkeypatch, capsys):
    def own(folder):
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots().plot([1, 4, 9])
        with figures.style():
            path = figures.save(folder, "squares", figure)
        return [Section("Squares", pictures={"They grow": path})]

    monkeypatch.setattr(writing, "own_sections", own)
    assert cli.main(["plot", str(run_folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "squares           They grow"
    assert cli.main(["plot", str(run_folder), "squares", f"--out={tmp_path / 'own.pdf'}"]) == 0
    assert (tmp_path / "own.pdf").read_bytes().startswith(b"%PDF")
    assert not (run_folder / "figures" / "squares.png").exists()


def test_what_is_refused(run_folder, tmp_path, digits_experiment, capsys):
    with pytest.raises(UsageError, match=r"no figure 'nonsense' in .*, expected one of: metrics, training, hyper-l2-W"):
        plot.main(run_folder, "nonsense", None)
    with pytest.raises(UsageError, match=r"cosine.jpg, expected a file that ends in .png, .pdf, .svg"):
        plot.main(run_folder, "norms", tmp_path / "cosine.jpg")
    with pytest.raises(UsageError, match="is not the folder of a run"):
        plot.main(tmp_path, None, None)
    assert cli.main(["plot", str(run_folder), "norms", "cost"]) == 2
    assert "takes at most 2 names" in capsys.readouterr().err
    with runs.Run(tmp_path / "empty", runs.config_record("drmad-digits", digits_experiment.Config())) as run:
        run.describe(["run", "drmad-digits"], {})
    assert plot.main(tmp_path / "empty", None, None) == 0
    assert "has no figures yet" in capsys.readouterr().out
    with pytest.raises(UsageError, match="expected one of: none yet"):
        plot.main(tmp_path / "empty", "metrics", None)


def begun(folder, name, line):
    """A run that has written one line and is still at work."""
    with runs.Run(folder, runs.config_record(name, experiments.load(name).Config())) as run:
        run.describe(["run", name], {})
        run.append(line)
    return folder


def test_what_an_experiment_cannot_draw_yet_is_said(tmp_path, capsys):
    """Its table needs lines that are still to come."""
    line = {"engine": "cpu", "steps": 20, "way": "plain", "training": 0.5}
    folder = begun(tmp_path / "run", "drmad-vs-exact", line)
    assert cli.main(["plot", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "has no figures yet. Nothing to show of a run that is unfinished (" in said
    assert "has not written a line" not in said
    assert cli.main(["plot", str(folder), "ways"]) == 2
    assert "expected one of: none yet. Nothing to show of a run that is unfinished (" in capsys.readouterr().err


def test_a_line_without_a_picture_is_no_missing_line(tmp_path, capsys):
    line = {"steps": 200, "update": 0, "method": "exact", "hyper_loss": 1.0, "test_error": 0.5, "N": 200}
    folder = begun(tmp_path / "run", "completions-mnist", line | {"seconds": 0.5, "bytes": 800})
    assert cli.main(["plot", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder} has no figures yet\n"


def test_a_failed_study_has_a_report(tmp_path):
    """However little its own part can be made of."""
    line = {"engine": "cpu", "steps": 20, "way": "plain", "training": 0.5}
    record = runs.config_record("drmad-vs-exact", experiments.load("drmad-vs-exact").Config())
    with runs.Run(tmp_path / "run", record) as run:
        run.describe(["run", "drmad-vs-exact"], {})
        run.append(line)
        with pytest.raises(ArithmeticError), cli.recorded(run):
            raise ArithmeticError("no more")
    said = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "failed: ArithmeticError: no more" in said
    assert "Nothing to show of a run that is failed" in said
