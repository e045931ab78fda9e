"""The pictures of the report, as SVG. matplotlib may be absent; then there are none.

Each stands on an opaque card, so that it reads the same on a light and on a dark page. Equal
results give equal files.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Figure, Results
from benchmarks.sections import RANKINGS
from benchmarks.wording import LIMITS, OURS, quantity

CARD, INK, GRID = "#fbfbf8", "#333333", "#d9d9d2"
OURS_COLOUR, LIMIT_COLOUR = "#1f5fa8", "#8c8c84"
COLOURS = ("#b3372f", "#c98a1b", "#3f7f4c", "#7a4f9a", "#2d8f96", "#a0522d", "#5b5b5b")
MARKERS = "osD^vPX*"
STYLE = {
    "svg.hashsalt": "dstore",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10,
    "savefig.dpi": 100,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, folder: Path, kind: str = "svg") -> list[str]:
    """Write all pictures for which there are figures. Their names."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    made = []
    with matplotlib.rc_context(STYLE):
        for name, picture in PICTURES.items():
            figure = picture(pyplot, results)
            if figure is None:
                continue
            made.append(f"{name}.{kind}")
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(
                folder / made[-1],
                format=kind,
                metadata=metadata,
                dpi=100,
                bbox_inches="tight",
                pad_inches=0.15,
            )
            pyplot.close(figure)
    return made


def colours(names: Sequence[str]) -> dict[str, str]:
    """The same colour for the same contender in all pictures of a run."""
    others = [name for name in names if name != OURS and name not in LIMITS]
    found = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(others)}
    return {**found, OURS: OURS_COLOUR, **dict.fromkeys(LIMITS, LIMIT_COLOUR)}


def _all_names(results: Results) -> list[str]:
    found = {figure.who for name in ("mixed", "delete") for figure in results.of(name)}
    return sorted(found)


def _peers(pyplot: Any, results: Results) -> Any:
    """One panel for each workload, one bar for each contender, the best on top."""
    panels = [name for name in RANKINGS if results.of(name)]
    if not panels:
        return None
    sizes = [len(results.of(name)) for name in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 1.1 * len(panels) + 0.3 * sum(sizes)), squeeze=False,
        gridspec_kw={"height_ratios": [size + 1 for size in sizes]}, layout="constrained",
    )  # fmt: skip
    for axis, name in zip(axes[:, 0], panels):
        _bars(axis, results.of(name), RANKINGS[name][0])
    return figure


def _bars(axis: Any, figures: Sequence[Figure], title: str) -> None:
    rate = figures[0].unit == "1/s"
    ordered = sorted(figures, key=lambda each: each.summary.median, reverse=not rate)
    values = [each.summary.median for each in ordered]
    colour = [
        OURS_COLOUR if each.who == OURS else LIMIT_COLOUR if each.who in LIMITS else COLOURS[1]
        for each in ordered
    ]
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 2.5, max(values) * 6)
    axis.barh([each.who for each in ordered], values, color=colour, height=0.72)
    for number, each in enumerate(ordered):
        text = " " + quantity(each.summary.median, each.unit)
        axis.text(each.summary.median, number, text, va="center", fontsize=9)
    for label, each in zip(axis.get_yticklabels(), ordered):
        label.set_fontweight("bold" if each.who == OURS else "normal")
    good = "operations a second: longer is better" if rate else "time: shorter is better"
    if title == RANKINGS["get_many"][0]:
        good = "keys a second: longer is better"
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(good)
    axis.grid(axis="y", visible=False)
    _ticks(axis.xaxis, figures[0].unit)


def _mixed(pyplot: Any, results: Results) -> Any:
    """Throughput over processes, one panel for each share of deletions."""
    figures = results.of("mixed")
    if not figures:
        return None
    shares = sorted({float(each.at["deletions"]) for each in figures})
    figure, axes = pyplot.subplots(
        1, len(shares), figsize=(3.6 * len(shares) + 1, 4.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, share in zip(axes[0], shares):
        here = [each for each in figures if each.at["deletions"] == share]
        _lines(axis, here, "processes", colours(_all_names(results)))
        axis.set_title(f"{share:.0%} deletions", loc="left", fontsize=11)
        axis.set_xlabel("processes")
    axes[0][0].set_ylabel("operations a second, all together")
    _legend(figure, axes[0][0])
    return figure


def _deletions(pyplot: Any, results: Results) -> Any:
    """The time of a DEL over its holders."""
    figures = [each for each in results.of("delete") if not each.at["bystanders"]]
    held = [each for each in figures if each.at["holders"]]
    if not held:
        return None
    figure, axis = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    _lines(axis, held, "holders", colours(_all_names(results)))
    with_others = [
        each
        for each in results.of("delete")
        if each.at["bystanders"] and each.at["holders"] and each.who == OURS
    ]
    for each in with_others:
        axis.plot(
            [each.at["holders"]], [each.summary.median], marker="o", markersize=10,
            markerfacecolor="none", markeredgecolor=OURS_COLOUR, linestyle="none",
            label=f"dstore, with {each.at['bystanders']} bystanders",
        )  # fmt: skip
    axis.set_xlabel("processes that hold the key")
    axis.set_ylabel("time of a DEL, median")
    axis.set_title("DEL: dstore waits for all holders, Redis for none", loc="left", fontsize=11)
    _legend(figure, axis)
    return figure


def _growth(workload: str, axis_name: str, title: str) -> Callable[[Any, Results], Any]:
    def picture(pyplot: Any, results: Results) -> Any:
        figures = results.of(workload)
        if not figures:
            return None
        figure, axis = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
        _lines(axis, figures, axis_name.lower(), colours(sorted({each.who for each in figures})))
        axis.set_xlabel(axis_name)
        axis.set_ylabel("time of one operation, median")
        axis.set_title(title, loc="left", fontsize=11)
        _legend(figure, axis)
        return figure

    return picture


def _lines(axis: Any, figures: Sequence[Figure], along: str, colour: dict[str, str]) -> None:
    """One line for each contender, with the spread as a band."""
    for number, who in enumerate(dict.fromkeys(each.who for each in figures)):
        own = sorted(
            (each for each in figures if each.who == who), key=lambda e: float(e.at[along])
        )
        where = [float(each.at[along]) for each in own]
        width = 2.6 if who == OURS else 1.5
        style = "--" if who in LIMITS else "-"
        axis.plot(
            where, [each.summary.median for each in own], style, color=colour[who],
            marker=MARKERS[number % len(MARKERS)], linewidth=width, markersize=5, label=who,
        )  # fmt: skip
        low, high = [each.summary.p25 for each in own], [each.summary.p75 for each in own]
        axis.fill_between(where, low, high, color=colour[who], alpha=0.15, linewidth=0)
    axis.set_xscale("log")
    axis.set_yscale("log")
    places = sorted({float(each.at[along]) for each in figures})
    axis.set_xticks(places, [f"{place:,.0f}" for place in places])
    axis.set_xticks([], minor=True)
    _ticks(axis.yaxis, figures[0].unit)


def _ticks(axis: Any, unit: str) -> None:
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: quantity(value, unit)))
    axis.set_minor_formatter(ticker.NullFormatter())


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


PICTURES: dict[str, Callable[[Any, Results], Any]] = {
    "peers": _peers,
    "mixed": _mixed,
    "delete": _deletions,
    "growth_keys": _growth("growth_keys", "keys", "Costs over the number of keys"),
    "growth_locals": _growth("growth_locals", "Locals", "Costs over the number of Locals"),
}
