"""`demo`: the whole path on a synthetic archive, by the same functions as the other verbs.

DIR/archive/  index/  cache/  run/  benchmark/  report/report.html
DIR/configs/  the settings of each stage, as the other verbs read them
DIR/stages.json  seconds and peak memory of each stage
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lejepa_med import api
from lejepa_med.cli.progress import ProgressLine, duration
from lejepa_med.config import BenchmarkConfig, Frozen, IndexSettings, PrepareConfig, PretrainConfig, load_config
from lejepa_med.data import preparing
from lejepa_med.data.index import archive
from lejepa_med.data.synthetic import write_archive
from lejepa_med.errors import OutputExistsError
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.report import write_report
from lejepa_med.machine import peak_resident_bytes

_SUBJECTS = {"full": 240, "smoke": 40}
_SMOKE_REMARK = "Six steps of training on 40 phantoms show that every stage runs. The numbers below mean nothing."
_SMOKE = {
    "pretrain": ("train.steps=6", "train.batch_size=8", "projector.hidden=32", "objective.num_slices=32"),
    "benchmark": (
        f"remark={_SMOKE_REMARK}",
        "seeds=2",
        "finetune_budgets=[2]",
        "finetune_seeds=1",
        "finetune.epochs=1",
        "finetune.min_steps=2",
    ),
}
ARCHIVE_SEED = 1
"""Not 0: the recipe was chosen on phantoms of archive 0, so the demo shows it on patients it was not chosen on."""
_SALT = b"6c656a6570612d6d65642064656d6f20"  # synthetic patients need no secret, and results repeat


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """Archive, index, cache, run, benchmark, report; each stage names the command that does the same."""
    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        raise OutputExistsError(f"demo {out}: the folder is not empty; choose another --out, or remove it")
    configs = _write_configs(out, options.size, options.overrides)
    stages = _Stages(out)
    progress = ProgressLine()
    subjects = _SUBJECTS[options.size]
    stages.run(
        "archive", lambda: write_archive(out / "archive", subjects=subjects, seed=ARCHIVE_SEED, progress=progress)
    )
    (out / "index").mkdir()
    (out / "index" / "salt").write_bytes(_SALT)
    (out / "index" / "salt").chmod(0o600)
    index_settings = load_config(IndexSettings, configs / "index.yaml")
    stages.run("index", lambda: archive.index([out / "archive"], out / "index", index_settings, progress))
    prepare_config = load_config(PrepareConfig, configs / "prepare.yaml")
    stages.run(
        "prepare",
        lambda: preparing.prepare(out / "index", out / "cache", prepare_config, progress, progress.note),
    )
    pretrain_config = load_config(PretrainConfig, configs / "pretrain.yaml")
    source, preprocess = api.open_source(None, pretrain_config)
    stages.run(
        "pretrain",
        lambda: api.run_pretraining(
            pretrain_config, source, preprocess, out / "run", progress=progress, warn=progress.note
        ),
    )
    benchmark_config = load_config(BenchmarkConfig, configs / "benchmark.yaml")
    stages.run("benchmark", lambda: run_benchmark(benchmark_config, out / "benchmark", progress))
    stages.run("report", lambda: write_report(out / "benchmark", out / "report", progress))
    return {"report": out / "report" / "report.html", "seconds": round(sum(s["seconds"] for s in stages.done))}


def _write_configs(out: Path, size: str, overrides: Sequence[str]) -> Path:
    """The demo's settings with the paths of this folder; all are checked before anything runs."""
    packaged = resources.files("lejepa_med.cli") / "demo_configs"
    paths = {
        "pretrain": (f"data.cache={out / 'cache'}",),
        "benchmark": (
            f"data.cache={out / 'cache'}",
            f"data.index={out / 'index'}",
            *(f"tasks.{number}.labels={out / 'archive' / 'labels.csv'}" for number in range(3)),
            f"encoders.0.path={out / 'run'}",
            *(f"encoders.{number}.like={out / 'run'}" for number in (1, 2)),
        ),
    }
    kinds: dict[str, type[Frozen]] = {
        "index": IndexSettings,
        "prepare": PrepareConfig,
        "pretrain": PretrainConfig,
        "benchmark": BenchmarkConfig,
    }
    loaded = {}
    for name, kind in kinds.items():
        changes = [*paths.get(name, ()), *(_SMOKE.get(name, ()) if size == "smoke" else ())]
        changes += overrides if name == "pretrain" else ()
        with resources.as_file(packaged / f"{name}.yaml") as file:
            loaded[name] = load_config(kind, file, changes)
    folder = out / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in loaded.items():
        values = config.model_dump(mode="json", exclude_unset=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


_COMMANDS = {
    "archive": "(writes the synthetic archive)",
    "index": "lejepa-med index {out}/archive --out {out}/index --config {out}/configs/index.yaml",
    "prepare": "lejepa-med prepare {out}/index --out {out}/cache --config {out}/configs/prepare.yaml",
    "pretrain": "lejepa-med pretrain {out}/configs/pretrain.yaml --out {out}/run",
    "benchmark": "lejepa-med benchmark {out}/configs/benchmark.yaml --out {out}/benchmark",
    "report": "lejepa-med report {out}/benchmark --out {out}/report",
}


class _Stages:
    """Runs the stages, prints the command of each, and keeps their time and memory in `stages.json`."""

    def __init__(self, out: Path) -> None:
        self.out, self.done = out, list[dict[str, Any]]()

    def run(self, name: str, work: Callable[[], object]) -> None:
        number = len(self.done) + 1
        print(f"[{number}/{len(_COMMANDS)}] {_COMMANDS[name].format(out=self.out)}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        print(f"[{number}/{len(_COMMANDS)}] {name}: {duration(seconds)}", file=sys.stderr, flush=True)
        self.done.append({"stage": name, "seconds": round(seconds, 1), "peak_bytes_so_far": peak_resident_bytes()})
        (self.out / "stages.json").write_text(json.dumps(self.done, indent=1))
