"""The training loop of LeJEPA, written out: views, one forward pass per view size, one loss, one step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import Batch, StepDataset
from lejepa_med.data.prefetch import feed
from lejepa_med.errors import DataError, UserError
from lejepa_med.objective import LeJEPALoss, LossParts
from lejepa_med.training.advice import Adviser
from lejepa_med.training.batch_views import batch_views
from lejepa_med.training.checkpoint import load_checkpoint, save_checkpoint
from lejepa_med.training.log import RunLog, read_log
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.monitor import Monitor
from lejepa_med.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from lejepa_med.views import BatchedMultiCrop


@dataclass
class StopFlag:
    """Set by SIGTERM or SIGINT; read at the end of each step."""

    stopped: bool = False
    _previous: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopFlag:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._stop)
        except ValueError:  # not the main thread: a notebook's kernel handles its own signals
            self._previous.clear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        self.stopped = True


def train(
    model: Pretrainer,
    dataset: StepDataset,
    config: PretrainConfig,
    run: Path,
    *,
    held_out: StepDataset | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> bool:
    """Trains until `train.steps`, or until SIGTERM; True if it came to the end. Resuming is exact to the bit on a CPU.

    `warn` is told each advice of the diagnostics when it first holds; `held_out` are patients that are not trained on.

    Raises:
        DataError: a series is damaged, or no view can be cut from it.
        UserError: the loss is not finite. Both name the step, the series and the last good checkpoint.
    """
    device = choose_device(config.train.device)
    model = model.to(device).train()
    crop = BatchedMultiCrop(config.views, model.backbone.in_channels)
    loss_function = LeJEPALoss(**config.objective.model_dump(), seed=config.seed)
    optimizer = build_optimizer(model, config.optim, is_vit="vit" in config.model.name)
    start, steps = _restore(model, optimizer, run) if resume else 0, config.train.steps
    done = start
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(config, device))
    monitor = Monitor(model, loss_function, config, dataset, held_out)
    batches = feed(dataset, range(start, steps), config.data, device)
    with _naming_the_step(run, lambda: done), batches as fed, StopFlag() as stop, RunLog(run, start, config) as log:
        advise = Adviser(config, read_log(run, "diagnostics"), warn)
        for step, batch, waited in fed:
            began = time.perf_counter()
            views = batch_views(crop, batch, ("views", config.seed, step))
            with autocast:
                features, projections = model(views)
            loss = loss_function(projections, config.views.num_global, step)
            optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
            _require_finite(loss, grad_norm, step, batch, run)
            lr = set_learning_rate(optimizer, learning_rate(step, steps, config.optim))
            optimizer.step()

            log.write("metrics", step=step, **loss.numbers(), lr=lr, grad_norm=float(grad_norm))
            timing = _timing(batch, waited, time.perf_counter() - began, device)
            log.write("timing", step=step, **timing, residency=dataset.source.where)
            if step % config.train.diagnostics_every == 0 or step == steps - 1:
                with autocast:
                    numbers = monitor(step, views, features, projections, batch.patients, float(grad_norm))
                log.write("diagnostics", **numbers, advice=advise(numbers))
            done, stopping = step + 1, stop.stopped  # read once: what is left is what was saved
            if done % config.train.checkpoint_every == 0 or done == steps or stopping:
                _save(model, optimizer, run, done, config.train.keep_checkpoints)
            if progress is not None:
                progress("pretrain", done, steps)
            if stopping:
                break
    return done == steps


def _save(model: Pretrainer, optimizer: torch.optim.Optimizer, run: Path, done: int, keep: int) -> None:
    """Everything that the next step depends on; batches and views depend on the step's number alone."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    save_checkpoint(run / "checkpoints", done, state, keep)


def _restore(model: Pretrainer, optimizer: torch.optim.Optimizer, run: Path) -> int:
    """The number of steps done."""
    state = load_checkpoint(run / "checkpoints")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


@contextmanager
def _naming_the_step(run: Path, step: Callable[[], int]) -> Iterator[None]:
    """What is wrong with a series is told with the step that met it and what is saved; no other takes its place."""
    try:
        yield
    except DataError as error:
        raise DataError(f"training stopped at step {step()}: {error}; {_last_good(run)}") from None


def _last_good(run: Path) -> str:
    latest = run / "checkpoints" / "latest"
    return f"the last good checkpoint is {latest.read_text()}" if latest.exists() else "there is no checkpoint yet"


def _require_finite(loss: LossParts, grad_norm: Tensor, step: int, batch: Batch, run: Path) -> None:
    if torch.isfinite(loss.total) and torch.isfinite(grad_norm):
        return
    series = ", ".join(batch.keys[:8]) + (", ..." if len(batch.keys) > 8 else "")
    raise UserError(
        f"training stopped: loss or gradient not finite at step {step}, batch of series {series}; {_last_good(run)}"
    )


def _timing(batch: Batch, waited: float, computed: float, device: torch.device) -> dict[str, float]:
    seconds = waited + computed
    return {"samples_per_s": len(batch.keys) / seconds, "data_wait": waited / seconds, "memory": _memory(device)}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"train.device {name}: no CUDA device here; use cpu or auto")
    return device


def uses_bf16(config: PretrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs under bf16 autocast."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_fast_bf16()


def cpu_has_fast_bf16() -> bool:
    """AMX or AVX512-BF16: elsewhere bf16 on a CPU is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _memory(device: torch.device) -> int:
    """Peak bytes: of the device on CUDA, resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
