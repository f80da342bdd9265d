"""Charts for reports, as inline SVG: line charts, calibration charts and word maps.

This module computes coordinates; templates/charts.svg.j2 has the markup and templates/style.css the colours,
so a chart follows the light or dark scheme of the page. Hints appear on hover by CSS, without a script: a
report stays one small file, which plotting libraries with hover cannot offer (docs/design.md).
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lexloom.tasks.display.templates import macros

CHART_WIDTH, CHART_HEIGHT = 480, 270
MOST_DIGITS = 8  # of a tick's label
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 44  # margins of the plot, for ticks, labels and the hint
TICKS = 5
SMOOTHED = 0.02  # of a curve's length: about four of a history's points

MAP_WIDTH, MAP_HEIGHT = 1000, 640
MAP_MARGIN = 46
LABEL_SIZE = 13
CHARACTER_WIDTH = 0.56  # of the font size; wide scripts twice that
LABEL_GAP = 6

PERPLEXITY = 15.0


@dataclass(frozen=True)
class Axis:
    """An axis: its label, the format of its values, and whether it is logarithmic."""

    label: str
    format: Callable[[float], str]
    log: bool = False


@dataclass(frozen=True)
class Plot:
    """The frame of a chart for its template: size, margins, labels and ticks as (coordinate, label)."""

    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT
    left: int = LEFT
    right: int = CHART_WIDTH - RIGHT
    top: int = TOP
    bottom: int = CHART_HEIGHT - BOTTOM


def line_chart(
    points: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
    hints: Sequence[str],
    marks: Sequence[tuple[float, str]] = (),
    behind: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Draw a curve through `points`, which are in order of x.

    Args:
        hints: one text for each point, shown on hover; empty for an image, which has no hover.
        marks: vertical lines with a label, as (x, label); a label that does not fit is left out.
        behind: the points of a faint curve, such as the values that `points` are smoothed from; within the
            same range of x.

    Points that cannot be drawn (not finite, or not positive on a logarithmic axis) are left out.

    Raises:
        ValueError: fewer than two points remain.
    """
    drawn = [
        (px, py, hint)
        for (px, py), hint in zip(points, hints or [""] * len(points), strict=True)
        if all(math.isfinite(v) and (v > 0 or not axis.log) for v, axis in ((px, x), (py, y)))
    ]
    if len(drawn) < 2:
        raise ValueError("a line chart needs two points")
    xs, ys = [point[0] for point in drawn], [point[1] for point in drawn]
    heights = ys + [py for _, py in behind]
    levels = ticks(min(heights), max(heights), y.log, around=True)
    across = scale(min(xs), max(xs), x.log, LEFT, CHART_WIDTH - RIGHT)
    up = scale(levels[0], levels[-1], y.log, CHART_HEIGHT - BOTTOM, TOP)
    plot = Plot(
        x_label=x.label,
        y_label=y.label,
        x_ticks=label_ticks(ticks(min(xs), max(xs), x.log), across, x.format),
        y_ticks=label_ticks(levels, up, y.format),
    )
    middles = [rounded(across(left) / 2 + across(right) / 2) for left, right in pairwise(xs)]
    borders = pairwise([plot.left, *middles, plot.right])
    spots = [
        {"x": across(px), "y": up(py), "hint": hint, "left": left, "width": rounded(right - left)}
        for (px, py, hint), (left, right) in zip(drawn, borders, strict=True)
    ]
    inside = [
        (across(place), label if across(place) + label_width(label) < plot.right else "")
        for place, label in marks
        if min(xs) < place < max(xs)
    ]
    curve = " L".join(f"{spot['x']} {spot['y']}" for spot in spots)
    raw = " L".join(f"{across(px)} {up(py)}" for px, py in behind)
    return macros("charts.svg.j2").line_chart(plot, inside, curve, raw, spots, bool(hints))


def smoothed(points: Sequence[tuple[float, float]], width: float = SMOOTHED) -> list[tuple[float, float]]:
    """Smooth a curve whose points are means over the x since the point before.

    Uses a Gaussian kernel with a standard deviation of `width` times the curve's length, but at least the
    mean distance of the points. Each point is weighted by the length of the interval that it is the mean of
    (Nadaraya 1964, Watson 1964).
    """
    if points[-1][0] == points[0][0]:
        return list(points)
    width = max(width, 1 / (len(points) - 1))
    x, y = np.array(points, dtype=np.float64).T
    weights = np.diff(x, prepend=0.0) if x[0] > 0 else np.ones_like(x)
    near = np.exp(-0.5 * ((x[:, None] - x[None]) / (width * (x[-1] - x[0]))) ** 2) * weights  # (n, n)
    return list(zip(x.tolist(), ((near @ y) / near.sum(1)).tolist(), strict=True))


def calibration_chart(bins: Sequence[tuple[float, float, float | None]], hints: Sequence[str]) -> Markup:
    """Draw a column for each range of scores, as high as its accuracy; the diagonal is perfect calibration.

    Args:
        bins: (lower end, upper end, accuracy or None) for each range, in 0..1, ascending. The x axis starts
            at the first range with an accuracy.
        hints: one text for each range, shown on hover.

    Raises:
        ValueError: no range has an accuracy.
    """
    known = [
        (lower, upper, share, hint)
        for (lower, upper, share), hint in zip(bins, hints, strict=True)
        if share is not None
    ]
    if not known:
        raise ValueError("a calibration chart needs at least one range with an accuracy")
    start, bottom = known[0][0], CHART_HEIGHT - BOTTOM
    across, up = scale(start, 1, False, LEFT, CHART_WIDTH - RIGHT), scale(0, 1, False, bottom, TOP)
    plot = Plot(
        x_label="score",
        y_label="accuracy",
        x_ticks=[(across(tick), f"{tick:.0%}") for tick in ticks(start, 1)],
        y_ticks=[(up(tick), f"{tick:.0%}") for tick in ticks(0, 1)],
    )
    columns = [
        {
            "left": rounded(across(lower) + 1),
            "width": rounded(across(upper) - across(lower) - 2),
            "y": up(share),
            "height": rounded(bottom - up(share)),
            "hint": hint,
        }
        for lower, upper, share, hint in known
    ]
    diagonal = across(start), up(start), across(1), up(1)
    return macros("charts.svg.j2").calibration_chart(plot, columns, diagonal)


def scale(low: float, high: float, log: bool, start: float, end: float) -> Callable[[float], float]:
    """Return the linear or logarithmic function from low..high to pixels start..end."""

    def position(value: float) -> float:
        values = [math.log10(v) for v in (low, high, value)] if log else [low, high, value]
        span = values[1] - values[0]
        return rounded(start + (end - start) * ((values[2] - values[0]) / span if span else 0.5))

    return position


def rounded(pixels: float) -> float:
    return round(pixels, 1)


def ticks(low: float, high: float, log: bool = False, around: bool = False) -> list[float]:
    """Return about five round values, ascending; powers of ten on a logarithmic axis.

    They lie within low..high, or enclose it if `around` is set.
    """
    if log:
        start, end = math.log10(low), math.log10(high)
        step: float = max(1, round((end - start) / TICKS))
    elif low == high:
        return [low]
    else:
        start, end = low, high
        rough = (high - low) / TICKS
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(magnitude * f for f in (1, 2, 5, 10) if magnitude * f >= rough * (1 - 1e-9))
    first, last = start / step, end / step
    if around:
        places = range(math.floor(first + 1e-9), math.ceil(last - 1e-9) + 1)
    else:
        places = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    return [10.0 ** (i * step) if log else i * step for i in places]


def label_ticks(
    values: Sequence[float], place: Callable[[float], float], form: Callable[[float], str]
) -> list[tuple[float, str]]:
    """Return the coordinate and the label of each tick, with more digits if labels would be equal."""
    labels, digits = [form(value) for value in values], 4
    while len({*labels}) < len({*values}) and digits <= MOST_DIGITS:
        labels, digits = [f"{value:.{digits}g}" for value in values], digits + 1
    return [(place(value), label) for value, label in zip(values, labels, strict=True)]


def word_map(
    places: NDArray[np.float64],
    words: Sequence[str],
    hints: Sequence[str],
    width: int = MAP_WIDTH,
    height: int = MAP_HEIGHT,
) -> Markup:
    """Draw a dot for each word at `places` (n, 2), and the labels that fit, starting with the first words.

    On hover, a dot shows its hint, and its label if it has none.
    """
    low, high = places.min(0), places.max(0)
    room = np.array([width - 2 * MAP_MARGIN, height - 2 * MAP_MARGIN])
    spots = (MAP_MARGIN + (places - low) / np.where(high > low, high - low, 1) * room).tolist()
    boxes = [(px - 3, py - 3, px + 3, py + 3) for px, py in spots]
    taken: list[Box] = []
    dots = []
    for i, ((px, py), word, hint) in enumerate(zip(spots, words, hints, strict=True)):
        placed = label_place(px, py, label_width(word), [*taken, *boxes[:i], *boxes[i + 1 :]], width)
        (label_x, label_y, anchor), box = placed or ((px, py - 10, "middle"), None)
        if box:
            taken.append(box)
        dots.append(
            {
                "x": rounded(px),
                "y": rounded(py),
                "word": word,
                "hint": hint,
                "hidden": box is None,
                "label_x": rounded(label_x),
                "label_y": rounded(label_y),
                "anchor": anchor,
            }
        )
    return macros("charts.svg.j2").word_map(width, height, dots)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def label_width(word: str) -> float:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in word)
    return (len(word) + wide) * CHARACTER_WIDTH * LABEL_SIZE


def label_place(
    px: float, py: float, width: float, taken: Sequence[Box], map_width: float = MAP_WIDTH
) -> tuple[tuple[float, float, str], Box] | None:
    """Find a free place right, left, above or below a dot: ((x, baseline, anchor), box), or None."""
    baseline, height = py + LABEL_SIZE * 0.35, LABEL_SIZE * 1.1
    for anchor, x, y in (
        ("start", px + LABEL_GAP, baseline),
        ("end", px - LABEL_GAP, baseline),
        ("middle", px, py - LABEL_GAP),
        ("middle", px, py + LABEL_GAP + LABEL_SIZE * 0.8),
    ):
        left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
        box = (left, y - height * 0.8, left + width, y + height * 0.2)
        inside = left >= 0 and box[2] <= map_width
        if inside and not any(overlap(box, other) for other in taken):
            return (x, y, anchor), box
    return None


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def project(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Project vectors (n, dim) to two dimensions (n, 2) by t-SNE on cosine distances.

    It starts from the principal components, so the same vectors give the same map. For a few hundred vectors:
    a step takes O(n^2). (van der Maaten & Hinton 2008)
    """
    from sklearn.manifold import TSNE  # here, since its import takes a second

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = len(unit)
    left, strength, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    start = np.zeros((count, 2))
    start[:, : min(2, len(strength))] = (left * strength)[:, :2]
    if count < 5:  # too few for t-SNE
        return start
    places: NDArray[np.float64] = TSNE(
        perplexity=min(PERPLEXITY, (count - 1) / 3),
        init=start / max(start[:, 0].std(), 1e-12) * 1e-4,
        method="exact",
        metric="cosine",
        random_state=0,
    ).fit_transform(unit)
    return places
