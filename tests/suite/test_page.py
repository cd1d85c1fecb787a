"""The report folder: what is in it; one run and several, failed or hardly begun; without plotly; and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypertrail import UsageError, cli, runs
from hypertrail.errors import NumericalFailure
from hypertrail.report import writing
from hypertrail.report.page import disk
from hypertrail.report.view import View, differing, letters, views
from hypertrail.report.writing import write_folder, write_report

pytestmark = pytest.mark.pictures

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def of_one(run_folder, tmp_path_factory):
    pytest.importorskip("plotly", reason="the report extra is not installed")
    index, live = write_folder([run_folder], tmp_path_factory.mktemp("one") / "report")
    assert live
    return index


@pytest.fixture(scope="module")
def four(run_folder, make_run, tmp_path_factory, digits_config):
    """A finished run with a name full of signs, a failed one, one that was killed, one that has not written a line."""
    base = tmp_path_factory.mktemp("runs")
    odd = base / 'a <b>bold<i> & "quoted" 100%'
    shutil.copytree(run_folder, odd)
    with pytest.raises(NumericalFailure):
        make_run(base / "failed", fails=1)
    shutil.copytree(run_folder, base / "killed")
    (base / "killed" / "DONE").unlink()
    with runs.Run(base / "empty", runs.config_record("drmad-digits", digits_config)) as run:
        run.describe(["run", "drmad-digits"], {})
    return [odd, base / "failed", base / "killed", base / "empty"]


@pytest.fixture(scope="module")
def digits_config():
    from hypertrail.experiments import drmad_digits

    return drmad_digits.Config()


@pytest.fixture(scope="module")
def of_four(four):
    pytest.importorskip("plotly", reason="the report extra is not installed")
    index, _ = write_folder(four)
    return index


def test_the_folder_holds_all_that_the_page_names(of_one):
    page = of_one.read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert not [one for one in named if "//" in one or one.startswith("/")]
    assert {one for one in named if one.endswith((".png", ".pdf", ".js"))} == {
        str(p.relative_to(of_one.parent)) for p in of_one.parent.rglob("*") if p.suffix in (".png", ".pdf", ".js")
    }
    for name in ("metrics", "training", "hyper-l2-W", "norms", "agreement", "agreement-layers", "cost"):
        assert (of_one.parent / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_tells_of_the_run(run_folder, of_one):
    page = of_one.read_text(encoding="utf-8")
    line = runs.read_metrics(run_folder)[-1]
    assert f"<td>{line['metrics']['test']['loss']:.4f}</td>" in page
    assert "<td>steps</td><td>6</td>" in page
    assert "<td>hypergradients</td>" in page  # bytes on the disk
    assert "peak memory" in page
    gradients = sum(cost["gradients"] for one in runs.read_metrics(run_folder) for cost in one["cost"].values())
    assert f"<td>in all</td><td>{gradients}</td>" in page


def test_several_runs_stand_side_by_side(four, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "catalogue", lambda shown: [])  # the words alone
    monkeypatch.setattr(writing, "of_one", lambda view: [])
    index, _ = write_folder(four, tmp_path / "report")
    page = index.read_text(encoding="utf-8")
    assert "<h1>4 runs: drmad-digits</h1>" in page
    assert "a &lt;b&gt;bold&lt;i&gt; &amp; &quot;quoted&quot; 100%" in page
    assert "<b>bold" not in page
    assert page.count('class="state">done<') == 1
    assert page.count('class="state bad">unfinished<') == 2
    assert 'class="state bad">failed: NumericalFailure' in page
    assert "<td>meta_iterations</td><td>3</td><td>3</td><td>3</td><td>8</td>" in page
    assert "<tr><td>D</td>" + "<td>–</td>" * 10 in page  # the row of end metrics of the run that has not written a line


@pytest.mark.slow
def test_what_runs_cannot_share_lies_in_folders_of_their_own(four, of_four):
    assert of_four.parent.parent == four[0].parent / "reports"
    assert sorted(p.name for p in (of_four.parent / "figures").iterdir() if p.is_dir()) == ["A", "B", "C"]
    assert 'src="figures/A/agreement-layers.png"' in of_four.read_text(encoding="utf-8")


def test_an_earlier_report_is_replaced_and_nothing_else(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "catalogue", lambda shown: [])
    index, _ = write_folder([run_folder], tmp_path / "report")
    whole = index.read_text(encoding="utf-8")
    index.write_text(whole + "<!-- old -->", encoding="utf-8")
    write_folder([run_folder], tmp_path / "report")
    assert index.read_text(encoding="utf-8") == whole
    (tmp_path / "mine.txt").write_text("do not touch")
    with pytest.raises(UsageError, match="is not empty and is not an earlier report"):
        write_folder([run_folder], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "report"]
    with pytest.raises(UsageError, match=r"is a file; name a folder"):
        write_folder([run_folder], tmp_path / "mine.txt")


def test_figures_of_an_earlier_report_go_and_what_is_not_ours_stays(run_folder, tmp_path, monkeypatch):
    def some(*names):
        from matplotlib.figure import Figure

        return lambda shown: [writing.Drawing(name, name, "Curves", Figure) for name in names]

    out = tmp_path / "report"

    def files():
        return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}

    monkeypatch.setattr(writing, "of_one", lambda one: some("alone")(None))
    monkeypatch.setattr(writing, "catalogue", some("metrics"))
    write_folder([run_folder, run_folder], out)
    assert {"figures/metrics.png", "figures/A/alone.png", "figures/A/alone.pdf", "figures/B/alone.pdf"} <= files()
    mine = {"figures/A/mine.png", "figures/mine.pdf"}
    for name in mine:
        (out / name).write_text("do not touch")
    listed = out / writing.FILES
    outside = tmp_path / "outside.txt"
    outside.write_text("do not touch")
    listed.write_text(listed.read_text().replace("[", '["../outside.txt", ', 1))
    monkeypatch.setattr(writing, "catalogue", some("cost"))
    write_folder([run_folder], out)
    assert files() - {"plotly.min.js"} == {"index.html", writing.FILES, "figures/cost.png", "figures/cost.pdf", *mine}
    assert not (out / "figures" / "B").exists()
    assert outside.exists()
    listed.unlink()  # of an earlier version
    monkeypatch.setattr(writing, "catalogue", some("norms"))
    write_folder([run_folder], out)
    assert "figures/cost.png" in files()


def test_without_plotly_the_figures_are_pictures(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setattr(
        writing, "catalogue", lambda shown: []
    )  # the pictures are drawn elsewhere; here the words count
    assert cli.main(["report", str(run_folder), "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr()
    assert said.err.strip() == f"hypertrail: {writing.WITHOUT}"
    assert said.out == f"report: {tmp_path / 'new' / 'index.html'}\n"
    assert "<script" not in (tmp_path / "new" / "index.html").read_text()
    assert not (tmp_path / "new" / "plotly.min.js").exists()


def test_a_folder_of_a_run_that_is_no_run_is_named(run_folder, tmp_path, capsys):
    assert cli.main(["report", str(run_folder), str(tmp_path)]) == 2
    assert f"{tmp_path} is not the folder of a run" in capsys.readouterr().err
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    assert "needs RUN" in capsys.readouterr().err
    assert cli.main(["report", str(run_folder), "--open"]) == 2
    assert "knows no --open, only --out" in capsys.readouterr().err


def test_what_an_experiment_cannot_show_yet_is_said(four, monkeypatch):
    def broken(folder):
        raise FileNotFoundError(f"{folder}/curve.npz")

    monkeypatch.setattr(writing, "own_sections", broken)
    shown = views(four)
    (section,) = writing.sections_so_far(shown[2])
    assert "Nothing to show of a run that is unfinished (FileNotFoundError: " in section.text
    with pytest.raises(FileNotFoundError):
        writing.sections_so_far(shown[0])


def test_bytes_on_the_disk_add_up(tmp_path):
    """Of files and folders; the small ones in one row, and what only tells of the run not at all."""
    for i in range(11):
        (tmp_path / f"part-{i:02}").write_bytes(bytes(100 * (i + 1)))
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "0000.npz").write_bytes(bytes(5000))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "metrics.png").write_bytes(bytes(10**6))
    (tmp_path / "log.txt").write_bytes(bytes(10**6))
    cells = [re.findall("<td>(.*?)</td>", row) for row in disk([View(tmp_path)]).splitlines() if "<td>" in row]
    assert cells[0] == ["states", "4.9 KiB"]
    assert cells[1] == ["part-10", "1.1 KiB"]
    assert cells[-2:] == [["4 others", "1,000 B"], ["in all", f"{11600 / 1024:.1f} KiB"]]
    assert len(cells) == 8 + 2


# -- names --------------------------------------------------------------------------------------------------------------


def test_letters_go_on_behind_z():
    assert letters(28)[:2] == ["A", "B"]
    assert letters(54)[25:28] + letters(54)[-2:] == ["Z", "AA", "AB", "BA", "BB"]


def test_runs_are_named_by_what_is_different():
    def record(**config):
        return {"experiment": "one", "config": {"seed": 0, "method": "exact", "run_dir": "somewhere", **config}}

    assert differing([record(), record(seed=1)]) == ["seed 0", "seed 1"]
    assert differing([record(), record(seed=1, method="C4", run_dir="else")]) == [
        "seed 0, method exact",
        "seed 1, method C4",
    ]
    assert differing([record(), record()]) == ["", ""]
    assert differing([record(), record(), record(seed=1)]) == ["", "", ""]  # two of them would be named alike
    assert differing([record(), record(a=1, b=2, c=3, d=4)]) == ["", ""]
    assert differing([record(), record() | {"experiment": "two"}]) == ["one", "two"]


# -- in a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")

    def look(page: Path, *asked: str) -> subprocess.CompletedProcess[str]:
        """Headless, with every road to the network closed: only files can be read."""
        words = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                 "--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
                 "--virtual-time-budget=30000", f"--user-data-dir={tmp_path_factory.mktemp('browser')}", *asked,
                 page.resolve().as_uri()]  # fmt: skip
        return subprocess.run(words, capture_output=True, text=True, check=True)

    return look


def complaints(answer):
    return [line for line in answer.stderr.splitlines() if "CONSOLE" in line]


def drawn(dom):
    """(figures that have an interactive form, those of them that are live, those in which plotly has drawn)."""
    figures = re.findall(r'<figure class="(both[^"]*)">(.*?)</figure>', dom, re.DOTALL)
    return len(figures), sum("live" in kind for kind, _ in figures), sum("main-svg" in inside for _, inside in figures)


@pytest.mark.parametrize("which", ["of_one", pytest.param("of_four", marks=pytest.mark.slow)])
def test_a_browser_draws_every_figure_without_a_network(request, browser, which):
    answer = browser(request.getfixturevalue(which), "--dump-dom")
    assert complaints(answer) == []
    many, live, ready = drawn(answer.stdout)
    assert many == live == ready == (8 if which == "of_one" else 7 + 3)
    assert answer.stdout.count("<select>") == 2
    assert len(re.findall(r'data-title="([^"]*)"', answer.stdout)) == 4 * many  # the buttons that we asked for
    assert "Cloud" not in re.sub(r"<script>.*?</script>", "", answer.stdout, flags=re.DOTALL)


@pytest.mark.slow
def test_the_browser_would_complain(of_one, browser, tmp_path):
    """What the test above relies on: a page whose figure is broken does complain, and falls back to its picture."""
    broken = tmp_path / "report"
    shutil.copytree(of_one.parent, broken)
    page = (broken / "index.html").read_text(encoding="utf-8")
    spec = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1)
    (broken / "index.html").write_text(page.replace(spec, spec[:-5]), encoding="utf-8")
    assert complaints(browser(broken / "index.html", "--dump-dom"))
    (broken / "plotly.min.js").unlink()
    answer = browser(broken / "index.html", "--dump-dom")
    assert complaints(answer) == [] or "plotly.min.js" in complaints(answer)[0]
    assert drawn(answer.stdout)[1:] == (0, 0)  # not one is live: the pictures are shown


@pytest.mark.slow
def test_the_menu_shows_another_tensor(run_folder, of_one, browser, tmp_path):
    """Choose the third entry, as a reader would, and read back what is drawn."""
    folder = shutil.copytree(of_one.parent, tmp_path / "report")
    choose = """<script>addEventListener("load", () => setTimeout(() => {
      const menu = document.querySelector("select"), plot = menu.closest("figure").querySelector(".plot");
      menu.selectedIndex = 2;
      menu.dispatchEvent(new Event("change"));
      const text = menu.options[2].text;
      const bins = plot.data.find((one) => one.type === "heatmap").z.length;
      const tensor = JSON.stringify(plot.data.find((one) => one.name === "median").y);
      document.title = ["shown", text, bins, tensor].join("|");
    }, 3000));</script>"""
    page = (folder / "index.html").read_text(encoding="utf-8").replace("</body>", choose + "</body>")
    (folder / "index.html").write_text(page, encoding="utf-8")
    answer = browser(folder / "index.html", "--dump-dom")
    assert complaints(answer) == []
    _, text, bins, medians = re.search(r"<title>(.*)</title>", answer.stdout).group(1).split("|")
    tensors = views([run_folder])[0].spreads["l2"]["W"]
    name = list(tensors)[1]
    assert text == f"{name} ({tensors[name][0].size:,})"
    assert bins == "40"
    np.testing.assert_allclose(json.loads(medians), [np.median(u) for u in tensors[name]], rtol=1e-5)


@pytest.mark.slow
def test_a_picture_of_the_screen_and_a_printed_page(of_one, browser, tmp_path):
    browser(of_one, "--window-size=1200,3000", f"--screenshot={tmp_path / 'screen.png'}")
    with Image.open(tmp_path / "screen.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert 0.5 < (pixels == 255).all(axis=1).mean() < 0.97
    assert len(np.unique(pixels, axis=0)) > 200
    browser(of_one, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    paper = (tmp_path / "page.pdf").read_bytes()
    assert paper.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 4
    assert len(re.findall(rb"/Subtype\s*/Image\b", paper)) >= 8  # the pictures, where the screen has drawings


@pytest.mark.slow
def test_the_small_page_at_the_end_of_a_run_is_whole_too(run_folder, browser, tmp_path):
    page = shutil.copy(write_report(run_folder), tmp_path / "alone.html")
    answer = browser(Path(page), "--dump-dom")
    assert complaints(answer) == []
    assert answer.stdout.count("data:image/png;base64,") == 8
