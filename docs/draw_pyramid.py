"""Draws docs/pyramid.svg, the picture in the README: `python docs/draw_pyramid.py`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT = 1040, 412
INK, SOFT, LINE, PAPER = "#1f2937", "#6b7280", "#cbd5e1", "#ffffff"

# Finest resolution first: name, pixels, side of the drawn image, height of the drawn blocks, colour, centre of the row.
BRANCHES = [
    ("T", 1568, 118, 18, "#0ea5a4", 97),
    ("S", 1120, 84, 36, "#3b82f6", 228),
    ("B", 672, 50, 64, "#8b5cf6", 326),
]
COSTS = {"T": ("5.5 M params", "61 GMACs"), "S": ("22 M params", "114 GMACs"), "B": ("86 M params", "157 GMACs")}
IMAGE_X, BLOCK_X, BLOCK_WIDTH, GROUP_STEP, GROUPS = 92, 218, 50, 96, 4
MERGE_X, MERGE_Y, LEVEL_X = 752, 212, 818


def text(
    x: float, y: float, words: str, *, size: int = 12, colour: str = SOFT, anchor: str = "middle", weight: int = 400
) -> str:
    look = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {look}>{words}</text>'


def rect(x: float, y: float, w: float, h: float, look: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" {look}/>'


def title(x: float, y: float, words: str, anchor: str) -> str:
    return text(x, y, words, size=13, colour=INK, anchor=anchor, weight=600)


def arrow(path: str, colour: str = SOFT, *, both: bool = False, width: float = 1.5) -> str:
    start = ' marker-start="url(#tip)"' if both else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" marker-end="url(#tip)"{start}/>'


def scene(centre_x: float, centre_y: float, side: float, cells: int, colour: str) -> str:
    """The same landscape at any size, under the grid of patches that a branch sees."""
    x, y = centre_x - side / 2, centre_y - side / 2
    lines = "".join(f"M{i / cells:.4f} 0V1M0 {i / cells:.4f}H1" for i in range(1, cells))
    return (
        f'<g transform="translate({x:g} {y:g}) scale({side})" clip-path="url(#tile)">'
        '<rect width="1" height="1" fill="#dbeafe"/><circle cx="0.72" cy="0.26" r="0.12" fill="#fbbf24"/>'
        '<path d="M0 0.72L0.3 0.34L0.52 0.62L0.68 0.46L1 0.76V1H0Z" fill="#64748b"/>'
        '<path d="M0.3 0.34L0.38 0.444L0.31 0.47L0.25 0.404Z" fill="#f8fafc"/>'
        '<path d="M0 0.8Q0.3 0.66 0.6 0.8T1 0.78V1H0Z" fill="#22c55e"/>'
        f'<path d="{lines}" stroke="#ffffff" stroke-opacity="0.55" stroke-width="{0.7 / side:.4f}"/></g>'
    ) + rect(x, y, side, side, f'rx="4" fill="none" stroke="{colour}" stroke-width="2"')


def branch(name: str, pixels: int, side: int, height: int, colour: str, y: int) -> list[str]:
    parts = [scene(IMAGE_X, y, side, round(pixels / 112), colour)]
    parts.append(text(IMAGE_X, y + side / 2 + 16, f"{pixels} px"))
    parts.append(arrow(f"M{IMAGE_X + side / 2 + 6} {y}H{BLOCK_X - 10}", colour))
    for group in range(GROUPS):
        x = BLOCK_X + group * GROUP_STEP
        # Three thin slabs read as a group of transformer blocks.
        for slab in range(3):
            look = f'rx="3" fill="{colour}" fill-opacity="{0.95 - 0.12 * slab:g}"'
            parts.append(rect(x + slab * 18, y - height / 2, 14, height, look))
        end = x + BLOCK_WIDTH
        next_x = BLOCK_X + (group + 1) * GROUP_STEP - 10 if group < GROUPS - 1 else MERGE_X - 40
        parts.append(f'<path d="M{end + 4} {y}H{next_x}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
    params, macs = COSTS[name]
    label_x = BLOCK_X + GROUPS * GROUP_STEP - 2
    parts.append(text(BLOCK_X - 18, y - 8, name, size=15, colour=colour, weight=700))
    parts.append(text(label_x, y - 8, params, anchor="start"))
    parts.append(text(label_x, y + 18, macs, anchor="start"))
    return parts


def interactions() -> list[str]:
    """Double arrows between neighbouring branches, after every group of blocks."""
    parts = []
    for (*_, fine_y), (*_, coarse_y) in pairwise(BRANCHES):
        for group in range(GROUPS):
            x = BLOCK_X + group * GROUP_STEP + 75
            parts.append(arrow(f"M{x} {fine_y + 6}V{coarse_y - 6}", "#f59e0b", both=True, width=2))
    return parts


def merge() -> list[str]:
    parts = []
    for *_, colour, y in BRANCHES:
        bend = MERGE_X - 40
        parts.append(arrow(f"M{bend} {y}C{bend + 22} {y} {bend + 8} {MERGE_Y} {MERGE_X - 17} {MERGE_Y}", colour))
    parts.append(f'<circle cx="{MERGE_X}" cy="{MERGE_Y}" r="13" fill="{PAPER}" stroke="{INK}" stroke-width="1.5"/>')
    cross = f"M{MERGE_X - 6} {MERGE_Y}h12M{MERGE_X} {MERGE_Y - 6}v12"
    parts.append(f'<path d="{cross}" stroke="{INK}" stroke-width="1.5"/>')
    parts.append(text(MERGE_X, MERGE_Y + 32, "merge"))
    parts.append(arrow(f"M{MERGE_X + 14} {MERGE_Y}H{LEVEL_X - 12}"))
    return parts


def pyramid() -> list[str]:
    """Levels of the feature pyramid as slanted sheets, and what a head makes of them."""
    parts = []
    for index, half in enumerate((46, 35, 25, 16)):
        x = LEVEL_X + index * 22
        sheet = f"M{x} {MERGE_Y - half}l15 -9v{2 * half}l-15 9Z"
        parts.append(f'<path d="{sheet}" fill="#f59e0b" fill-opacity="{0.85 - 0.15 * index:g}" stroke="{PAPER}"/>')
    parts.append(text(LEVEL_X + 40, MERGE_Y + 76, "feature pyramid"))
    end = LEVEL_X + 88
    parts.append(arrow(f"M{end + 6} {MERGE_Y}h18"))
    x, y = end + 34, MERGE_Y - 42
    parts.append(scene(x + 42, MERGE_Y, 84, 1, LINE))
    mask = f"M{x + 4} {y + 76}v-24l21 -24 20 26 12 -15 23 23v6"
    parts.append(f'<path d="{mask}" fill="#ef4444" fill-opacity="0.35" stroke="#ef4444" stroke-width="1.5"/>')
    parts.append(rect(x + 48, y + 9, 25, 25, 'fill="none" stroke="#3b82f6" stroke-width="2"'))
    parts.append(text(x + 42, MERGE_Y + 60, "boxes, masks"))
    return parts


def draw() -> str:
    body = [
        rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, f'rx="14" fill="{PAPER}" stroke="{LINE}"'),
        title(IMAGE_X, 26, "large image", "middle"),
        title(IMAGE_X, HEIGHT - 20, "small image", "middle"),
        title(BLOCK_X, 76, "small model", "start"),
        title(BLOCK_X, HEIGHT - 20, "large model", "start"),
    ]
    body += interactions()
    for row in BRANCHES:
        body += branch(*row)
    body += merge() + pyramid()
    body.append(arrow(f"M{LEVEL_X - 40} {HEIGHT - 25}h26", "#f59e0b", both=True, width=2))
    body.append(text(LEVEL_X, HEIGHT - 21, "deformable cross-branch attention", anchor="start"))
    defs = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="5" markerHeight="5" '
        'orient="auto-start-reverse">'
        '<path d="M0 0.8L7 4L0 7.2Z" fill="context-stroke"/></marker>'
        '<clipPath id="tile" clipPathUnits="userSpaceOnUse"><rect width="1" height="1" rx="0.03"/></clipPath></defs>'
    )
    style = "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return "\n".join([opening + defs, *body, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("pyramid.svg").write_text(draw(), encoding="utf-8")
