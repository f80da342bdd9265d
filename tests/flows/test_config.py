"""A flow's config as a form: the main parameters are shown, all are validated, and bounds are described."""

from typing import Any

import pytest
from prefect import flow
from prefect.utilities.schema_tools import validate
from prefect.utilities.schema_tools.validation import ValidationError
from pydantic import BaseModel, ConfigDict, Field

from lexloom.flows.config import FlowConfig


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    lower: bool = Field(True, description="Convert to lower case.")


class Train(BaseModel):
    model_config = ConfigDict(extra="forbid")
    workers: int = Field(2, ge=1, le=8, description="Replicas.")
    share: float = Field(0.5, gt=0, lt=1, description="Held out")
    limit: int | None = Field(None, ge=1, description="Read only so many.")
    seed: int = Field(1, ge=0, lt=1 << 63, description="Random seed.")
    name: str = Field("x", min_length=1, description="Name.")
    options: Options = Field(Options(), description="Rules.")


class Report(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field("Title", description="Title.")
    words: list[str] | None = Field(None, description="Words.")


class Empty(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Config(FlowConfig):
    """All parameters."""

    main_parameters = ("train.limit", "train.workers", "train.share")

    report: Report = Field(Report(), description="Report.")
    empty: Empty = Field(Empty(), description="Nothing.")
    train: Train = Field(Train(), description="Training.")
    check: bool = Field(False, description="Check more.")


@flow
def example(config: Config = Config()) -> None:  # noqa: B008
    pass


SCHEMA: dict[str, Any] = example.parameters.model_dump()
CONFIG, TRAIN, REPORT = (SCHEMA["definitions"][name] for name in ("Config", "Train", "Report"))


def in_order(section: dict[str, Any]) -> list[str]:
    return sorted(section["properties"], key=lambda name: section["properties"][name]["position"])


def test_the_form_shows_the_main_parameters_in_their_order() -> None:
    assert in_order(TRAIN) == ["limit", "workers", "share"]


def test_sections_with_main_parameters_come_first_and_empty_ones_are_left_out() -> None:
    assert in_order(CONFIG) == ["train", "name", "report"]


def test_a_section_without_main_parameters_is_shown_as_json_with_its_defaults() -> None:
    assert "properties" not in REPORT
    assert CONFIG["properties"]["report"]["default"] == {"title": "Title", "words": None}


def test_the_description_of_a_section_names_its_other_parameters() -> None:
    assert CONFIG["properties"]["train"]["description"] == (
        "Training. Advanced (menu ⋮, *Use JSON input*): `seed`, `name`, `options`."
    )
    assert CONFIG["description"] == "All parameters. Advanced (menu ⋮, *Use JSON input*): `check`."


def test_an_optional_value_is_a_plain_input() -> None:
    limit = TRAIN["properties"]["limit"]
    assert limit["type"] == "integer"
    assert not {"anyOf", "default"} & limit.keys()
    assert "limit" not in CONFIG["properties"]["train"]["default"]


def test_bounds_are_described_unless_they_are_only_technical() -> None:
    described = {name: field["description"] for name, field in TRAIN["properties"].items()}
    assert described == {
        "limit": "Read only so many (at least 1).",
        "workers": "Replicas (at least 1, at most 8).",
        "share": "Held out (more than 0, less than 1)",
    }
    assert TRAIN["patternProperties"]["^seed$"]["description"] == "Random seed (at least 0)."


def test_the_schema_is_the_same_however_often_it_is_made() -> None:
    assert Config.model_json_schema() == Config.model_json_schema()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"train": {"limit": None, "workers": 8}},
        {"train": {"seed": 7, "options": {"lower": False}}, "check": True, "empty": {}},
        {"report": {"title": "T", "words": None}},
    ],
)
def test_the_api_takes_shown_and_hidden_parameters(config: dict[str, Any]) -> None:
    assert not validate({"config": config}, SCHEMA, raise_on_error=True)
    Config.model_validate(config)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"train": {"workers": 0}}, "config.train.workers.*0 is less than the minimum of 1"),
        ({"train": {"seed": -1}}, "config.train.seed.*-1 is less than the minimum of 0"),
        ({"train": {"seeds": 1}}, "'seeds'"),
        ({"train": {"options": {"lower": "no"}}}, "'no' is not of type 'boolean'"),
        ({"report": {"titles": "T"}}, "'titles'"),
        ({"trains": {}}, "'trains'"),
    ],
)
def test_the_api_refuses_wrong_values_of_shown_and_hidden_parameters(
    config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        validate({"config": config}, SCHEMA, raise_on_error=True)


def test_main_parameters_exist() -> None:
    with pytest.raises(TypeError, match=r"names fields that do not exist: \['train.worker'\]"):

        class Wrong(FlowConfig):
            main_parameters = ("train.worker",)
            train: Train = Train()
