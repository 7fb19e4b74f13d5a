"""The objective of every run on the same held-out patients, crops, views and directions.

Runs with other augmentations, batch sizes or lambda have training losses on other scales. Here the statistic depends
on the weights alone: batch statistics as in training, running ones untouched, dropout off, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lejepa_med.config import PretrainConfig, SelectConfig, ViewsConfig
from lejepa_med.data.dataset import Source, StepDataset
from lejepa_med.data.sampler import StepSampler
from lejepa_med.data.training_source import base_size
from lejepa_med.evaluation.selection_runs import RunScore
from lejepa_med.objective import LeJEPALoss
from lejepa_med.training.model import Pretrainer
from lejepa_med.views import BatchedMultiCrop

_GEOMETRY = (
    "num_global", "num_local", "global_size", "local_size", "base_crop_mm", "scale", "global_fraction",
    "local_fraction", "aspect", "global_pitch_mm", "local_pitch_mm", "pitch_jitter", "max_magnification", "min_body",
    "redraws",
)  # fmt: skip


def derived_views(config: ViewsConfig) -> ViewsConfig:
    """The geometry of these views with the package's default flips, filters and intensities."""
    return ViewsConfig.model_validate({name: getattr(config, name) for name in _GEOMETRY})


@dataclass(frozen=True)
class Protocol:
    """What is the same for all runs: `crops[draw]`, `views` of them, and the objective's directions by draw."""

    views: ViewsConfig
    crops: StepDataset
    samples: int
    select: SelectConfig
    device: torch.device

    @classmethod
    def build(cls, select: SelectConfig, first: PretrainConfig, held_out: Source, device: torch.device) -> Protocol:
        """`first` gives the geometry unless the settings do; every draw has the same number of patients."""
        views = select.views or derived_views(first.views)
        patients = len(set(held_out.patients))
        samples = min(patients, select.patients or patients)
        size = base_size(first.model_copy(update={"views": views}), held_out)
        crops = StepDataset(
            held_out, StepSampler(held_out.patients, samples, select.seed, held_out.groups), size, select.seed
        )
        return cls(views, crops, samples, select, device)

    @torch.no_grad()
    def score(self, model: Pretrainer, row: RunScore, draw: int) -> None:
        """Adds one draw to the row: prediction, SIGReg and their mix with the run's own lambda."""
        batch = self.crops[draw]
        crop = BatchedMultiCrop(self.views)
        images, is_ct = batch.images.to(self.device), batch.is_ct.to(self.device)
        _, projections = model(crop(images, batch.spacing_mm, is_ct, ("select", self.select.seed, draw)))
        select = self.select
        loss_function = LeJEPALoss(row.lam, select.num_slices, select.num_knots, select.t_max, seed=select.seed)
        parts = loss_function(projections, self.views.num_global, draw)
        before = len(row.totals)
        if before == 0:
            row.prediction = row.sigreg = 0.0
        row.prediction += (float(parts.prediction) - row.prediction) / (before + 1)
        row.sigreg += (float(parts.sigreg) - row.sigreg) / (before + 1)
        row.totals.append(float(parts.total))


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Evaluation mode but for BatchNorm, which takes the moments of the batch and leaves its running ones alone."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.track_running_stats = False
    return model
