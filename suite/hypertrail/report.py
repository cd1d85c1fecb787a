"""report.html: one run on one page that needs nothing but itself. Figures are embedded, tables are plain, paper is welcome."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import experiments, figures
from .arrays import write_atomic
from .engines import SPLITS
from .runs import COMMAND, ENV, REPORT, read_config, read_json, read_metrics, status
from .sections import Section, own_sections

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #ddd; --accent: #0072B2; --bad: #A33; }
* { box-sizing: border-box; }
body { font: 15px/1.5 "Source Sans 3", "Helvetica Neue", Helvetica, Arial, sans-serif; color: var(--ink); background: #fff;
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--accent); }
p { margin: .4rem 0 .8rem; } .soft { color: var(--soft); }
.state { display: inline-block; padding: 0 .6em; border-radius: 1em; color: #fff; background: var(--accent); font-size: .9rem; }
.state.bad { background: var(--bad); }
code, pre { font: .86em/1.45 "Source Code Pro", Menlo, Consolas, monospace; }
pre { background: #f6f6f6; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0 1rem; font-size: .93rem; }
th, td { padding: .22rem .8rem .22rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--ink); }
td { border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, table.words td { text-align: left; }
table.words td { white-space: normal; overflow-wrap: anywhere; } table.words td:first-child { white-space: nowrap; }
figure { margin: 1rem 0 1.6rem; break-inside: avoid; } img { width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .92rem; margin-bottom: .3rem; }
@media print { body { margin: 0; max-width: none; font-size: 10.5pt; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


def write_report(folder: Path, state: str | None = None, own: Sequence[Section] | None = None) -> Path:
    """Draw the figures of a run anew and write its report.html; returns its path. UsageError for a folder that is no run.

    Works for a run that is finished, failed or still going: it shows what there is. state: what to say of it, where the
    run's own last file is yet to come. own: what the experiment itself shows, where that was asked for already.
    """
    record = read_config(folder)
    lines = [line for line in read_metrics(folder) if "meta_iteration" in line]  # a study has lines of its own kind
    own = own_sections(folder) if own is None else own
    page = render(folder, record, lines, figures.draw_all(folder, lines), own, state or status(folder))
    write_atomic(folder / REPORT, page)
    return folder / REPORT


def render(
    folder: Path,
    record: dict[str, Any],
    lines: Sequence[dict[str, Any]],
    pictures: dict[str, Path],
    own: Sequence[Section],
    state: str,
) -> str:
    name = record["experiment"]
    headline = experiments.headline(name) if name in experiments.names() else ""
    env = read_json(folder / ENV)
    command = folder / COMMAND
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{escape(headline)}</p>" if headline else "",
        f'<p><span class="state{"" if state == "done" else " bad"}">{escape(state)}</span> '
        f'<span class="soft">{escape(folder.resolve().name)} · {escape(str(env.get("time", "")))} · '
        f"{escape(str(record['config'].get('engine')))} engine on {escape(str(env.get('host', '')))}</span></p>",
        f"<pre>{escape(command.read_text(encoding='utf-8').strip())}</pre>" if command.is_file() else "",
    ]
    if lines:
        parts += ["<h2>Start and end</h2>", start_and_end(lines)]
    for caption, path in pictures.items():
        if caption.startswith("Hyperparameters") and "<h2>Hyperparameters</h2>" not in parts:
            parts.append("<h2>Hyperparameters</h2>")
        if caption.startswith("Agreement") and "<h2>Agreement with the exact hypergradient</h2>" not in parts:
            parts += ["<h2>Agreement with the exact hypergradient</h2>", AGREEMENT_WORDS, agreement(lines)]
        parts.append(picture(caption, path))
    for section in own:
        parts += section_of_page(section)
    if lines:
        parts += ["<h2>Metrics</h2>", METRICS_WORDS, metrics(lines), "<h2>Cost</h2>", COST_WORDS, cost(lines)]
    parts += ["<h2>Configuration</h2>", words_table(record["config"].items())]
    parts += ["<h2>Environment</h2>", words_table(unfold(env))]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: {escape(folder.resolve().name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section_of_page(section: Section) -> list[str]:
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>" if section.text else ""]
    if section.rows:
        parts.append(table(section.columns, section.rows))
    return parts + [picture(caption, path) for caption, path in section.pictures.items()]


AGREEMENT_WORDS = """<p class="soft">Cosine: of the angle between the two hypergradients. Equal signs: share of
coordinates whose signs agree (a zero agrees with a zero only). Norm ratio: length over the exact one's length. Difference:
norm of the difference over the larger norm. N: steps of the approximate reverse pass.</p>"""
METRICS_WORDS = """<p class="soft">Loss in nats per example and error in percent, deterministic forward pass with running
averages. Hyper loss: what the hypergradient descends, on the valid split with that split's own batch statistics. Only valid
is optimised; test is only reported.</p>"""
COST_WORDS = """<p class="soft">Gradients and gradients with Hessian-vector products (HVP) that were evaluated, wall-clock
seconds (the first meta-iteration compiles), and the size of the stored trajectory.</p>"""


def start_and_end(lines: Sequence[dict[str, Any]]) -> str:
    start, end = lines[0], lines[-1]
    rows = []
    for split in splits(lines):
        a, b = start["metrics"][split], end["metrics"][split]
        rows.append([split, f"{a['loss']:.4f}", f"{b['loss']:.4f}", percent(a["error"]), percent(b["error"]),
                     f"{a['examples']:,}"])  # fmt: skip
    rows.append(["hyper loss f", f"{start['hyper_loss']:.4f}", f"{end['hyper_loss']:.4f}", "", "", ""])
    columns = ["split", "loss, start", "loss, end", "error, start", "error, end", "examples"]
    return f"<p>After {end['meta_iteration']} updates:</p>" + table(columns, rows)


def metrics(lines: Sequence[dict[str, Any]]) -> str:
    columns = ["meta-iteration", "T"]
    columns += [f"{split} {what}" for split in splits(lines) for what in ("loss", "error")] + ["hyper loss"]
    rows = []
    for line in lines:
        cells = [str(line["meta_iteration"]), f"{line['steps']:,}"]
        for split in splits(lines):
            one = line["metrics"][split]
            cells += [f"{one['loss']:.4f}", percent(one["error"])]
        rows.append([*cells, f"{line['hyper_loss']:.4f}"])
    return table(columns, rows)


def agreement(lines: Sequence[dict[str, Any]]) -> str:
    columns = ["meta-iteration", "kind", "cosine", "equal signs", "norm ratio", "difference", "norm", "exact norm", "N"]
    rows = []
    for line in (one for one in lines if "agreement" in one):
        for kind, both in line["agreement"].items():
            one = both["total"]
            ratio = "–" if one["norm_ratio"] is None else f"{one['norm_ratio']:.3g}"
            rows.append([str(line["meta_iteration"]), kind, f"{one['cosine']:.4f}", percent(one["signs"]), ratio,
                         f"{one['difference']:.3g}", f"{one['norm']:.3g}", f"{one['reference_norm']:.3g}",
                         str(line["diagnostics"].get("N", ""))])  # fmt: skip
    return table(columns, rows)


def cost(lines: Sequence[dict[str, Any]]) -> str:
    columns = ["meta-iteration", "stage", "gradients", "with HVP", "seconds", "trajectory"]
    rows = []
    for line in lines:
        for stage, one in line["cost"].items():
            size = one["trajectory_bytes"] if stage == "train" else 0
            rows.append([str(line["meta_iteration"]), stage, f"{one['gradients']:,}", f"{one['hvps']:,}",
                         f"{one['seconds']:.2f}", f"{size / 2**20:,.1f} MiB" if size else ""])  # fmt: skip
    return table(columns, rows)


def splits(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [split for split in SPLITS if split in lines[0]["metrics"]]


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def words_table(items: Any) -> str:
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>\n" for k, v in items)
    return f'<table class="words">\n<tbody>\n{rows}</tbody>\n</table>'


def unfold(record: dict[str, Any], front: str = "") -> list[tuple[str, Any]]:
    """Nested dicts as rows: {"a": {"b": 1}} → [("a.b", 1)]."""
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        rows += unfold(value, f"{front}{key}.") if isinstance(value, dict) else [(front + key, value)]
    return rows


def picture(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}"></figure>'
    )
