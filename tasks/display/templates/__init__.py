"""Jinja templates of the reports and of the web page."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent


@cache
def environment(*folders: Path) -> Environment:
    """Return the environment of these templates, and of those in `folders`.

    All values are escaped, and an undefined name is an error.
    """
    return Environment(
        loader=FileSystemLoader([*folders, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Render a whole template with these values."""
    return environment().get_template(template).render(**values)


@cache
def macros(template: str, *folders: Path) -> Any:
    """Return the macros of a template as attributes; each returns a `Markup`."""
    return environment(*folders).get_template(template).module


@cache
def style() -> str:
    """Return the style sheet of a page without its colours."""
    return (FOLDER / "style.css").read_text(encoding="utf-8") + "\n" + chart_style()


@cache
def chart_style() -> str:
    """Return the style sheet of charts without its colours."""
    return (FOLDER / "charts.css").read_text(encoding="utf-8")
