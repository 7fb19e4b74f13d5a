"""Contact sheet of views: what the network really sees, one row per sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lejepa_med.viz.canvas import INK, SOFT, TEXT, fitted, font, save_image, text_width
from lejepa_med.viz.slices import Plane, grey, plane_slice, turn

_LARGE, _GAP = 208, 8
_SMALL = (_LARGE - _GAP) // 2


def views_sheet(
    views: Sequence[Float[Tensor, "_ sample channel *_"]], file: Path, titles: Sequence[str], *, sliced: bool = False
) -> None:
    """Writes a PNG: per sample the views of `views[0]` large, those of `views[1]` small, in two lines.

    Values are in [0, 1]. 3D views `[R, A, S]` show their middle axial slice and, below it, the middle coronal one, in
    radiological convention. `sliced` says that 2D views were cut from volumes and are turned the same way.
    """
    volumes = views[0].ndim == 6
    planes: tuple[Plane | None, ...] = ("axial", "coronal") if volumes else (None,)
    headers = [_header(size, number) for size, number in zip(views, ("global", "local"), strict=False)]
    left = max(text_width(text) for text in (*titles, "coronal")) + 2 * _GAP
    local_start = left + max(len(views[0]) * (_LARGE + _GAP), text_width(headers[0])) + 3 * _GAP
    small_columns = -(-len(views[1]) // 2) if len(views) > 1 else 0
    width = local_start + max(small_columns * (_SMALL + _GAP), *(text_width(text) for text in headers[1:]), 0)
    row_height = len(planes) * (_LARGE + _GAP) + 2 * _GAP
    top = TEXT + 2 * _GAP
    sheet = Image.new("RGB", (width, top + len(titles) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for x, header in zip((left, local_start), headers, strict=False):
        draw.text((x, 0), header, fill=SOFT, font=font())
    for sample, title in enumerate(titles):
        for line, plane in enumerate(planes):
            y = top + sample * row_height + line * (_LARGE + _GAP)
            draw.text((0, y), title if line == 0 else "", fill=INK, font=font())
            draw.text((0, y + TEXT + _GAP), plane or "", fill=SOFT, font=font())
            for number, view in enumerate(views[0]):
                picture = fitted(_picture(view[sample], plane, sliced), _LARGE)
                sheet.paste(picture, (left + number * (_LARGE + _GAP), y))
            for number, view in enumerate(views[1] if len(views) > 1 else ()):
                place = (local_start + number // 2 * (_SMALL + _GAP), y + number % 2 * (_SMALL + _GAP))
                sheet.paste(fitted(_picture(view[sample], plane, sliced), _SMALL), place)
    colours = views[0].shape[2] == 3
    save_image(sheet if colours else sheet.convert("L"), file)  # grey: a third smaller


def _header(views: Tensor, kind: str) -> str:
    size = " \N{MULTIPLICATION SIGN} ".join(str(side) for side in views.shape[3:])
    unit = "voxels" if views.ndim == 6 else "pixels"
    return f"{len(views)} {kind} view{'s' if len(views) > 1 else ''}, {size} {unit}"


def _picture(view: Float[Tensor, " channel *size"], plane: Plane | None, sliced: bool) -> NDArray[np.uint8]:
    """One view as a picture; three channels are colours, of any other number the first is shown."""
    values = view.detach().float().cpu().numpy()
    picture = np.moveaxis(values, 0, -1) if len(values) == 3 else values[0]
    if plane is not None:
        picture = plane_slice(picture, plane)
    elif sliced:
        picture = turn(picture)
    return grey(picture)
