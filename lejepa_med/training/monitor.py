"""Numbers that tell whether a representation is healthy while the loss looks fine.

Every number is a pure function of tensors or of (model, fixed scans); `Monitor` puts them together for one step.
Measuring leaves no trace: weights, running statistics, modes, gradients and random states are as without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import StepDataset
from lejepa_med.distributed import alone, gather_objects, gather_samples, num_ranks
from lejepa_med.objective import Objective, SIGReg, epps_pulley, random_directions
from lejepa_med.training.fixed_scans import FixedScans, first_patients, repeated_scans
from lejepa_med.training.micro_batch import embed_views
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.parallel import norm_of

Numbers = dict[str, int | float]

DEAD_SHARE = 0.01
"""A dimension is dead if its standard deviation is below this share of the mean one."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients inside; afterwards modes, buffers (running statistics) and random states are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                buffer.copy_(before)


@torch.no_grad()
def effective_rank(features: Float[Tensor, "sample dim"]) -> float:
    """exp of the entropy of the normalised singular values of the centred features (Roy & Vetterli 2007)."""
    centred = features.float() - features.float().mean(0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * torch.log(share.clamp(min=1e-12))).sum()))


@torch.no_grad()
def diagnose(
    features: Float[Tensor, "sample dim"], projections: Float[Tensor, "sample proj"], patients: list[int]
) -> Numbers:
    """Ranks, spreads and the effective number of independent samples, of one view of a batch."""
    counts = torch.unique(torch.tensor(patients), return_counts=True)[1].double()
    return {
        **_spread("feature", features.float()),
        **_spread("projection", projections.float()),
        "samples": len(patients),
        "n_eff": float(counts.sum() ** 2 / (counts**2).sum()),
    }


def _spread(name: str, x: Float[Tensor, "sample dim"]) -> Numbers:
    """Effective rank and its bound (centred samples span one dimension less than there are), spread per dimension.

    `_spread` is the standard deviation relative to the magnitude of the values: a constant output has none.
    """
    std = x.std(0)
    return {
        f"{name}_rank": effective_rank(x),
        f"{name}_rank_bound": min(x.shape[1], len(x) - 1),
        f"{name}_std": float(std.mean()),
        f"{name}_std_min": float(std.min()),
        f"{name}_dead": float((std < DEAD_SHARE * std.mean()).float().mean()),
        f"{name}_spread": float(std.square().mean().sqrt() / x.square().mean().sqrt().clamp(min=1e-12)),
    }


@torch.no_grad()
def slice_statistics(projections: Float[Tensor, "view sample proj"], sigreg: SIGReg, step: int) -> Numbers:
    """Mean and largest Epps-Pulley statistic over this step's directions (each averaged over views), in units of
    its expectation for independent Gaussian samples."""
    directions = random_directions(projections.shape[-1], sigreg.num_slices, sigreg.seed, step)
    with torch.autocast(projections.device.type, enabled=False):
        slices = projections.float() @ directions.to(projections.device)
        statistic = epps_pulley(slices, sigreg.num_knots, sigreg.t_max, sigreg.kernel).mean(0) / sigreg.reference()
    return {"sigreg_relative": float(statistic.mean()), "worst_slice_relative": float(statistic.max())}


def gradient_norms(model: Pretrainer, total: float) -> Numbers:
    """The norm `total` before clipping, and the shares of backbone and projector in it (root of sums of squares)."""
    norms = [_gradient_norm(part) for part in (model.backbone, model.projector)]
    now = sum(norm**2 for norm in norms) ** 0.5
    unclipped = total / now if now > 0 else 1.0  # clipping scaled both alike
    return {
        "grad_norm": total,
        "grad_norm_backbone": norms[0] * unclipped,
        "grad_norm_projector": norms[1] * unclipped,
    }


def _gradient_norm(part: nn.Module) -> float:
    norms = [norm_of(parameter.grad.float().norm()) for parameter in part.parameters() if parameter.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def mode_gap(backbone: nn.Module, views: Float[Tensor, "view sample *image"]) -> float:
    """1 - cosine between a view's features in training and in evaluation mode, each centred, averaged over views.

    0: running statistics, dropout and the like change nothing but the mean; 1: the two have nothing in common.
    """
    images = views.flatten(0, 1)
    with undisturbed(backbone):
        evaluated = backbone.eval()(images).float()
        trained = backbone.train()(images).float()
    cosine = torch.cosine_similarity(trained - trained.mean(0), evaluated - evaluated.mean(0), dim=1)
    return float(1 - cosine.mean())


def fixed_loss(
    model: Pretrainer, scans: FixedScans, loss_function: Objective, num_global: int, num_samples: int
) -> Numbers:
    """Total, prediction and sigreg of scans that are always the same, with views and directions that are, too.

    The moments of the batch normalise it, as in training; running ones are neither used nor changed. The parts are
    mixed as in a global batch of `num_samples`.
    """
    with undisturbed(model):
        model.train()
        features = torch.cat([embed_views(model.backbone, views, None) for views in scans.views(_device(model))], dim=1)
        projections = model.projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        loss = loss_function(projections, num_global, 0)
    prediction, sigreg = float(loss.prediction), float(loss.sigreg)
    return {"total": loss_function.mix(prediction, sigreg, num_samples), "prediction": prediction, "sigreg": sigreg}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def same_patient_rate(features: Float[Tensor, "scan dim"], patients: Sequence[str]) -> tuple[float, float]:
    """Share of scans whose nearest neighbour (cosine of centred features) is another scan of the same patient, and
    what it would be by chance."""
    codes = {patient: code for code, patient in enumerate(dict.fromkeys(patients))}
    labels = torch.tensor([codes[patient] for patient in patients], device=features.device)
    unit = torch.nn.functional.normalize(features.float() - features.float().mean(0), dim=1)
    with torch.autocast(unit.device.type, enabled=False):
        similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    same = labels[:, None] == labels
    rate = same[torch.arange(len(labels)), similarity.argmax(1)].float().mean()
    chance = (same.sum(1) - 1).float().mean() / (len(labels) - 1)
    return float(rate), float(chance)


def same_patient(backbone: nn.Module, scans: FixedScans) -> Numbers:
    """`same_patient_rate` of the first global view, in evaluation mode: no scan sees another through a BatchNorm."""
    with undisturbed(backbone):
        backbone.eval()
        features = torch.cat([backbone(views[0][0]) for views in scans.views(_device(backbone))])
    rate, chance = same_patient_rate(features, scans.patients)
    return {"same_patient_nn": rate, "same_patient_chance": chance}


class Monitor:
    """Measures one step of a run. Scans, views and directions of held-out loss and neighbours never change, so their
    curves are smooth; at most 64 scans of each kind are read, in groups of about a training batch."""

    def __init__(
        self,
        model: Pretrainer,
        loss_function: Objective,
        config: PretrainConfig,
        dataset: StepDataset,
        held_out: StepDataset | None,
    ) -> None:
        self.model, self.loss_function, self.config = model, loss_function, config
        self.group = config.train.micro_batch or config.train.batch_size
        self.moments_over = self.group * (num_ranks() if config.train.micro_batch else 1)
        channels = model.backbone.in_channels
        self._losses: dict[str, FixedScans] = {}
        if held_out is not None:
            chosen = {"held_out": (held_out, first_patients(held_out.source.patients))}
            chosen["seen"] = dataset, first_patients(dataset.source.patients)
            number = min(len(scans) for _, scans in chosen.values())  # SIGReg grows with it
            for name, (source, scans) in chosen.items():
                self._losses[name] = FixedScans(source, scans[:number], config.views, self.group, channels)
        repeated = repeated_scans(dataset.source.patients, dataset.source.groups)
        self._repeated = FixedScans(dataset, repeated, config.views, self.group, channels) if repeated else None

    def __call__(
        self,
        step: int,
        views: Sequence[Tensor],
        features: Float[Tensor, "view sample dim"],
        projections: Float[Tensor, "view sample proj"],
        patients: list[int],
        grad_norm: float,
    ) -> Numbers:
        """The numbers of one step, after its update; `views`, `features` and `projections` are those it trained on.

        Several ranks: what is measured on the batch is gathered from all; the rest all of them measure alike, each for
        itself, as shards of a model need (only the mode gap looks at each rank's own views; the first one's is kept).
        """
        features, projections = gather_samples(features, 1), gather_samples(projections, 1)
        patients = [patient for part in gather_objects(patients) for patient in part]
        with alone():
            return self._measure(step, views, features, projections, patients, grad_norm)

    def _measure(
        self,
        step: int,
        views: Sequence[Tensor],
        features: Float[Tensor, "view sample dim"],
        projections: Float[Tensor, "view sample proj"],
        patients: list[int],
        grad_norm: float,
    ) -> Numbers:
        sigreg, num_global = self.loss_function.sigreg, self.config.views.num_global
        numbers = {"step": step, **diagnose(features[0], projections[0], patients)}
        numbers["sigreg_reference"] = sigreg.reference() * len(patients) / numbers["n_eff"]
        numbers |= slice_statistics(projections, sigreg, step) | gradient_norms(self.model, grad_norm)
        numbers["mode_gap"] = mode_gap(self.model.backbone, views[0][:, : max(2, self.group)])
        if any(isinstance(module, _BatchNorm) for module in self.model.backbone.modules()):
            numbers["batchnorm_batch"] = min(len(group) for group in views) * min(self.moments_over, len(patients))
        for name, scans in self._losses.items():
            loss = fixed_loss(self.model, scans, self.loss_function, num_global, self.config.train.batch_size)
            numbers |= {f"{name}_{part}": value for part, value in loss.items()}
        if self._repeated is not None:
            numbers |= same_patient(self.model.backbone, self._repeated)
        return numbers
