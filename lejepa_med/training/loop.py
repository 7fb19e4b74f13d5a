"""The training loop of LeJEPA, written out: views, one forward pass per view size, one loss, one step.

One process or many ranks (torchrun): each has its samples of the same global batch, and the loss is that of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import Batch, StepDataset
from lejepa_med.data.prefetch import Fed, feed
from lejepa_med.distributed import end_together
from lejepa_med.errors import DataError, UserError
from lejepa_med.objective import build_objective
from lejepa_med.training.background_probe import BackgroundProbe
from lejepa_med.training.batch_views import batch_views
from lejepa_med.training.devices import choose_device, uses_bf16
from lejepa_med.training.loss_history import history_of
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.monitor import Monitor
from lejepa_med.training.observer import open_observer
from lejepa_med.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from lejepa_med.training.parallel import clip_gradients, distribute
from lejepa_med.training.speed import tune
from lejepa_med.training.state import TrainingState
from lejepa_med.training.step_record import RunningStatistics, StepRecord, update_if_finite
from lejepa_med.training.stopping import StopFlag, until_stopped
from lejepa_med.views import BatchedMultiCrop


def train(
    model: Pretrainer,
    dataset: StepDataset,
    config: PretrainConfig,
    run: Path,
    stop: StopFlag,
    *,
    held_out: StepDataset | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
    probe: BackgroundProbe | None = None,
) -> bool:
    """Trains until `train.steps`, a plateau or SIGTERM; False for the last. Resuming is exact to the bit on a CPU.

    `stop` is set by a signal, and read between steps. `warn` is told each advice of the diagnostics when it first
    holds; `held_out` are patients that are not trained on; `probe` measures the weights now and then, beside the steps.

    Raises:
        DataError: a series is damaged, or no view can be cut from it.
        UserError: the loss is not finite, or explodes. Both name the step, the series and the last good checkpoint.
    """
    device, steps = choose_device(config.train.device), config.train.steps
    model = model.to(device).train()
    tune(model.backbone, config.train)
    network = distribute(model, config.train)
    crop = BatchedMultiCrop(config.views, model.backbone.in_channels)
    loss_function = build_objective(config.objective, config.seed)
    optimizer = build_optimizer(model, config.optim)
    state = TrainingState(model, optimizer, config, run)
    done = saved = start = state.restore() if resume else state.begin()
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(config, device))
    history = history_of(run, start, config.train)
    last = start if history.has_ended else steps
    monitor = Monitor(model, loss_function, config, dataset, held_out)
    statistics = RunningStatistics(model, wanted=config.train.on_nan == "skip")
    batches = feed(dataset, range(start, last), config.data, device)
    observing = open_observer(run, start, config, monitor, warn, probe)
    with _naming_the_step(state, lambda: done), batches as fed, state, observing as observer:
        observer.probe(start, state.leaving)
        ready = _with_views(fed, crop, config.seed, [state.check, observer.check])
        with StepRecord(config.train, history, observer.write, partial(_fail, dataset, state)) as record:
            for step, batch, views, spent in until_stopped(ready, stop):
                began = time.perf_counter()
                statistics.keep()
                with autocast:
                    features, projections = network(views)
                loss = loss_function(projections, config.views.num_global, step)
                optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                grad_norm = clip_gradients(model, config.optim.clip_norm)
                lr = set_learning_rate(optimizer, learning_rate(step, steps, config.optim))
                finite = update_if_finite(optimizer, loss, grad_norm)
                statistics.put_back(unless=finite)
                state.average(step)
                record.add(step, loss, grad_norm, lr)

                observer.timing(step, spent, time.perf_counter() - began, dataset.source.where)
                if observer.is_due(step) and not record.settle():
                    with autocast:
                        observer.diagnose(step, views, features, projections, batch.patients, float(grad_norm))
                done = step + 1
                observer.probe(done, state.leaving)
                if done % config.train.checkpoint_every == 0:
                    record.settle()
                    observer.secure()
                    saved = state.save(done)
                if progress is not None:
                    progress("pretrain", done, steps)
                if record.ends_with(step):
                    last = done
                    break
        if done > saved:
            observer.secure()
            state.save(done)
        if done == last:
            observer.probe(done, state.leaving, is_last=True)
    if done == last:
        state.finish()
    return done == last


Spent = tuple[float, float]
"""Seconds for which the loop waited for a batch, and those in which it made the views."""
Ready = tuple[int, Batch, list[Float[Tensor, "view sample channel ..."]], Spent]
"""A step, its batch, the views of it, and what they took."""


def _with_views(
    fed: Iterable[Fed], crop: BatchedMultiCrop, seed: int, checks: Sequence[Callable[[], None]]
) -> Iterator[Ready]:
    """`checks` raise what else ends the run: from here, an error of one rank reaches all."""
    for step, batch, waited in fed:
        for check in checks:
            check()
        began = time.perf_counter()
        views = batch_views(crop, batch, ("views", seed, step))
        yield step, batch, views, (waited, time.perf_counter() - began)


@contextmanager
def _naming_the_step(state: TrainingState, step: Callable[[], int]) -> Iterator[None]:
    """What is wrong with a series is told with the step that met it and what is saved; no other takes its place."""
    try:
        yield
    except DataError as error:
        raise DataError(f"training stopped at step {step()}: {error}; {state.last_good()}") from None


def _fail(dataset: StepDataset, state: TrainingState, step: int, wrong: str, good_until: int) -> None:
    """Every rank comes here, since loss and gradient are those of all.

    Weights that are finite and whose last loss was ordinary are good: what is wrong is the batch of this step.
    """
    until = None if good_until == step - 1 and state.is_finite() else good_until
    keys = dataset.keys_of(step)
    series = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
    end_together(UserError(f"training stopped: {wrong}, batch of series {series}; {state.last_good(until)}"))
