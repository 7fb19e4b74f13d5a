"""The rules of the advice: each looks at the lines of `diagnostics.jsonl` so far and says nothing, or one sentence.

A sentence tells what was seen, with its number, and what to do. docs/diagnostics.md explains each code. A number that
could not be measured is missing from its line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from lejepa_med.config import PretrainConfig
from lejepa_med.objective import resolve_lam
from lejepa_med.training.advice_lines import RECENT, Lines, recent_mean, settled_lines
from lejepa_med.training.advice_probe import probe_not_above_start, same_patient

LATE = 0.75
"""Share of the steps after which SIGReg has had its time: the learning rate is down to a sixth of its peak."""
MIN_RANK_SHARE = 0.05
"""Of what the batch allows, min(dimensions, samples - 1)."""
MIN_RANK = 1.5
"""5 % of a small bound is less than one direction, which no rank is below: 1.5 says that one direction holds it all."""
MIN_SPREAD = 1e-3
"""Standard deviation / magnitude: below it features are one point, and the rank is that of rounding errors."""
MIN_PROJECTION_STD = 0.1
"""SIGReg asks for 1: a tenth of it is a point to the test, whose gradient vanishes there."""
MAX_DEAD = 0.1
"""Share of dimensions without spread; some channels of a ReLU network are always silent."""
SIGREG_HIGH = 2.0
"""Times the reference. Gaussian samples stay within a few per cent of it when 1,000 slices are averaged."""
SIGREG_LOW = 0.5
"""Times the reference: what independent samples of a perfect Gaussian do not reach; points optimised one by one do."""
MIN_INDEPENDENT = 64
"""Effective samples: with fewer the test sees too little of a distribution (measured: rank 3 of 64 at N = 58)."""
MIN_BATCHNORM = 16
"""Images that share moments; below, their error (1 / sqrt(n) of a standard deviation) outweighs the augmentation."""
MAX_MODE_GAP = 0.7
"""1 - cosine of a view's features in both modes: .9 at random weights, .4 and falling in a healthy run of the demo."""
HELD_OUT_RISE = 0.05
"""Above its minimum; the same scans, views and directions each time, so that only the weights move it."""
GRADIENT_FACTOR = 10.0
"""Above the median so far: explodes. Its square below: vanishes (towards total collapse it does linearly)."""
MIN_GRADIENTS = 5
"""Lines that make a median."""


def _collapsed(lines: Lines, config: PretrainConfig, part: str) -> str | None:
    """How a representation shows that it is one point or one direction."""
    settled = settled_lines(lines, config)
    if not settled:
        return None
    last = settled[-1]
    spread, std = last.get(f"{part}_spread"), last.get("projection_std")
    rank, bound = last.get(f"{part}_rank"), last.get(f"{part}_rank_bound", 0)
    if spread is not None and spread < MIN_SPREAD:
        return f"differ by {spread:.1e} of their magnitude"
    if part == "projection" and std is not None and std < MIN_PROJECTION_STD:
        return f"have a standard deviation of {std:.2g} instead of 1"
    if rank is not None and bound > 1 and rank < max(MIN_RANK, MIN_RANK_SHARE * bound):
        return f"use {rank:.1f} of {bound} possible dimensions (at most samples - 1)"
    return None


def _collapse_features(lines: Lines, config: PretrainConfig) -> str | None:
    seen = _collapsed(lines, config, "feature")
    return seen and (
        f"backbone features {seen}: the backbone has collapsed, even if projections and loss look fine; "
        f"lower optim.lr (now {config.optim.lr:g}) or {_more_spread(config)}"
    )


def _collapse_projections(lines: Lines, config: PretrainConfig) -> str | None:
    seen = _collapsed(lines, config, "projection")
    regulariser = "SIGReg" if config.objective.kind == "lejepa" else "the variance term"
    return seen and (
        f"projections {seen}: {regulariser} is too weak against the prediction term; {_more_spread(config)}, "
        f"and lower optim.lr (now {config.optim.lr:g}) if that does not help"
    )


def _dead_dimensions(lines: Lines, config: PretrainConfig) -> str | None:
    for part in ("feature", "projection"):
        dead = recent_mean(settled_lines(lines, config), f"{part}_dead")
        if dead is not None and dead > MAX_DEAD:
            return (
                f"{dead:.0%} of the {part} dimensions have no spread, and what is dead in training stays dead; lower "
                f"optim.lr (now {config.optim.lr:g}), lengthen optim.warmup_fraction ({config.optim.warmup_fraction:g})"
            )
    return None


def _sigreg_high(lines: Lines, config: PretrainConfig) -> str | None:
    ratio = _sigreg_ratio(settled_lines(lines, config, LATE))
    if ratio is None or ratio <= SIGREG_HIGH:
        return None
    return (
        f"SIGReg is {ratio:.1f} times its reference {lines[-1]['sigreg_reference']:.2f} in the last quarter: the "
        f"projections are not Gaussian yet; raise train.steps ({config.train.steps}) or objective.lam ({_lam(config)})"
    )


def _sigreg_low(lines: Lines, config: PretrainConfig) -> str | None:
    ratio = _sigreg_ratio(settled_lines(lines, config, LATE))
    if ratio is None or ratio >= SIGREG_LOW:
        return None
    return (
        f"SIGReg is {ratio:.2f} times its reference {lines[-1]['sigreg_reference']:.2f}, less than new samples "
        f"reach: the batches are overfitted; bring more patients, or lower train.steps or objective.lam "
        f"({_lam(config)})"
    )


def _sigreg_ratio(lines: Lines) -> float | None:
    """SIGReg over its reference for as many independent samples as the batch had patients."""
    relative, n_eff = recent_mean(lines, "sigreg_relative"), recent_mean(lines, "n_eff")
    if relative is None or n_eff is None or not {"samples", "sigreg_reference"} <= set(lines[-1]):
        return None
    return relative * n_eff / float(lines[-1]["samples"])


def _small_batch(lines: Lines, config: PretrainConfig) -> str | None:
    n_eff, samples = recent_mean(lines, "n_eff"), lines[-1].get("samples", config.train.batch_size)
    if n_eff is None or n_eff >= MIN_INDEPENDENT:
        return None
    # No patient comes twice before all are in the batch: then a larger one only repeats them.
    if n_eff < samples - 1e-6:
        return (
            f"a batch of {samples} has {n_eff:.0f} independent samples, since patients come several times in it; bring "
            f"more patients"
        )
    return (
        f"{n_eff:.0f} independent samples per batch: SIGReg judges a distribution by under {MIN_INDEPENDENT}; raise "
        f"train.batch_size, with train.micro_batch (gradient caching) where memory is short"
    )


def _small_batchnorm(lines: Lines, config: PretrainConfig) -> str | None:
    images = lines[-1].get("batchnorm_batch")
    if images is None or images >= MIN_BATCHNORM:
        return None
    return (
        f"BatchNorm of the backbone takes its moments over {images} images: under {MIN_BATCHNORM} they are noise; set "
        f"model.norm=group (3D ResNets), or raise train.batch_size or train.micro_batch"
    )


def _micro_batch_batchnorm(lines: Lines, config: PretrainConfig) -> str | None:
    size = config.train.micro_batch
    if size is None or size >= config.train.batch_size or "batchnorm_batch" not in lines[-1]:
        return None
    return (
        f"BatchNorm of the backbone takes the moments of each micro-batch (train.micro_batch {size}), so the step is "
        f"not that of the batch of {config.train.batch_size}; with model.norm=group (3D ResNets) or a ViT it is"
    )


def _held_out_rising(lines: Lines, config: PretrainConfig) -> str | None:
    settled = [line for line in settled_lines(lines, config) if {"held_out_total", "seen_total"} <= set(line)]
    if len(settled) < 2 * RECENT:
        return None
    held = list(_means(settled, "held_out_total"))
    seen = list(_means(settled, "seen_total"))
    best = min(range(len(held)), key=held.__getitem__)
    if held[-1] <= (1 + HELD_OUT_RISE) * held[best] or seen[-1] >= seen[best]:
        return None
    step = settled[best + RECENT - 1]["step"]
    return (
        f"the loss of held-out patients rose from {held[best]:.3g} (step {step}) to {held[-1]:.3g} while that of "
        f"training patients fell from {seen[best]:.3g} to {seen[-1]:.3g}: the run memorises them; stop, and train "
        f"anew with train.steps={step} or more patients"
    )


def _means(lines: Lines, name: str) -> Iterator[float]:
    """Means over `RECENT` consecutive lines."""
    for end in range(RECENT, len(lines) + 1):
        yield sum(line[name] for line in lines[end - RECENT : end]) / RECENT


def _mode_gap(lines: Lines, config: PretrainConfig) -> str | None:
    gap = recent_mean(settled_lines(lines, config), "mode_gap")
    if gap is None or gap <= MAX_MODE_GAP:
        return None
    return (
        f"features of one image in training and in evaluation mode have a cosine of {1 - gap:.2f}: running statistics "
        f"are not those of a batch; re-estimate them before use (`pretrain` does at its end) or raise train.batch_size"
    )


def _gradient_explodes(lines: Lines, config: PretrainConfig) -> str | None:
    now, usual = _gradients(lines, config)
    if now <= GRADIENT_FACTOR * usual:
        return None
    return (
        f"the gradient norm is {now:.3g}, {now / usual:.0f} times its median {usual:.3g}: training is about to "
        f"diverge; lower optim.lr (now {config.optim.lr:g}) or set optim.clip_norm={2 * usual:.2g}"
    )


def _gradient_vanishes(lines: Lines, config: PretrainConfig) -> str | None:
    now, usual = _gradients(lines, config)
    if now >= usual / GRADIENT_FACTOR**2:
        return None
    return (
        f"the gradient norm is {now:.2g}, {now / usual:.1e} times its median {usual:.3g}: nothing is learned any more, "
        f"as near total collapse; look at the ranks, lower optim.lr (now {config.optim.lr:g}), and start anew"
    )


def _gradients(lines: Lines, config: PretrainConfig) -> tuple[float, float]:
    """The last norm and the median of those before; the same twice while there are too few for a median."""
    settled = settled_lines(lines, config)
    norms = [line["grad_norm"] for line in settled if "grad_norm" in line]
    if len(norms) <= MIN_GRADIENTS or "grad_norm" not in settled[-1]:
        return 1.0, 1.0
    return norms[-1], max(median(norms[:-1]), 1e-12)


def _more_spread(config: PretrainConfig) -> str:
    if config.objective.kind == "lejepa":
        return f"raise objective.lam ({_lam(config)})"
    return f"raise objective.vicreg.variance (now {config.objective.vicreg.variance:g})"


def _lam(config: PretrainConfig) -> str:
    lam = config.objective.lam
    now = resolve_lam(lam, config.train.batch_size)
    return f"{lam}, {now:.2g}" if isinstance(lam, str) else f"now {now:.2g}"


RULES: dict[str, Callable[[Lines, PretrainConfig], str | None]] = {
    "collapse_features": _collapse_features,
    "collapse_projections": _collapse_projections,
    "dead_dimensions": _dead_dimensions,
    "sigreg_high": _sigreg_high,
    "sigreg_low": _sigreg_low,
    "small_batch": _small_batch,
    "small_batchnorm": _small_batchnorm,
    "micro_batch_batchnorm": _micro_batch_batchnorm,
    "same_patient": same_patient,
    "probe_not_above_start": probe_not_above_start,
    "held_out_rising": _held_out_rising,
    "mode_gap": _mode_gap,
    "gradient_explodes": _gradient_explodes,
    "gradient_vanishes": _gradient_vanishes,
}
"""In the order in which they are said."""
OF_LEJEPA = ("sigreg_high", "sigreg_low", "small_batch")
"""Rules about a loss that holds SIGReg; with another objective they say nothing."""
