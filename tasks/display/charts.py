"""Pictures for reports: line charts, calibration and word maps as SVG text, with no library and no script.

Colours come from the page's CSS (`charts.CSS`), so a picture follows the reader's light or dark scheme. What
is to be said about a point appears while the pointer is on it, by CSS alone.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

CHART_WIDTH, CHART_HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 44  # room around the plot for ticks, labels and the hint
TICKS = 5
SMOOTHED = 0.01  # of a curve's length: about two of a history's points

MAP_WIDTH, MAP_HEIGHT = 1000, 640
MAP_MARGIN = 46
LABEL_SIZE = 13
CHARACTER_WIDTH = 0.56  # of the font size; wide scripts twice that
LABEL_GAP = 6

CSS = """
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; overflow: visible; }
svg text { fill: var(--muted); }
@media (max-width: 600px) { svg.chart { font-size: 16px; } }
svg .grid { stroke: var(--line); }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .area { fill: var(--accent); opacity: .09; }
svg .mark { stroke: var(--muted); stroke-dasharray: 2 4; opacity: .7; }
svg .ideal { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 4; pointer-events: none; }
svg .column { fill: var(--accent); opacity: .45; }
svg .point:hover .column { opacity: .8; }
svg .hit { fill: transparent; }
svg .point circle, svg .point .hint { opacity: 0; }
svg .point:hover circle, svg .point:hover .hint { opacity: 1; }
svg .point circle { fill: var(--accent); stroke: var(--card); stroke-width: 2; }
svg .hint { fill: var(--ink); font-weight: 600; }
svg .word circle { fill: var(--accent); opacity: .5; }
svg .word text { fill: var(--ink); }
svg .word:hover circle { opacity: 1; }
svg .word:hover text { fill: var(--accent); font-weight: 600; }
svg .word .unseen { opacity: 0; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg .word:hover .unseen { opacity: 1; }
"""


class Html(str):
    """Text that is HTML already; everything else is escaped before it enters a page."""


def html(value: object) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[str]) -> Html:
    """Pieces of HTML one after another; plain text among them is escaped."""
    return Html("".join(map(html, parts)))


# line charts


@dataclass(frozen=True)
class Axis:
    """An axis: what it measures, how its figures are written, and whether it is logarithmic."""

    label: str
    shown: Callable[[float], str]
    log: bool = False


def line_chart(
    points: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
    hints: Sequence[str],
    marks: Sequence[tuple[float, str]] = (),
) -> Html:
    """A curve through `points`, in order of x; `hints` says what each is, `marks` are vertical lines.

    Points that cannot be drawn (not finite, or not positive on a logarithmic axis) are left out. Raises
    ValueError where fewer than two remain.
    """
    drawn = [
        (px, py, hint)
        for (px, py), hint in zip(points, hints, strict=True)
        if all(math.isfinite(v) and (v > 0 or not axis.log) for v, axis in ((px, x), (py, y)))
    ]
    if len(drawn) < 2:
        raise ValueError("a line chart needs two points")
    xs, ys = [point[0] for point in drawn], [point[1] for point in drawn]
    x_ticks, y_ticks = ticks(min(xs), max(xs), x.log), ticks(min(ys), max(ys), y.log, around=True)
    bottom = CHART_HEIGHT - BOTTOM
    across = scale(min(xs), max(xs), x.log, LEFT, CHART_WIDTH - RIGHT)
    up = scale(y_ticks[0], y_ticks[-1], y.log, bottom, TOP)
    parts = []
    for tick in y_ticks:
        level = up(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{CHART_WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{html(y.shown(tick))}</text>'
        )
    for tick in x_ticks:
        parts.append(
            f'<text x="{across(tick):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{html(x.shown(tick))}</text>"
        )
    for place, label in marks:
        if min(xs) < place < max(xs):
            left = across(place)
            parts.append(
                f'<line class="mark" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{bottom}"/>'
                f'<text x="{left + 4:.1f}" y="{TOP + 13}">{html(label)}</text>'
            )
    path = " L".join(f"{across(px):.1f} {up(py):.1f}" for px, py, _ in drawn)
    parts.append(
        f'<path class="area" d="M{across(xs[0]):.1f} {bottom} L{path} L{across(xs[-1]):.1f} {bottom} Z"/>'
        f'<path class="curve" d="M{path}"/>'
    )
    middles = [across(left) / 2 + across(right) / 2 for left, right in pairwise(xs)]
    borders = [LEFT, *middles, CHART_WIDTH - RIGHT]
    for (px, py, hint), (left, right) in zip(drawn, pairwise(borders), strict=True):
        parts.append(
            f'<g class="point"><rect class="hit" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}"'
            f' height="{bottom - TOP}"/><circle cx="{across(px):.1f}" cy="{up(py):.1f}" r="5"/>'
            f'<text class="hint" x="{CHART_WIDTH - RIGHT}" y="14" text-anchor="end">{html(hint)}</text></g>'
        )
    parts.append(
        f'<text x="{LEFT}" y="14">{html(y.label)}</text>'
        f'<text x="{CHART_WIDTH - RIGHT}" y="{CHART_HEIGHT - 6}" text-anchor="end">{html(x.label)}</text>'
    )
    return svg("chart", CHART_WIDTH, CHART_HEIGHT, f"{y.label} against {x.label}", parts)


def smoothed(points: Sequence[tuple[float, float]], width: float = SMOOTHED) -> list[tuple[float, float]]:
    """A curve of means, each over the x since the point before, without what is chance in it.

    A Gaussian kernel, whose standard deviation is the share `width` of the curve's length; a point weighs as
    much as the x that it is the mean of. (Nadaraya 1964, Watson 1964)
    """
    if points[-1][0] == points[0][0]:
        return list(points)
    x, y = np.array(points, dtype=np.float64).T
    weights = np.diff(x, prepend=0.0) if x[0] > 0 else np.ones_like(x)
    near = np.exp(-0.5 * ((x[:, None] - x[None]) / (width * (x[-1] - x[0]))) ** 2) * weights  # (n, n)
    return list(zip(x.tolist(), ((near @ y) / near.sum(1)).tolist(), strict=True))


# calibration


def calibration_chart(bins: Sequence[tuple[float, float, float | None]], hints: Sequence[str]) -> Html:
    """A column for each range of scores, as high as the share of it that was right.

    Where scores can be taken at their word, columns end at the broken line. `bins` has (lower end, upper end,
    share or None), all in 0..1, ascending; the axis begins at the first that has a share. Raises ValueError
    where none has.
    """
    columns = [
        (lower, upper, share, hint)
        for (lower, upper, share), hint in zip(bins, hints, strict=True)
        if share is not None
    ]
    if not columns:
        raise ValueError("a calibration chart needs a range with something in it")
    start, right, bottom = columns[0][0], CHART_WIDTH - RIGHT, CHART_HEIGHT - BOTTOM
    across, up = scale(start, 1, False, LEFT, right), scale(0, 1, False, bottom, TOP)
    parts = []
    for tick in ticks(0, 1):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>'
        )
    for tick in ticks(start, 1):
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.0%}</text>')
    for lower, upper, share, hint in columns:
        place = f'x="{across(lower) + 1:.1f}" width="{across(upper) - across(lower) - 2:.1f}"'
        parts.append(
            f'<g class="point"><rect class="column" {place} y="{up(share):.1f}"'
            f' height="{bottom - up(share):.1f}" rx="2"/>'
            f'<rect class="hit" {place} y="{TOP}" height="{bottom - TOP}"/>'
            f'<text class="hint" x="{right}" y="14" text-anchor="end">{html(hint)}</text></g>'
        )
    parts.append(
        f'<line class="ideal" x1="{across(start):.1f}" x2="{across(1):.1f}" y1="{up(start):.1f}"'
        f' y2="{up(1):.1f}"/>'
        f'<text x="{LEFT}" y="14">right</text>'
        f'<text x="{right}" y="{CHART_HEIGHT - 6}" text-anchor="end">score</text>'
    )
    return svg("chart", CHART_WIDTH, CHART_HEIGHT, "share that was right against score", parts)


def svg(kind: str, width: int, height: int, label: str, parts: Sequence[str]) -> Html:
    frame = f'class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{html(label)}"'
    return Html(f"<svg {frame}>{''.join(parts)}</svg>")


def scale(low: float, high: float, log: bool, start: float, end: float) -> Callable[[float], float]:
    """The function that takes `low` to `start` and `high` to `end`, linearly or in logarithms."""

    def position(value: float) -> float:
        values = [math.log10(v) for v in (low, high, value)] if log else [low, high, value]
        span = values[1] - values[0]
        return start + (end - start) * ((values[2] - values[0]) / span if span else 0.5)

    return position


def ticks(low: float, high: float, log: bool = False, around: bool = False) -> list[float]:
    """About five round figures, ascending: those inside low..high, or the fewest that stand `around` it.

    On a logarithmic axis they are powers of ten.
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


# maps of words


def word_map(
    places: NDArray[np.float64],
    words: Sequence[str],
    hints: Sequence[str],
    width: int = MAP_WIDTH,
    height: int = MAP_HEIGHT,
) -> Html:
    """A dot for every word at `places` (n, 2), the most important first, and the labels that have room.

    A word without a label shows it, and every word its hint, under the pointer.
    """
    low, high = places.min(0), places.max(0)
    room = np.array([width - 2 * MAP_MARGIN, height - 2 * MAP_MARGIN])
    spots = MAP_MARGIN + (places - low) / np.where(high > low, high - low, 1) * room
    dots = [(px - 3, py - 3, px + 3, py + 3) for px, py in spots.tolist()]
    taken: list[Box] = []
    parts = []
    for i, ((px, py), word, hint) in enumerate(zip(spots.tolist(), words, hints, strict=True)):
        placed = label_place(px, py, label_width(word), [*taken, *dots[:i], *dots[i + 1 :]], width)
        if placed is None:
            text_x, text_y, anchor, kind = px, py - 10, "middle", ' class="unseen"'
        else:
            (text_x, text_y, anchor), box = placed
            taken.append(box)
            kind = ""
        parts.append(
            f'<g class="word"><title>{html(hint)}</title><circle cx="{px:.1f}" cy="{py:.1f}" r="3"/>'
            f'<text{kind} x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">{html(word)}</text></g>'
        )
    return svg("map", width, height, "map of words", parts)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def label_width(word: str) -> float:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in word)
    return (len(word) + wide) * CHARACTER_WIDTH * LABEL_SIZE


def label_place(
    px: float, py: float, width: float, taken: Sequence[Box], map_width: float = MAP_WIDTH
) -> tuple[tuple[float, float, str], Box] | None:
    """Where a label stands free beside, above or below its dot: (x, baseline, anchor), and its box."""
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


# vectors in the plane

PERPLEXITY = 15.0
TSNE_STEPS = 600
EXAGGERATED_STEPS = 150
EXAGGERATION = 8.0


def in_the_plane(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Places (n, 2) where vectors (n, dim) that point the same way stand together: exact t-SNE on cosines.

    van der Maaten & Hinton 2008; starts at the principal components, so the same vectors give the same
    picture. For a few hundred vectors: every step takes n^2.
    """
    count = len(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(norms > 0, norms, 1)).astype(np.float64)
    centred = unit - unit.mean(0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    start = np.zeros((count, 2))
    start[:, : min(2, len(strength))] = (left * strength)[:, :2]
    if count < 5:
        return start
    affinity = affinities(2 - 2 * unit @ unit.T, min(PERPLEXITY, (count - 1) / 3))
    places = start / max(start[:, 0].std(), 1e-12) * 1e-4
    velocity, rate = np.zeros_like(places), max(count / EXAGGERATION, 50.0)
    for step in range(TSNE_STEPS):
        pull = EXAGGERATION if step < EXAGGERATED_STEPS else 1.0
        near = 1 / (1 + square_distances(places))
        np.fill_diagonal(near, 0)
        force = (pull * affinity - near / near.sum()) * near  # (n, n)
        gradient = 4 * (force.sum(1, keepdims=True) * places - force @ places)
        velocity = (0.5 if step < EXAGGERATED_STEPS else 0.8) * velocity - rate * gradient
        places = places + velocity
        places -= places.mean(0)
    return places


def square_distances(places: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (places**2).sum(1)
    return np.maximum(squares[:, None] + squares[None] - 2 * places @ places.T, 0)


def affinities(distances: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """t-SNE's symmetric P (n, n) of squared distances: each row's entropy is log(perplexity)."""
    count = len(distances)
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    distances -= distances.min(1, keepdims=True)
    low, high = np.zeros((count, 1)), np.full((count, 1), 1e6)
    finite = np.where(np.isfinite(distances), distances, 0)
    for _ in range(60):
        precision = (low + high) / 2
        share = np.exp(-distances * precision)
        total = share.sum(1, keepdims=True)
        entropy = np.log(total) + precision * (finite * share).sum(1, keepdims=True) / total
        too_flat = entropy > math.log(perplexity)
        low, high = np.where(too_flat, precision, low), np.where(too_flat, high, precision)
    conditional = share / total
    return (conditional + conditional.T) / (2 * count)
