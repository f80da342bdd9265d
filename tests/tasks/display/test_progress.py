"""Progress of training in Prefect's UI."""

import base64
import re
from dataclasses import asdict, replace
from typing import Any
from xml.etree import ElementTree

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from lexloom.tasks.display import progress as live
from lexloom.tasks.display.formatting import format_progress
from lexloom.tasks.display.progress import CURVE_POINTS, PrefectProgress, mean_losses, show_progress
from lexloom.training.progress import Progress

pytestmark = pytest.mark.usefixtures("prefect_server")
POINTS = [
    Progress(
        seconds=float(step),
        step=step,
        examples=1000 * step,
        total_examples=100_000,
        share=step / 100,
        loss=5 - step / 25,
        loss_examples=1000,
        learning_rate=0.05,
    )
    for step in range(1, 101)
]


def artifacts_of(run: str) -> dict[str, list[Any]]:
    """What the flow run of this name has published, by key."""
    named = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
    with get_client(sync_client=True) as client:
        found: dict[str, list[Any]] = {}
        for artifact in client.read_artifacts(flow_run_filter=named):
            found.setdefault(str(artifact.key), []).append(artifact)
        return found


def test_prefect_shows_the_last_point_and_a_reduced_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000))
    monkeypatch.setattr(live, "monotonic", lambda: float(next(clock)))
    updates: list[Any] = []
    update = live.update_progress_artifact

    def counted(*given: Any, **named: Any) -> None:
        updates.append(given)
        update(*given, **named)

    monkeypatch.setattr(live, "update_progress_artifact", counted)

    @task
    def training() -> None:
        with show_progress("pairs", "") as on_progress:
            for point in POINTS:
                on_progress(point)

    @flow(flow_run_name="shows its progress")
    def trains() -> None:
        training()

    trains()
    found = artifacts_of("shows its progress")
    assert {key: len(each) for key, each in found.items()} == {"training": 1, "training-curve": 1}
    assert len(updates) < len(POINTS)
    (bar,), (curve,) = found["training"], found["training-curve"]
    assert float(bar.data) == 100
    assert bar.description == "100k of 100k pairs · epoch 1 · loss 1.000 · learning rate 0.05 · 1k/s"
    image = re.match(r"!\[training loss\]\(data:image/svg\+xml;base64,([\w+/=]+)\)\n", curve.data)
    assert image is not None
    svg = ElementTree.fromstring(base64.b64decode(image[1]))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    lines = {each.get("class"): each.get("d") for each in svg.iter("{http://www.w3.org/2000/svg}path")}
    assert lines.keys() == {"area", "raw", "curve"}
    assert str(lines["raw"]).count("L") == len(POINTS) - 1


@pytest.mark.parametrize("call", ["create_progress_artifact", "update_progress_artifact"])
def test_training_continues_without_prefects_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    def gone(*given: object, **named: object) -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(live, call, gone)

    @task
    def training() -> int:
        with show_progress("pairs", "") as on_progress:
            for point in POINTS[:3]:
                on_progress(point)
        return 3

    @flow
    def trains() -> int:
        return training()

    assert trains() == 3
    assert "training continues" in caplog.text


def test_outside_a_prefect_run_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PrefectProgress", None)
    with show_progress("pairs", "") as on_progress:
        on_progress(POINTS[0])


def test_a_curves_points_are_evenly_spaced_and_include_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "CURVE_POINTS", 25)
    assert [examples for examples, _ in mean_losses(POINTS[:3])] == [1000, 2000, 3000]
    assert [examples for examples, _ in mean_losses(POINTS)] == list(range(4000, 100_001, 4000))


def test_a_points_loss_is_the_weighted_mean_of_its_records() -> None:
    points = [replace(POINTS[0], loss=1.0)] * (2 * CURVE_POINTS)
    points[0] = replace(points[0], loss=4.0, loss_examples=10)
    assert mean_losses(points)[0][1] == pytest.approx((10 * 4.0 + 1000 * 1.0) / 1010)


def test_a_curve_has_at_least_two_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefectProgress, "_fill", lambda *given: None)
    made: list[str] = []
    monkeypatch.setattr(live, "create_markdown_artifact", lambda text, **named: made.append(text))
    page = PrefectProgress("pairs")
    page.show(POINTS[0])
    page.finish()
    assert made == []
    page.show(POINTS[1])
    page.finish()
    assert len(made) == 1


def test_the_validation_loss_is_shown_after_the_first_evaluation() -> None:
    assert "validation" not in format_progress(asdict(POINTS[0]), "pairs")
    shown = format_progress(asdict(replace(POINTS[0], validation_loss=1.25)), "pairs")
    assert "loss 4.960 · validation loss 1.250 · " in shown


def test_a_point_replaces_points_with_the_same_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefectProgress, "_fill", lambda *given: None)
    monkeypatch.setattr(PrefectProgress, "_draw", lambda *given: None)
    page = PrefectProgress("pairs")
    short = replace(POINTS[1], step=3, examples=2050, loss_examples=1050)
    for point in (*POINTS[:2], short):
        page.show(point)
    assert page.points == [POINTS[0], short]
