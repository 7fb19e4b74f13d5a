"""`lejepa-med VERB`: parses arguments, hands them to one function per verb, turns user errors into one sentence.

Nothing heavy is imported before the verb is known, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lejepa_med._version import __version__
from lejepa_med.cli.answers import Grammar, WordsError, as_json, failure, hint, of_the_verb, only_the_answer
from lejepa_med.cli.progress import shown_while
from lejepa_med.errors import ConfigError, UserError

_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
_SWITCHES = ("--json", "--resume", "--dry-run", "--with-record")
_VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the whole path on a synthetic archive, some 9 minutes on 2 CPU cores"),
    "doctor": ("doctor", "what works here; with a cache: how fast its data path is"),
    "index": ("archive", "scan an archive: one row per series, with verdict and reason"),
    "convert": ("archive", "write each used volume as NIfTI"),
    "prepare": ("archive", "preprocess an index, or a published collection, into a cache"),
    "cache": ("archive", "verify or describe a cache"),
    "views": ("training", "contact sheet of the views that a config makes"),
    "plan": ("planning", "memory, disk and hours of a pretraining before anything starts"),
    "pretrain": ("training", "pretrain a backbone with LeJEPA"),
    "select": ("selection", "rank runs without labels; with probe results, how well the loss predicts them"),
    "embed": ("evaluation", "embeddings of scans"),
    "probe": ("evaluation", "one frozen evaluation: linear and k-NN"),
    "finetune": ("evaluation", "one fine-tuning"),
    "benchmark": ("evaluation", "the grid: tasks x encoders x methods x budgets x seeds"),
    "report": ("evaluation", "the page, tables and figures of a benchmark"),
    "export": ("evaluation", "a backbone that loads anywhere, with its preprocessing inside"),
    "config": (
        "settings",
        "the full YAML of a config kind, each field with its comment; or, by name, one to start from",
    ),
}


_INTERRUPTED = 130
_CONFIGURED = set(_VERBS) - {"cache", "embed", "report", "export", "config"}
_GOES_ON = {
    **dict.fromkeys(("index", "prepare", "benchmark"), "; the same command goes on where it was"),
    "pretrain": "; --resume goes on from what was saved",
}


def program() -> NoReturn:
    """The command `lejepa-med`: `main`, and the end of the process."""
    code = main()
    if code != _INTERRUPTED:
        sys.exit(code)
    # A thread that is still inside a step would abort the interpreter as it ends, and the shell would see that.
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 1 doctor found the main job impossible, 2 user error)."""
    words, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
    options = _parsed(words)
    options.overrides = overrides
    if options.verb is None:
        parser().print_help()
        return 2
    try:
        with only_the_answer(options.json):
            result = _run(options)
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, options)
    code = int(result.pop("exit_code", 0))
    if options.json:
        print(as_json(result))
    else:
        print(result.get("text") or describe(result))
    return code


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    grammar = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could follow
        import argcomplete

        argcomplete.autocomplete(grammar)
    try:
        return grammar.parse_args(words)
    except WordsError as error:
        usage, program = of_the_verb(grammar, words) or (error.usage, error.program)
        sentence = f"{error}{hint(str(error), words, tuple(_VERBS), usage)}"
        print(f"{usage}{program}: error: {sentence}", file=sys.stderr)
        if "--json" in words:
            print(failure(sentence, "UsageError"))
        raise SystemExit(2) from None


def _run(options: argparse.Namespace) -> dict[str, Any]:
    module, _ = _VERBS[options.verb]
    if options.overrides and options.verb not in _CONFIGURED:
        raise ConfigError(f"override `{options.overrides[0]}`: `{options.verb}` has no settings")
    with shown_while("loading libraries ..."):
        handler = getattr(importlib.import_module(f"lejepa_med.cli.{module}"), options.verb)
    result: dict[str, Any] = handler(options)
    return result


def _failed(error: Exception | KeyboardInterrupt, options: argparse.Namespace) -> int:
    """Says in a sentence what the user can change, and returns the exit code; raises what is a defect of ours."""
    kind, code = type(error).__name__, 2
    if isinstance(error, UserError):
        sentence = str(error).removeprefix(f"{options.verb}: ")
    elif isinstance(error, KeyboardInterrupt):
        sentence, code = f"interrupted{_GOES_ON.get(options.verb, '')}", _INTERRUPTED
    elif isinstance(error, OSError) and _is_below(error.filename, getattr(options, "out", None)):
        reason = os.strerror(error.errno or errno.EIO).lower()
        sentence, kind = f"--out {options.out} cannot be written ({reason})", "OutputError"
    else:
        if options.json:
            print(failure(f"a defect of lejepa-med ({kind}); its traceback is on standard error", "Defect"))
        raise error
    print(f"lejepa-med {options.verb}: {sentence}", file=sys.stderr)
    if options.json:
        print(failure(sentence, kind))
    return code


def _is_below(file: object, out: Path | None) -> bool:
    """Whether an error is about the output, or the folders that lead there."""
    if out is None or not isinstance(file, str):
        return False
    target = out.absolute()
    return target.is_relative_to(Path(file).absolute()) or Path(file).absolute().is_relative_to(target.parent)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a path is empty; is a variable of the shell not set?")
    return Path(text)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words for argparse, and the `key.path=value` overrides, which may stand anywhere after the verb.

    The value of an option, and an existing path with a `=` in its name, are no overrides.
    """
    kept, overrides = [], []
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and before not in _SWITCHES
        if _OVERRIDE.match(word) and not is_value and not Path(word).exists():
            overrides.append(word)
        else:
            kept.append(word)
    return kept, overrides


def describe(result: dict[str, Any]) -> str:
    """A result as lines of `key: value`."""
    return "\n".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in result.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    top = Grammar(
        prog="lejepa-med",
        description="Pretrain your own medical imaging backbone with LeJEPA, and compare it with DINOv2.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"lejepa-med {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    for verb, (_, help_text) in _VERBS.items():
        sub = verbs.add_parser(verb, help=help_text, description=help_text, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
        _ARGUMENTS[verb](sub)
    return top


def _demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=_path, default=Path("demo"), help="folder to write (default: demo)")
    sub.add_argument("--size", choices=("full", "smoke"), default="full", help="smoke: a few subjects and steps")


def _doctor(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("cache", nargs="?", type=_path, help="a cache whose data path is measured, in about a minute")
    sub.add_argument(
        "--config", type=_path, help="of `pretrain`: views, model, batch size and workers (default: usual)"
    )


def _paths(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("paths", nargs="+", type=_path, help="folders or files; key.path=value overrides settings")
    sub.add_argument("--out", type=_path, required=True)
    sub.add_argument("--config", type=_path)


def _prepare(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "index", type=_path, help="folder written by `index`, or of a published layout (docs/collections.md)"
    )
    sub.add_argument("--out", type=_path, required=True)
    sub.add_argument("--config", type=_path)


def _cache(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=("verify", "stats"))
    sub.add_argument("cache", type=_path)


def _configured(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", type=_path, help="YAML file; see `lejepa-med config KIND`")
    sub.add_argument("--out", type=_path, required=True)


def _views(sub: argparse.ArgumentParser) -> None:
    _configured(sub)
    sub.add_argument("--samples", type=int, default=6, help="rows of the sheet (default: 6)")


def _plan(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", type=Path, help="of `pretrain`; its section `plan` describes another machine")


def _pretrain(sub: argparse.ArgumentParser) -> None:
    _configured(sub)
    sub.add_argument("--resume", action="store_true", help="continue the run in --out exactly")


def _select(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("runs", nargs="+", type=_path, metavar="RUN", help="run directories that are finished")
    sub.add_argument("--out", type=_path, help="folder for selection.csv, .json, .md and .png (default: print only)")
    sub.add_argument(
        "--results", nargs="+", type=_path, default=[], metavar="PATH",
        help="probe or benchmark folders, result.json files, or CSV with `run, score`; RUN/probe*/ is found by itself",
    )  # fmt: skip
    sub.add_argument("--config", type=_path)


def _benchmark(sub: argparse.ArgumentParser) -> None:
    _configured(sub)
    sub.add_argument("--dry-run", action="store_true", help="print the grid and stop")


def _embed(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=_path, help="run, export or weight file")
    sub.add_argument("data", nargs="+", type=_path, help="a cache, or NIfTI files, images and DICOM folders")
    sub.add_argument("--out", type=_path, required=True, help="FILE.parquet")
    sub.add_argument("--modality", choices=("mri", "ct", "pet"), help="of NIfTI files")


def _report(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("benchmark", type=_path, help="folder written by `benchmark`")
    sub.add_argument("--out", type=_path, help="folder of the report (default: BENCHMARK/report)")


def _export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=_path)
    sub.add_argument("--out", type=_path, required=True)
    sub.add_argument(
        "--format", choices=("safetensors", "onnx", "torch"), default="safetensors",
        help="onnx, torch: the embedding as a program too, for any number of windows",
    )  # fmt: skip
    sub.add_argument(
        "--with-record",
        action="store_true",
        help="with the keys of who was trained on, for leak checks (default: counts)",
    )


def _config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "kind", choices=("index", "prepare", "plan", "pretrain", "probe", "finetune", "benchmark", "select")
    )
    sub.add_argument("name", nargs="?", help="of a starting point, e.g. brain_mri_resnet3d; without: all fields")


_ARGUMENTS = {
    "demo": _demo,
    "doctor": _doctor,
    "index": _paths,
    "convert": _paths,
    "prepare": _prepare,
    "cache": _cache,
    "views": _views,
    "plan": _plan,
    "pretrain": _pretrain,
    "select": _select,
    "embed": _embed,
    "probe": _configured,
    "finetune": _configured,
    "benchmark": _benchmark,
    "report": _report,
    "export": _export,
    "config": _config,
}
