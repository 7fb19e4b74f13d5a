"""`doctor`: what works on this machine, in words; with a cache, how fast its data path is and what holds it back."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lejepa_med._version import __version__
from lejepa_med.cli import doctor_text
from lejepa_med.cli.checkup import Check, check_all
from lejepa_med.config import PretrainConfig, load_config
from lejepa_med.errors import ConfigError
from lejepa_med.training import data_path


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """With a cache its data path, else the checks. Exit code 1 if the main job cannot run, 2 for damaged entries."""
    if options.cache is not None:
        return _data_path(options)
    if options.overrides or options.config is not None:
        raise ConfigError("settings are for measuring a cache: lejepa-med doctor CACHE --config FILE")
    checks = check_all()
    failed = any(check.state == "fails" for check in checks)
    result = {"version": __version__, "checks": _by_group(checks), "exit_code": int(failed)}
    result["problems"] = [f"{check.name}: {check.advice}" for check in checks if check.advice]
    return result if options.json else result | {"text": doctor_text.of_checks(checks)}


def _by_group(checks: list[Check]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for check in checks:
        groups.setdefault(check.group, {})[check.name] = {"state": check.state, "value": check.value, **check.numbers}
    return groups


def _data_path(options: argparse.Namespace) -> dict[str, Any]:
    file = options.config
    config = None
    if file is not None or options.overrides:
        config = load_config(PretrainConfig, file, options.overrides)
    if not options.json and sys.stderr.isatty():
        print("measuring; this takes about a minute ...", file=sys.stderr, flush=True)
    measured = data_path.measure(options.cache, config)
    result = doctor_text.as_numbers(measured) | {"exit_code": 2 if measured.damaged else 0}
    return result if options.json else result | {"text": doctor_text.of_data_path(measured)}
