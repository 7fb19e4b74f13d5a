"""What reports call methods, metrics and strata, and how they write numbers: units, digits, which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Budget = int | str
METHODS = {
    "finetune": "full fine-tuning", "linear": "frozen, linear probe",
    "segment_finetune": "segmentation, full fine-tuning", "segment_linear": "segmentation, frozen, linear head",
    "lora": "LoRA adapters", "attention": "frozen, attention pooling", "knn": "frozen, k-NN",
    "segment_decoder": "segmentation, frozen, small decoder",
}  # fmt: skip
"""In the order of panels and tables: all weights left, frozen linear right, then the others."""
HEADLINE_METHODS = ("finetune", "linear", "segment_finetune", "segment_linear")
"""Those that the summary speaks of; the others open on a click."""
METHOD_PHRASES = {
    "finetune": "with full fine-tuning", "linear": "with a frozen linear probe", "lora": "with LoRA adapters",
    "attention": "with attention pooling over frozen tokens", "knn": "with frozen k-NN",
    "segment_finetune": "with segmentation by full fine-tuning",
    "segment_linear": "with a linear segmentation head on frozen tokens",
    "segment_decoder": "with a small segmentation decoder on frozen tokens",
}  # fmt: skip
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
UP, DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Measure:
    """A metric: its name in running text, the head of its column, decimals (None: three digits), and its direction."""

    name: str
    short: str
    digits: int | None = 3
    lower_is_better: bool = False
    unit: str = ""


_MEASURES = {
    "balanced_accuracy": Measure("balanced accuracy", "balanced accuracy", 1, unit="%"),
    "accuracy": Measure("accuracy", "accuracy", 1, unit="%"),
    "auroc": Measure("AUROC", "AUROC"),
    "auprc": Measure("AUPRC", "AUPRC"),
    "f1": Measure("macro F1", "macro F1"),
    "ece": Measure("calibration error", "ECE", lower_is_better=True),
    "brier": Measure("Brier score", "Brier", lower_is_better=True),
    "r2": Measure("R²", "R²", 2),
    "mae": Measure("mean absolute error", "MAE", None, lower_is_better=True, unit="unit of the label"),
    "spearman": Measure("Spearman correlation", "Spearman", 2),
    "pearson": Measure("Pearson correlation", "Pearson", 2),
    "kappa": Measure("quadratic weighted kappa", "kappa", 2),
    "level_mae": Measure("mean error in levels", "MAE", 2, lower_is_better=True, unit="levels"),
    "dice": Measure("Dice", "Dice"),
    "hd95": Measure("95th percentile of surface distance", "HD95", 1, lower_is_better=True, unit="mm"),
}
METRICS = {metric: measure.name for metric, measure in _MEASURES.items()}
PERCENT = tuple(metric for metric, measure in _MEASURES.items() if measure.unit == "%")


def measure_of(metric: str) -> Measure:
    """Of a metric's name in results; `dice NAME` is the Dice of one class."""
    if metric.startswith("dice "):
        return Measure(f"Dice of {metric[5:]}", f"Dice, {metric[5:]}")
    return _MEASURES[metric]


def column_name(metric: str) -> str:
    """`ECE ↓`, `HD95 (mm) ↓`: short name, unit, and an arrow to where better is."""
    measure = measure_of(metric)
    unit_text = f" ({measure.unit})" if measure.unit else ""
    return f"{measure.short}{unit_text} {DOWN if measure.lower_is_better else UP}"


def scale(metric: str) -> float:
    """What values are multiplied with for tables: accuracies are shown in per cent."""
    return 100.0 if metric in PERCENT else 1.0


def number(value: float, metric: str, sign: bool = False) -> str:
    """A value as tables show it: 61.2 (per cent) or 0.612."""
    digits = measure_of(metric).digits
    shown = value * scale(metric)
    text = f"{shown:{'+' if sign else ''}.3g}" if digits is None else _rounded(shown, digits, sign)
    return text.replace("-", MINUS)


def unit(metric: str) -> str:
    """`%`, or nothing."""
    return " %" if metric in PERCENT else ""


def p_value(p: float | None) -> str:
    """Two digits; a dash where there is none."""
    if p is None:
        return DASH
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def budget_name(budget: Budget) -> str:
    return "all" if budget == "all" else str(budget)


def method_title(method: str) -> str:
    """`Full fine-tuning`, `Frozen, linear probe` or `Frozen, k-NN`."""
    return METHODS[method][0].upper() + METHODS[method][1:]


def strata_name(kind: str) -> str:
    """What a budget counts labels of: a class, a level, a quintile of the target, the value of a label, or a task."""
    names = {"classification": "class", "ordinal": "level", "multilabel": "label and value", "segmentation": "task"}
    return names.get(kind, "quintile")


def labels_per(kind: str) -> str:
    """`labels per class`; of masks volumes are counted, and where a sample has several labels, samples."""
    if kind == "segmentation":
        return "labelled volumes"
    return f"{'samples' if kind == 'multilabel' else 'labels'} per {strata_name(kind)}"


def chance_value(described: dict[str, Any]) -> float:
    """The headline where features tell nothing, as figures show it."""
    if described["kind"] == "classification":
        return 100 / len(described["classes"])
    return 0.5 if described["kind"] == "multilabel" else 0.0


def chance_name(kind: str) -> str:
    """What that line is called; nothing for segmentation, where 0 is no guess."""
    return {"regression": "guessing\nthe mean", "segmentation": ""}.get(kind, "chance")


def _rounded(value: float, digits: int, sign: bool) -> str:
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # no negative zero
