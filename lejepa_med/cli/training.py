"""`views`, `pretrain`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from lejepa_med import api
from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import PretrainConfig, load_config
from lejepa_med.data.training_source import base_size
from lejepa_med.distributed import rank, said_once_per_machine
from lejepa_med.errors import UserError
from lejepa_med.training.bottleneck import in_words
from lejepa_med.training.log import last_line
from lejepa_med.training.run import step_datasets

_PNG = b"\x89PNG\r\n\x1a\n"


def views(options: argparse.Namespace) -> dict[str, Any]:
    """The views that the first step of this config trains on."""
    if options.samples < 1:
        raise UserError(f"views: --samples {options.samples}; a sheet has one row at least")
    config = load_config(PretrainConfig, options.config, options.overrides)
    _require_picture(options.out)
    source, _ = api.open_source(None, config)
    dataset, _ = step_datasets(config, source, base_size(config, source))
    api.draw_views(config, dataset, options.out, options.samples)
    return {"picture": options.out}


def _require_picture(file: Path) -> None:
    """A picture may replace a picture, and nothing else: not a scan, not a table."""
    if file.suffix.lower() != ".png":
        raise UserError(f"views: --out {file}; expected a name that ends in .png")
    try:
        with file.open("rb") as stream:
            is_picture = stream.read(8) == _PNG
    except FileNotFoundError:
        return
    if not is_picture:
        raise UserError(f"views: --out {file} is there and is no PNG; choose another name")


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """One run; SIGTERM and Ctrl-C finish the step, save and leave STOPPED."""
    with said_once_per_machine():
        config = load_config(PretrainConfig, options.config, options.overrides)
        source, preprocess = api.open_source(None, config)
    progress = ProgressLine(lambda stage: last_numbers(options.out) if stage == "pretrain" else "")
    run = api.run_pretraining(
        config, source, preprocess, options.out, resume=options.resume, progress=progress, warn=progress.note
    )
    if rank() > 0:
        raise SystemExit(0)  # the first rank speaks for all
    advice = {item.code: item.sentence for item in run.advice()}
    if run.finished:
        lines = [f"run: {run.path}", f"weights: {run.path / 'backbone.safetensors'}"]
        result: dict[str, Any] = {"run": run.path, "weights": run.path / "backbone.safetensors"}
        if early := (run.path / "DONE").read_text().strip():
            lines, result = [*lines, early], result | {"ended": early}
    else:
        resume = resume_command(options, run.path)
        lines = [f"stopped and saved; go on with: {resume}"]
        result = {"run": run.path, "resume": resume}
    lines += [f"advice: {sentence} [{code}]" for code, sentence in advice.items()]
    return result | {"advice": advice, "text": "\n".join(lines)}


def resume_command(options: argparse.Namespace, run: Path) -> str:
    """What goes on with a stopped run: with the settings of its command line, without which it would be refused."""
    words = ["lejepa-med", "pretrain", str(options.config), "--out", str(run), "--resume", *options.overrides]
    return shlex.join(words)


def last_numbers(run: Path) -> str:
    """Loss parts, speed, waiting and memory of the newest step in a run's record, as the end of a line of progress."""
    metrics, timing = last_line(run, "metrics"), last_line(run, "timing")
    names = {"total": "loss", "prediction": "prediction", "sigreg": "sigreg"}
    words = [f"{name} {metrics[key]:.4g}" for key, name in names.items() if key in metrics]
    if "samples_per_s" in timing:
        words.append(f"{timing['samples_per_s']:.3g} samples/s")
    if "data_wait" in timing:
        words.append(f"data wait {timing['data_wait']:.0%}")
    if "memory" in timing:
        words.append(in_words(int(timing["memory"])))
    probe = last_line(run, "probes")
    if "linear" in probe:
        words.append(f"probe {probe['task']} {probe['linear']:.3g} at step {probe['step']}")
    return "".join(f" | {word}" for word in words)
