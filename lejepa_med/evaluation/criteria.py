"""What is minimised for each kind of target, in training and in choosing settings, and how outputs become scores.

classification  cross-entropy, classes weighted equally        scores: probabilities [row, class]
regression      squared error of standardised values           scores: values [row]
multilabel      binary cross-entropy over the labels known     scores: probabilities [row, label]
ordinal         binary cross-entropy of "above k", for each k  scores: probabilities [row, class]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lejepa_med.evaluation.metrics import Array
from lejepa_med.evaluation.probes import enough_to_choose, patient_folds
from lejepa_med.evaluation.targets import Kind

Members = tuple[str, ...]
"""The series that make one sample."""


@dataclass(frozen=True)
class TrainedTask:
    """The labelled rows that something is trained on. `classes` is the number of classes or labels, 0 for values.

    `target` is [row], or [row, label] with NaN where a label is not known; `strata` and `groups` (patients) as in
    `ProbeTask`.
    """

    kind: Kind
    members: tuple[Members, ...]
    target: NDArray[np.generic]
    classes: int
    strata: NDArray[np.int64]
    groups: tuple[str, ...]
    seed: int

    def part(self, rows: NDArray[np.int64]) -> TrainedTask:
        """These rows only."""
        members = tuple(self.members[row] for row in rows)
        groups = tuple(self.groups[row] for row in rows)
        return TrainedTask(self.kind, members, self.target[rows], self.classes, self.strata[rows], groups, self.seed)


@dataclass(frozen=True)
class Choice:
    """Settings that were chosen, and among how many configurations."""

    tuned: int
    chosen: dict[str, float | str]


def validation_share(task: TrainedTask) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows that train and rows that choose, by patient; None where there are too few labels to choose by."""
    if not enough_to_choose(task.kind, task.target, task.strata, task.groups):
        return None
    fold = patient_folds(task.strata, task.groups)
    fit, held = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    if task.kind == "multilabel":
        lost = any((task.target == value).any(0) @ ~(task.target[fit] == value).any(0) for value in (0, 1))
    else:
        lost = len(np.unique(task.strata[fit])) < len(np.unique(task.strata))
    if lost or not len(held):
        return None  # patients with many rows: a class would have none to learn from
    return fit, held


class Criterion:
    """The loss of one task; class weights and the scale of values are those of the rows it is made from."""

    def __init__(self, kind: str, target: NDArray[np.generic], classes: int) -> None:
        self.kind, self.classes = kind, classes
        self.mean, self.std = 0.0, 1.0
        if kind == "regression":
            values = target.astype(np.float64)
            self.mean, self.std = float(values.mean()), float(values.std()) or 1.0
        self._class_weight = torch.ones(max(classes, 1))
        if kind == "classification":
            present = torch.bincount(torch.from_numpy(target.astype(np.int64)), minlength=classes)
            self._class_weight = len(target) / (present.clamp(min=1) * (present > 0).sum()).to(torch.float32)

    @property
    def outputs(self) -> int:
        """How many numbers a network gives per row."""
        return {"regression": 1, "ordinal": self.classes - 1}.get(self.kind, self.classes)

    def encode(self, target: NDArray[np.generic], device: torch.device) -> Tensor:
        """What `terms` and `weights` take: class numbers, standardised values, labels, or "above k" for each k."""
        match self.kind:
            case "classification":
                return torch.from_numpy(target.astype(np.int64)).to(device)
            case "ordinal":
                above = target.astype(np.int64)[:, None] > np.arange(self.classes - 1)
                return torch.from_numpy(above.astype(np.float32)).to(device)
            case "regression":
                scaled = (target.astype(np.float64) - self.mean) / self.std
                return torch.from_numpy(scaled.astype(np.float32)).to(device)
        return torch.from_numpy(target.astype(np.float32)).to(device)

    def terms(self, outputs: Float[Tensor, "row output"], wanted: Tensor) -> Float[Tensor, " row"]:
        """The weighted loss of every row; their sum / the sum of `weights` is the loss."""
        match self.kind:
            case "classification":
                weight = self._class_weight.to(outputs.device)
                return functional.cross_entropy(outputs, wanted, weight=weight, reduction="none")
            case "regression":
                return (outputs[:, 0] - wanted).square()
        known = ~wanted.isnan()
        single = functional.binary_cross_entropy_with_logits(outputs, wanted.nan_to_num(0.0), reduction="none")
        return (single * known).sum(1)

    def weights(self, wanted: Tensor) -> Float[Tensor, " row"]:
        """How much every row counts: by class, or by the number of labels known."""
        match self.kind:
            case "classification":
                return self._class_weight.to(wanted.device)[wanted]
            case "regression":
                return torch.ones_like(wanted)
        return (~wanted.isnan()).float().sum(1)

    def loss(self, outputs: Float[Tensor, "row output"], wanted: Tensor) -> Float[Tensor, ""]:
        """Of all rows together."""
        return self.terms(outputs, wanted).sum() / self.weights(wanted).sum().clamp(min=1e-12)

    def scores(self, outputs: Float[Tensor, "row output"]) -> Array:
        """Probabilities or values, as probes give them."""
        outputs = outputs.to(torch.float64).cpu()
        match self.kind:
            case "classification":
                return outputs.softmax(-1).numpy()
            case "regression":
                return (outputs[:, 0] * self.std + self.mean).numpy()
            case "ordinal":
                above = outputs.sigmoid().cummin(1).values  # never more likely above k + 1 than above k
                edges = torch.cat([torch.ones(len(above), 1), above, torch.zeros(len(above), 1)], dim=1)
                return (edges[:, :-1] - edges[:, 1:]).numpy()
        return outputs.sigmoid().numpy()


def error(kind: str, truth: NDArray[np.generic], score: Array) -> float:
    """How wrong scores are: what choices among settings minimise. Negative log-likelihood, or squared error."""
    if kind == "regression":
        return float(np.mean((score - truth.astype(np.float64)) ** 2))
    if kind == "multilabel":
        known = np.isfinite(truth.astype(np.float64))
        likely = np.where(truth == 1, score, 1 - score)[known]
        return float(-np.log(np.clip(likely, 1e-12, 1)).mean())
    numbers = truth.astype(np.int64)
    share = np.bincount(numbers)[numbers] if kind == "classification" else np.ones(len(numbers))
    likely = np.clip(score[np.arange(len(score)), numbers], 1e-12, 1)
    return float((-np.log(likely) / share).sum() / (1 / share).sum())
