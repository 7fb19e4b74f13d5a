"""Which items make up the batch of a step: a pure function of (seed, step), the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lejepa_med.randomness import generator


class StepSampler:
    """Batches in which a patient appears once wherever there are enough patients.

    Every epoch is a new permutation of the patients, cut into batches; what does not fill a batch waits for another
    epoch. Of a patient one group is drawn at random, and of that group one item: `groups[i]` holds near duplicates
    together (thin and thick slices of one acquisition), which would outvote the patient's other scans. Without
    `groups` each item is one.
    """

    def __init__(
        self, patients: Sequence[str], batch_size: int, seed: int, groups: Sequence[str] | None = None
    ) -> None:
        members: dict[str, dict[object, list[int]]] = {}
        for item, (patient, group) in enumerate(zip(patients, groups or range(len(patients)), strict=True)):
            members.setdefault(patient, {}).setdefault(group, []).append(item)
        self._members = [list(members[patient].values()) for patient in sorted(members)]
        self.batch_size, self.seed = batch_size, seed

    @property
    def num_patients(self) -> int:
        return len(self._members)

    def batch(self, step: int) -> list[int]:
        """Item numbers of the global batch of one step."""
        per_epoch = max(1, self.num_patients // self.batch_size)
        epoch, place = divmod(step, per_epoch)
        order: list[int] = []
        while len(order) < self.batch_size:  # more than one round only when patients are fewer than the batch
            order += self._permutation(epoch, round_number=len(order) // self.num_patients)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size] if per_epoch > 1 else order
        draws = torch.rand(self.batch_size, generator=generator("item", self.seed, step)).tolist()
        return [
            drawn(self._members[patient], draw) for patient, draw in zip(chosen[: self.batch_size], draws, strict=True)
        ]

    def _permutation(self, epoch: int, round_number: int) -> list[int]:
        key = generator("epoch", self.seed, epoch, round_number)
        order: list[int] = torch.randperm(self.num_patients, generator=key).tolist()
        return order


def drawn(groups: list[list[int]], draw: float) -> int:
    """One item by one number of [0, 1): its leading part chooses the group, the rest the item."""
    place = draw * len(groups)
    group = groups[int(place)]
    return group[int((place - int(place)) * len(group))]
