"""Batches with as many of each kind (modality or sequence), or with patients by their number of studies.

Every step is drawn by itself, a pure function of (seed, step): there are no epochs. A patient appears once in a batch
wherever there are enough patients.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lejepa_med.data.sampler import drawn
from lejepa_med.data.sources import Source
from lejepa_med.randomness import generator

Studies = list[list[list[int]]]
"""The items of one patient and kind, by study and by group of near duplicates."""


class WeightedSampler:
    """`kinds[i]` is what item i counts as; every batch holds all kinds equally often, as far as patients allow.

    `by_study`: a patient is drawn in proportion to the number of studies, then one of them; else all patients alike.
    """

    def __init__(
        self, source: Source, batch_size: int, seed: int, kinds: Sequence[Hashable], by_study: bool = False
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        codes = {patient: code for code, patient in enumerate(sorted(set(source.patients)))}
        self.num_patients = len(codes)
        found: dict[Hashable, dict[int, dict[str, dict[str, list[int]]]]] = {}
        for item, (kind, patient, study, group) in enumerate(
            zip(kinds, source.patients, source.studies, source.groups, strict=True)
        ):
            studies = found.setdefault(kind, {}).setdefault(codes[patient], {})
            studies.setdefault(study if by_study else "", {}).setdefault(group, []).append(item)
        members = [
            {patient: [list(groups.values()) for groups in of_kind[patient].values()] for patient in sorted(of_kind)}
            for of_kind in (found[kind] for kind in sorted(found, key=str))
        ]
        members.sort(key=len)  # rare kinds choose first: their patients are the ones that others could do without
        self._members: list[dict[int, Studies]] = members
        self._patients = [torch.tensor(list(of_kind)) for of_kind in members]
        self._shared = sum(map(len, members)) > self.num_patients
        self._weights = [
            torch.tensor([len(studies) for studies in of_kind.values()], dtype=torch.float64) for of_kind in members
        ]

    def batch(self, step: int) -> list[int]:
        """Item numbers of the global batch of one step."""
        draw = generator("weighted batch", self.seed, step)
        chosen: list[int] = []
        taken, given = torch.zeros(self.num_patients, dtype=torch.bool), [0] * len(self._members)
        while len(chosen) < self.batch_size:  # more than one round where patients are few
            if bool(taken.all()):
                taken.zero_()
            chosen += self._round(self.batch_size - len(chosen), taken, draw, given)
        order = torch.randperm(len(chosen), generator=draw).tolist()  # parts of a batch see all kinds, too
        return [chosen[place] for place in order]

    def _round(self, count: int, taken: Tensor, draw: torch.Generator, given: list[int]) -> list[int]:
        """Up to `count` items of patients that are not `taken`, which they are then; `given` counts by kind.

        Kinds that share patients take turns, a few patients each, those that have least first: else one would take the
        patients of another.
        """
        chosen: list[int] = []
        while count > len(chosen):
            free = [int((~taken[patients]).sum()) for patients in self._patients]
            ready = [kind for kind, patients in enumerate(free) if patients]
            if not ready:
                break
            turn = count - len(chosen)
            if self._shared:
                turn = min(turn, len(ready) * max(1, min(free[kind] for kind in ready) // len(ready)))
            ties = torch.rand(len(given), generator=draw).tolist()
            ready.sort(key=lambda kind: (given[kind], ties[kind]) if self._shared else (0, 0.0))
            for position, kind in enumerate(ready):
                wanted, rest = divmod(turn, len(ready) - position)
                if rest:
                    wanted += 1 if self._shared else int(ties[kind] * (len(ready) - position) < rest)
                picked = self._pick(kind, wanted, taken, draw)
                given[kind] += len(picked)
                turn -= len(picked)
                chosen += picked
        return chosen

    def _pick(self, kind: int, count: int, taken: Tensor, draw: torch.Generator) -> list[int]:
        """Items of up to `count` patients of one kind that are free."""
        patients, weights = self._patients[kind], self._weights[kind]
        free = (~taken[patients]).nonzero().flatten()
        picked = patients[free[systematic(weights[free], min(count, len(free)), draw)]]
        taken[picked] = True
        items = []
        places = torch.rand(len(picked), generator=draw, dtype=torch.float64).tolist()
        for patient, place in zip(picked.tolist(), places, strict=True):
            studies = self._members[kind][patient]
            study = studies[int(place * len(studies))]
            items.append(drawn(study, place * len(studies) % 1))
        return items


def systematic(weights: Float[Tensor, " n"], count: int, draw: torch.Generator) -> Tensor:
    """`count` different positions, each drawn with a probability of exactly count * weight / sum (at most 1).

    Systematic sampling in random order (Madow 1949): shares lie one after another on a line, and of each unit length
    one point is taken. Whoever has a share of 1 or more is certain, and the others share the rest.
    """
    certain = torch.zeros(len(weights), dtype=torch.bool)
    while True:
        rest = count - int(certain.sum())
        share = torch.where(certain, 0.0, weights * rest / weights[~certain].sum())
        more = (share >= 1 - 1e-9) & ~certain
        if rest == 0 or not bool(more.any()):
            break
        certain |= more
    order = torch.randperm(len(weights), generator=draw)
    order = order[~certain[order]]
    start = torch.rand(1, generator=draw, dtype=torch.float64)
    ends = torch.cumsum(share[order], 0)
    if len(ends):
        ends[-1] = rest
    points = torch.floor(torch.cat([torch.zeros(1, dtype=torch.float64), ends]) + start)
    return torch.cat([certain.nonzero().flatten(), order[points[1:] > points[:-1]]])
