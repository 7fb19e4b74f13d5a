"""The SLURM scripts start every rank, go on from a checkpoint, and queue themselves again behind a stop only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [*sorted((ROOT / "configs" / "slurm").glob("*.sh")), ROOT / "docker" / "slurm_apptainer.sh"]
COMMANDS = {
    # two ranks, one after the other: what srun does with a task
    "srun": 'shift; for SLURM_PROCID in 0 1; do export SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID; "$@" || exit $?; done',
    "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> "$CALLS"; fi',
    # what comes after the options and the image is for the program in it
    "apptainer": 'while [ "$1" != image.sif ]; do shift; done; shift; exec lejepa-med "$@"',
    "lejepa-med": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $@" >> "$CALLS"; [ -z "$CODE" ] || exit $CODE; '
    'if [ -n "$LEAVES" ]; then touch "$4/$LEAVES"; fi',
}


def submit(folder: Path, script: Path, leaves: str = "", code: str = "") -> tuple[int, list[str]]:
    """The exit code of the job, and what was called."""
    for name, body in COMMANDS.items():
        command = folder / name
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    slurm = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "3"}
    environment = os.environ | slurm | {"CALLS": str(calls), "LEAVES": leaves, "CODE": code, "IMAGE": "image.sif"}
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    (folder / "my run").mkdir(exist_ok=True)
    words = ["bash", str(script), "c.yaml", "my run", "train.steps=5"]
    done = subprocess.run(words, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_job_through_its_life(tmp_path: Path, script: Path) -> None:
    host = "node7" if script.stem == "several_nodes" else "127.0.0.1"
    words = "pretrain c.yaml --out my run"
    assert submit(tmp_path, script, leaves="STOPPED") == (
        0,
        [f"{rank} {rank} 2 {host} {words} train.steps=5" for rank in (0, 1)] + ["requeue 12"],
    )
    (tmp_path / "my run" / "checkpoints").mkdir()
    (tmp_path / "my run" / "config.yaml").touch()
    (tmp_path / "my run" / "STOPPED").unlink()
    code, calls = submit(tmp_path, script, leaves="DONE")
    assert (code, calls) == (0, [f"{rank} {rank} 2 {host} {words} --resume train.steps=5" for rank in (0, 1)])
    (tmp_path / "my run" / "STOPPED").touch()
    code, calls = submit(tmp_path, script, code="2")
    assert code == 2 and not any("requeue" in call for call in calls), "an error is not tried again and again"


def test_all_ask_for_the_signal_in_time() -> None:
    assert [script.stem for script in SCRIPTS] == ["one_node", "several_nodes", "slurm_apptainer"]
    for script in SCRIPTS:
        text = script.read_text()
        assert "#SBATCH --signal=TERM@180\n" in text and "#SBATCH --requeue\n" in text
        tasks, gpus = (line.split("=")[1] for line in text.splitlines() if "-per-node=" in line and "SBATCH" in line)
        assert tasks == gpus
