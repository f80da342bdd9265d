"""Draws docs/structure.svg: the folders of the code, who imports from whom, and which libraries each knows.

    python docs/draw.py

All of it is read from the source by `ast`, so the picture says what is so and not what was meant.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "structure.svg"

PURPOSES = {
    "flows": "what happens, in what order",
    "deployments": "where it runs",
    "tasks": "the stages: cached, atomic, verified",
    "training": "how any model is trained",
    "models": "the mathematics",
}
LIBRARIES = ("prefect", "ray", "torch", "numba", "pyarrow", "transformers", "datasets", "gradio")
PLACES = {  # of the boxes' centres
    "flows": (150, 60),
    "deployments": (600, 60),
    "tasks": (150, 210),
    "training": (150, 360),
    "models": (600, 360),
}
WIDTH, HEIGHT = 750, 420
BOX_WIDTH, BOX_HEIGHT = 270, 80
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #22201d; text-anchor: middle; }
  .name { font-weight: 600; font-size: 15px; }
  .purpose { fill: #6f6a63; }
  .libraries { fill: #3a5a9b; }
  rect.box { fill: #fff; stroke: #3a5a9b; stroke-width: 1.5; }
  line { stroke: #6f6a63; stroke-width: 1.5; marker-end: url(#head); }
"""


def imported(folder: str) -> set[str]:
    """The packages that a folder's modules import, anywhere in their files."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return {name.removeprefix("lexloom.").partition(".")[0] for name in names}


def picture() -> str:
    """The drawing of today's code, as SVG text."""
    found = {folder: imported(folder) for folder in PURPOSES}
    arrows = [
        arrow(folder, other)
        for folder in PURPOSES
        for other in PURPOSES
        if other in found[folder] and other != folder
    ]
    boxes = [box(folder, [name for name in LIBRARIES if name in found[folder]]) for folder in PURPOSES]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#6f6a63"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def arrow(start: str, end: str) -> str:
    """From box to box, on the line of their centres."""
    (x1, y1), (x2, y2) = PLACES[start], PLACES[end]
    dx, dy = to_edge(x2 - x1, y2 - y1)
    return (
        f'<line x1="{x1 + dx:.0f}" y1="{y1 + dy:.0f}" x2="{x2 - dx:.0f}" y2="{y2 - dy:.0f}">'
        f"<title>{start} imports from {end}</title></line>"
    )


def to_edge(dx: float, dy: float) -> tuple[float, float]:
    """From a box's centre to its edge, in a direction."""
    reach = min(size / 2 / abs(way) for size, way in ((BOX_WIDTH, dx), (BOX_HEIGHT, dy)) if way)
    return dx * reach, dy * reach


def box(folder: str, libraries: list[str]) -> str:
    x, y = PLACES[folder]
    return (
        f'<rect class="box" x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}"'
        f' height="{BOX_HEIGHT}" rx="8"/>\n'
        f'<text class="name" x="{x}" y="{y - 14}">{folder}/</text>\n'
        f'<text class="purpose" x="{x}" y="{y + 6}">{PURPOSES[folder]}</text>\n'
        f'<text class="libraries" x="{x}" y="{y + 26}">{" · ".join(libraries)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
