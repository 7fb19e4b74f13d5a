"""What the diagnostics of a run advise: a pure function from its record and its config to sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lejepa_med.config import PretrainConfig
from lejepa_med.training.advice_lines import Line, Lines
from lejepa_med.training.advice_rules import OF_LEJEPA, RULES
from lejepa_med.training.log import is_missing


@dataclass(frozen=True)
class Advice:
    """`code` names the rule, as in diagnostics.jsonl; `sentence` says what was seen and what to do."""

    code: str
    sentence: str


def advise(lines: Lines, config: PretrainConfig, probes: Lines = ()) -> list[Advice]:
    """All that holds at the last of the lines of `diagnostics.jsonl` (and of `probes.jsonl`); nothing for no lines."""
    if not lines:
        return []
    if probes:
        lines = [*lines[:-1], {**lines[-1], "probes": list(probes)}]
    silent = () if config.objective.kind == "lejepa" else OF_LEJEPA
    found = ((code, rule(lines, config)) for code, rule in RULES.items() if code not in silent)
    return [Advice(code, sentence) for code, sentence in found if sentence is not None]


class Adviser:
    """The advice of a run line by line: each is said once, when it first holds.

    It does not look at the online probe, whose lines come when they are done: the record is the same each time.
    """

    def __init__(self, config: PretrainConfig, lines: Lines, say: Callable[[str], None] | None) -> None:
        self.config, self.lines, self.say = config, list(lines), say
        self._said = {code for line in lines for code in line.get("advice", [])}

    def __call__(self, line: Line) -> list[str]:
        """The codes that hold now that `line` has been measured."""
        self.lines.append({key: value for key, value in line.items() if not is_missing(value)})
        holding = advise(self.lines, self.config)
        for advice in holding:
            if advice.code not in self._said and self.say is not None:
                self.say(f"step {line['step']}: {advice.sentence} [{advice.code}]")
            self._said.add(advice.code)
        return [advice.code for advice in holding]
