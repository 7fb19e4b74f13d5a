"""One pretraining run, from a config and its data to a run directory:

RUN/config.yaml  spec.yaml  pretraining_series.csv  views.png
RUN/metrics.jsonl  timing.jsonl  diagnostics.jsonl  checkpoints/
RUN/probes.jsonl  and tensorboard/, as `online_probe` and `logging` say
RUN/backbone.safetensors  and DONE (which says so if the run ended early), or STOPPED
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lejepa_med.backbones import Backbone, build
from lejepa_med.backbones.normalisation import reestimate_batchnorm
from lejepa_med.backbones.view_sizes import require_sizes
from lejepa_med.config import PretrainConfig, dump_yaml, load_config
from lejepa_med.data.cache import CachedVolume
from lejepa_med.data.dataset import Source, StepDataset, split_monitored
from lejepa_med.data.inference import windows
from lejepa_med.data.pretraining_record import record_of, require_same_series, write_record
from lejepa_med.data.residency import placed_source
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.training_source import base_size, build_sampler
from lejepa_med.distributed import alone, join_ranks, num_ranks, rank, together
from lejepa_med.errors import UserError
from lejepa_med.randomness import generator
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.training.advice import Advice, advise
from lejepa_med.training.averaging import average_of, describe_average
from lejepa_med.training.background_probe import BackgroundProbe, Lines, Measure
from lejepa_med.training.batch_views import batch_views
from lejepa_med.training.checkpoint_file import has_checkpoint
from lejepa_med.training.devices import choose_device, deterministic_kernels
from lejepa_med.training.initial_weights import start_from
from lejepa_med.training.log import last_step, read_log
from lejepa_med.training.loop import train
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.parallel import whole
from lejepa_med.training.run_folder import check_folder, require_same_spec
from lejepa_med.training.run_lock import RunLock
from lejepa_med.training.stopping import StopFlag
from lejepa_med.training.trackers import require_trackers
from lejepa_med.views import BatchedMultiCrop
from lejepa_med.weights import load_backbone, save_backbone
from lejepa_med.whole_files import in_a_sentence, write_atomically

Progress = Callable[[str, int, int], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Hooks:
    """What others do for a run, on its first rank alone.

    `progress` is told stage, done and total, `warn` each advice when it first holds. `write_views` draws the views of
    some samples of the first step (per size `[view, sample, channel, *size]`) into a file. `probe` measures a backbone
    in evaluation mode, in a thread beside the training.
    """

    progress: Progress | None = None
    warn: Warn | None = None
    write_views: Callable[[list[torch.Tensor], Path], None] | None = None
    probe: Measure | None = None


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
        return advise(read_log(self.path, "diagnostics"), config, read_log(self.path, "probes"))


def execute(
    config: PretrainConfig,
    source: Source,
    preprocess: PreprocessSpec | None,
    out: Path,
    *,
    own: Backbone | None = None,
    resume: bool = False,
    hooks: Hooks = Hooks(),
) -> Run:
    """One run from a config to a run directory; nothing is written before data, weights and settings fit.

    Under torchrun every rank calls it with the same arguments. The first one writes and speaks; what is wrong on any
    ends all, before anything is written.
    """
    device = choose_device(config.train.device)
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    kernels = deterministic_kernels(config.train.deterministic)
    with StopFlag() as stop, on_device, join_ranks(device), kernels, RunLock(out) as lock:
        if rank() > 0:
            hooks = Hooks()
        with together():
            if rank() == 0 and resume and (out / "config.yaml").exists():
                lock.take()
            job = _set_up(config, source, preprocess, out, own, resume, hooks)
        with together():
            if rank() == 0:
                with in_a_sentence(out):
                    out.mkdir(parents=True, exist_ok=True)
                    lock.take()
                    check_folder(out, config, resume)  # another run may have begun while this one was set up
                    _write_start(config, job, out, hooks)
        will_be_sharded = rank() == 0 and config.train.parallel == "fsdp" and num_ranks() > 1
        plain = copy.deepcopy(job.backbone) if will_be_sharded else job.backbone
        finished = train(
            job.model,
            job.dataset,
            config,
            out,
            stop,
            held_out=job.held_out,
            resume=resume,
            progress=hooks.progress,
            warn=hooks.warn,
            probe=_background_probe(config, job, hooks, device),
        )
        with together():
            if finished:
                with alone():  # all ranks alike: a model in shards needs them all
                    reestimate_batchnorm(job.backbone, inference_batches(job.seen, job.spec.inference, device))
                trained = whole(job.backbone.state_dict())
                if plain is not job.backbone:
                    plain.load_state_dict(trained)
            if rank() == 0:
                with in_a_sentence(out):
                    _write_end(config, job, out, plain if finished else None, own is not None)
    return Run(out, finished)


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
    hooks: Hooks,
) -> _Job:
    check_folder(out, config, resume)
    require_trackers(config.logging)
    if config.train.batch_size < num_ranks():
        raise UserError(f"train.batch_size {config.train.batch_size}: too small for {num_ranks()} ranks")
    if average_of(config.train) is not None and config.train.parallel == "fsdp" and num_ranks() > 1:
        name = "ema_decay" if config.train.ema_decay is not None else "swa_fraction"
        raise UserError(f"train.{name}: weights in shards are not averaged; use train.parallel: ddp, or null")
    size = base_size(config, source)
    torch.manual_seed(config.seed)
    backbone = own if own is not None else build(config.model)
    if not (resume and has_checkpoint(out)):
        for change in start_from(backbone, config):
            if hooks.warn is not None:
                hooks.warn(f"init_from: {change}")
    spec = Spec(preprocess=preprocess, inference=config.inference or default_inference(config, size, source))
    local = [config.views.local_size] if config.views.num_local else []
    require_sizes(backbone, [config.views.global_size, *local, spec.inference.window], config.model.name)
    seen, _ = split_monitored(source, config.data.monitor_fraction, config.data.holdout.seed)
    fetched = Path(config.model.name) if config.init_download else None
    record = record_of(seen, config.init_from or fetched, config.init_from_seen)
    if resume:
        require_same_series(out, record)
        require_same_spec(out, spec)
    source = placed_source(config, source, choose_device(config.train.device), hooks.progress, hooks.warn)
    dataset, held_out = step_datasets(config, source, size)
    model = Pretrainer(backbone, config.projector, config.train.micro_batch)
    views = first_views(config, dataset, backbone.in_channels)
    return _Job(backbone, model, spec, seen, record, dataset, held_out, views)


def _background_probe(config: PretrainConfig, job: _Job, hooks: Hooks, device: torch.device) -> BackgroundProbe | None:
    """Measures the backbone as the run would leave it: BatchNorm statistics are those of inference."""
    if not config.online_probe.tasks:
        return None
    measure, settings = hooks.probe, config.online_probe
    if measure is None:
        return BackgroundProbe(None, None, settings.every)
    backbone = copy.deepcopy(job.backbone).to(device)
    backbone.spec = job.spec

    def measured(backbone: Backbone, check: Callable[[], None]) -> Lines:
        with alone():  # the other ranks go on training
            batches = inference_batches(job.seen, job.spec.inference, device, check=check)
            reestimate_batchnorm(backbone, batches)
            return measure(backbone, check)

    return BackgroundProbe(backbone, measured, settings.every, hooks.warn)


def _write_start(config: PretrainConfig, job: _Job, out: Path, hooks: Hooks) -> None:
    (out / "STOPPED").unlink(missing_ok=True)  # of the run that is resumed: what ends this one is not known yet
    for name, text in (("config.yaml", dump_yaml(config)), ("spec.yaml", dump_yaml(job.spec))):
        write_atomically(out / name, text.encode(), durable=True)
    write_record(out, job.record)
    if hooks.write_views is not None:
        hooks.write_views(job.views, out / "views.png")


def _write_end(config: PretrainConfig, job: _Job, out: Path, trained: Backbone | None, is_own: bool) -> None:
    """`trained` is None for a run that was stopped."""
    steps, ended = last_step(out)
    if trained is not None:
        provenance: dict[str, int | str] = {
            "patients": len(set(job.seen.patients)),
            "series": len(job.seen.keys),
            "steps": steps,
        }
        average = describe_average(config.train, steps)
        if average is not None:
            provenance["weights"] = average
        model = None if is_own else config.model
        save_backbone(out / "backbone.safetensors", trained, model, job.spec, provenance)
    early = f"ended after step {steps} of {config.train.steps}: {ended} (train.stop_on_plateau)\n" if ended else ""
    write_atomically(out / ("STOPPED" if trained is None else "DONE"), early.encode(), durable=True)


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
    source: Source,
    spec: InferenceSpec,
    device: torch.device,
    volumes: int = 64,
    check: Callable[[], None] = lambda: None,
) -> Iterator[torch.Tensor]:
    """Training items as the backbone will see them at inference, in even batches of at most 16 windows.

    Even, since a rest of one window has no variance to estimate; a single window in all gives no batch. Nothing is read
    before the first batch is asked for, which a backbone without BatchNorm does not do. `check` is called before every
    volume, and raises to end it.
    """
    images = []
    for number in range(0, len(source.keys), max(1, len(source.keys) // volumes)):
        check()
        item = source.read(number, generator("inference", number))
        modality = "ct" if item.is_ct else "mri"
        spacing = item.spacing_mm
        images.append(windows(CachedVolume(item.key, "", modality, item.array[0], spacing), spec).images)
    all_windows = torch.cat(images)
    if len(all_windows) > 1:
        yield from (batch.to(device) for batch in torch.tensor_split(all_windows, -(-len(all_windows) // 16)))


def first_views(config: PretrainConfig, dataset: StepDataset, channels: int, samples: int = 6) -> list[torch.Tensor]:
    """Views of the first samples of the first step: one tensor `[view, sample, channel, *size]` per size."""
    chosen = dataset.sampler.batch(0)[:samples]
    return batch_views(BatchedMultiCrop(config.views, channels), dataset.gather(chosen, 0), ("views", config.seed, 0))
