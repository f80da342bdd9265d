"""A flow's config as a form on Prefect's page, which shows no bounds but those that a description tells."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


class FlowConfig(BaseModel):
    """What all flows' configs are: frozen, strict, and a schema that says the bounds of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        for definition in handler.generate_json_schema.definitions.values():  # type: ignore[attr-defined]
            for field in definition.get("properties", {}).values():
                say_bounds(field)
        return schema


def say_bounds(field: dict[str, Any]) -> None:
    """Adds `(at least 1, at most 8)` to a field's description, once."""
    kinds = [field, *field.get("anyOf", [])]
    said = [f"{words} {kind[bound]:,}" for kind in kinds for bound, words in BOUNDS.items() if bound in kind]
    phrase = f" ({', '.join(said)})"
    description = field.get("description", "")
    if said and not description.endswith(phrase):
        field["description"] = description + phrase
