"""`index`, `convert`, `prepare`, `cache`: from files to prepared volumes."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict
from typing import Any

from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import ComputeConfig, IndexSettings, PrepareConfig, load_config
from lejepa_med.data import converting, preparing
from lejepa_med.data.cache import Cache
from lejepa_med.data.files.own_output import check_out
from lejepa_med.data.index import archive
from lejepa_med.errors import UserError


def index(options: argparse.Namespace) -> dict[str, Any]:
    """The account of an archive; it closes: files seen = used + explained."""
    settings = load_config(IndexSettings, options.config, options.overrides)
    summary = archive.index(options.paths, options.out, settings, ProgressLine())
    return {**asdict(summary), "table": options.out / "series.csv", "page": options.out / "index.html"}


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """NIfTI files of an index, or of raw folders that are indexed first."""
    settings = load_config(IndexSettings, options.config, options.overrides)
    if len(options.paths) == 1 and (options.paths[0] / "files.parquet").exists():
        source = options.paths[0]
    else:
        check_out("convert", options.out, "converted")
        source = options.out / "index"
        is_new = not options.out.exists()
        try:
            archive.index(options.paths, source, settings, ProgressLine())
        except UserError:
            if is_new:  # nothing came of it
                with contextlib.suppress(OSError):
                    options.out.rmdir()
            raise
    count = converting.convert(source, options.out, ProgressLine(), settings.compute)
    result: dict[str, Any] = {"converted": count, "table": options.out / "series.csv"}
    if left := sum(1 for _ in options.out.glob("*.nii.gz")) - count:
        result["of an earlier index"] = f"{left:,} NIfTI files, which the table does not name"
    return result


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """A cache, and the account of what is not in it."""
    config = load_config(PrepareConfig, options.config, options.overrides)
    progress = ProgressLine()
    summary = preparing.prepare(options.index, options.out, config, progress, progress.note)
    return {**asdict(summary), "cache": options.out}


def cache(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes checked against their checksums, or counts and sizes."""
    opened = Cache.open(options.cache)
    if options.action == "stats":
        return opened.stats()
    damaged, strays = list(opened.verify(ComputeConfig())), opened.strays()
    return {
        "volumes": len(opened),
        "damaged": len(damaged),
        "series": damaged[:20],
        "files_not_listed": {kind: len(files) for kind, files in strays.items() if files},
        "exit_code": int(bool(damaged)),
    }
