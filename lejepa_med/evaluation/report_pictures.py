"""The sections of a report that are pictures; each says in words when it cannot be drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.config.evaluation import slug
from lejepa_med.errors import DataError, WeightsError
from lejepa_med.evaluation.report_data import Benchmark
from lejepa_med.evaluation.report_neighbours import agreement, chance_agreement, nearest, neighbour_sheet, query_rows
from lejepa_med.evaluation.report_page import captioned, image, panels, paragraph
from lejepa_med.training.log import read_log
from lejepa_med.viz.canvas import save_image
from lejepa_med.viz.curves import curve_panels, loss_curves
from lejepa_med.viz.pca import pca_picture
from lejepa_med.viz.style import save_figure, svg
from lejepa_med.weights import load_backbone

_EXAMPLES = 5
_RETRIEVAL_TASKS = 3


def curves_section(benchmark: Benchmark, figures: Path) -> str:
    """The loss curves of the run."""
    if benchmark.run is None or not read_log(benchmark.run, "metrics"):
        return paragraph("No training record lies beside the weights, so there are no curves.", "note")
    save_figure(loss_curves(benchmark.run), figures / "pretraining")
    drawn = [image(svg(figure), "svg+xml", name) for name, figure in curve_panels(benchmark.run).items()]
    caption = (
        "Points are steps, lines running means. The dashed line is what SIGReg gives for independent Gaussian samples: "
        "a reference, no bound. A rank that falls while the loss falls is a collapse in all but name."
    )
    return captioned(panels(drawn, "15rem"), caption)


def views_section(benchmark: Benchmark, figures: Path) -> str:
    """The contact sheet that pretraining left."""
    file = benchmark.run / "views.png" if benchmark.run is not None else None
    if file is None or not file.is_file():
        return ""
    (figures / "views.png").write_bytes(file.read_bytes())
    caption = "Views of the first training samples: what the network is asked to predict from what."
    return captioned(_png(file, "contact sheet of views"), caption)


def tokens_section(benchmark: Benchmark, figures: Path) -> str:
    """PCA of the patch tokens of a few test scans."""
    cache = benchmark.cache
    if cache is None or benchmark.run is None:
        return paragraph("The cache or the run is not where the config says, so there are no pictures.", "note")
    task = next(iter(benchmark.summary["tasks"]))
    keys = benchmark.test_series(task)[:_EXAMPLES]
    encoder = next(encoder for encoder in benchmark.encoders if encoder.kind == "run")
    try:
        shares = pca_picture(load_backbone(encoder.path), [cache.read(key) for key in keys], figures / "tokens.png")
    except (WeightsError, DataError):
        return paragraph("Weights or scans could not be read, so there is no picture.", "note")
    percent = ", ".join(f"{100 * share:.0f}" for share in shares)
    caption = (
        f"Patch tokens of {len(keys)} test scans, the first by key. Red, green and blue are their "
        f"first three principal components, fitted over all of them ({percent} % of the variance): equal colours mean "
        "equal tokens. Radiological convention: the patient's right is on the left."
    )
    return captioned(_png(figures / "tokens.png", "principal components of patch tokens"), caption)


def neighbours_section(benchmark: Benchmark, figures: Path) -> str:
    """Nearest neighbours among test scans by the run and by fresh weights."""
    cache = benchmark.cache
    if cache is None:
        return ""
    shown = [
        next((encoder.name for encoder in benchmark.encoders if encoder.kind == kind), None)
        for kind in ("run", "random")
    ]
    parts = []
    for task in list(benchmark.summary["tasks"])[:_RETRIEVAL_TASKS]:
        pictures = []
        for encoder in shown:
            stored = benchmark.features(encoder) if encoder is not None else None
            if encoder is None or stored is None:
                continue
            features, series, _ = stored
            truths, patients = benchmark.truths(task), benchmark.test_patients(task)
            rows = [row for row in np.argsort(series).tolist() if series[row] in truths]
            if len(rows) < 2:
                continue
            keys, labels = [series[row] for row in rows], [truths[series[row]] for row in rows]
            owners = [patients[key] for key in keys]
            found = nearest(features[rows], owners)
            file = figures / f"neighbours-{slug(task)}-{slug(encoder)}.png"
            save_image(neighbour_sheet(cache, keys, labels, found, query_rows(labels)), file)
            pictures.append(captioned(_png(file, f"neighbours by {encoder}"), _said(encoder, labels, owners, found)))
        if pictures:
            parts += [f"<h3>{paragraph(task)[3:-4]}</h3>", panels(pictures, "24rem")]
    if parts:
        text = (
            "Test scans and their nearest neighbours from other test patients, by cosine of standardised features. "
            "Queries are the first of each class by key (of values: evenly spaced ranks), nobody's choice. "
            "Frames: blue, the same class; orange, another."
        )
        parts.insert(0, paragraph(text))
    return "\n".join(parts)


def _said(encoder: str, labels: list[Any], patients: list[str], found: NDArray[np.int64]) -> str:
    """How often all test scans, not only the queries shown, agree with their neighbours, and how often any two do."""
    value, by_chance = agreement(labels, found), chance_agreement(labels, patients)
    if isinstance(labels[0], str):
        said = f"{100 * value:.0f} % of the neighbours carry the label of their query; {100 * by_chance:.0f} % would by"
    else:
        said = f"neighbours differ from their query by {value:.3g} in the mean; it would be {by_chance:.3g} by"
    return f"{encoder}: over all test scans, {said} chance."


def _png(file: Path, alternative: str) -> str:
    """The picture at half of its pixels, sharp on fine screens."""
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        width = opened.width // 2
    return image(content, "png", alternative, width)
