"""The frame of a page: one HTML file without script or network, made of sections, cards, tables and tiles.

All text is escaped by the frame; only `Html` passes as it is. Charts are inline SVG
(tasks/display/charts.py).
"""

from collections.abc import Collection, Iterable, Sequence

from lexloom.tasks.display import charts
from lexloom.tasks.display.charts import Html, html, join


def page(title: str, subtitle: str, sections: Sequence[Html], footer: str) -> str:
    """A whole HTML document."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html(title)} · Lexloom</title>
<style>{CSS}{charts.CSS}</style>
</head>
<body>
<header><p class="brand">Lexloom</p><h1>{html(title)}</h1><p class="note">{html(subtitle)}</p></header>
<main>
{join(sections)}
</main>
<footer>{html(footer)}</footer>
</body>
</html>
"""


def section(heading: str, body: Html, note: str = "") -> Html:
    return join(
        [Html("<section>"), element("h2", heading), element("p", note, "note"), body, Html("</section>")]
    )


def element(tag: str, content: str, kind: str = "") -> Html:
    """`<tag class=kind>content</tag>`; nothing where there is no content."""
    named = f' class="{kind}"' if kind else ""
    return Html(f"<{tag}{named}>{html(content)}</{tag}>") if content else Html()


def card(body: Html) -> Html:
    return Html(f'<div class="card">{body}</div>')


def columns(cards: Sequence[Html], kind: str = "") -> Html:
    """Cards side by side, as many as the screen has room for."""
    return Html(f'<div class="columns {kind}">{join(cards)}</div>')


def tiles(figures: Sequence[tuple[str, str]]) -> Html:
    """The figures that a reader looks for first, large."""
    return Html(
        '<div class="tiles">'
        + "".join(f"<div><b>{html(value)}</b><span>{html(label)}</span></div>" for label, value in figures)
        + "</div>"
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], figures: Collection[int] = frozenset()
) -> Html:
    """A table; columns named in `figures` are set to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=figure' if i in figures else ''}>{html(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return Html(f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>')


LIGHT = (
    "--paper: #f6f4f0; --card: #fff; --ink: #22201d; --muted: #6f6a63; --line: #e6e1d9; --accent: #3a5a9b;"
)
DARK = (
    "--paper: #15161a; --card: #1d1f25; --ink: #e9e6e1; --muted: #9a968f; --line: #30333b; --accent: #8fb0f5;"
)
SHAPES = """
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1120px; margin: 0 auto; padding: 40px 24px; font-variant-numeric: tabular-nums;
}
.brand {
  color: var(--accent); font-weight: 600; letter-spacing: .08em; text-transform: uppercase; font-size: 12px;
}
h1 { font-size: 34px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 20px; font-weight: 650; letter-spacing: -.01em; }
h3 { font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
.note, footer { color: var(--muted); font-size: 13px; }
section { margin-top: 44px; }
section > h2 + div, section > .note + div { margin-top: 14px; }
section > .note { max-width: 72ch; }
footer { margin-top: 44px; padding-top: 16px; border-top: 1px solid var(--line); }
.card {
  min-width: 0; padding: 16px 18px;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.columns { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.columns.medium { display: block; columns: 3 300px; column-gap: 14px; }
.columns.medium .card { break-inside: avoid; margin-bottom: 14px; }
.columns.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
.tiles {
  margin-top: 28px; display: flex; flex-wrap: wrap; gap: 1px;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
}
.tiles div { background: var(--card); padding: 14px 18px; flex: 1 1 150px; }
.tiles b { display: block; white-space: nowrap; font-size: 24px; font-weight: 650; letter-spacing: -.01em; }
.tiles span { color: var(--muted); font-size: 13px; }
.wide { overflow-x: auto; }
.wide > svg { min-width: 760px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--muted); font-weight: 500; font-size: 13px; white-space: nowrap; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
td:first-child { font-weight: 600; }
.figure { text-align: right; white-space: nowrap; }
.figure + :not(.figure) { padding-left: 24px; }
.near { list-style: none; padding: 0; margin-top: 10px; font-size: 14px; }
.near li { display: grid; grid-template-columns: 1fr 48px 34px; gap: 10px; align-items: center; }
.near span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.near b { font-weight: 400; color: var(--muted); font-size: 13px; text-align: right; }
.near i, .bar { display: block; height: 5px; border-radius: 3px; background:
  linear-gradient(90deg, var(--accent) calc(var(--share) * 100%), var(--line) 0); }
.bar { margin-top: 8px; min-width: 120px; }
.sample { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.6 Georgia, serif; }
.matrix table { table-layout: fixed; min-width: calc(90px + var(--labels) * 52px); }
.matrix th:first-child { width: 90px; }
.matrix th, .matrix td { white-space: normal; overflow-wrap: anywhere; }
.matrix td { padding: 4px; border: 0; vertical-align: middle; }
.matrix th { padding: 4px; border: 0; text-align: center; }
.matrix th:first-child, .matrix td:first-child { text-align: left; padding-left: 0; }
.cell {
  display: block; padding: var(--room) 4px; border-radius: 6px; text-align: center;
  font-style: normal; font-weight: 600; white-space: nowrap;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 55%), var(--paper));
}
.cell small { display: block; font-weight: 400; opacity: .75; }
.note b { color: var(--ink); }
.note + .sample { margin-top: 8px; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
dl {
  display: grid; grid-template-columns: minmax(110px, auto) 1fr; gap: 3px 16px;
  margin-top: 8px; font-size: 13px;
}
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { text-align: right; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 600px) {
  body { padding: 24px 14px; }
  h1 { font-size: 27px; }
  .tiles div { padding: 10px 14px; flex-basis: 100px; }
  .tiles b { font-size: 19px; }
  .card { padding: 12px 14px; }
}
@media print { body { max-width: none; } .card, .tiles { break-inside: avoid; } }
"""
CSS = f":root {{ {LIGHT} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}{SHAPES}"
