"""How the numbers were made, in words, from the config."""

from __future__ import annotations

from lejepa_med.config.evaluation import BenchmarkConfig
from lejepa_med.evaluation.bootstrap import MIN_PATIENTS
from lejepa_med.evaluation.report_data import Benchmark
from lejepa_med.evaluation.report_names import METHODS
from lejepa_med.evaluation.report_text import counted


def protocol_paragraphs(benchmark: Benchmark) -> list[str]:
    """Patients and budgets, probes, training, statistics."""
    config = benchmark.config
    found = [_patients(config), _frozen(config), _attention(config), _tuning(config), _segmentation(config)]
    found += [_tuned_alike(benchmark), _STATISTICS]
    return [text for text in found if text]


_STATISTICS = (
    "Intervals are 95 % percentile intervals of 2,000 bootstrap draws of test patients (500 for further metrics), each "
    "scored per seed and averaged; differences are paired, on the same draws. They speak about other test patients, "
    "other draws of the labels and, for an arm of several pretraining runs, other runs (normal multipliers, widened to "
    "Student's t by Satterthwaite's degrees of freedom). p values are two-sided, of the bootstrap, adjusted "
    "by Holm for each opponent over all tasks and budgets of a method. Intervals are not corrected."
)


def _patients(config: BenchmarkConfig) -> str:
    holdout = config.holdout
    share = f"{holdout.test_fraction:.0%}".replace("%", " %")
    seeds = f"Frozen budgets are drawn with {counted(config.seeds, 'seed')}, and `all` once. "
    return (
        f"Patients, never scans, are split: where no official split is given, about {share} of them (holdout seed "
        f"{holdout.seed}) are only tested on, the same for every encoder. Label budgets count per class (ordinal: per "
        "level; regression: per quintile of the training targets; masks: volumes) and include the labels used for "
        "validation; `all` is every training label. With one seed, larger budgets contain the smaller ones. "
        f"{seeds}With fewer than {MIN_PATIENTS} test patients no interval is given and nothing claimed."
    )


def _frozen(config: BenchmarkConfig) -> str:
    probe = config.probe
    if not {"linear", "knn"} & set(config.methods):
        return ""
    penalties = ", ".join(f"{penalty:g}" for penalty in probe.penalties)
    return (
        "Frozen features are the last two blocks or stages, standardised on the training patients. The linear probe is "
        "an L2-penalised logistic (regression: ridge, relative to the variance of the features) model; its inverse "
        f"penalty is chosen from {penalties} by cross-validation over patients, and fixed at {probe.preset_penalty:g} "
        "below five labels per class. "
        f"k-NN uses the {probe.neighbours} nearest neighbours by cosine. 2D networks on volumes also choose how slices "
        "become one row, within the labels of the budget."
    )


def _attention(config: BenchmarkConfig) -> str:
    recipe = config.attention
    if "attention" not in config.methods:
        return ""
    rates = " or ".join(f"{rate:g}" for rate in recipe.lrs)
    return (
        f"Attention pooling learns one query for each of {recipe.heads} heads over at most {recipe.max_tokens} frozen "
        f"tokens, with AdamW; its learning rate ({rates}) and number of steps are chosen on one fold of the budget."
    )


def _tuning(config: BenchmarkConfig) -> str:
    recipe, methods = config.finetune, [method for method in ("finetune", "lora") if method in config.methods]
    if not methods:
        return ""
    said = (
        "Fine-tuning trains the whole network and a new head"
        if methods[0] == "finetune"
        else f"LoRA trains adapters of rank {config.lora.rank} and a new head"
    )
    lora = f" LoRA does the same with adapters of rank {config.lora.rank}." if len(methods) == 2 else ""
    factors = " or ".join(f"{factor:g}" for factor in recipe.grid)
    return (
        f"{said}: AdamW, {recipe.epochs} epochs and at least {recipe.min_steps} steps, batches of {recipe.batch_size}, "
        f"learning rate {recipe.lr:g} for the head, times {factors} as one fold of the budget prefers, and "
        f"{recipe.backbone_lr_factor:g} of it for the backbone{_layers(recipe.layer_decay)}, weight decay "
        f"{recipe.weight_decay:g}, shifts up to {recipe.shift_voxels} voxels; {counted(config.finetune_seeds, 'seed')}"
        f", the same recipe for every encoder.{lora}"
    )


def _segmentation(config: BenchmarkConfig) -> str:
    recipe = config.segmentation
    if not any(method.startswith("segment") for method in config.methods):
        return ""
    return (
        f"Segmentation heads are trained on patch tokens for {recipe.steps} steps with learning rate {recipe.lr:g}; "
        "scores are of the voxels as prepared, a mean over classes, then over cases."
    )


def _tuned_alike(benchmark: Benchmark) -> str:
    """Whether the encoders had the same number of settings to choose from."""
    counts: dict[str, dict[str, int]] = {}
    for cell in benchmark.cells:
        if cell.get("tuned"):
            of = counts.setdefault(cell["method"], {})
            of[cell["encoder"]] = max(of.get(cell["encoder"], 0), cell["tuned"])
    uneven = [
        f"{METHODS[method]}, {min(of.values())} to {max(of.values())}"
        for method, of in counts.items()
        if len(set(of.values())) > 1
    ]
    if not counts:
        return ""
    if not uneven:
        return "Every encoder had the same number of configurations to choose from, in each method (see Costs)."
    return (
        f"Encoders did not all have the same number of configurations to choose from ({'; '.join(uneven)}); Costs says "
        "how many each had."
    )


def _layers(decay: float) -> str:
    return "" if decay == 1 else f", times {decay:g} for each layer towards the input"
