"""The report page of an index: counts, middle slices of a sample and the table, in one file without identities."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.compute import spread
from lejepa_med.config.compute import ComputeConfig
from lejepa_med.data import vocabulary
from lejepa_med.data.dicom.listed import listed_frame
from lejepa_med.data.dicom.pixels import rescaled, stored_values
from lejepa_med.data.files import images, nifti
from lejepa_med.data.index.archive_tables import temporary_name
from lejepa_med.data.index.entry import Entry, FilePlace
from lejepa_med.data.index.entry_table import EntryTable
from lejepa_med.data.index.probe import Probed

SAMPLE = 48
MAX_ROWS = 2000
_SIDE = 112
_PICTURE_S = 300.0
_STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;color:#222}
table{border-collapse:collapse}
td,th{padding:.15em .7em .15em 0;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}.n{text-align:right}
.counts{display:flex;gap:3em;flex-wrap:wrap}figure{display:inline-block;margin:0 .4em .6em 0;width:112px}
figure img{background:#000;display:block}figcaption{font-size:10px;color:#666;overflow-wrap:anywhere}
.accepted{color:#186a3b}.flagged{color:#9a6200}.rejected{color:#a32020}.wide{overflow-x:auto;font-size:12px}"""


def write_page(path: Path, table: EntryTable, account: Mapping[str, object], compute: ComputeConfig) -> None:
    """Writes the page; `account` are the counts of the run by name."""
    body = [
        "<h1>Index of an archive</h1>",
        "<p>{files_seen} files seen = {files_used} used + {files_explained} explained.</p>".format(**account),
        "<div class=counts>",
        _counts("verdict", account["verdicts"], vocabulary.VERDICTS),
        _counts("modality, used", account["modalities"], {}),
        _counts("reason, not used", account["reasons"], vocabulary.REASONS),
        _counts("remark, used", account["flags"], vocabulary.FLAGS),
        "</div><h2>Middle slices</h2>",
        *_figures(table, compute),
        "<h2>Series</h2>",
        _table(table),
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Index</title><style>{_STYLE}</style>"
    temporary = temporary_name(path)
    temporary.write_text(page + "\n".join(body) + "</html>\n", encoding="utf-8")
    temporary.replace(path)


def _counts(title: str, counts: object, meaning: Mapping[str, str]) -> str:
    assert isinstance(counts, Mapping)
    rows = "".join(
        f"<tr><td>{html.escape(word)}<td class=n>{count}<td>{html.escape(meaning.get(word, ''))}"
        for word, count in counts.items()
    )
    return f"<table><tr><th>{title}<th class=n>rows<th>{rows}</table>"


def _figures(table: EntryTable, compute: ComputeConfig) -> list[str]:
    shown = (Probed(entry, table.places(entry.series_key)) for entry in table.sample(SAMPLE))
    return [
        f'<figure><img alt="" width={_SIDE} height={_SIDE} src="data:image/png;base64,{picture}">'
        f"<figcaption>{html.escape(f'{volume.entry.series_key} {volume.entry.modality} {volume.entry.sequence}')}"
        "</figcaption></figure>"
        for batch, pictures in spread(_pictures, shown, compute, lambda _: "", 4, _PICTURE_S)
        for volume, picture in zip(batch, pictures, strict=True)
        if picture
    ]


def _pictures(volumes: list[Probed]) -> list[str]:
    return [_picture(volume) for volume in volumes]


def _picture(volume: Probed) -> str:
    try:
        return base64.b64encode(thumbnail(_middle(volume.entry, volume.places))).decode()
    except Exception:
        return ""


def _middle(entry: Entry, places: Sequence[FilePlace]) -> NDArray[np.generic]:
    if entry.source == "dicom":
        frame = listed_frame(places, 0.5)
        return rescaled(frame, stored_values([frame])[0])
    path = Path(places[0].path)
    if entry.source == "image":
        return images.read(path, entry.part).array
    volume = nifti.read(path, entry.part, entry.modality)
    axis = int(np.argmax(volume.spacing_mm))
    middle: NDArray[np.generic] = np.take(volume.array, volume.array.shape[axis] // 2, axis).T[::-1]
    return middle


def thumbnail(slice_: NDArray[np.generic]) -> bytes:
    """A small square PNG of a slice, its 1st to 99th percentile from black to white."""
    values = slice_.astype(np.float32)
    low, high = np.percentile(values, (1, 99))
    grey = np.clip((values - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    picture.thumbnail((_SIDE, _SIDE))
    square = Image.new("L", (_SIDE, _SIDE))
    square.paste(picture, ((_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2))
    file = io.BytesIO()
    square.save(file, "PNG")
    return file.getvalue()


def _table(table: EntryTable) -> str:
    head = "".join(
        f"<th>{name}"
        for name in ("series", "verdict", "reason", "remarks", "modality", "body part", "sequence", "shape",
                     "spacing mm", "axes", "files", "detail")
    )  # fmt: skip
    rows = [_row(entry) for entry in table.entries(limit=MAX_ROWS)]
    left = table.num_entries() - MAX_ROWS
    more = f"<p>{left} more rows in series.csv</p>" if left > 0 else ""
    return f"<div class=wide><table><tr>{head}{''.join(rows)}</table></div>{more}"


def _row(entry: Entry) -> str:
    cells = (
        entry.reason, " ".join(sorted(entry.flags)), entry.modality, entry.body_part, entry.sequence,
        "x".join(map(str, entry.shape)), " x ".join(f"{length:.3g}" for length in entry.spacing_mm),
        entry.orientation, str(entry.num_files), entry.detail,
    )  # fmt: skip
    start = f"<tr><td>{entry.series_key}<td class={entry.verdict}>{entry.verdict}"
    return start + "".join(f"<td>{html.escape(cell)}" for cell in cells)
