"""The report page of an index: counts, middle slices of a sample and the table, in one file without identities."""

from __future__ import annotations

import base64
import html
import io
import itertools
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data import images, nifti, vocabulary
from lejepa_med.data.dicom_pixels import rescaled, stored_values
from lejepa_med.data.entry import Entry

SAMPLE = 48
MAX_ROWS = 2000
_SIDE = 112
_STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;color:#222}
table{border-collapse:collapse}
td,th{padding:.15em .7em .15em 0;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}.n{text-align:right}
.counts{display:flex;gap:3em;flex-wrap:wrap}figure{display:inline-block;margin:0 .4em .6em 0;width:112px}
figure img{background:#000;display:block}figcaption{font-size:10px;color:#666;overflow-wrap:anywhere}
.accepted{color:#186a3b}.flagged{color:#9a6200}.rejected{color:#a32020}.wide{overflow-x:auto;font-size:12px}"""


def write_page(path: Path, entries: Sequence[Entry], account: Mapping[str, object]) -> None:
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
        *_figures(entries),
        "<h2>Series</h2>",
        _table(entries),
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Index</title><style>{_STYLE}</style>"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page + "\n".join(body) + "</html>\n", encoding="utf-8")
    temporary.replace(path)


def _counts(title: str, counts: object, meaning: Mapping[str, str]) -> str:
    assert isinstance(counts, Mapping)
    rows = "".join(
        f"<tr><td>{html.escape(word)}<td class=n>{count}<td>{html.escape(meaning.get(word, ''))}"
        for word, count in counts.items()
    )
    return f"<table><tr><th>{title}<th class=n>rows<th>{rows}</table>"


def _figures(entries: Sequence[Entry]) -> list[str]:
    figures = []
    for entry in sample(entries):
        try:
            png = thumbnail(_middle(entry))
        except Exception:
            continue
        data = base64.b64encode(png).decode()
        caption = f"{entry.series_key} {entry.modality} {entry.sequence}"
        figures.append(
            f'<figure><img alt="" width={_SIDE} height={_SIDE} src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return figures


def sample(entries: Sequence[Entry]) -> list[Entry]:
    """Up to `SAMPLE` usable entries, as evenly from each source and modality as there are.

    Keys are hashes, so the first ones in their order are a random choice.
    """
    kinds: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        if not entry.reason:
            kinds[(entry.source, entry.modality)].append(entry)
    rounds = itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    chosen = [entry for turn in rounds for entry in turn if entry is not None]
    return sorted(chosen[:SAMPLE], key=lambda entry: (entry.source, entry.modality, entry.series_key))


def _middle(entry: Entry) -> NDArray[np.generic]:
    if entry.stack is not None:
        frame = entry.stack.frames[len(entry.stack.frames) // 2]
        return rescaled(frame, stored_values([frame])[0])
    path = Path(entry.files[0].file.path)
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


def _table(entries: Sequence[Entry]) -> str:
    head = "".join(
        f"<th>{name}"
        for name in ("series", "verdict", "reason", "remarks", "modality", "body part", "sequence", "shape",
                     "spacing mm", "axes", "files", "detail")
    )  # fmt: skip
    rows = [_row(entry) for entry in entries[:MAX_ROWS]]
    more = f"<p>{len(entries) - MAX_ROWS} more rows in series.csv</p>" if len(entries) > MAX_ROWS else ""
    return f"<div class=wide><table><tr>{head}{''.join(rows)}</table></div>{more}"


def _row(entry: Entry) -> str:
    cells = (
        entry.reason, " ".join(sorted(entry.flags)), entry.modality, entry.body_part, entry.sequence,
        "x".join(map(str, entry.shape)), " x ".join(f"{length:.3g}" for length in entry.spacing_mm),
        entry.orientation, str(len(entry.files)), entry.detail,
    )  # fmt: skip
    start = f"<tr><td>{entry.series_key}<td class={entry.verdict}>{entry.verdict}"
    return start + "".join(f"<td>{html.escape(cell)}" for cell in cells)
