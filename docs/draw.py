"""Draws docs/structure.svg: the folders of the code, and how many modules of each import from another.

    python docs/draw.py

The arrows are read from the source by `ast`, so the picture says what is so and not what was meant.
"""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "structure.svg"

PURPOSES = {
    "deployments": "where it runs",
    "flows": "what happens, in what order",
    "tasks": "the stages: cached, atomic, verified",
    "training": "how any model is trained",
    "models": "the mathematics",
}
PLACES = {  # of the boxes' centres
    "deployments": (470, 50),
    "flows": (250, 150),
    "tasks": (250, 270),
    "training": (120, 390),
    "models": (430, 390),
}
WIDTH, HEIGHT = 640, 440
BOX_WIDTH, BOX_HEIGHT = 236, 58
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #22201d; text-anchor: middle; }
  .name { font-weight: 600; font-size: 15px; }
  .purpose { fill: #6f6a63; }
  .count { fill: #3a5a9b; font-weight: 600; paint-order: stroke; stroke: #fff; stroke-width: 5px; }
  rect.box { fill: #fff; stroke: #3a5a9b; stroke-width: 1.5; }
  line { stroke: #6f6a63; stroke-width: 1.5; marker-end: url(#head); }
"""


def imports(folder: str) -> dict[str, set[str]]:
    """Module -> the other folders that it imports from, anywhere in its file."""
    found = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        found[path.stem] = {name.partition(".")[0] for name in names} & PURPOSES.keys() - {folder}
    return found


def picture() -> str:
    """The drawing of today's code, as SVG text."""
    modules = {folder: imports(folder) for folder in PURPOSES}
    arrows = Counter(
        (folder, other) for folder, found in modules.items() for others in found.values() for other in others
    )
    lines = [arrow(*ends, count) for ends, count in sorted(arrows.items())]
    boxes = [box(folder, len(found) - ("__init__" in found)) for folder, found in modules.items()]
    counts = [label(*ends, count) for ends, count in sorted(arrows.items())]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#6f6a63"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *lines,
            *boxes,
            *counts,
            "</svg>\n",
        ]
    )


def ends_of(start: str, end: str) -> tuple[float, float, float, float]:
    """Where an arrow leaves one box and meets the other: on their edges, on the line of the centres."""
    (x1, y1), (x2, y2) = PLACES[start], PLACES[end]
    out = edge(x2 - x1, y2 - y1)
    return x1 + out[0], y1 + out[1], x2 - out[0], y2 - out[1]


def edge(dx: float, dy: float) -> tuple[float, float]:
    """From a box's centre to its edge, in a direction."""
    reach = min(BOX_WIDTH / 2 / abs(dx) if dx else 1e9, BOX_HEIGHT / 2 / abs(dy) if dy else 1e9)
    return dx * reach, dy * reach


def arrow(start: str, end: str, count: int) -> str:
    x1, y1, x2, y2 = ends_of(start, end)
    title = f"{count} modules of {start} import from {end}"
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"><title>{title}</title></line>'


def label(start: str, end: str, count: int) -> str:
    x1, y1, x2, y2 = ends_of(start, end)
    return f'<text class="count" x="{(x1 + x2) / 2:.0f}" y="{(y1 + y2) / 2 + 4:.0f}">{count}</text>'


def box(folder: str, modules: int) -> str:
    x, y = PLACES[folder]
    return (
        f'<rect class="box" x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}"'
        f' height="{BOX_HEIGHT}" rx="8"/>\n'
        f'<text class="name" x="{x}" y="{y - 5}">{folder}/</text>\n'
        f'<text class="purpose" x="{x}" y="{y + 16}">{PURPOSES[folder]} · {modules} modules</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
