"""What the benchmark cost: pretraining, features, and every arm and method, with how many configurations each tried."""

from __future__ import annotations

import math
from pathlib import Path

from lejepa_med.evaluation.report_csv import as_csv
from lejepa_med.evaluation.report_data import Benchmark, Row
from lejepa_med.evaluation.report_names import DASH, METHODS
from lejepa_med.evaluation.report_page import paragraph, plain_table
from lejepa_med.evaluation.report_text import counted
from lejepa_med.training.log import read_log

_COLUMNS = (
    "encoder", "method", "cells", "failed", "configurations", "seconds", "cpu_seconds", "gpu_seconds", "peak_bytes",
    "gpu_peak_bytes", "energy_joules",
)  # fmt: skip


def costs_section(benchmark: Benchmark, figures: Path) -> str:
    """Pretraining, features of every encoder, and the cells of every arm and method."""
    del figures
    parts = [_pretraining(benchmark), _features_table(benchmark), _cells_table(benchmark)]
    note = (
        "Sums over tasks, budgets and seeds; memory is the most that the process had at once so far. Configurations: "
        "how many settings were compared in one cell, at most. Energy is of the processor packages and the GPU, "
        "whatever else ran there included; a dash means that no counter could be read."
    )
    return "\n".join([*(part for part in parts if part), paragraph(note, "note")])


def costs_csv(benchmark: Benchmark) -> str:
    """One line per arm and method."""
    return as_csv(_COLUMNS, costs(benchmark))


def costs(benchmark: Benchmark) -> list[Row]:
    """Sums over the cells of an arm and method (memory: the largest); None where nothing was measured."""
    found = []
    for encoder in benchmark.encoders:
        for method in METHODS:
            cells = [c for c in benchmark.cells_of(encoder.name, method) if c["status"] != "no_weights"]
            if not cells:
                continue
            line: Row = {"encoder": encoder.name, "method": method, "cells": len(cells)}
            line["failed"] = sum(cell["status"] == "failed" for cell in cells)
            line["configurations"] = max((c["tuned"] for c in cells if c.get("tuned")), default=None)
            for name in ("seconds", "cpu_seconds", "gpu_seconds", "energy_joules"):
                line[name] = _summed(cells, name)
            for name in ("peak_bytes", "gpu_peak_bytes"):
                line[name] = max((c[name] for c in cells if c.get(name) is not None), default=None)
            found.append(line)
    return found


def _pretraining(benchmark: Benchmark) -> str:
    timing = read_log(benchmark.run, "timing") if benchmark.run is not None else []
    if not timing:
        return ""
    speed = sorted(line["samples_per_s"] for line in timing)[len(timing) // 2]
    wait = sum(line["data_wait"] for line in timing) / len(timing)
    memory = max(line["memory"] for line in timing) / 2**30
    text = (
        f"Pretraining of {benchmark.reference}: {counted(len(timing), 'step')}, median {speed:.1f} samples per second, "
        f"{wait:.0%} of the time waiting for data, at most {memory:.1f} GiB of memory."
    )
    return paragraph(text.replace("%", " %"))


def _features_table(benchmark: Benchmark) -> str:
    head = ["frozen features", "parameters", "volumes", "volumes/s", "seconds", "GPU seconds", "memory", "energy"]
    rows = []
    for encoder in benchmark.encoders:
        found = list(benchmark.feature_costs(encoder.name))
        if not found:
            continue
        of = f" ({len(found)} repeats)" if len(found) > 1 else ""
        volumes, seconds = _summed(found, "volumes"), _summed(found, "seconds")
        rate = volumes / seconds if volumes is not None and seconds else None
        line = [encoder.name + of, _count(found[0].get("parameters")), _count(volumes), _three(rate)]
        rows.append([*line, *_shared(found)])
    if not rows:
        return ""
    note = "Volumes that were computed for this benchmark; what lay in a store already is not counted."
    return plain_table(head, rows, numeric=range(1, len(head))) + paragraph(note, "note")


def _cells_table(benchmark: Benchmark) -> str:
    head = ["training and testing", "method", "cells", "configurations", "seconds", "GPU seconds", "memory", "energy"]
    rows = []
    for line in costs(benchmark):
        failed = f" ({line['failed']} failed)" if line["failed"] else ""
        counted = [f"{line['cells']}{failed}", _count(line["configurations"])]
        rows.append([line["encoder"], METHODS[line["method"]], *counted, *_shared([line])])
    return plain_table(head, rows, numeric=range(2, len(head)))


def _shared(lines: list[Row]) -> list[str]:
    """Seconds, GPU seconds, memory and energy, as tables show them."""
    gpu = [line["gpu_peak_bytes"] for line in lines if line.get("gpu_peak_bytes") is not None]
    host = [line["peak_bytes"] for line in lines if line.get("peak_bytes") is not None]
    peak = f"{max(gpu) / 2**30:.1f} GiB GPU" if gpu else f"{max(host) / 2**30:.1f} GiB" if host else DASH
    joules = _summed(lines, "energy_joules")
    energy = DASH if joules is None else f"{joules / 1e3:,.1f} kJ"
    return [_seconds(_summed(lines, "seconds")), _seconds(_summed(lines, "gpu_seconds")), peak, energy]


def _summed(lines: list[Row], name: str) -> float | None:
    known = [float(line[name]) for line in lines if line.get(name) is not None]
    return math.fsum(known) if known else None


def _seconds(value: float | int | None) -> str:
    return DASH if value is None else f"{value:,.1f}"


def _count(value: float | int | None) -> str:
    return DASH if value is None else f"{int(value):,}"


def _three(value: float | int | None) -> str:
    return DASH if value is None else f"{value:.3g}"
