"""A training step in parts with a clock for each, and the batches of a run: what benchmarks of training share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

PARTS = ("data", "views", "forward/backward", "objective", "optimizer")


class Step:
    """One training step as the loop does it, in parts that can be timed one by one."""

    def __init__(self, config: Any) -> None:
        import torch

        from lejepa_med.backbones import build
        from lejepa_med.objective import LeJEPALoss
        from lejepa_med.training.devices import choose_device, uses_bf16
        from lejepa_med.training.model import Pretrainer
        from lejepa_med.training.optimizer import build_optimizer
        from lejepa_med.training.speed import tune
        from lejepa_med.views import BatchedMultiCrop

        torch.manual_seed(0)
        self.config, self.device = config, choose_device(config.train.device)
        self.bf16 = uses_bf16(config, self.device)
        self.model = Pretrainer(build(config.model), config.projector, config.train.micro_batch).to(self.device).train()
        tune(self.model.backbone, config.train)
        self.crop = BatchedMultiCrop(config.views)
        self.loss = LeJEPALoss(**config.objective.model_dump(), seed=0)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.autocast = lambda: torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def __call__(self, batch: Any, step: int, clock: Callable[[str], None] = lambda part: None) -> None:
        from lejepa_med.training.batch_views import batch_views
        from lejepa_med.training.parallel import clip_gradients
        from lejepa_med.training.step_record import update_if_finite

        views = batch_views(self.crop, batch, ("views", 0, step))
        clock("views")
        with self.autocast():
            _, projections = self.model(views)
        clock("forward/backward")
        leaf = projections.detach().requires_grad_()
        loss = self.loss(leaf, self.config.views.num_global, step)
        loss.total.backward()
        clock("objective")
        self.optimizer.zero_grad(set_to_none=True)
        projections.backward(leaf.grad)
        clock("forward/backward")
        norm = clip_gradients(self.model, self.config.optim.clip_norm)
        update_if_finite(self.optimizer, loss, norm)
        clock("optimizer")


@contextlib.contextmanager
def batches(config: Any, count: int, device: Any) -> Iterator[Iterator[tuple[int, Any, float]]]:
    """The loader of a run, from its first step on."""
    from lejepa_med.data.dataset import StepDataset
    from lejepa_med.data.prefetch import feed
    from lejepa_med.data.residency import placed_source
    from lejepa_med.data.training_source import base_size, build_sampler, cache_source

    source = placed_source(config, cache_source(config), device, None, None)
    dataset = StepDataset(source, build_sampler(config, source), base_size(config, source), config.seed)
    with feed(dataset, range(count), config.data, device) as fed:
        yield fed


class Clock:
    """Seconds of each part of each step."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.last = 0.0

    def begin(self, waited: float) -> None:
        for part in PARTS:
            self.seconds[part].append(waited if part == "data" else 0.0)
        self.synchronise()
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        self.synchronise()
        now = time.perf_counter()
        self.seconds[part][-1] += now - self.last
        self.last = now

    def synchronise(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
