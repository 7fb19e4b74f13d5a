"""Scans that diagnostics look at again and again: the same ones, base crops and views each time, whatever the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lejepa_med.config import ViewsConfig
from lejepa_med.data.dataset import StepDataset
from lejepa_med.data.sampler import StepSampler
from lejepa_med.training.batch_views import batch_views
from lejepa_med.views import BatchedMultiCrop

MAX_SCANS = 64
"""Of each kind: keeps the share of diagnostics in a run's time and memory small for any archive."""
MIN_REPEATED_PATIENTS = 8
"""With fewer patients that have two scans, chance alone gives high rates of same-patient neighbours."""


class FixedScans:
    """Items `chosen` of a dataset. `views` reads them in groups of `group` scans, or up to twice as many, so that no
    rest is a group of its own: a single scan has no moments."""

    def __init__(
        self, dataset: StepDataset, chosen: Sequence[int], views: ViewsConfig, group: int, channels: int | None = None
    ) -> None:
        self.dataset, self.chosen, self.crop = dataset, list(chosen), BatchedMultiCrop(views, channels)
        self.groups = max(1, len(self.chosen) // max(2, group))

    @property
    def patients(self) -> list[str]:
        """The patient of each scan."""
        return [self.dataset.source.patients[index] for index in self.chosen]

    def views(self, device: torch.device) -> Iterator[list[Float[Tensor, "view sample channel ..."]]]:
        """Global and local views of one group after another."""
        first = 0
        for rows in torch.tensor_split(torch.arange(len(self.chosen)), self.groups):
            batch = self.dataset.gather([self.chosen[row] for row in rows.tolist()], 0, first)
            yield batch_views(self.crop, batch.to(device), ("diagnostics",))
            first += len(rows)


def first_patients(patients: Sequence[str]) -> list[int]:
    """One scan of each of at most 64 patients, chosen by a fixed draw."""
    sampler = StepSampler(patients, min(MAX_SCANS, len(set(patients))), seed=0)
    return sampler.batch(0)


def repeated_scans(patients: Sequence[str], groups: Sequence[str]) -> list[int]:
    """At most 64 scans of patients that have two or more: few scans of many patients rather than many of few.

    Of a group of near duplicates one counts: two reconstructions of one acquisition are no second look at a patient.
    Empty if fewer than 8 patients have two.
    """
    first_of_group: dict[str, dict[str, int]] = {}
    for item, (patient, group) in enumerate(zip(patients, groups, strict=True)):
        first_of_group.setdefault(patient, {}).setdefault(group, item)
    members = {patient: list(items.values()) for patient, items in first_of_group.items()}
    repeated = [members[patient] for patient in sorted(members) if len(members[patient]) > 1][: MAX_SCANS // 2]
    if len(repeated) < MIN_REPEATED_PATIENTS:
        return []
    each = MAX_SCANS // len(repeated)
    return [item for items in repeated for item in items[:each]]
