"""The shell commands in README.md and docs/, and which of them no test runs, with the reason: the one list of these."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "docker" / "README.md", *(ROOT / "docs").rglob("*.md")])
_PROGRAMS = {
    *("lejepa-med", "make", "python", "python3", "pip", "torchrun", "sbatch", "apptainer", "docker", "dask", "mkdir"),
    *("nnUNetv2_train", "curl", "git", "cd"),
}
_FENCES = {"bash", "console", "sh", "shell"}

NOT_RUN = {
    r"docker |mkdir -p work && docker|ARCHIVE=\S+ WORK=\S+ docker|apptainer ": "needs a container engine",
    r"(\w+=\S+ )*sbatch ": "needs SLURM; tests/test_slurm.py runs the scripts with stand-ins for its commands",
    r"torchrun ": "several GPUs; tests/training/test_several_ranks.py runs ranks on CPUs",
    r"dask |lejepa-med .* compute\.scheduler=": "a cluster; tests/test_compute.py starts one on this machine",
    r"pip (install|wheel)|python3 -m venv": "needs a network, and would change the environment of the tests",
    r"make (demo|test|check|docs|clean)\b": "the Makefile's own targets: each is checked to be there, CI runs "
    "them, and tests/cli/test_demo.py runs the demo at smoke size",
    r"python benchmarks/|python docs/draw_": "measurements and drawings of minutes to hours, many on real scans: their "
    "options are checked against --help",
    r"lejepa-med select (selection/|runs/phantoms)": "ranks the runs of benchmarks/small_batches.py, hours of training",
    r"lejepa-med demo --out (try|demo) --size smoke": "tests/cli/test_demo.py runs the same",
}


@dataclass(frozen=True)
class Command:
    """One line of a shell block, comments taken off and continuations joined."""

    page: str
    line: int
    text: str

    @property
    def reason_not_run(self) -> str | None:
        """Why no test runs it; None if one does."""
        return next((reason for start, reason in NOT_RUN.items() if re.match(start, self.text)), None)


def commands_of(file: Path) -> list[Command]:
    """Commands of the fenced shell blocks and of the indented blocks that begin with a program's name."""
    found: list[Command] = []
    fence, pending = None, ""
    page = file.relative_to(ROOT).as_posix()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip().strip("`").split(" ")[0] or "text"
            continue
        shell = fence in _FENCES or (fence is None and line.startswith("    "))
        text = line.strip().removeprefix("$ ")
        if not shell or not (pending or _is_command(text)):
            pending = ""
            continue
        pending += re.sub(r"\s+#.*$", "", text)
        if pending.endswith("\\"):
            pending = pending.removesuffix("\\")
            continue
        found.append(Command(page, number, pending))
        pending = ""
    return found


def _is_command(text: str) -> bool:
    words = [word for word in text.split() if not re.match(r"[A-Z]+=", word)]
    printed = re.match(r"lejepa-med \w+: ", text)  # a message that begins with the program's name
    return bool(words) and words[0] in _PROGRAMS and not printed


def all_commands() -> list[Command]:
    """Of every page, in the order of the page."""
    return [command for page in PAGES for command in commands_of(page)]
