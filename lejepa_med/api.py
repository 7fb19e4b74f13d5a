"""The Python interface: pretrain on whatever there is, load, embed. The command line calls the same functions.

RUN/config.yaml  spec.yaml  pretraining_series.csv  views.png
RUN/metrics.jsonl  timing.jsonl  diagnostics.jsonl  checkpoints/  and tensorboard/, as `logging` says
RUN/backbone.safetensors  and DONE (which says so if the run ended early), or STOPPED
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.config import ModelConfig, PretrainConfig, dump_yaml, load_config, validate
from lejepa_med.config.loading import set_path
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.dataset import (
    DatasetSource,
    Item,
    ListSource,
    Source,
    StepDataset,
    number_patients,
    split_monitored,
)
from lejepa_med.data.inference import windows
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.pretraining_record import record_of, require_same_series, write_record
from lejepa_med.data.reading import read_any
from lejepa_med.data.residency import placed_source
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.training_source import base_size, build_sampler, cache_source
from lejepa_med.distributed import alone, join_ranks, num_ranks, rank, together
from lejepa_med.errors import DataError, UserError
from lejepa_med.randomness import generator
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.training.advice import Advice, advise
from lejepa_med.training.batch_views import batch_views
from lejepa_med.training.devices import choose_device, deterministic_kernels
from lejepa_med.training.initial_weights import load_initial_weights
from lejepa_med.training.log import last_step, read_log
from lejepa_med.training.loop import train
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.parallel import whole
from lejepa_med.training.run_folder import check_folder
from lejepa_med.views import BatchedMultiCrop
from lejepa_med.viz.contact_sheet import views_sheet
from lejepa_med.weights import load_backbone, save_backbone

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """A run directory. `finished` is False if it was stopped by a signal and can be resumed."""

    path: Path
    finished: bool

    def backbone(self) -> Backbone:
        """The trained backbone, in evaluation mode."""
        return load_backbone(self.path)

    def advice(self) -> list[Advice]:
        """What still holds at the last line of diagnostics.jsonl, each with a code and one sentence."""
        config = load_config(PretrainConfig, self.path / "config.yaml")
        return advise(read_log(self.path, "diagnostics"), config)


def pretrain(
    data: Any = None,
    model: str | ModelConfig | Backbone | None = None,
    out: str | Path = "run",
    *,
    resume: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
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
    warn: Callable[[str], None] | None = None,
) -> Run:
    """One run from a config to a run directory; nothing is written before data, weights and settings fit.

    Under torchrun every rank calls it with the same arguments. The first one writes and speaks; what is wrong on any
    ends all, before anything is written.
    """
    device = choose_device(config.train.device)
    with join_ranks(device), deterministic_kernels(config.train.deterministic):
        if rank() > 0:
            progress = warn = None
        with together():
            job = _set_up(config, source, preprocess, out, own, resume, Speech(progress, warn))
        with together():
            if rank() == 0:
                _write_start(config, job, out)
        plain = copy.deepcopy(job.backbone) if config.train.parallel == "fsdp" and num_ranks() > 1 else job.backbone
        finished = train(
            job.model, job.dataset, config, out, held_out=job.held_out, resume=resume, progress=progress, warn=warn
        )
        with together():
            if finished:
                with alone():  # all ranks alike: a model in shards needs them all
                    reestimate_batchnorm(job.backbone, inference_batches(job.seen, job.spec.inference, device))
                if plain is not job.backbone:
                    plain.load_state_dict(whole(job.backbone.state_dict()))
            if rank() == 0:
                _write_end(config, job, out, plain if finished else None, own is not None)
    return Run(out, finished)


@dataclass(frozen=True)
class Speech:
    """Whom a run tells how far it is, and what it advises; rank 0 only."""

    progress: Progress | None
    warn: Callable[[str], None] | None


@dataclass(frozen=True)
class _Job:
    """What a run is made of, checked: nothing of it is on disk yet."""

    backbone: Backbone
    model: Pretrainer
    spec: Spec
    seen: Source
    record: Any
    dataset: StepDataset
    held_out: StepDataset | None
    views: list[torch.Tensor]


def _set_up(
    config: PretrainConfig,
    source: Source,
    preprocess: PreprocessSpec | None,
    out: Path,
    own: Backbone | None,
    resume: bool,
    speech: Speech,
) -> _Job:
    check_folder(out, config, resume)
    if config.train.batch_size < num_ranks():
        raise UserError(f"train.batch_size {config.train.batch_size}: too small for {num_ranks()} ranks")
    if config.train.ema_decay is not None and config.train.parallel == "fsdp" and num_ranks() > 1:
        raise UserError("train.ema_decay: weights in shards are not averaged; use train.parallel: ddp, or null")
    size = base_size(config, source)
    torch.manual_seed(config.seed)
    backbone = own if own is not None else build(config.model)
    if config.init_from is not None:
        load_initial_weights(backbone, config.init_from)
    spec = Spec(preprocess=preprocess, inference=config.inference or default_inference(config, size, source))
    seen, _ = split_monitored(source, config.data.monitor_fraction, config.data.holdout.seed)
    record = record_of(seen, config.init_from)
    if resume:
        require_same_series(out, record)
    source = placed_source(config, source, choose_device(config.train.device), speech.progress, speech.warn)
    dataset, held_out = step_datasets(config, source, size)
    model = Pretrainer(backbone, config.projector, config.train.micro_batch)
    views = _first_views(config, dataset, backbone.in_channels)
    return _Job(backbone, model, spec, seen, record, dataset, held_out, views)


def _write_start(config: PretrainConfig, job: _Job, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "STOPPED").unlink(missing_ok=True)  # of the run that is resumed: what ends this one is not known yet
    _write_sheet(config, job.views, out / "views.png")
    (out / "config.yaml").write_text(dump_yaml(config))
    (out / "spec.yaml").write_text(dump_yaml(job.spec))
    write_record(out, job.record)


def _write_end(config: PretrainConfig, job: _Job, out: Path, trained: Backbone | None, is_own: bool) -> None:
    """`trained` is None for a run that was stopped."""
    steps, ended = last_step(out)
    if trained is not None:
        provenance: dict[str, int | str] = {
            "patients": len(set(job.seen.patients)),
            "series": len(job.seen.keys),
            "steps": steps,
        }
        if config.train.ema_decay is not None:
            provenance["weights"] = f"exponential average over steps, decay {config.train.ema_decay:g}"
        model = None if is_own else config.model
        save_backbone(out / "backbone.safetensors", trained, model, job.spec, provenance)
    early = f"ended after step {steps} of {config.train.steps}: {ended} (train.stop_on_plateau)\n" if ended else ""
    (out / ("STOPPED" if trained is None else "DONE")).write_text(early)


def step_datasets(
    config: PretrainConfig, source: Source, size: tuple[int, ...]
) -> tuple[StepDataset, StepDataset | None]:
    """Batches by step of the patients to train on, and of those kept aside for the held-out loss."""
    seen, aside = split_monitored(source, config.data.monitor_fraction, config.data.holdout.seed)
    share = rank(), num_ranks()
    trained = StepDataset(seen, build_sampler(config, seen), size, config.seed, config.data.crops_per_read, share)
    if aside is None:
        return trained, None
    # Always the same batch size and seed, whatever the run's: held-out losses of runs are then comparable.
    sampler = StepSampler(aside.patients, len(set(aside.patients)), 0, aside.groups)
    return trained, StepDataset(aside, sampler, size, seed=0)


def default_inference(config: PretrainConfig, size: tuple[int, ...], source: Source) -> InferenceSpec:
    """One window of the size of a global view over a region of the size of a base crop."""
    item = source.read(0, generator("first"))
    pitch = max(
        side * mm / voxels for side, mm, voxels in zip(size, item.spacing_mm, config.views.global_size, strict=True)
    )
    return InferenceSpec(window=config.views.global_size, pitch_mm=pitch)


def inference_batches(
    source: Source, spec: InferenceSpec, device: torch.device, volumes: int = 64
) -> list[torch.Tensor]:
    """Training items as the backbone will see them at inference, in even batches of at most 16 windows.

    Even, since a rest of one window has no variance to estimate; a single window in all gives no batch.
    """
    images = []
    for number in range(0, len(source.keys), max(1, len(source.keys) // volumes)):
        item = source.read(number, generator("inference", number))
        modality = "ct" if item.is_ct else "mri"
        spacing = item.spacing_mm
        images.append(windows(CachedVolume(item.key, "", modality, item.array[0], spacing), spec).images)
    together = torch.cat(images)
    if len(together) < 2:
        return []
    return [batch.to(device) for batch in torch.tensor_split(together, -(-len(together) // 16))]


def draw_views(config: PretrainConfig, dataset: StepDataset, file: Path, samples: int = 6) -> None:
    """The contact sheet of the views of the first samples of the first step."""
    _write_sheet(config, _first_views(config, dataset, config.model.in_channels, samples), file)


def _first_views(config: PretrainConfig, dataset: StepDataset, channels: int, samples: int = 6) -> list[torch.Tensor]:
    chosen = dataset.sampler.batch(0)[:samples]
    return batch_views(BatchedMultiCrop(config.views, channels), dataset.gather(chosen, 0), ("views", config.seed, 0))


def _write_sheet(config: PretrainConfig, views: list[torch.Tensor], file: Path) -> None:
    titles = [f"sample {number}" for number in range(views[0].shape[1])]
    views_sheet([view.cpu() for view in views], file, titles, sliced=config.data.kind == "slices")
