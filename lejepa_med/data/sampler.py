"""Which items make up the batch of a step: a pure function of (seed, step), the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lejepa_med.randomness import generator


class StepSampler:
    """Batches in which a patient appears once wherever there are enough patients.

    Every epoch is a new permutation of the patients, cut into batches; what does not fill a batch waits for another
    epoch. Of a patient with several items, one is drawn at random.
    """

    def __init__(self, patients: Sequence[str], batch_size: int, seed: int) -> None:
        members: dict[str, list[int]] = {}
        for item, patient in enumerate(patients):
            members.setdefault(patient, []).append(item)
        self._members = [members[patient] for patient in sorted(members)]
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
            self._members[patient][int(draw * len(self._members[patient]))]
            for patient, draw in zip(chosen[: self.batch_size], draws, strict=True)
        ]

    def _permutation(self, epoch: int, round_number: int) -> list[int]:
        key = generator("epoch", self.seed, epoch, round_number)
        order: list[int] = torch.randperm(self.num_patients, generator=key).tolist()
        return order
