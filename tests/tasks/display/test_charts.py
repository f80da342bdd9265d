"""Charts: ticks, coordinates, escaping, label placement and the t-SNE projection."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexloom.tasks.display.charts import (
    CHART_HEIGHT,
    CHART_WIDTH,
    LABEL_SIZE,
    MAP_MARGIN,
    Axis,
    calibration_chart,
    label_ticks,
    label_width,
    line_chart,
    overlap,
    project,
    smoothed,
    ticks,
    word_map,
)

PLAIN = Axis("x", str), Axis("y", str)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


# smoothing


def test_a_smoothed_curve_is_the_kernel_mean_of_its_points_weighed_by_what_they_are_the_mean_of():
    points = [(100.0, 5.0), (200.0, 3.0), (300.0, 4.0), (310.0, 9.0)]
    found = smoothed(points, width=0.5)  # a standard deviation of 105
    for (x, _), (place, value) in zip(points, found, strict=True):
        weights = [
            examples * math.exp(-(((x - other) / 105) ** 2) / 2)
            for (other, _), examples in zip(points, (100, 100, 100, 10), strict=True)
        ]
        assert place == x
        assert value == pytest.approx(np.average([y for _, y in points], weights=weights))


def test_a_last_point_of_few_examples_hardly_moves_a_smoothed_curve():
    points = [(64.0 * (number + 1), 0.7) for number in range(200)]
    assert smoothed([*points, (points[-1][0] + 3, 2.2)])[-1][1] < 0.75
    assert [loss for _, loss in smoothed(points)] == pytest.approx([0.7] * 200)


def test_points_at_one_place_are_left_as_they_are():
    assert smoothed([(1.0, 2.0), (1.0, 3.0)]) == [(1.0, 2.0), (1.0, 3.0)]


# escaping


def test_a_chart_escapes_its_labels():
    axes = Axis("<x>", lambda value: "<tick>"), Axis("<y>", str)
    svg = line_chart([(1, 1), (2, 2)], *axes, ["<hint>", '"'], [(1.5, "<mark>")])
    for word in ("<x>", "<y>", "<tick>", "<hint>", "<mark>"):
        assert word not in svg
    ElementTree.fromstring(svg)


# ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.3, 1.2, [0.4, 0.6, 0.8, 1.0, 1.2]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_on_a_logarithmic_axis_are_powers_of_ten():
    assert ticks(3, 40_000, log=True) == pytest.approx([10, 100, 1000, 10_000])
    assert ticks(3, 40_000, log=True, around=True) == pytest.approx([1, 10, 100, 1000, 10_000, 100_000])


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_around_a_range_hold_it_and_are_few(low, span):
    found = ticks(low, low + span, around=True)
    assert found == sorted(found)
    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= low + span - 1e-6 * span
    assert 2 <= len(found) <= 8


# line charts


def test_the_curve_runs_from_corner_to_corner():
    svg = line_chart([(0, 0), (5, 10), (10, 0)], *PLAIN, ["a", "b", "c"])
    [path] = re.findall(r'class="curve" d="([^"]*)"', svg)
    x1, y1, x2, y2, x3, y3 = numbers(path)
    assert (x1, x2, x3) == (58, 262, 466)
    assert (y1, y2, y3) == (226, 26, 226)


def test_a_logarithmic_axis_spaces_decades_evenly():
    axes = Axis("rank", str, log=True), Axis("count", str, log=True)
    svg = line_chart([(1, 1000), (10, 100), (100, 10)], *axes, ["", "", ""])
    x1, y1, x2, y2, x3, y3 = numbers(re.findall(r'class="curve" d="([^"]*)"', svg)[0])
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y2 - y1 == pytest.approx(y3 - y2)


def test_every_point_tells_its_hint_and_the_areas_fill_the_plot():
    svg = line_chart([(0, 3), (1, 2), (4, 1)], *PLAIN, ["first", "second", "third"])
    found = ElementTree.fromstring(svg).findall(".//g[@class='point']")
    assert [group.find("text").text for group in found] == ["first", "second", "third"]
    edges = [(float(g.find("rect").get("x")), float(g.find("rect").get("width"))) for g in found]
    assert sum(width for _, width in edges) == pytest.approx(CHART_WIDTH - 58 - 14, abs=0.3)


def test_points_that_cannot_be_drawn_are_left_out():
    axes = Axis("x", str), Axis("y", str, log=True)
    svg = line_chart([(0, 1), (1, math.nan), (2, 0), (3, 10)], *axes, list("abcd"))
    assert re.findall(r">([a-d])</text></g>", svg) == ["a", "d"]
    with pytest.raises(ValueError, match="two points"):
        line_chart([(0, 1), (1, math.inf)], *PLAIN, ["", ""])


@pytest.mark.parametrize("points", [[(1, 5), (2, 5)], [(3, 1), (3, 2)]], ids=["flat", "upright"])
def test_a_curve_without_width_or_height_stays_inside(points):
    svg = line_chart(points, *PLAIN, ["", ""])
    for x, y in zip(*[iter(numbers(re.findall(r'class="curve" d="([^"]*)"', svg)[0]))] * 2, strict=True):
        assert 0 <= x <= CHART_WIDTH
        assert 0 <= y <= CHART_HEIGHT


# calibration


def test_columns_are_as_high_as_their_share_and_the_axis_begins_with_the_first() -> None:
    bins = [(0.0, 0.5, None), (0.5, 0.75, 0.6), (0.75, 0.8, None), (0.8, 1.0, 1.0)]
    svg = ElementTree.fromstring(calibration_chart(bins, ["", "six of ten", "", "all"]))
    columns = svg.findall(".//rect[@class='column']")
    places = [[float(column.get(name) or 0) for name in ("x", "width", "y", "height")] for column in columns]
    # 200 high from y 226 up, 408 wide from x 58 on for 0.5 to 1; a gap of one on each side
    assert places == [
        pytest.approx([59, 202, 106, 120], abs=0.1),
        pytest.approx([303.8, 161.2, 26, 200], abs=0.1),
    ]
    [ideal] = svg.findall(".//line[@class='ideal']")
    assert [float(ideal.get(name) or 0) for name in ("x1", "y1", "x2", "y2")] == [58, 126, 466, 26]
    assert [hint.text for hint in svg.findall(".//text[@class='hint']")] == ["six of ten", "all"]


def test_calibration_without_a_column_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one range with an accuracy"):
        calibration_chart([(0, 1, None)], [""])


# maps


def test_labels_never_touch_and_the_first_word_has_one():
    places = np.random.default_rng(0).normal(size=(200, 2))
    words = [f"word{i}" for i in range(200)]
    groups = ElementTree.fromstring(word_map(places, words, words)).findall("g")
    boxes = []
    for group in groups:
        text = group.find("text")
        if text.get("class") == "unseen":
            continue
        x, y, width = float(text.get("x")), float(text.get("y")), label_width(text.text)
        left = {"start": x, "end": x - width, "middle": x - width / 2}[text.get("text-anchor")]
        boxes.append((left, y - LABEL_SIZE * 0.8, left + width, y + LABEL_SIZE * 0.2))
    assert groups[0].find("text").get("class") is None
    assert 50 < len(boxes) < 200
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len(groups) == 200  # every word has its dot, and its hint
    assert [group.find("title").text for group in groups] == words


def test_a_map_escapes_its_words():
    svg = word_map(np.eye(2), ["<script>", "a&b"], ["<hint>", ""])
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
    assert "<hint>" not in svg


def test_a_map_of_another_size_keeps_its_labels_inside():
    places = np.array([[0.0, 0.0], [1.0, 1.0]])
    svg = word_map(places, ["left", "rightmost"], ["", ""], width=200, height=300)
    assert 'viewBox="0 0 200 300"' in svg
    middles = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert middles == [MAP_MARGIN, 200 - MAP_MARGIN]
    # nine letters of 7.3 find no room in the 46 beside the right dot, so the label stands on its left
    assert re.findall(r'text-anchor="(\w+)">(\w+)', svg) == [("start", "left"), ("end", "rightmost")]


def test_wide_scripts_take_twice_the_room():
    assert label_width("単語") == 2 * label_width("ab")


# projection


def test_similar_vectors_are_projected_close_together():
    generator = np.random.default_rng(5)
    centres = np.eye(4, 20) * 5
    group = np.repeat(np.arange(4), 25)
    vectors = (centres[group] + generator.normal(size=(100, 20))) * generator.uniform(0.5, 3, (100, 1))
    places = project(vectors.astype(np.float32))
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(1)] == group).mean() > 0.97


def test_a_projection_is_reproducible():
    vectors = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    assert np.array_equal(project(vectors), project(vectors))


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (4, 2), (5, 1), (6, 50)])
def test_few_or_short_vectors_are_projected(shape):
    for vectors in (np.random.default_rng(2).normal(size=shape), np.zeros(shape), np.ones(shape)):
        places = project(vectors.astype(np.float32))
        assert places.shape == (shape[0], 2)
        assert np.isfinite(places).all()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0, 1.5, 2.0], ["1", "1.5", "2"]),
        ([1.426, 1.427, 1.428], ["1.426", "1.427", "1.428"]),
        ([1.4262, 1.42625, 1.4263], ["1.4262", "1.42625", "1.4263"]),
        ([1.0, 1.0], ["1", "1"]),
    ],
)
def test_labels_of_close_ticks_have_more_digits(values: list[float], labels: list[str]) -> None:
    assert [label for _, label in label_ticks(values, float, "{:.3g}".format)] == labels
