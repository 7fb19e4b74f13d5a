"""What a verb says to programs: with `--json` one JSON object on standard output and nothing else, errors too.

{...the result...}                                 exit code 0; `doctor` and `plan` also 1
{"error": "one sentence", "kind": "ConfigError"}   exit code 2; 1 for a defect of ours; 130 interrupted
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn


class WordsError(Exception):
    """Words that are no command line."""

    def __init__(self, usage: str, program: str, message: str) -> None:
        super().__init__(message)
        self.usage, self.program = usage, program


class Grammar(argparse.ArgumentParser):
    """A parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise WordsError(self.format_usage(), self.prog, message)


def of_the_verb(grammar: argparse.ArgumentParser, words: Sequence[str]) -> tuple[str, str] | None:
    """Usage and name of the verb that was typed: argparse gives the top's for words that no verb knows."""
    for action in grammar._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            verb = action.choices[words[0]]
            return verb.format_usage(), verb.prog
    return None


def hint(message: str, words: Sequence[str], verbs: Sequence[str], usage: str) -> str:
    """What was probably meant by a mistyped verb or option, or by a setting that was typed as an option."""
    if words and words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        return f"; did you mean `{near[0]}`?" if near else ""
    known = set(re.findall(r"--[a-z-]+", usage))
    for word in message.partition("unrecognized arguments: ")[2].split():
        name, sign, _ = word.partition("=")
        if word.startswith("--"):
            near = difflib.get_close_matches(name, sorted(known), n=1)
            if near:
                return f"; did you mean `{near[0]}`?"
            return f"; settings have no dashes: {word.removeprefix('--')}" if sign else ""
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word):
            return f"; a setting is one word: {word}=VALUE"
    return ""


@contextlib.contextmanager
def only_the_answer(wanted: bool) -> Iterator[None]:
    """Inside, what libraries print goes to standard error."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def as_json(result: dict[str, Any]) -> str:
    """One line that every JSON reader takes: numbers that are not finite are null."""
    return json.dumps(_plain(result), default=_scalar, allow_nan=False)


def failure(sentence: str, kind: str) -> str:
    """The object of an error."""
    return as_json({"error": sentence, "kind": kind})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalar(value: Any) -> Any:
    """A number of numpy as it is; a path and anything else in words."""
    return _plain(value.item()) if hasattr(value, "item") else str(value)
