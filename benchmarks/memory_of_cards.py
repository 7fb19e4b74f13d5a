"""What every config in `configs/pretrain/` needs on GPUs of 16, 24, 80 and 141 GB, by the arithmetic of `plan`.

    python benchmarks/memory_of_cards.py            # some minutes on one core; no GPU is needed, nothing is allocated

Prints for each file the comment that stands in it: the memory of its own batch size, and for each card how many volumes
go through in one pass, which is the largest `train.batch_size` without `train.micro_batch`. A plan uses 90 % of a card,
all of it free before.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from lejepa_med.config import PlanConfig, load_config
from lejepa_med.training.planning import Plan, memory_needed
from lejepa_med.training.planning_probe import make_plan

CONFIGS = Path(__file__).parent.parent / "configs" / "pretrain"
CARDS_GB = (16, 24, 80, 141)
LARGEST = 8192


def planned(file: Path) -> Plan:
    """For a GPU that is not here, without a cache."""
    spacing = 1.5 if "ct" in file.stem.split("_") else 1.0
    words = ["data.cache=not_there", f"plan.device_memory_gb={CARDS_GB[0]}", f"plan.spacing_mm={spacing}"]
    return make_plan(load_config(PlanConfig, file, [*words, "plan.probe_seconds=0"]))


def on_card(plan: Plan, gigabytes: int) -> Plan:
    return dataclasses.replace(plan, device=dataclasses.replace(plan.device, memory=round(gigabytes * 1e9)))


def largest_batch(plan: Plan) -> int:
    """In one pass; 0 if not one volume fits."""

    def fits(batch: int) -> bool:
        train = plan.config.train.model_copy(update={"batch_size": batch, "micro_batch": None})
        config = plan.config.model_copy(update={"train": train})
        assert plan.available is not None
        return memory_needed(config, plan.cost, plan.archive, plan.device).total <= plan.available

    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def comment(file: Path) -> str:
    """The lines in the config."""
    plan = planned(file)
    train = plan.config.train
    most = [largest_batch(on_card(plan, card)) for card in CARDS_GB]
    each = ", ".join(f"{number} on {card} GB" for number, card in zip(most, CARDS_GB, strict=True))
    parts = f" in parts of {train.micro_batch}" if train.micro_batch else ""
    return (
        "# Memory, computed by `lejepa-med plan`, not measured: "
        f"{plan.memory.total / 1e9:.0f} GB for {train.batch_size} volumes{parts}.\n"
        f"# In one pass at most {each}; more with train.micro_batch.\n"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("files", nargs="*", type=Path, default=sorted(CONFIGS.glob("*.yaml")))
    for file in arguments.parse_args().files:
        print(f"{file.name}\n{comment(file)}", flush=True)


if __name__ == "__main__":
    main()
