"""The summary in words, made from the numbers: who is ahead, by how much, and where the data cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

from lejepa_med.evaluation.bootstrap import MIN_PATIENTS
from lejepa_med.evaluation.report_data import (
    METHODS,
    METRICS,
    NO_WEIGHTS,
    PERCENT,
    Benchmark,
    Budget,
    Row,
    number,
    strata_name,
    unit,
    without_paths,
)

_METHOD_PHRASE = {
    "finetune": "with full fine-tuning",
    "linear": "with a frozen linear probe",
    "knn": "with frozen k-NN",
}


def verdict(difference: Row) -> str:
    """`ahead`, `behind` or `cannot tell`: whether the interval of a paired difference lies on one side of 0."""
    if difference["low"] is None or difference["high"] is None:
        return "cannot tell"
    if difference["low"] > 0:
        return "ahead"
    return "behind" if difference["high"] < 0 else "cannot tell"


def summary_paragraphs(benchmark: Benchmark) -> list[tuple[str, list[str]]]:
    """Per task its name and one paragraph for each method."""
    return [
        (task, [method_paragraph(benchmark, task, method) for method in benchmark.methods(task)])
        for task in benchmark.summary["tasks"]
    ]


def method_paragraph(benchmark: Benchmark, task: str, method: str) -> str:
    """Score of the reference with the most labels, its comparisons there, and how they go over all budgets."""
    reference, budgets = benchmark.reference, benchmark.budgets(task, method)
    phrase = _METHOD_PHRASE[method]
    scored = [
        row
        for key, row in benchmark.row_of.items()
        if key[:2] == (task, method) and row["value"] is not None and (reference is None or key[2] == reference)
    ]
    if not scored:
        return f"{phrase[0].upper()}{phrase[1:]}, {reference or 'no encoder'} has no result."
    largest = max(scored, key=lambda row: (budgets.index(row["budget"]), row["value"]))
    sentences = [_score_sentence(benchmark, largest, phrase)]
    differences = [row for key, row in benchmark.difference_of.items() if key[:2] == (task, method)]
    sentences += comparison_sentences([row for row in differences if row["budget"] == largest["budget"]])
    fewer = [row for row in differences if row["budget"] != largest["budget"]]
    if fewer:
        sentences.append(fewer_labels_sentence(fewer))
    return " ".join(sentences)


def fewer_labels_sentence(differences: Sequence[Row]) -> str:
    """Where it is ahead or behind with fewer labels; all that is not named, the data cannot tell."""
    said = []
    for outcome, phrase in (("ahead", "ahead of"), ("behind", "behind")):
        found: dict[str, list[Budget]] = {}
        for row in differences:
            if verdict(row) == outcome:
                found.setdefault(row["other"], []).append(row["budget"])
        said += [f"{phrase} {_quoted(name)} at {listing([str(b) for b in budgets])}" for name, budgets in found.items()]
    if not said:
        return "With fewer labels the data cannot tell it from any of them."
    rest = "" if all(verdict(row) != "cannot tell" for row in differences) else "; elsewhere the data cannot tell"
    return f"With fewer labels per {strata_name(differences[0]['kind'])} it is {'; '.join(said)}{rest}."


def comparison_sentences(differences: Sequence[Row]) -> list[str]:
    """One sentence for those it is ahead of, one for those it is behind, one for those the data cannot tell."""
    sentences = []
    for outcome, opening in (("ahead", "is ahead of"), ("behind", "is behind")):
        found = [row for row in differences if verdict(row) == outcome]
        if found:
            listed = listing([f"{_quoted(row['other'])} by {_amount(row, absolute=True)}" for row in found])
            sentences.append(f"{found[0]['reference']} {opening} {listed}.")
    unclear = [row for row in differences if verdict(row) == "cannot tell"]
    if unclear:
        listed = listing([f"{_quoted(row['other'])} ({_amount(row, absolute=False)})" for row in unclear])
        sentences.append(f"The data cannot tell {unclear[0]['reference']} from {listed}.")
    return sentences


def missing_paragraph(benchmark: Benchmark) -> str:
    """Encoders without weights, and how to give them; empty if there are none."""
    names = [
        encoder.name
        for encoder in benchmark.config.encoders
        if any(benchmark.status(task, "linear", encoder) == NO_WEIGHTS for task in benchmark.summary["tasks"])
    ]
    if not names:
        return ""
    one = len(names) == 1
    said = [without_paths(text) for text in benchmark.summary["messages"] if NO_WEIGHTS in text]
    hints = [text.partition(f"{NO_WEIGHTS}; ")[2] for text in said]
    how = f" To fill {'it' if one else 'them'} in, {'; '.join(hints)}." if hints else ""
    rows = "row is" if one else "rows are"
    them = "it" if one else "them"
    return f"{listing(names)}: {NO_WEIGHTS}, so the {rows} empty and nothing is said about {them}.{how}"


def protocol_paragraphs(benchmark: Benchmark) -> list[str]:
    """How the numbers were made, from the config."""
    config = benchmark.config
    probe, recipe, holdout = config.probe, config.finetune, config.holdout
    share = f"{holdout.test_fraction:.0%}".replace("%", " %")
    penalties = ", ".join(f"{penalty:g}" for penalty in probe.penalties)
    paragraphs = [
        f"Patients, never scans, are split: about {share} of them (holdout seed {holdout.seed}) are only tested on, "
        "the same for every encoder. Label budgets count per class (regression: per quintile of the training targets) "
        "and include the labels used for validation; `all` is every training label. With one seed, larger budgets "
        f"contain the smaller ones. Frozen budgets are drawn with {config.seeds} seeds, and `all` once. Intervals are "
        f"bootstrapped over test patients; with fewer than {MIN_PATIENTS} of them none is given and nothing claimed.",
        "Frozen features are the last two blocks or stages, standardised on the training patients. The linear probe is "
        f"an L2-penalised logistic (regression: ridge) model; its inverse penalty is chosen from {penalties} by "
        f"cross-validation over patients, and fixed at {probe.preset_penalty:g} below five labels per class. "
        f"k-NN uses the {probe.neighbours} nearest neighbours by cosine.",
    ]
    if "finetune" in config.methods:
        paragraphs.append(
            f"Fine-tuning trains the whole network and a new head: AdamW, {recipe.epochs} epochs and at least "
            f"{recipe.min_steps} steps, batches of {recipe.batch_size}, learning rate {recipe.lr:g} for the head and "
            f"{recipe.backbone_lr_factor:g} of it for the backbone{_layers(recipe.layer_decay)}, "
            f"weight decay {recipe.weight_decay:g}, shifts up to {recipe.shift_voxels} voxels; "
            f"{config.finetune_seeds} seeds, the same recipe for every encoder."
        )
    paragraphs.append(
        "Intervals are 95 % percentile intervals of 2,000 bootstrap draws of test patients, each scored per seed and "
        "averaged; differences are paired, on the same draws. They speak about other test patients, not about another "
        "pretraining, and are not corrected for the number of comparisons on this page."
    )
    return paragraphs


def _score_sentence(benchmark: Benchmark, row: Row, phrase: str) -> str:
    metric = row["metric"]
    described = benchmark.summary["tasks"][row["task"]]
    interval = _interval(row["low"], row["high"], metric)
    chance = f", where chance is {100 / len(described['classes']):.0f} %" if _has_chance(described) else ""
    article = "an" if metric in ("r2", "auroc") else "a"
    return (
        f"{phrase[0].upper()}{phrase[1:]} on {_labels_phrase(row)}, {row['encoder']} reaches {article} "
        f"{METRICS[metric]} of {number(row['value'], metric)}{unit(metric)} (95 % interval {interval}) on "
        f"{described['test_patients']} test patients{chance}."
    )


def _has_chance(described: Row) -> bool:
    return bool(described["classes"]) and described["metric"] == "balanced_accuracy"


def _labels_phrase(row: Row) -> str:
    if row["budget"] == "all":
        return f"all {row['labels']} training labels"
    label = "label" if row["budget"] == 1 else "labels"
    return f"{row['budget']} {label} per {strata_name(row['kind'])} ({row['labels']} in all)"


def _amount(row: Row, absolute: bool) -> str:
    metric = row["metric"]
    value, low, high = row["difference"], row["low"], row["high"]
    if absolute and value < 0:
        value = -value
        low, high = (None if end is None else -end for end in (high, low))
    points = " points" if metric in PERCENT else ""
    interval = _interval(low, high, metric)
    return f"{number(value, metric, sign=not absolute)}{points}{' (' + interval + ')' if absolute else ', ' + interval}"


def _interval(low: float | None, high: float | None, metric: str) -> str:
    if low is None or high is None:
        return "none: too few test patients"
    return f"{number(low, metric)} to {number(high, metric)}"


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def listing(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def method_title(method: str) -> str:
    """`Full fine-tuning`, `Frozen, linear probe` or `Frozen, k-NN`."""
    return METHODS[method][0].upper() + METHODS[method][1:]


def _layers(decay: float) -> str:
    return "" if decay == 1 else f", times {decay:g} for each layer towards the input"
