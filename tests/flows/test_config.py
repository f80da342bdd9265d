"""Tests of the JSON schema of a flow's config: descriptions have the bounds."""

from pydantic import BaseModel, Field

from lexloom.flows.config import FlowConfig


class Section(BaseModel):
    workers: int = Field(2, ge=1, le=8, description="replicas")
    rate: float = Field(0.5, gt=0, lt=1, description="how fast")
    limit: int | None = Field(None, ge=1, description="read only so many")
    most: int = Field(9, le=67_108_864, description="bytes")
    name: str = Field("x", min_length=1, description="whose")


class Config(FlowConfig):
    section: Section = Field(Section(), description="a part")
    seed: int = Field(1, ge=0, description="chance")


def described(section: str) -> dict[str, str]:
    definition = Config.model_json_schema()["$defs"][section]
    return {name: field["description"] for name, field in definition["properties"].items()}


def test_bounds_of_nested_fields_are_in_the_schema() -> None:
    assert described("Section") == {
        "workers": "replicas (at least 1, at most 8)",
        "rate": "how fast (more than 0, less than 1)",
        "limit": "read only so many (at least 1)",
        "most": "bytes (at most 67,108,864)",
        "name": "whose",
    }


def test_bounds_are_added_once_for_repeated_schemas() -> None:
    assert Config.model_json_schema() == Config.model_json_schema()
