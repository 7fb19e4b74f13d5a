"""The Python interface: pretrain on whatever there is, load, embed. The command line calls the same functions.

What a run directory holds is said in `lejepa_med.training.run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lejepa_med.backbones import Backbone
from lejepa_med.config import ModelConfig, PretrainConfig, validate
from lejepa_med.config.loading import set_path
from lejepa_med.data.dataset import (
    DatasetSource,
    Item,
    ListSource,
    Source,
    StepDataset,
    number_patients,
)
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.reading import read_any
from lejepa_med.data.training_source import cache_source
from lejepa_med.distributed import rank
from lejepa_med.errors import DataError, UserError
from lejepa_med.evaluation.online_probe import OnlineProbe
from lejepa_med.spec import PreprocessSpec
from lejepa_med.training.run import Hooks, Progress, Run, Warn, execute, first_views
from lejepa_med.viz.contact_sheet import views_sheet

__all__ = ["Run", "draw_views", "open_source", "pretrain", "run_pretraining"]


def pretrain(
    data: Any = None,
    model: str | ModelConfig | Backbone | None = None,
    out: str | Path = "run",
    *,
    resume: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
    patients: Sequence[Any] | None = None,
    **settings: Any,
) -> Run:
    """Pretrains a backbone with LeJEPA and leaves a run directory in `out`.

    `data` is a cache folder made by `prepare`, a list of NIfTI files, image files or DICOM folders, a MONAI datalist
    (`[{"image": path}, ...]`), or any map-style torch dataset of `[channel, *spatial]` tensors in [0, 1]. `model` is a
    name (see `lejepa-med config pretrain`) or a `Backbone` of your own. `settings` are fields of the config, as
    sections (`train={"steps": 100}`) or dotted; those of the sections `data` and `model` are always dotted
    (`**{"model.width": 0.5}`). NIfTI files of a list are MRI unless `**{"data.modalities": ["ct"]}` says otherwise.
    A torch dataset brings arrays of unknown spacing: its backbone takes arrays too (`backbone(images)`), not files.
    `patients` says whose each item of a list or dataset is, by any id; files get numbers instead. Without it each item
    counts as a patient of its own, and nobody is kept aside for the held-out loss.
    `warn=print` shows what the diagnostics advise while it trains; `run.advice()` is what holds at the end.

    Example:
        >>> run = lejepa_med.pretrain("cache", "resnet18_3d", "runs/a", train={"steps": 5000})  # doctest: +SKIP

    Raises:
        UserError: data, settings or output folder cannot be used as given.
    """
    values = _nested(settings)
    if isinstance(model, str):
        values.setdefault("model", {})["name"] = model
    elif isinstance(model, ModelConfig):
        values["model"] = model.model_dump()
    if isinstance(data, str | Path):
        values.setdefault("data", {})["cache"] = str(data)
    config = validate(PretrainConfig, values, "settings")
    own = model if isinstance(model, Backbone) else None
    source, preprocess = open_source(data, config, patients)
    return run_pretraining(config, source, preprocess, Path(out), own=own, resume=resume, progress=progress, warn=warn)


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if "." in key:
            set_path(values, f"{key}={yaml.safe_dump(value, default_flow_style=True)}")
        else:
            values[key] = value
    return values


def open_source(
    data: Any, config: PretrainConfig, patients: Sequence[Any] | None = None
) -> tuple[Source, PreprocessSpec | None]:
    """Training items and how they were prepared (None: elsewhere); test patients of a cache are left out."""
    if data is None or isinstance(data, str | Path):
        if patients is not None:
            raise DataError("patients: a cache knows whose its series are; give patients with a list or dataset only")
        source = cache_source(config)
        return source, source.cache.preprocess
    preprocess = PreprocessSpec()
    if isinstance(data, Sequence):
        numbered = None if patients is None else number_patients(patients, len(data))
        items = _read_all(data, config.data.modalities, preprocess)
        of_key = {f"item {number}": patient for number, patient in enumerate(numbered or [])}
        return ListSource(items, [of_key[item.key] for item in items] if of_key else None), preprocess
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetSource(data, patients), None
    raise DataError(f"data: expected a cache folder, a list of scans or a torch dataset, got a {type(data).__name__}")


def _read_all(items: Sequence[Any], modalities: tuple[str, ...] | None, preprocess: PreprocessSpec) -> list[Item]:
    """Scans of a list, prepared in memory; for archives use `index` and `prepare`."""
    modality = modalities[0] if modalities is not None and len(modalities) == 1 else "mri"
    read = []
    for number, item in enumerate(items):
        path = Path(item["image"] if isinstance(item, dict) else item)
        try:
            for volume in read_any(path, modality):
                prepared = prepare_volume(volume, preprocess)
                spacing = prepared.spacing_mm or (1.0,) * prepared.array.ndim
                read.append(Item(prepared.array[None], spacing, prepared.modality == "ct", f"item {number}"))
        except UserError as error:
            raise DataError(f"item {number} of the list: {error}") from None
    return read


def run_pretraining(
    config: PretrainConfig,
    source: Source,
    preprocess: PreprocessSpec | None,
    out: Path,
    *,
    own: Backbone | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Run:
    """One run from a config to a run directory, with the picture of its views."""

    def write_views(views: list[torch.Tensor], file: Path) -> None:
        _write_sheet(config, views, file)

    probe = OnlineProbe(config) if config.online_probe.tasks and rank() == 0 else None  # it alone measures, and speaks
    hooks = Hooks(progress, warn, write_views, probe)
    return execute(config, source, preprocess, out, own=own, resume=resume, hooks=hooks)


def draw_views(config: PretrainConfig, dataset: StepDataset, file: Path, samples: int = 6) -> None:
    """The contact sheet of the views of the first samples of the first step."""
    _write_sheet(config, first_views(config, dataset, config.model.in_channels, samples), file)


def _write_sheet(config: PretrainConfig, views: list[torch.Tensor], file: Path) -> None:
    titles = [f"sample {number}" for number in range(views[0].shape[1])]
    views_sheet([view.cpu() for view in views], file, titles, sliced=config.data.kind == "slices")
