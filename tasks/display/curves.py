"""Training curves: a metric against the examples seen, as a chart in a report or as an image."""

import base64
import math
from collections.abc import Sequence

from markupsafe import Markup

from lexloom.tasks.display.charts import CHART_HEIGHT, CHART_WIDTH, Axis, line_chart, smoothed
from lexloom.tasks.display.colours import scheme
from lexloom.tasks.display.formatting import short
from lexloom.tasks.display.templates import chart_style

IMAGE_SCALE = 2  # ratio of an image's size to a chart's


def draw_curve(
    points: Sequence[tuple[float, float]],
    label: str,
    unit: str,
    marks: Sequence[tuple[float, str]] = (),
    *,
    smooth: bool = False,
    hover: bool = True,
) -> Markup | None:
    """Plot (examples, value) points; return None if fewer than two are finite.

    Set `smooth` for a metric that is a mean over the examples since the previous point: the smoothed curve is
    drawn over the points. Without `hover`, the chart has no hints, as needed for an image.
    """
    known = [(x, y) for x, y in points if math.isfinite(y)]
    if len(known) < 2:
        return None
    drawn = smoothed(known) if smooth else known
    hints = [f"{short(x)} {unit} · {label} {y:.4g}" for x, y in drawn if hover]
    axes = Axis(unit, short), Axis(label, lambda value: f"{value:.3g}")
    return line_chart(drawn, *axes, hints, marks, behind=known if smooth else ())


def image_url(chart: Markup) -> str:
    """Return a chart as a `data:` URL of an SVG image, which a page on any server can show."""
    size = f'width="{IMAGE_SCALE * CHART_WIDTH}" height="{IMAGE_SCALE * CHART_HEIGHT}"'
    start, rest = chart.split(">", 1)
    svg = f'{start} xmlns="http://www.w3.org/2000/svg" {size}><style>{scheme()}{chart_style()}</style>{rest}'
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
