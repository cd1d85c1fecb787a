"""The figures of `static.py` for the screen: plotly's JSON as plain dicts, so that nothing has to be installed to write it.

A figure is {"data": traces, "layout": …}, or {"choices": [{"name": …, "data": traces}], "layout": …} where one of many is
looked at at a time (the page makes a menu of them). Words of a user are escaped: plotly reads some HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ..figures import BLACK, BLUE, GREY, MEANING, PURPLE, REPRESENTATION, STAGES, STYLE
from ..measures import ERROR, LOSS, SPLITS, second
from . import static, static_agreement
from .static import measured
from .view import Spread, View

Views = Sequence[View]
Figure = dict[str, Any]
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "x": "x"}
LINES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
BINS = 40
META = "meta-iteration"
# A few percent are seen as well: at the start all hyperparameters are often equal, later no bin holds more than some.
SHARES = [[0.0, "#ffffff"], [0.01, "#e8f1fa"], [0.05, "#c6dbef"], [0.15, "#6baed6"], [0.4, BLUE], [1.0, "#08306b"]]
# ColorBrewer's PuOr turned around: as Matplotlib's PuOr_r.
DIVERGING = ("#2d004b", "#542788", "#8073ac", "#b2abd2", "#d8daeb", "#f7f7f7", "#fee0b6", "#fdb863", "#e08214", "#b35806",
             "#7f3b08")  # fmt: skip


# -- losses and errors --------------------------------------------------------------------------------------------------


def metrics(views: Views) -> Figure:
    if not views[0].alone:
        return metrics_of_several(views)
    (one,) = views
    other = second(one.lines)
    layout, (both,) = panels([["Loss", *([] if other is None else [other.capitalize()])]], height=400)
    left, data = both[0], []
    for split in one.splits:
        style = STYLE[split]
        look = {"line": {"color": style["color"], "dash": LINES[style["linestyle"]]}, "name": split, "legendgroup": split,
                "marker": {"symbol": SYMBOLS[style["marker"]]}}  # fmt: skip
        data.append(curve(left, one.k, measured(one, split, LOSS), **look))
        if other is not None:
            data.append(curve(both[1], one.k, measured(one, split, other), showlegend=False, **look))
    f = [line["hyper_loss"] for line in one.lines]
    data.append(
        curve(left, one.k, f, name="hyper loss f", line={"color": PURPLE, "dash": "dot"}, marker={"symbol": "x"})
    )
    label(layout, left, META, "loss" if other != ERROR else "nats per example", rangemode="tozero")
    if other is not None:
        label(layout, both[1], META, "% of examples" if other == ERROR else other, rangemode="tozero")
    return whole(data, layout)


def metrics_of_several(views: Views) -> Figure:
    splits = [split for split in SPLITS if any(split in one.splits for one in views)]
    other = second([line for one in views for line in one.lines])
    layout, (losses, *more) = panels(
        [[*splits, "hyper loss f"], *([] if other is None else [["" for _ in splits]])], height=560
    )
    errors = more[0] if more else []
    data = []
    for one in views:
        look = look_of(one)
        for row, what in ((losses, LOSS), (errors, other)):
            for panel, split in zip(row, splits, strict=False):
                if split in one.splits:
                    data.append(curve(panel, one.k, measured(one, split, what), showlegend=False, **look))
        data.append(curve(losses[-1], one.k, [line["hyper_loss"] for line in one.lines], **look))
    for n, panel in enumerate(losses):
        label(
            layout,
            panel,
            META if panel == losses[-1] else "",
            "" if n else "nats per example" if other == ERROR else "loss",
        )
        if n < len(splits):
            layout["yaxis" + panel[1][1:]]["rangemode"] = "tozero"
    for n, panel in enumerate(errors):
        label(layout, panel, META, "" if n else "% of examples" if other == ERROR else other, rangemode="tozero")
    return whole(data, layout)


def training(views: Views) -> Figure:
    layout, ((panel,),) = panels([["Training"]], height=400)
    data = []
    if views[0].alone:
        losses = views[0].losses
        shown = static.spaced(list(losses), 6)
        for k, one in losses.items():
            share = k / max(max(losses), 1)
            colour = BLACK if k == max(losses) else f"rgba(0,114,178,{0.3 + 0.7 * share:.2f})"
            data.append(curve(panel, *static.smoothed(one), mode="lines", name=f"{META} {k}", line={"color": colour},
                              visible=True if k in shown else "legendonly"))  # fmt: skip
    else:
        for one in views:
            if one.losses:
                k = max(one.losses)
                look = look_of(one) | {"name": f"{words(one.label)} ({META} {k})"}
                data.append(curve(panel, *static.smoothed(one.losses[k]), mode="lines", **look))
    label(layout, panel, "elementary step", "elementary loss, penalties included")
    if static.span([trace["y"] for trace in data]) > 30:
        logarithmic(layout["yaxis"], [trace["y"] for trace in data])
    return whole(data, layout)


# -- hypergradients -----------------------------------------------------------------------------------------------------


def norms(views: Views) -> Figure:
    kinds = static.kinds_of(views)
    layout, (row,) = panels([[kind.replace("_", " ") for kind in kinds]], height=380)
    data = []
    for n, (panel, kind) in enumerate(zip(row, kinds, strict=True)):
        first = len(data)
        for one in views:
            look = look_of(one)
            ours = [(line["meta_iteration"], line["norm"][kind]) for line in one.lines if kind in line.get("norm", {})]
            exact = [(line["meta_iteration"], line["agreement"][kind]["total"]["reference_norm"])
                     for line in one.compared if kind in line["agreement"]]  # fmt: skip
            alone = one.alone
            if ours:
                name = next(line["method"] for line in one.lines if "method" in line) if alone else look["name"]
                data.append(curve(panel, *zip(*ours, strict=True), showlegend=not n, **(look | {"name": name})))
            if exact:
                colour = GREY if alone else look["line"]["color"]
                data.append(curve(panel, *zip(*exact, strict=True), mode="lines", showlegend=not n,
                                  legendgroup=f"exact {one.letter}", name="exact" if alone else f"{one.letter}: exact",
                                  line={"color": colour, "dash": "dash"}))  # fmt: skip
        label(layout, panel, META, "" if n else "norm of the hypergradient")
        if static.span([trace["y"] for trace in data[first:]]) > 10:
            logarithmic(layout["yaxis" + panel[1][1:]], [trace["y"] for trace in data[first:]])
    return whole(data, layout)


def agreement(views: Views) -> Figure:
    views = [one for one in views if one.compared]
    kinds = list(dict.fromkeys(kind for one in views for kind in one.compared[0]["agreement"]))
    axis_words = ["cosine", "% with the exact sign", "norm / exact norm"]
    titles = [[title + ("" if len(kinds) == 1 else f": {kind.replace('_', ' ')}") for _, title, *_ in static_agreement.PANELS]
              for kind in kinds]  # fmt: skip
    layout, rows = panels(titles, height=110 + 290 * len(kinds))
    data = []
    for row, kind in zip(rows, kinds, strict=True):
        for panel, (key, _, _, reference, _), said in zip(row, static_agreement.PANELS, axis_words, strict=True):
            scale = 100.0 if key == "signs" else 1.0
            for one in views:
                found = [x for x in one.compared if kind in x["agreement"]]
                look = look_of(one) | ({"name": "all coordinates"} if views[0].alone else {})
                y = [static_agreement.number(x["agreement"][kind]["total"][key]) * scale for x in found]
                data.append(
                    curve(panel, [x["meta_iteration"] for x in found], y, showlegend=panel == rows[0][0], **look)
                )
            label(layout, panel, META, said)
            axis = layout["yaxis" + panel[1][1:]]
            if key == "norm_ratio":
                around_one(axis, [trace["y"] for trace in data if trace["yaxis"] == panel[1]])
            else:
                axis["range"] = [-1.05, 1.05] if key == "cosine" else [-3, 103]
            layout.setdefault("shapes", []).append(
                {"type": "line", "xref": f"{panel[0]} domain", "x0": 0, "x1": 1, "yref": panel[1], "y0": reference,
                 "y1": reference, "line": {"color": GREY, "width": 1, "dash": "dash"}, "layer": "below"}
            )  # fmt: skip
    return whole(data, layout)


def agreement_layers(one: View) -> Figure:
    many, names = static_agreement.tensors_compared(one)
    layout, (row,) = panels(
        [[title for _, title, *_ in static_agreement.PANELS]], height=190 + 15 * len(names), gap=0.03
    )
    ticks = [words(name if len(many) == 1 else f"{kind} {name}") for kind, name in names]
    k = [line["meta_iteration"] for line in one.compared]
    data = []
    for panel, (key, *_) in zip(row, static_agreement.PANELS, strict=True):
        table = static_agreement.agreement_map(one, names, key)
        low, high, bar = {
            "cosine": (-1, 1, {}),
            "signs": (0, 100, {"ticksuffix": " %"}),
            "norm_ratio": (-2, 2, {"tickvals": [-2, -1, 0, 1, 2], "ticktext": ["0.01", "0.1", "1", "10", "100"]}),
        }[key]
        z = np.log10(np.maximum(table, 1e-30)) if key == "norm_ratio" else table
        x0, x1 = layout["xaxis" + panel[0][1:]]["domain"]
        data.append(
            {"type": "heatmap", "x": k, "y": ticks, "z": plain(z), "customdata": plain(table), "zmin": low, "zmax": high,
             "colorscale": scale(DIVERGING), "xaxis": panel[0], "yaxis": panel[1],
             "hovertemplate": f"%{{y}}<br>{META} %{{x}}<br>{key.replace('_', ' ')} %{{customdata:.4g}}<extra></extra>",
             "colorbar": {"orientation": "h", "x": (x0 + x1) / 2, "len": x1 - x0, "y": 0, "yanchor": "top", "ypad": 50,
                          "thickness": 9, **bar}}
        )  # fmt: skip
        label(layout, panel, META, "", autorange="reversed", showticklabels=panel == row[0], automargin=True,
              tickfont={"size": 10}, showgrid=False)  # fmt: skip
    layout["hovermode"] = "closest"
    layout["margin"]["b"] = 108
    return whole(data, layout)


# -- hyperparameters ----------------------------------------------------------------------------------------------------


def hyperparameters(kind: str, role: str, views: Views) -> Figure:
    """The distribution of one tensor's hyperparameters, or of all of them together, over the meta-iterations: a menu of them.

    One run: shares in bins, darker where there are more, with median and quartiles. Several: median and quartiles of each.
    Tensors that have one hyperparameter each: a line for each, no menu.
    """
    names = static.tensors_of(kind, role, views)
    layout, ((panel,),) = panels([[""]], height=400)
    label(layout, panel, META, REPRESENTATION.get(kind, kind))
    spreads = [one.spreads.get(kind, {}).get(role, {}) for one in views]
    if views[0].alone and all(spread[0].size == 1 for spread in spreads[0].values()):
        data = [
            curve(panel, np.arange(len(u)), [x.item() for x in u], name=words(name)) for name, u in spreads[0].items()
        ]
        return whole(data, layout)
    layout["hovermode"] = "closest"
    choices = []
    for name in ([None] if len(names) > 1 else []) + names:
        data = []
        size = 0
        for one, tensors in zip(views, spreads, strict=True):
            u = pooled(tensors) if name is None else tensors.get(name)
            if u:
                size = max(size, u[0].size)
                data += shares(panel, u) if views[0].alone else quantiles(panel, u, look_of(one))
        said = f"all {len(names)} tensors" if name is None else MEANING.get(name, name)
        choices.append({"name": f"{said} ({size:,})", "data": data})
    return (
        {"choices": choices, "layout": layout} if len(choices) > 1 else {"data": choices[0]["data"], "layout": layout}
    )


def pooled(tensors: dict[str, Spread]) -> Spread:
    return [np.concatenate(state) for state in zip(*tensors.values(), strict=True)]


def shares(panel: tuple[str, str], u: Spread) -> list[dict[str, Any]]:
    """A column of bins for every state, and lines for median and quartiles; of one number the line alone."""
    low, high = min(float(x.min()) for x in u), max(float(x.max()) for x in u)
    lines = quantiles(panel, u, {"line": {"color": BLACK}, "name": "median"})
    if u[0].size == 1:
        return [curve(panel, np.arange(len(u)), [x.item() for x in u], line={"color": BLACK}, name="value")]
    if low == high:
        return lines
    edges = np.linspace(low, high, BINS + 1)
    z = np.array([np.histogram(x, edges)[0] / x.size for x in u]).T
    bins = {"type": "heatmap", "x": plain(np.arange(len(u))), "y": plain((edges[1:] + edges[:-1]) / 2), "z": plain(z),
            "colorscale": SHARES, "zmin": 0.0,
            "colorbar": {"thickness": 9, "tickformat": ".0%", "title": {"text": "share"}}, "xaxis": panel[0],
            "yaxis": panel[1],
            "hovertemplate": f"{META} %{{x}}<br>around %{{y:.3g}}: %{{z:.1%}}<extra></extra>"}  # fmt: skip
    return [bins, *lines]


def quantiles(panel: tuple[str, str], u: Spread, look: dict[str, Any]) -> list[dict[str, Any]]:
    """Median and quartiles against the state. look: of several runs one's (with its legendgroup), or that of a run alone."""
    low, first, middle, third, high = np.array([np.quantile(x, static.QUANTILES) for x in u]).T
    k = np.arange(len(u))
    alone = "legendgroup" not in look
    thin = {"line": {"color": look["line"]["color"], "width": 1, "dash": "dot"}, "mode": "lines", "hoverinfo": "skip",
            "name": "quartiles", "legendgroup": "quartiles" if alone else look["legendgroup"]}  # fmt: skip
    around = [
        f"5 %: {a:.3g}, 25 %: {b:.3g}, 75 %: {c:.3g}, 95 %: {d:.3g}"
        for a, b, c, d in zip(low, first, third, high, strict=True)
    ]
    hover = f"{META} %{{x}}<br>median %{{y:.3g}}<br>%{{text}}<extra>%{{fullData.name}}</extra>"
    return [
        curve(panel, k, middle, **{**look, "mode": "lines", "text": around, "hovertemplate": hover}),
        curve(panel, k, first, showlegend=alone, **thin),
        curve(panel, k, third, showlegend=False, **thin),
    ]


# -- cost ---------------------------------------------------------------------------------------------------------------


def cost(views: Views) -> Figure:
    layout, ((seconds, work, memory),) = panels([["Time", "Work", "Memory"]], height=380)
    at, names, bars = static.stages_of(views)
    x: Any = at if views[0].alone else names
    data: list[dict[str, Any]] = []
    for panel, key in ((seconds, "seconds"), (work, "gradients")):
        for stage, colour in STAGES.items():
            if any(bars[key].get(stage, [])):
                data.append({"type": "bar", "x": x, "y": plain(bars[key][stage]), "name": stage, "legendgroup": stage,
                             "marker": {"color": colour}, "showlegend": panel == seconds, "xaxis": panel[0],
                             "yaxis": panel[1]})  # fmt: skip
    for key, symbol, colour in (
        ("host", "circle", BLACK),
        ("device", "square", PURPLE),
        ("trajectory", "diamond", GREY),
    ):
        values = np.array(bars["memory"][key]) / 2**20
        if values.any():
            data.append(curve(memory, x, np.where(values > 0, values, np.nan), name=static.MEMORY[key],
                              mode="lines+markers" if views[0].alone else "markers", line={"color": colour},
                              marker={"symbol": symbol}))  # fmt: skip
    axis = META if views[0].alone else "run"
    for panel, said in ((seconds, "seconds"), (work, "gradients (with HVP: 2)"), (memory, "MiB")):
        label(layout, panel, axis, said, rangemode="tozero")
    layout["barmode"] = "stack"
    return whole(data, layout)


# -- pieces -------------------------------------------------------------------------------------------------------------


def panels(
    titles: Sequence[Sequence[str]], height: int, gap: float = 0.09
) -> tuple[dict[str, Any], list[list[tuple[str, str]]]]:
    """(layout, rows of (x axis, y axis)): a grid of panels with their titles; a short row leaves room at its end."""
    columns = max(map(len, titles))
    gap = gap if columns < 4 else 0.05
    width = (1 - gap * (columns - 1)) / columns
    tall = (1 - 0.2 * (len(titles) - 1)) / len(titles)
    layout: dict[str, Any] = {
        "height": height,
        "font": {"family": "Helvetica Neue, Helvetica, Arial, sans-serif", "size": 12, "color": BLACK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 60, "r": 16, "t": 46, "b": 84},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "annotations": [],
    }
    rows = []
    n = 0
    for r, row in enumerate(titles):
        axes = []
        top = 1 - r * (tall + 0.2)
        for c, title in enumerate(row):
            n += 1
            x, y = (f"{one}{n}" if n > 1 else one for one in "xy")
            left = c * (width + gap)
            layout["xaxis" + x[1:]] = {"domain": [left, min(left + width, 1.0)], "anchor": y}
            layout["yaxis" + y[1:]] = {"domain": [max(top - tall, 0.0), min(top, 1.0)], "anchor": x}
            layout["annotations"].append(
                {"text": f"<b>{title}</b>", "xref": "paper", "yref": "paper", "x": left, "y": top, "xanchor": "left",
                 "yanchor": "bottom", "showarrow": False, "font": {"size": 13}}
            )  # fmt: skip
            axes.append((x, y))
        rows.append(axes)
    return layout, rows


def label(layout: dict[str, Any], panel: tuple[str, str], x: str, y: str, **axis: Any) -> None:
    """Name the axes of a panel; further settings are of the y axis."""
    line = {
        "showline": True,
        "linecolor": BLACK,
        "zeroline": False,
        "gridcolor": "#E6E6E6",
        "ticks": "outside",
        "ticklen": 3,
    }
    layout["xaxis" + panel[0][1:]] |= {**line, "showgrid": False, "title": {"text": x, "standoff": 8}}
    layout["yaxis" + panel[1][1:]] |= {**line, "title": {"text": y, "standoff": 4}, **axis}


def whole(data: list[dict[str, Any]], layout: dict[str, Any]) -> Figure:
    """The figure, with room below it for as many rows of legend as its names need."""
    names = [trace["name"] for trace in data if "name" in trace and trace.get("showlegend", True)]
    rows = -(-sum(52 + 6.5 * len(name) for name in names) // LEGEND_WIDTH) if len(names) > 1 else 0
    more = max(0, int(rows) - 1) * 20
    layout["height"] += more
    layout["margin"]["b"] += more
    return {"data": data, "layout": layout}


LEGEND_WIDTH = 850  # pixels: of the page at its widest, with some to spare


def words(text: str) -> str:
    """What a user named, as plotly shows it unread."""
    return escape(text, quote=False)


def logarithmic(axis: dict[str, Any], curves: Sequence[Sequence[float | None]]) -> None:
    """Ticks at 1, 2, 5 where the values span little, else at powers of ten."""
    decades = np.log10(max(static.span([[v for v in y if v is not None and v > 0] or [1.0] for y in curves]), 1.0))
    ticks = {"dtick": "D2"} if decades < 2 else {"dtick": 1} if decades < 9 else {"nticks": 8}
    axis |= {"type": "log", "exponentformat": "power", "minexponent": 4, **ticks}


def around_one(axis: dict[str, Any], curves: Sequence[Sequence[float | None]]) -> None:
    """A logarithmic axis that holds the values and 1."""
    logarithmic(axis, [*curves, [1.0]])
    known = [one for y in curves for one in y if one is not None and one > 0] or [1.0]
    axis["range"] = [float(np.log10(end)) for end in (min(min(known) / 1.5, 0.4), max(max(known) * 1.5, 2.5))]


def curve(panel: tuple[str, str], x: Any, y: Any, **look: Any) -> dict[str, Any]:
    mode = {"mode": "lines+markers" if len(x) <= 60 else "lines"}
    return {"type": "scatter", "x": plain(x), "y": plain(y), "xaxis": panel[0], "yaxis": panel[1], **mode, **look}


def look_of(one: View) -> dict[str, Any]:
    style = static.look(one)
    line = {"color": style["color"], "dash": LINES[style["linestyle"]]}
    return {"line": line, "name": words(one.label), "legendgroup": one.letter}


def scale(colours: Sequence[str]) -> list[list[Any]]:
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


def plain(values: Any) -> Any:
    """Nested lists as JSON holds them: six digits are enough to look at; None where there is no number."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return [plain(row) for row in values]
    if any(isinstance(one, str) for one in values):
        return list(values)
    return [float(f"{float(one):.6g}") if np.isfinite(one) else None for one in values]
