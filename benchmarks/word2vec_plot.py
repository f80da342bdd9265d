"""Plot speed and quality of the tools in benchmarks/word2vec.py, with one panel per setting."""

from pathlib import Path
from typing import Any

import matplotlib

THEIRS, OURS, PREVIOUS = "#8a8580", "#3a5a9b", "#b8763a"
MARKERS = "osv^DPX*<>hpd8H"


def plot(measured: dict[str, Any], path: Path) -> None:
    """Write an SVG of training seconds (median and range) and mean scores (mean and range)."""
    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    matplotlib.rcParams["svg.hashsalt"] = "lexloom"  # makes the SVG deterministic
    figure, panels = pyplot.subplots(
        1,
        len(measured),
        figsize=(1.5 + 4.5 * len(measured), 5.2),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    names = list(dict.fromkeys(name for found in measured.values() for name in found["results"]))
    handles = {}
    for axes, (setting, found) in zip(panels[0], measured.items(), strict=True):
        dim, threads = setting.split("x")
        for name, figures in found["results"].items():
            seconds, scores = figures["seconds"], figures["mean"]
            handles[name] = axes.errorbar(
                seconds["median"],
                scores["mean"],
                xerr=spread(seconds, "median"),
                yerr=spread(scores, "mean"),
                color={"lexloom": OURS, "previous": PREVIOUS}.get(name.split(",")[0], THEIRS),
                marker=MARKERS[names.index(name) % len(MARKERS)],
                linestyle="none",
                elinewidth=0.8,
            )
        axes.set(
            xscale="log",
            title=f"{dim} dimensions, {threads} thread{'s' * (threads != '1')}",
            xlabel="seconds of training",
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    panels[0][0].set(ylabel="mean of WordSim-353, SimLex-999 and analogies")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=1 + len(measured), fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def spread(figures: dict[str, float], middle: str) -> list[list[float]]:
    return [[figures[middle] - figures["min"]], [figures["max"] - figures[middle]]]
