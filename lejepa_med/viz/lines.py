"""One look for every line of a chart: colour by role, and a marker and dash that tell lines apart in grey as well."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from lejepa_med.viz.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, SPARE, VERMILION

WINE, TEAL, INDIGO, OLIVE, MAGENTA = SPARE
_COLOURS = {
    "ours": (BLUE, SKY, INDIGO),
    "rival": (VERMILION, ORANGE, WINE),
    "control": (GREY, GREEN, PURPLE, OLIVE, TEAL, MAGENTA),
}
_MARKERS = {"ours": "op*", "rival": "PXd", "control": "sD^v<>"}
_SPARE_COLOURS, _SPARE_MARKERS = ("#000000", "#999999", "#5E3C99", "#B35806"), "h8"
_GLYPHS = {
    "o": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "s": "M-3.5,-3.5h7v7h-7z", "D": "M0,-4.6L4.6,0L0,4.6L-4.6,0z",
    "d": "M0,-4.8L2.9,0L0,4.8L-2.9,0z", "^": "M0,-4.2L4.2,3.6H-4.2z", "v": "M0,4.2L4.2,-3.6H-4.2z",
    "<": "M-4.2,0L3.6,-4.2V4.2z", ">": "M4.2,0L-3.6,-4.2V4.2z",
    "P": "M-1.5,-4.4h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9v-3h2.9z",
    "X": "M-4.2,-2.1L-2.1,-4.2L0,-2.1L2.1,-4.2L4.2,-2.1L2.1,0L4.2,2.1L2.1,4.2L0,2.1L-2.1,4.2L-4.2,2.1L-2.1,0z",
    "p": "M0,-4.4L4.2,-1.4L2.6,3.6H-2.6L-4.2,-1.4z", "h": "M0,-4.4L3.8,-2.2V2.2L0,4.4L-3.8,2.2V-2.2z",
    "8": "M-1.7,-4.1H1.7L4.1,-1.7V1.7L1.7,4.1H-1.7L-4.1,1.7V-1.7z",
    "*": "M0,-5L1.2,-1.6L4.8,-1.5L1.9,.6L2.9,4L0,2L-2.9,4L-1.9,.6L-4.8,-1.5L-1.2,-1.6z",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Of one line: ours is thick and solid, a rival solid, a control dashed and thin."""

    role: str
    colour: str
    marker: str

    @property
    def dashes(self) -> str:
        """As matplotlib names it."""
        return "--" if self.role == "control" else "-"

    @property
    def width(self) -> float:
        """In points."""
        return {"ours": 2.0, "rival": 1.6}.get(self.role, 1.1)

    @property
    def band(self) -> float:
        """Opacity of the interval behind it."""
        return {"ours": 0.18, "rival": 0.14}.get(self.role, 0.07)


def looks(roles: Sequence[str]) -> list[Look]:
    """One look for each line, no two alike: colours and markers of its role in their order, then the spare ones."""
    found: list[Look] = []
    for number, role in enumerate(roles):
        before = sum(one == role for one in roles[:number])
        colours, markers = (*_COLOURS[role], *_SPARE_COLOURS), _MARKERS[role] + _SPARE_MARKERS
        repeats = before // len(colours)
        colour, first = colours[before % len(colours)], (before + repeats) % len(markers)
        taken = {one.marker for one in found if one.colour == colour}  # roles share the spare colours
        free = [marker for marker in markers[first:] + markers[:first] if marker not in taken]
        found.append(Look(role, colour, free[0] if free else markers[first]))
    return found


def key_of(look: Look) -> str:
    """A short line with its marker as SVG, for the legend of a page."""
    dash = ' stroke-dasharray="4 2.5"' if look.role == "control" else ""
    colour = html.escape(look.colour, quote=True)
    return (
        f'<svg width="30" height="12" viewBox="-15 -6 30 12" aria-hidden="true"><path d="M-15,0H15" stroke="{colour}" '
        f'stroke-width="{look.width}"{dash} fill="none"/><path d="{_GLYPHS[look.marker]}" fill="{colour}"/></svg>'
    )
