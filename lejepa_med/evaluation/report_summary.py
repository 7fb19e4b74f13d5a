"""The summary in words: the verdict against the strongest rivals, then task by task, then what to be careful with.

A rival is beaten, or wins, where Holm's p is at most .05; everything else the data cannot tell.
"""

from __future__ import annotations

from lejepa_med.evaluation.bootstrap import MIN_PATIENTS
from lejepa_med.evaluation.encoders import TRAINING
from lejepa_med.evaluation.report_data import NO_WEIGHTS, Benchmark, Row, without_paths
from lejepa_med.evaluation.report_names import METHOD_PHRASES, METHODS, METRICS, SIGNIFICANT
from lejepa_med.evaluation.report_text import (
    amount,
    counted,
    duplicate_sentence,
    listing,
    method_paragraph,
    quoted,
    verdict,
)

FEW_DRAWS = 5
"""Draws of the labels below which the report says that they are few."""
_OUTCOMES = ("ahead", "behind", "cannot tell")


def summary_paragraphs(benchmark: Benchmark) -> list[tuple[str, list[str]]]:
    """Per task its name and one paragraph for each headline method."""
    return [
        (task, [method_paragraph(benchmark, task, method) for method in benchmark.headline_methods(task)])
        for task in benchmark.summary["tasks"]
    ]


def arms_paragraph(benchmark: Benchmark) -> str:
    """Who is compared: ours, rivals, controls, and how many repeats an arm has."""
    said = []
    for role, name in (("ours", "Ours"), ("rival", "Rivals"), ("control", "Controls")):
        arms = [quoted(arm) + _repeats(benchmark, arm) for arm, own in benchmark.roles.items() if own == role]
        if arms:
            said.append(f"{name}: {listing(arms)}.")
    return " ".join(said)


def rival_paragraph(benchmark: Benchmark) -> str:
    """In how many comparisons with the strongest rivals it is ahead or behind, or why there are none."""
    reference = benchmark.reference
    if reference is None:
        return "No pretrained run is part of this benchmark, so no arm is compared with the others."
    if not benchmark.rivals:
        return "No rival such as DINOv2 is part of this benchmark, and nothing here is a claim about one."
    contests = _contests(benchmark)
    if not contests:
        rivals = listing([quoted(name) for name in benchmark.rivals])
        why = "no weights were given" if missing_rivals(benchmark) == benchmark.rivals else "there is no result"
        return f"For {rivals} {why}: this report makes no claim against {'it' if ' and ' not in rivals else 'them'}."
    ahead, behind, unclear = (sum(_corrected(row) == outcome for row in contests) for outcome in _OUTCOMES)
    return (
        f"Against the strongest rival of each task and method, {reference} is ahead in {ahead} of "
        f"{counted(len(contests), 'comparison')} and behind in {behind}; in {unclear} the data cannot tell. Compared "
        "is the area under the budget curve, or the score with the most labels where there is one budget. Ahead or "
        f"behind means a Holm-adjusted p of at most {SIGNIFICANT:g}, adjusted over the tasks of a method. In brackets: "
        "95 % interval of the paired difference, and adjusted p."
    )


def contest_items(benchmark: Benchmark) -> list[str]:
    """Task by task the comparisons with the strongest rivals; nothing where no task has one."""
    contests = _contests(benchmark)
    if not contests:
        return []
    return [_task_item(task, [row for row in contests if row["task"] == task]) for task in benchmark.summary["tasks"]]


def single_budgets(benchmark: Benchmark) -> str:
    """How the comparisons with the strongest rivals go at every budget on its own; empty without any."""
    rows = benchmark.summary.get("best_rival", ())
    if not rows:
        return ""
    ahead, behind = (sum(verdict(row) == outcome for row in rows) for outcome in ("ahead", "behind"))
    kept = [sum(_corrected(row) == outcome for row in rows) for outcome in ("ahead", "behind")]
    return (
        f"Budget by budget, of {counted(len(rows), 'comparison')} with the strongest rival the 95 % interval lies "
        f"above 0 in {ahead} and below 0 in {behind}; after Holm's correction {kept[0]} and {kept[1]} remain."
    )


def missing_rivals(benchmark: Benchmark) -> list[str]:
    """Rivals that wait for their weights."""
    return [name for name in without_weights(benchmark) if name in benchmark.rivals]


def without_weights(benchmark: Benchmark) -> list[str]:
    """Arms that have no result anywhere for want of weights."""
    return [
        encoder.name
        for encoder in benchmark.encoders
        if any(
            benchmark.status(task, method, encoder) == NO_WEIGHTS
            for task in benchmark.summary["tasks"]
            for method in benchmark.methods(task)
        )
    ]


def missing_paragraph(benchmark: Benchmark) -> str:
    """Arms without weights, and how to give them; empty if there are none."""
    names = without_weights(benchmark)
    if not names:
        return ""
    one = len(names) == 1
    said = [without_paths(text) for text in benchmark.summary["messages"] if NO_WEIGHTS in text]
    hints = [text.partition(f"{NO_WEIGHTS}; ")[2] for text in said]
    how = f" To fill {'it' if one else 'them'} in, {'; '.join(hints)}." if hints else ""
    rows = "row is" if one else "rows are"
    them = "it" if one else "them"
    return f"{listing(names)}: {NO_WEIGHTS}, so the {rows} empty and nothing is said about {them}.{how}"


def cautions(benchmark: Benchmark) -> list[str]:
    """What a reader has to know before believing a number; one sentence each."""
    said = [missing_paragraph(benchmark), _one_run(benchmark), *_drawn_labels(benchmark), *_leaks(benchmark)]
    duplicates = benchmark.summary.get("duplicates") or {"tasks": {}, "pretraining": {}}
    if any(one["near"] or one["exact"] for side in duplicates.values() for one in side.values()):
        said.append(duplicate_sentence(duplicates))
    for task, described in benchmark.summary["tasks"].items():
        if described["test_patients"] < MIN_PATIENTS:
            said.append(
                f"{task}: {described['test_patients']} test patients are fewer than {MIN_PATIENTS}; no interval is "
                "given and nothing claimed."
            )
        said.append(_rare(task, described))
        unknown = benchmark.unknown_patients(task)
        if unknown:
            said.append(
                f"{task}: of {unknown} of {len(benchmark.test_series(task))} test scans no patient id is known. Each "
                "file or study counts as a patient, so one person may be on both sides, and scores may be too high."
            )
    said.append(_unknown_elsewhere(benchmark))
    return [text for text in said if text]


def _one_run(benchmark: Benchmark) -> str:
    trained = [arm.name for arm in benchmark.arms if arm.kind == "run" and len(arm.members) == 1]
    drawn = [arm.name for arm in benchmark.arms if arm.kind == "random" and len(arm.members) == 1]
    if not trained and not drawn:
        return ""
    each = f"one pretraining run{' each' if len(trained) > 1 else ''}"
    parts = [f"of {listing([quoted(name) for name in trained])} there is {each}"] if trained else []
    parts += [f"of {listing([quoted(name) for name in drawn])} one draw of weights"] if drawn else []
    said = ", ".join(parts)
    return f"{said[0].upper()}{said[1:]}: intervals speak about other test patients, not about another seed of these."


def _drawn_labels(benchmark: Benchmark) -> list[str]:
    """Methods whose labelled subsets were drawn so seldom that little is known of what other draws would change."""
    used = {key[1] for key, row in benchmark.row_of.items() if key[3] != "all" and row["value"] is not None}
    config, said = benchmark.config, []
    for setting, draws, methods in (
        ("seeds", config.seeds, used - set(TRAINING)),
        ("finetune_seeds", config.finetune_seeds, used & set(TRAINING)),
    ):
        if not methods or draws >= FEW_DRAWS:
            continue
        which = listing([f"`{method}`" for method in METHODS if method in methods])
        if draws == 1:
            said.append(
                f"Of the labels below `all` there is one draw for {which}: intervals and p hold it fixed, and another "
                f"may change who is ahead; raise {setting}."
            )
        else:
            said.append(
                f"Of the labels below `all` there are {draws} draws for {which}, which hardly show how much draws "
                f"differ: intervals are wide for that; raise {setting}."
            )
    return said


def _rare(task: str, described: Row) -> str:
    """Classes, or labels that few have or few lack, whose test patients are too few to stand for others."""
    few = {name: count for name, count in described.get("test_class_patients", {}).items() if count < MIN_PATIENTS}
    if not few or described["test_patients"] < MIN_PATIENTS:
        return ""
    said = listing([f"{quoted(name)} ({count})" for name, count in few.items()])
    return (
        f"{task}: {said} {'stands' if len(few) == 1 else 'stand'} on few test patients; intervals that rest on fewer "
        f"than {MIN_PATIENTS} are too narrow."
    )


def _unknown_elsewhere(benchmark: Benchmark) -> str:
    unknown = benchmark.unknown_elsewhere()
    if not unknown:
        return ""
    return (
        f"Of {counted(unknown, 'scan')} that no task tests no patient id is known: "
        f"{'it' if unknown == 1 else 'one of them'} may show a test patient under another key."
    )


def _leaks(benchmark: Benchmark) -> list[str]:
    said = []
    for name, found in benchmark.summary["leaks"].items():
        if found.startswith("transductive"):
            said.append(f"{name}: {found}, without their labels; its scores may be too high.")
        elif found != "checked":
            said.append(f"{name}: {found}. Its pretraining may have seen test patients.")
    return said


def _contests(benchmark: Benchmark) -> list[Row]:
    """Per task and method the comparison with the strongest rival: the areas, or the largest budget."""
    found = []
    for task in benchmark.summary["tasks"]:
        for method in benchmark.methods(task):
            rows = benchmark.against_rival(task, method)
            if rows:
                found.append(benchmark.area_difference_of.get((task, method, rows[-1]["other"]), rows[-1]))
    return found


def _corrected(row: Row) -> str:
    """The verdict if it outlives the correction."""
    p = row["p_adjusted"]
    return verdict(row) if p is not None and p <= SIGNIFICANT else "cannot tell"


def _task_item(task: str, contests: list[Row]) -> str:
    """`age (R²), against DINOv2: ahead with a frozen linear probe by ...; the data cannot tell with ...`."""
    if not contests:
        return f"{task}: no rival has a result, so nothing is claimed against one."
    rivals = {row["other"] for row in contests}
    against = f", against {quoted(rivals.pop())}" if len(rivals) == 1 else ""
    parts = []
    for outcome in _OUTCOMES:
        found = [_contest(row, named=not against) for row in contests if _corrected(row) == outcome]
        if found:
            parts.append(f"{'the data ' if outcome == 'cannot tell' else ''}{outcome} {listing(found)}")
    return f"{task} ({METRICS[contests[0]['metric']]}){against}: {'; '.join(parts)}."


def _contest(row: Row, named: bool) -> str:
    where = METHOD_PHRASES[row["method"]] + (f" against {quoted(row['other'])}" if named else "")
    if _corrected(row) == "cannot tell":
        return f"{where} ({amount(row, absolute=False, with_p=True)})"
    return f"{where} by {amount(row, absolute=True, with_p=True)}"


def _repeats(benchmark: Benchmark, arm: str) -> str:
    count = len(benchmark.members[arm])
    return f" ({count} repeats)" if count > 1 else ""
