"""Parameters of training that is planned for a time budget.

The config either has all its values, or leaves some of them to a plan: these are None until `tasks/plan.py`
replaces them. A value that the user sets is never replaced.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from lexloom.tasks.store.artifacts import RunOnly
from lexloom.tasks.train.run import MAX_LANES, GradientTrainConfig

DEFAULT_MINUTES = 5.0
MAX_MINUTES = 100_000.0
LIMITS = ("epochs", "max_steps", "max_seconds")


def planned_field(description: str, **bounds: Any) -> Any:
    """Return a field that is None until a preset, the model's defaults or a plan replace it."""
    return derived_field(f"{description} (default: planned for the budget).", **bounds)


def derived_field(description: str, **bounds: Any) -> Any:
    """Return a field whose default depends on other fields (`defaults`)."""
    return Field(None, description=description, **bounds)


class BudgetedTrainConfig(GradientTrainConfig):
    """Parameters of training whose size and length can be planned.

    Unless a preset or a number of epochs or steps is set, the size and the length are planned for `minutes`,
    or for `max_seconds` of training.
    """

    planned: ClassVar[tuple[str, ...]] = ("epochs", "batch_size")  # fields that a plan sets

    # not part of the key, which contains the planned values instead
    minutes: Annotated[float | None, RunOnly()] = Field(
        None,
        gt=0,
        le=MAX_MINUTES,
        description="Time budget of the run, in minutes: the size of the model, the batch size and the number"
        " of steps are planned for it, based on a measurement of this machine (default: 5, unless a preset"
        " or a number of epochs or steps is given).",
    )
    epochs: int = planned_field("Number of passes over the training windows", ge=1)
    batch_size: int = planned_field("Global batch size: windows per step, over all workers", ge=1)

    validation_windows: int | None = Field(
        None,
        ge=1,
        description="Number of held-out windows, evenly spaced, that each evaluation during training reads"
        " (default: all, or as many as fit into 8% of a planned time).",
    )

    @model_validator(mode="before")
    @classmethod
    def fill_in(cls, given: Any) -> Any:
        """Fill in what a plan does not set."""
        if not isinstance(given, dict):
            return given
        given = {name: value for name, value in given.items() if value is not None}
        limits = [name for name in LIMITS if name in given]
        if "minutes" in given and limits:
            raise ValueError(f"minutes and {limits[0]} both limit the training: omit one of them")
        return cls.defaults(given, length="epochs" in limits or "max_steps" in limits) | given

    @classmethod
    def defaults(cls, given: dict[str, Any], length: bool) -> dict[str, Any]:
        """Return the values that are neither given nor planned; `length`: epochs or steps are given."""
        raise NotImplementedError

    @property
    def is_complete(self) -> bool:
        """Whether no value is left to a plan."""
        return all(getattr(self, name) is not None for name in self.planned)

    @property
    def budget_seconds(self) -> float:
        """The time that is planned for: that of the whole run or, with `max_seconds`, of training only."""
        return 60 * (self.minutes or DEFAULT_MINUTES) if self.max_seconds is None else self.max_seconds

    def complete(self, values: dict[str, Any]) -> Self:
        """Return the config with the plan's values in place of those that are not given."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return type(self).model_validate({**values, **given, "minutes": None})

    def require_complete(self) -> None:
        """Raise ValueError if values are left to a plan."""
        missing = [name for name in self.planned if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"{missing[0]} is not set: set epochs, or let lexloom.tasks.plan complete the config"
            )

    @property
    def lanes(self) -> int:
        return MAX_LANES if not self.batch_size else super().lanes
