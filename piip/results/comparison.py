"""Pictures of the same image side by side, with a caption."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _MARGIN, _LETTER = 800, 1000, 16, 20
_INK, _PAPER = (43, 43, 51), (255, 255, 255)


def draw_comparison(pictures: Mapping[str, Image.Image], caption: str) -> Image.Image:
    """Pictures beside each other, fitted to at most 800 x 1000 pixels each, under their names and the caption."""
    shown = [picture.copy() for picture in pictures.values()]
    for picture in shown:
        picture.thumbnail((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    cell = max(picture.width for picture in shown) + _MARGIN
    width = len(shown) * cell + _MARGIN
    font, line = ImageFont.load_default(size=_LETTER), round(1.4 * _LETTER)
    rows = textwrap.wrap(caption, max(20, round(width / (0.53 * _LETTER)))) or [""]
    top = _MARGIN + (len(rows) + 1) * line
    sheet = Image.new("RGB", (width, top + max(picture.height for picture in shown) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        pen.text((_MARGIN, _MARGIN + place * line), row, fill=_INK, font=font)
    for place, (name, picture) in enumerate(zip(pictures, shown, strict=True)):
        pen.text((_MARGIN + place * cell, top - line), name, fill=_INK, font=font, stroke_width=0.5, stroke_fill=_INK)
        sheet.paste(picture, (_MARGIN + place * cell, top))
    return sheet
