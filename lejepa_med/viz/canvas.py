"""Sheets of small pictures with captions, drawn to the pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK, SOFT = "#222222", "#666666"
TEXT = 19
"""Height of letters; sheets are drawn at twice the size at which they are shown."""
_GAP, _FRAME = 10, 5


@dataclass(frozen=True)
class Tile:
    """A picture `[row, column]` or `[row, column, 3]`, a caption below it and the colour of its frame."""

    picture: NDArray[np.uint8]
    caption: str = ""
    frame: str | None = None


@cache
def font(size: int = TEXT) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: the same picture on every machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def text_width(text: str, size: int = TEXT) -> int:
    return round(max((font(size).getlength(line) for line in text.split("\n")), default=0))


def fitted(picture: NDArray[np.uint8], side: int) -> Image.Image:
    """The picture scaled to a black square of `side` pixels, its proportions kept."""
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side))
    square.paste(image.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def tile_sheet(
    rows: Sequence[Sequence[Tile]],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    side: int = 200,
) -> Image.Image:
    """Rows of tiles of one size, with titles at the left and on top."""
    left = max((text_width(title) for title in row_titles), default=-2 * _GAP) + 2 * _GAP
    top = TEXT + _GAP if column_titles else 0
    below = TEXT + _GAP if any(tile.caption for row in rows for tile in row) else 0
    columns = max(len(row) for row in rows)
    size = (left + columns * (side + _GAP) - _GAP, top + len(rows) * (side + below + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(column_titles):
        draw.text((left + column * (side + _GAP), 0), title, fill=SOFT, font=font())
    for number, row in enumerate(rows):
        y = top + number * (side + below + _GAP)
        if row_titles:
            draw.multiline_text((0, y + side // 2), row_titles[number], fill=INK, font=font(), anchor="lm")
        for column, tile in enumerate(row):
            x = left + column * (side + _GAP)
            sheet.paste(fitted(tile.picture, side), (x, y))
            if tile.frame is not None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), outline=tile.frame, width=_FRAME)
            draw.text((x, y + side + 3), tile.caption, fill=INK, font=font())
    return sheet


def save_image(image: Image.Image, file: Path) -> None:
    """A PNG, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial")
    image.save(temporary, "PNG", optimize=True)
    temporary.replace(file)
