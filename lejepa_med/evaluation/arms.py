"""What is compared with what: an encoder, or all encoders of one `group`, which are repeats of one arm."""

from __future__ import annotations

from dataclasses import dataclass

from lejepa_med.config.evaluation import BenchmarkConfig, EncoderConfig, role_of


@dataclass(frozen=True)
class Arm:
    """One line of a table: its encoders, such as runs that differ in their pretraining seed only."""

    name: str
    kind: str
    members: tuple[str, ...]
    is_rival: bool = False


def arms_of(config: BenchmarkConfig) -> list[Arm]:
    """Every arm of a benchmark, in the order in which its first encoder stands there.

    An arm is a rival if one of its encoders has that role, given or by its kind.
    """
    together: dict[str, list[EncoderConfig]] = {}
    for encoder in config.encoders:
        together.setdefault(encoder.group or encoder.name, []).append(encoder)
    return [
        Arm(
            name,
            found[0].kind,
            tuple(one.name for one in found),
            any(role_of(one) == "rival" for one in found),
        )
        for name, found in together.items()
    ]


def reference_of(config: BenchmarkConfig) -> Arm | None:
    """The arm that the others are compared with: that of the first pretrained run whose role is ours."""
    first = next((one.name for one in config.encoders if one.kind == "run" and role_of(one) == "ours"), None)
    return next((arm for arm in arms_of(config) if first in arm.members), None)
