"""What `doctor` prints: groups of aligned lines and what to do; for a cache, a table of stages and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from lejepa_med._version import __version__
from lejepa_med.cli.checkup import Check
from lejepa_med.training.bottleneck import Stage, in_words, milliseconds
from lejepa_med.training.data_path import DataPath

_MARKS = {"ok": "ok", "warn": "!", "fails": "FAILS", "note": ""}
_WIDTH = 110
_STAGES = {
    "storage_cold": "whole file, from disk",
    "storage_warm": "whole file, from memory",
    "checksum": "checksum, at the first read",
    "disk": "base crop: what the disk adds",
    "cutting": "base crop: cutting",
    "collation": "stacking a batch",
    "copy": "copy to the device",
    "views": "views",
    "model": "training step",
}


def of_checks(checks: list[Check]) -> str:
    """The whole report."""
    lines = [f"lejepa-med {__version__}"]
    for group in dict.fromkeys(check.group for check in checks):
        members = [check for check in checks if check.group == group]
        lines += ["", group[0].upper() + group[1:]]
        lines += _decoders(members) if group == "DICOM" else _aligned(members)
    advised = [check for check in checks if check.advice]
    lines += ["", "Nothing to do: everything works." if not advised else "To do"]
    for check in advised:
        lines += _bullet(f"{check.name}: {check.advice}")
    if any(check.state == "fails" for check in checks):
        lines += ["", "Training cannot run here."]
    return "\n".join(lines)


def _aligned(checks: list[Check]) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"  {_MARKS[check.state]:<5} {check.name:<{width}}  {check.value}"


def _decoders(checks: list[Check]) -> Iterator[str]:
    """Outcomes, each with its transfer syntaxes: a frame of every one was decoded."""
    for outcome in dict.fromkeys(check.value for check in checks):
        names = "; ".join(check.name for check in checks if check.value == outcome)
        start = f"  {'ok' if outcome == 'works' else '!':<5} "
        text = f"{'decodes' if outcome == 'works' else outcome}: {names}"
        yield from textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=" " * 10, break_on_hyphens=False)


def _bullet(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, _WIDTH, initial_indent="  - ", subsequent_indent="    ")


def of_data_path(measured: DataPath) -> str:
    """The table of stages, the verdict and the advice."""
    setting, verdict = measured.setting, measured.verdict
    where = (
        measured.device if setting.on_gpu else f"the CPU with {measured.threads} thread{'s' * (measured.threads > 1)}"
    )
    size = in_words(setting.cache_bytes)
    lines = textwrap.wrap(
        f"{measured.volumes:,} volume{'s' * (measured.volumes > 1)} ({size}), {measured.checked} of them looked at; "
        f"{measured.model} on {where}, batch {setting.batch_size}, data.workers {setting.workers}",
        _WIDTH,
    )
    lines += ["", *_table(measured)]
    lines += ["", *textwrap.wrap(verdict.sentence, _WIDTH)]
    lines += textwrap.wrap(
        f"Training would run at {_rate(1 / verdict.volumes_per_s)} volumes/s; "
        f"{verdict.workers_to_hide} reading thread{'s' * (verdict.workers_to_hide > 1)} would hide the reading.",
        _WIDTH,
    )
    sentences = list(verdict.advice.values()) + _remarks(measured)
    for sentence in sentences:
        lines += _bullet(sentence)
    return "\n".join(lines)


def _remarks(measured: DataPath) -> list[str]:
    remarks = []
    if measured.damaged:
        named = ", ".join(measured.damaged[:8]) + (", ..." if len(measured.damaged) > 8 else "")
        remarks.append(
            f"{len(measured.damaged)} of {measured.checked} entries looked at are missing or damaged: series {named}; "
            "run `prepare` again to rebuild them, `lejepa-med cache verify` looks at all."
        )
    if not any(stage.name == "disk" for stage in measured.stages):
        remarks.append("The system keeps these files in memory, so the disk could not be measured.")
    if measured.busy:
        alone = ", or with OMP_NUM_THREADS=1: threads that wait for each other suffer most" * (measured.threads > 1)
        remarks.append(
            f"Other work kept the cores busy ({measured.busy}), so all of this is slower than it could be; measure "
            f"again on a quiet machine{alone}."
        )
    if measured.setting.on_gpu and measured.trained < measured.setting.batch_size:
        remarks.append(
            f"A batch of {measured.setting.batch_size} does not fit on {measured.device}, {measured.trained} do: set "
            f"train.micro_batch={measured.trained}, or a smaller train.batch_size."
        )
    return remarks


def _table(measured: DataPath) -> list[str]:
    rows = [("stage", "ms/volume", "half of them within", "volumes/s", "MB/s")]
    rows += [_row(stage) for stage in measured.stages]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  " + "  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: tuple[str, ...], widths: list[int]) -> list[str]:
    first, *others = (cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in
                      enumerate(zip(row, widths, strict=True)))  # fmt: skip
    return [first, *others]


def _row(stage: Stage) -> tuple[str, str, str, str, str]:
    spread = f"{milliseconds(stage.low)} - {milliseconds(stage.high)}" if stage.repeats > 1 else "one repeat"
    speed = "" if stage.bytes is None else f"{stage.bytes / max(stage.seconds, 1e-9) / 1e6:,.0f}"
    return _STAGES[stage.name], milliseconds(stage.seconds), spread, _rate(stage.seconds), speed


def _rate(seconds: float) -> str:
    """Volumes per second at so many seconds each."""
    rate = 1 / max(seconds, 1e-9)
    if rate >= 1e6:
        return "> 1,000,000"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def as_numbers(measured: DataPath) -> dict[str, Any]:
    """The same for programs; milliseconds per volume."""
    setting, verdict = measured.setting, measured.verdict
    stages = {
        stage.name: {
            "ms_per_volume": round(1e3 * stage.seconds, 4),
            "ms_quartiles": [round(1e3 * stage.low, 4), round(1e3 * stage.high, 4)],
            "volumes_per_s": round(1 / max(stage.seconds, 1e-9), 2),
            "bytes_per_volume": stage.bytes,
            "repeats": stage.repeats,
        }
        for stage in measured.stages
    }
    return {
        "volumes": measured.volumes,
        "looked_at": measured.checked,
        "damaged": measured.damaged,
        "cache_bytes": setting.cache_bytes,
        "device": measured.device,
        "threads": measured.threads,
        "cores": setting.cores,
        "model": measured.model,
        "batch_size": setting.batch_size,
        "workers": setting.workers,
        "stages": stages,
        "bottleneck": verdict.bottleneck,
        "factor": round(verdict.factor, 2),
        "volumes_per_s": round(verdict.volumes_per_s, 3),
        "data_wait": round(verdict.waiting, 4),
        "workers_to_hide": verdict.workers_to_hide,
        "verdict": verdict.sentence,
        "advice": verdict.advice,
        "remarks": _remarks(measured),
    }
