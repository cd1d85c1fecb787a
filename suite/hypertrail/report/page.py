"""The page about one run or several: HTML with its tables, and figures that are either inside it or in files beside it.

On the screen a figure that has an interactive form is drawn by plotly, from a file in the page's own folder; on paper, without
scripts, and where that file is missing, its picture is shown instead.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import diagnostics, experiments
from ..measures import SPLITS, count_of, of_lines, shown
from ..runs import COMMAND, DONE, FAILED, LOCK, LOG, REPORT, WHERE, read_text
from ..sections import Section
from ..terminal import visible
from ..tuning import warnings_of
from .catalogue import COST, CURVES, HYPER, HYPERGRADIENT
from .view import View

PLOTLY = "plotly.min.js"
GENERATOR = '<meta name="generator" content="hypertrail">'
STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #ddd; --accent: #0072B2; --bad: #A33; }
* { box-sizing: border-box; }
body { font: 15px/1.5 "Source Sans 3", "Helvetica Neue", Helvetica, Arial, sans-serif; color: var(--ink); background: #fff;
       max-width: 66rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.9em; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--accent);
     overflow-wrap: anywhere; }
h3 { font-size: 1em; margin: 1.6rem 0 .3rem; }
p { margin: .4rem 0 .8rem; overflow-wrap: anywhere; } .soft { color: var(--soft); }
nav { margin: 1rem 0; font-size: .93em; } nav a { margin-right: 1.1em; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.state { display: inline-block; padding: 0 .6em; border-radius: .8em; color: #fff; background: var(--accent); font-size: .9em; }
.state.bad { background: var(--bad); }
code, pre { font: .86em/1.45 "Source Code Pro", Menlo, Consolas, monospace; }
pre { background: #f6f6f6; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0 1rem; font-size: .93em; }
th, td { padding: .22rem .9rem .22rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--ink); }
td { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, table.words td, table.words th { text-align: left; }
table.words td { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
table.words td:first-child, td.when { white-space: nowrap !important; }
td.said { min-width: 14rem !important; }
figure { margin: 1rem 0 1.8rem; break-inside: avoid; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .92em; margin-bottom: .3rem; }
.files { white-space: nowrap; margin-left: .8em; font-size: .88em; }
.choice { font-size: .9em; color: var(--soft); } .choice select { font: inherit; max-width: 100%; }
.plot { display: none; min-width: 40rem; }
@media screen { .live .plot { display: block; } .live img { display: none; } }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 10pt; } h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 8.5pt; } th, td { padding-right: .6rem; }
  nav, .choice, .files { display: none; } .state { color: var(--ink); background: none; border: 1px solid; } }
"""
SCRIPT = """
"use strict";
addEventListener("DOMContentLoaded", () => {
  if (!window.Plotly) return;  // the pictures are there
  const settings = {responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
  for (const figure of document.querySelectorAll("figure.both")) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot");
    const draw = (data) => Plotly.react(plot, data, structuredClone(spec.layout), settings).catch((problem) => {
      figure.classList.remove("live");
      console.error(problem);
    });
    figure.classList.add("live");
    if (!spec.choices) { draw(spec.data); continue; }
    const menu = document.createElement("select");
    for (const one of spec.choices) menu.add(new Option(one.name));
    menu.onchange = () => draw(spec.choices[menu.selectedIndex].data);
    const label = document.createElement("label");
    label.className = "choice";
    label.append("shown: ", menu);
    figure.insertBefore(label, plot.parentNode);
    draw(spec.choices[0].data);
  }
});
"""


@dataclass(frozen=True)
class Picture:
    """A figure as the page has it. files: the PNG first, the same in other formats behind it; live: plotly's JSON or None."""

    caption: str
    files: Sequence[Path]
    live: dict[str, Any] | None = None


Pictures = Mapping[str, Sequence[Picture]]  # by heading; those of one of several runs by its letter
Parts = list[tuple[str, list[str]]]  # heading, what stands under it


@dataclass(frozen=True)
class Page:
    """What is on it. own: what each run's experiment shows of itself, by letter. base: the folder of the page, which files
    are named from; None: pictures are put into the page itself. live: whether plotly lies in that folder."""

    views: Sequence[View]
    pictures: Pictures
    own: Mapping[str, Sequence[Section]]
    base: Path | None = None
    live: bool = False

    def html(self) -> str:
        title, head, parts = self.of_one() if len(self.views) == 1 else self.of_several()
        parts = [(heading, [one for one in inside if one]) for heading, inside in parts]
        parts = [(heading, inside) for heading, inside in parts if inside]
        links = "".join(f'<a href="#s{i}">{escape(heading)}</a> ' for i, (heading, _) in enumerate(parts))
        body = [*head, f"<nav>{links}</nav>"]
        for i, (heading, inside) in enumerate(parts):
            body += [f'<section id="s{i}">\n<h2>{escape(heading)}</h2>', *inside, "</section>"]
        scripts = f'<script src="{PLOTLY}"></script>\n<script>{SCRIPT}</script>\n' if self.live else ""
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n{scripts}</head>\n<body>\n"
            + "\n".join(one for one in body if one)
            + "\n</body>\n</html>\n"
        )

    def of_one(self) -> tuple[str, list[str], Parts]:
        (one,) = self.views
        name = one.record["experiment"]
        headline = experiments.headline(name) if name in experiments.names() else ""
        head = [
            f"<h1>{escape(name)}</h1>",
            f"<p>{escape(headline)}</p>" if headline else "",
            f"<p>{state(one)} <span class='soft'>{escape(where_and_when(one))}</span></p>",
            command(one),
            doubts(one),
        ]
        parts: Parts = [("Start and end", [start_and_end(one)])]
        parts += [
            (CURVES, self.figures(CURVES)),
            (HYPER, self.figures(HYPER)),
            (HYPERGRADIENT, [*self.figures(HYPERGRADIENT), *agreement(one)]),
        ]
        parts += [(section.title, self.own_section(section)) for section in self.own.get(one.letter, ())]
        parts += [
            (COST, [*self.figures(COST), costs([one]), disk([one])]),
            ("Metrics", [METRICS_WORDS, metrics(one)] if one.lines else []),
            ("Data", data(one)),
            ("Configuration", [words_table(one.record["config"].items())]),
            (
                "Environment",
                [words_table(unfold({key: x for key, x in one.env.items() if key not in ("data", "check")}))],
            ),
        ]
        return f"{name}: {one.name}", head, parts

    def of_several(self) -> tuple[str, list[str], Parts]:
        views = self.views
        named = list(dict.fromkeys(one.record["experiment"] for one in views))
        title = f"{len(views)} runs: {', '.join(named)}"
        head = [f"<h1>{escape(title)}</h1>"]
        configs = [{"experiment": one.record["experiment"], **decisive(one)} for one in views]
        letters = [one.letter for one in views]
        differ, same = side_by_side(configs, letters)
        parts: Parts = [
            ("Runs", [runs_table(views)]),
            ("What is different", [differ or "<p>Nothing: every setting is the same.</p>"]),
            ("End", [END_WORDS, ends(views)] if any(one.lines for one in views) else []),
        ]
        parts += [(heading, self.figures(heading)) for heading in (CURVES, HYPER, HYPERGRADIENT)]
        parts += [(COST, [*self.figures(COST), costs(views), disk(views)])]
        for one in views:
            inside = [command(one), doubts(one), *self.figures(one.letter)]
            for section in self.own.get(one.letter, ()):
                inside += [f"<h3>{escape(section.title)}</h3>", *self.own_section(section)]
            parts.append((one.label, inside))
        parts.append(("Settings that are the same", [same]))
        parts.append(("Environment", list(side_by_side([dict(unfold(one.env)) for one in views], letters))))
        return title, head, parts

    def figures(self, heading: str) -> list[str]:
        return [self.figure(one) for one in self.pictures.get(heading, ())]

    def figure(self, one: Picture) -> str:
        links = "" if self.base is None else " · ".join(
            f'<a href="{self.link(file)}">{file.suffix[1:].upper()}</a>' for file in one.files
        )  # fmt: skip
        caption = escape(one.caption) + (f'<span class="files">{links}</span>' if links else "")
        image = f'<img alt="{escape(one.caption)}" src="{self.source(one.files[0])}">'
        if not self.live or one.live is None:
            return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"
        spec = json.dumps(one.live, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        return (
            f'<figure class="both"><figcaption>{caption}</figcaption><div class="wide"><div class="plot"></div></div>{image}'
            f'<script type="application/json">{spec}</script></figure>'
        )

    def source(self, file: Path) -> str:
        if self.base is None:
            return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
        return self.link(file)

    def link(self, file: Path) -> str:
        assert self.base is not None
        return quote(file.relative_to(self.base).as_posix())

    def own_section(self, section: Section) -> list[str]:
        parts = [f"<p>{escape(section.text)}</p>" if section.text else ""]
        if section.rows:
            parts.append(table(section.columns, section.rows))
        return parts + [self.figure(picture_of(caption, path)) for caption, path in section.pictures.items()]


def picture_of(caption: str, path: Path) -> Picture:
    """An experiment's own picture, with the PDF beside it where it was asked for."""
    other = path.with_suffix(".pdf")
    return Picture(caption, [path, other] if other.is_file() else [path])


# -- words --------------------------------------------------------------------------------------------------------------

SHOWN_CHANNELS = 4
DATA_WORDS = """<p class="soft">sha256: of all images and labels that were used, as the network takes them in. Pixel mean and std:
what was taken from the pixels, per channel. Mean and std seen: those of the training images as they enter the network.</p>"""
AGREEMENT_WORDS = """<p class="soft">Cosine: of the angle between the two hypergradients. Equal signs: share of
coordinates whose signs agree (a zero agrees with a zero only). Norm ratio: length over the exact one's length. Difference:
norm of the difference over the larger norm. N: steps of the approximate reverse pass.</p>"""
METRICS_WORDS = """<p class="soft">Loss in nats per example and error in percent, deterministic forward pass with running
averages. Hyper loss: what the hypergradient descends, on the valid split with that split's own batch statistics. Only valid
is optimised; test is only reported.</p>"""
END_WORDS = """<p class="soft">Loss in nats per example and error of every split after the last training that a run has
finished. Only valid is optimised; test is only reported.</p>"""
COST_WORDS = """<p class="soft">Gradients and gradients with Hessian-vector products (HVP) that were evaluated, wall-clock
seconds (the first meta-iteration compiles), the largest stored trajectory, and the most memory that the process (and, where
it tells, the device) has held at once by the end.</p>"""


def state(one: View) -> str:
    return f'<span class="state{"" if one.state == "done" else " bad"}">{escape(one.state)}</span>'


def where_and_when(one: View) -> str:
    words = [one.name, started(one)]
    engine, host = one.record["config"].get("engine"), one.env.get("host")
    words.append(f"{engine} engine on {host}" if engine and host else "")
    return " · ".join(word for word in words if word)


def started(one: View) -> str:
    """Date and time to the minute, as the machine of the run had them."""
    return str(one.env.get("time", ""))[:16].replace("T", " ")


def doubts(one: View) -> str:
    """What makes the numbers of the run doubtful, a paragraph each."""
    notes = dict.fromkeys(note for used in one.data.values() for note in used["notes"])
    sentences = [*notes, *warnings_of(one.lines)]
    return "".join(f"<p><strong>Warning: {escape(sentence)}.</strong></p>" for sentence in sentences)


def command(one: View) -> str:
    said = read_text(one.folder / COMMAND)
    return f"<pre>{escape(visible(said))}</pre>" if said else ""


def data(one: View) -> list[str]:
    """Which data were used, and what the network saw of them; a row for every way in which they were drawn."""
    rows = []
    for drawn, used in one.data.items():
        if "image" not in used:  # the data of a task, of which nothing but their number is known
            sizes = ", ".join(f"{name} {n:,}" for name, n in used["sizes"].items())
            rows.append([drawn, used["sha256"][:16], f"numbers of batches: {sizes}", "", "", "", ""])
            continue
        pixels, seen = ([spelled(of[key]) for key in ("mean", "std")] for of in (used, used["seen"]))
        rows.append([drawn, used["sha256"][:16], "×".join(map(str, used["image"])), *pixels, *seen])
    columns = ["drawn", "sha256", "image", "pixel mean", "pixel std", "mean seen", "std seen"]
    return [DATA_WORDS, table(columns, rows, "words")] if rows else []


def spelled(channels: Sequence[float]) -> str:
    """A number for each channel; of many the first ones."""
    more = f" … ({len(channels)} channels)" if len(channels) > SHOWN_CHANNELS else ""
    return ", ".join(f"{x:.4g}" for x in channels[:SHOWN_CHANNELS]) + more


def start_and_end(one: View) -> str:
    if not one.lines:
        return ""
    start, end = one.lines[0], one.lines[-1]
    rows, names, unit = [], of_lines([start]), "examples"
    for split in one.splits:
        a, b = start["metrics"][split], end["metrics"][split]
        unit, _ = count_of(a)
        rows.append([split, *(shown(what, line.get(what)) for what in names for line in (a, b)), f"{count_of(a)[1]:,}"])
    empty = [""] * (2 * len(names) - 1)
    rows.append(["hyper loss f", f"{start['hyper_loss']:.4f}", f"{end['hyper_loss']:.4f}", *empty])
    columns = ["split", *(f"{what}, {when}" for what in names for when in ("start", "end")), unit]
    return f"<p>After {end['meta_iteration']} updates:</p>" + table(columns, rows)


def metrics(one: View) -> str:
    names = of_lines(one.lines)
    columns = ["meta-iteration", "T"]
    columns += [f"{split} {what}" for split in one.splits for what in names] + ["hyper loss"]
    rows = []
    for line in one.lines:
        cells = [str(line["meta_iteration"]), f"{line['steps']:,}"]
        for split in one.splits:
            cells += [shown(what, line["metrics"][split].get(what)) for what in names]
        rows.append([*cells, f"{line['hyper_loss']:.4f}"])
    return table(columns, rows)


def agreement(one: View) -> list[str]:
    if not one.compared:
        return []
    columns = ["meta-iteration", "kind", "cosine", "equal signs", "norm ratio", "difference", "norm", "exact norm", "N"]
    rows = []
    for line in one.compared:
        for kind, both in line["agreement"].items():
            total = both["total"]
            ratio = "–" if total["norm_ratio"] is None else f"{total['norm_ratio']:.3g}"
            cosine = diagnostics.in_words(total["cosine"], 4)
            rows.append([str(line["meta_iteration"]), kind, cosine, percent(total["signs"]), ratio,
                         f"{total['difference']:.3g}", f"{total['norm']:.3g}", f"{total['reference_norm']:.3g}",
                         str(line["diagnostics"].get("N", ""))])  # fmt: skip
    return [AGREEMENT_WORDS, table(columns, rows)]


def costs(views: Sequence[View]) -> str:
    """A row for each stage and a sum; of several runs only the sums."""
    rows = []
    for one in (view for view in views if view.lines):
        stages = list(dict.fromkeys(stage for line in one.lines for stage in line["cost"]))
        peak = " / ".join(size(most) for most in peaks(one) if most) or "–"
        by = {stage: [line["cost"][stage] for line in one.lines if stage in line["cost"]] for stage in stages}
        for stage in stages if len(views) == 1 else ():
            rows.append([stage, *sums(by[stage], stage == "train"), ""])
        rows.append(
            ["in all" if len(views) == 1 else one.letter, *sums([c for cs in by.values() for c in cs], True), peak]
        )
    if not rows:
        return ""
    first = "stage" if len(views) == 1 else "run"
    return COST_WORDS + table([first, "gradients", "with HVP", "seconds", "trajectory", "peak memory"], rows)


def sums(found: Sequence[dict[str, Any]], stored: bool) -> list[str]:
    """Gradients, HVPs, seconds, and the largest trajectory; the stages that only read one count its bytes as well."""
    counts = [f"{sum(one[key] for one in found):,}" for key in ("gradients", "hvps")]
    largest = max((one["trajectory_bytes"] for one in found), default=0) if stored else 0
    return [*counts, f"{sum(one['seconds'] for one in found):,.1f}", size(largest) if largest else "–"]


def peaks(one: View) -> list[int]:
    return [max((line.get("memory", {}).get(key) or 0 for line in one.lines), default=0) for key in ("host", "device")]


LARGEST = 8  # entries that are listed one by one
TELLING = (REPORT, "report", "tensorboard", "figures", LOG, LOCK, DONE, FAILED)


def disk(views: Sequence[View]) -> str:
    """What lies in the folders of the runs: a row for each entry, a column for each run. What only tells of the run is not
    counted: it comes and goes, and this page is part of it."""
    found = [{key: value for key, value in one.sizes.items() if key not in TELLING} for one in views]
    names = sorted(dict.fromkeys(name for one in found for name in one), key=lambda n: -max(x.get(n, 0) for x in found))
    rows = [[name, *(size(one[name]) if name in one else "–" for one in found)] for name in names[:LARGEST]]
    if names[LARGEST:]:
        rest = [sum(one.get(name, 0) for name in names[LARGEST:]) for one in found]
        rows.append([f"{len(names) - LARGEST} others", *map(size, rest)])
    rows.append(["in all", *(size(sum(one.values())) for one in found)])
    first = "on disk (without figures, reports and log)"
    return table([first, *([""] if len(views) == 1 else [one.letter for one in views])], rows)


def runs_table(views: Sequence[View]) -> str:
    rows = []
    for one in views:
        config = one.record["config"]
        rows.append(
            f"<tr><td>{escape(one.letter)}</td><td>{escape(one.name)}</td>"
            f'<td class="said">{state(one)}</td><td>{escape(one.record["experiment"])}</td>'
            f"<td>{escape(str(config.get('engine', '')))}</td><td>{escape(str(one.env.get('host', '')))}</td>"
            f'<td class="when">{escape(started(one))}</td></tr>'
        )
    head = "".join(f"<th>{one}</th>" for one in ("run", "folder", "state", "experiment", "engine", "host", "started"))
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>"
    return f'<div class="wide"><table class="words">\n{inside}</table></div>'


def ends(views: Sequence[View]) -> str:
    """One row for each run; those without a line yet have an empty one."""
    splits = [split for split in SPLITS if any(split in one.splits for one in views)]
    columns = ["run", "updates", "hyper loss"]
    names = of_lines(line for one in views for line in one.lines)
    columns += [f"{split} {what}" for split in splits for what in names]
    rows = []
    for one in views:
        last = one.lines[-1] if one.lines else None
        row = [
            one.letter,
            *(["–", "–"] if last is None else [str(last["meta_iteration"]), f"{last['hyper_loss']:.4f}"]),
        ]
        for split in splits:
            found = last["metrics"].get(split) if last else None
            row += [shown(what, (found or {}).get(what)) for what in names]
        rows.append(row)
    return table(columns, rows)


def decisive(one: View) -> dict[str, Any]:
    return {key: value for key, value in one.record["config"].items() if key not in WHERE}


def side_by_side(records: Sequence[dict[str, Any]], letters: Sequence[str]) -> tuple[str, str]:
    """(what differs, a column for each run; what is the same), as tables; '' where there is nothing of the kind."""
    keys = list(dict.fromkeys(key for one in records for key in one))
    cells = {key: [str(one.get(key, "–")) for one in records] for key in keys}
    differ = [[key, *cells[key]] for key in keys if len(set(cells[key])) > 1]
    same = [(key, cells[key][0]) for key in keys if len(set(cells[key])) == 1]
    return table(["setting", *letters], differ, "words") if differ else "", words_table(same) if same else ""


# -- tables -------------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1024
    raise AssertionError


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    which = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{which}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def words_table(items: Any) -> str:
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>\n" for k, v in items)
    return f'<table class="words">\n<tbody>\n{rows}</tbody>\n</table>' if rows else ""


def unfold(record: dict[str, Any], front: str = "") -> list[tuple[str, Any]]:
    """Nested dicts as rows: {"a": {"b": 1}} → [("a.b", 1)]."""
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        rows += unfold(value, f"{front}{key}.") if isinstance(value, dict) else [(front + key, value)]
    return rows
