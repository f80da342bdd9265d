"""Draws docs/grid.svg: three steps of training word vectors with four parts and two workers.

python docs/draw_grid.py
"""

from pathlib import Path

PICTURE = Path(__file__).resolve().parent / "grid.svg"

PARTS, STEPS = 4, 3
CELL, LEFT, TOP, PITCH = 44, 70, 92, 250  # pixels; PITCH between the left edges of two grids
WIDTH, HEIGHT = LEFT + (STEPS - 1) * PITCH + PARTS * CELL + 24, TOP + PARTS * CELL + 62
COLOURS = ("#3a5a9b", "#b4552d")  # of the workers
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #22201d; text-anchor: middle; }
  .step { font-weight: 600; font-size: 15px; }
  .note { fill: #6f6a63; }
  .inside { fill: #fff; font-weight: 600; }
  rect.cell { fill: #f4f2ee; stroke: #d5d0c8; }
  path { fill: none; stroke: #22201d; stroke-width: 1.5; marker-end: url(#head); }
"""


def owner(part: int) -> int:
    return part * len(COLOURS) // PARTS


def grid(step: int) -> list[str]:
    """Draw the blocks of one step, and the output parts that move after it."""
    left = LEFT + step * PITCH
    middle, bottom = left + PARTS * CELL / 2, TOP + PARTS * CELL
    lines = [
        f'<text class="step" x="{middle}" y="26">step {step}</text>',
        f'<text class="note" x="{middle}" y="50">output part (target)</text>',
    ]
    for i in range(PARTS):
        y = TOP + i * CELL
        lines.append(f'<text x="{left - 14}" y="{y + CELL / 2 + 5}" fill="{COLOURS[owner(i)]}">{i}</text>')
        lines.append(f'<text x="{left + i * CELL + CELL / 2}" y="{TOP - 10}">{i}</text>')
        for j in range(PARTS):
            x = left + j * CELL
            lines.append(f'<rect class="cell" x="{x}" y="{y}" width="{CELL}" height="{CELL}"/>')
            if j == (i + step) % PARTS:
                lines.append(
                    f'<rect x="{x + 3}" y="{y + 3}" width="{CELL - 6}" height="{CELL - 6}" rx="5"'
                    f' fill="{COLOURS[owner(i)]}"/>'
                )
                lines.append(
                    f'<text class="inside" x="{x + CELL / 2}" y="{y + CELL / 2 + 5}">{"AB"[owner(i)]}</text>'
                )
    if step < STEPS - 1:
        moved = [
            f"{(first + step) % PARTS}: {name} → {other}"
            for first, name, other in ((0, "A", "B"), (PARTS // 2, "B", "A"))
        ]
        lines.append(f'<text class="note" x="{middle}" y="{bottom + 26}">then output part</text>')
        lines.append(f'<text x="{middle}" y="{bottom + 46}">{",  ".join(moved)}</text>')
        start, y = left + PARTS * CELL + 10, TOP + PARTS * CELL / 2
        lines.append(f'<path d="M{start},{y} L{start + PITCH - PARTS * CELL - 46},{y}"/>')
    return lines


def picture() -> str:
    """Return the drawing as SVG text."""
    middle = TOP + PARTS * CELL / 2
    body = [line for step in range(STEPS) for line in grid(step)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0,0 L8,4 L0,8 z" style="fill:#22201d;stroke:none"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            f'<text class="note" transform="translate(22 {middle}) rotate(-90)">input part (context)</text>',
            *body,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
