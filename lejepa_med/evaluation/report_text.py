"""Sentences made from numbers: what an arm reaches, whom it is ahead of and by how much, what nobody can tell."""

from __future__ import annotations

from collections.abc import Sequence

from lejepa_med.evaluation.report_data import Benchmark, Row
from lejepa_med.evaluation.report_names import (
    METHOD_PHRASES,
    METRICS,
    PERCENT,
    SIGNIFICANT,
    Budget,
    chance_value,
    labels_per,
    number,
    p_value,
    unit,
)


def verdict(difference: Row) -> str:
    """`ahead`, `behind` or `cannot tell`: whether the interval of a paired difference lies on one side of 0."""
    if difference["low"] is None or difference["high"] is None:
        return "cannot tell"
    if difference["low"] > 0:
        return "ahead"
    return "behind" if difference["high"] < 0 else "cannot tell"


def method_paragraph(benchmark: Benchmark, task: str, method: str) -> str:
    """Score of the reference with the most labels, its comparisons there, and how they go over all budgets."""
    reference, budgets = benchmark.reference, benchmark.budgets(task, method)
    phrase = METHOD_PHRASES[method]
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
        said += [f"{phrase} {quoted(name)} at {listing([str(b) for b in budgets])}" for name, budgets in found.items()]
    if not said:
        return "With fewer labels the data cannot tell it from any of them."
    rest = "" if all(verdict(row) != "cannot tell" for row in differences) else "; elsewhere the data cannot tell"
    fewer = labels_per(differences[0]["kind"])
    return f"With fewer {fewer} it is, before correction, {'; '.join(said)}{rest}."


def comparison_sentences(differences: Sequence[Row]) -> list[str]:
    """One sentence for those it is ahead of, one for those it is behind, one for those the data cannot tell."""
    sentences = []
    for outcome, opening in (("ahead", "is ahead of"), ("behind", "is behind")):
        found = [row for row in differences if verdict(row) == outcome]
        if found:
            listed = listing([f"{quoted(row['other'])} by {amount(row, absolute=True)}" for row in found])
            sentences.append(f"{found[0]['reference']} {opening} {listed}.")
    unclear = [row for row in differences if verdict(row) == "cannot tell"]
    if unclear:
        listed = listing([f"{quoted(row['other'])} ({amount(row, absolute=False)})" for row in unclear])
        sentences.append(f"The data cannot tell {unclear[0]['reference']} from {listed}.")
    return sentences


def duplicate_sentence(duplicates: dict[str, Row]) -> str:
    """What the check for like images on both sides found."""
    like = []
    for side, of in (("tasks", "training scans of task"), ("pretraining", "pretraining scans of")):
        for name, one in duplicates[side].items():
            copies = f" ({one['exact']} an exact copy)" if one["exact"] else ""
            if one["near"]:
                like.append(
                    f"{one['near']} of {one['tested']} have a near duplicate{copies} among the {of} {quoted(name)}"
                )
    also = " and, where they are in the cache, pretraining scans" if duplicates["pretraining"] else ""
    opening = f"Thumbnails of test scans were compared with those of training scans{also}"
    if not like:
        return f"{opening}: none are near duplicates."
    return f"{opening}: {listing(like)}; summary.json names the pairs by their keys."


def _score_sentence(benchmark: Benchmark, row: Row, phrase: str) -> str:
    metric = row["metric"]
    described = benchmark.summary["tasks"][row["task"]]
    interval = _interval(row["low"], row["high"], metric)
    article = "an" if metric in ("r2", "auroc") else "a"
    return (
        f"{phrase[0].upper()}{phrase[1:]} on {_labels_phrase(row)}, {quoted(row['encoder'])} reaches {article} "
        f"{METRICS[metric]} of {number(row['value'], metric)}{unit(metric)} (95 % interval {interval}) on "
        f"{described['test_patients']} test patients{_chance(described)}."
    )


def _chance(described: Row) -> str:
    if described["kind"] not in ("classification", "multilabel"):
        return ""
    chance = chance_value(described)
    return (
        f", where chance is {chance:.0f} %" if described["kind"] == "classification" else f", where chance is {chance}"
    )


def _labels_phrase(row: Row) -> str:
    if row["budget"] == "all":
        name = {"segmentation": "volumes", "multilabel": "samples"}.get(row["kind"], "labels")
        return f"all {row['labels']} training {name}"
    if row["kind"] == "segmentation":
        return f"{row['labels']} labelled {'volume' if row['labels'] == 1 else 'volumes'}"
    per = labels_per(row["kind"])
    return f"{row['budget']} {per.replace('s per', ' per') if row['budget'] == 1 else per} ({row['labels']} in all)"


def amount(row: Row, absolute: bool, with_p: bool = False) -> str:
    """A difference with its interval and its adjusted p, or a word where its claim does not outlive the correction."""
    metric = row["metric"]
    value, low, high = row["difference"], row["low"], row["high"]
    if absolute and value < 0:
        value = -value
        low, high = (None if end is None else -end for end in (high, low))
    points = " points" if metric in PERCENT else ""
    p = row.get("p_adjusted")
    corrected = f"; p = {p_value(p)}" if with_p and p is not None else ""
    if not with_p and p is not None and p > SIGNIFICANT and verdict(row) != "cannot tell":
        corrected = f"; not after correction, p = {p_value(p)}"
    interval = _interval(low, high, metric) + corrected
    return f"{number(value, metric, sign=not absolute)}{points}{' (' + interval + ')' if absolute else ', ' + interval}"


def _interval(low: float | None, high: float | None, metric: str) -> str:
    if low is None or high is None:
        return "no interval"
    return f"{number(low, metric)} to {number(high, metric)}"


def quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def listing(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(count: int, name: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"
