"""The colours of reports and of the web page, for light and dark schemes."""

from markupsafe import Markup

from lexloom.tasks.display.templates import style

LIGHT = (
    "--paper: #f6f4f0; --card: #fff; --ink: #22201d; --muted: #6f6a63; --line: #e6e1d9; --accent: #3a5a9b;"
)
DARK = (
    "--paper: #15161a; --card: #1d1f25; --ink: #e9e6e1; --muted: #9a968f; --line: #30333b; --accent: #8fb0f5;"
)


def report_style() -> Markup:
    """Return the style sheet of a report, which follows the reader's colour scheme."""
    return Markup(scheme() + style())


def scheme() -> str:
    """Return the colours of the reader's colour scheme as CSS variables."""
    return f":root {{ {LIGHT} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}\n"
