# %% [markdown]
# # 7. Many GPUs, SLURM, and runs that are killed
#
# One config gives one training, on 1, 2 or 32 GPUs: `train.batch_size` is the batch of a step over all of them. Here
# two processes on the CPU take the place of two GPUs; the commands are the same. Then a run is killed in the middle,
# and resumed, and the record is compared line by line.

# %%
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lejepa_med.cli.main import main
from lejepa_med.data.synthetic import write_archive

WORK = None  # <- yours: the folder in which tutorials 2 and 3 left `cache`. None: synthetic heads
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")
ROOT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out"))
OUT = ROOT / "07_many_gpus"
SUBJECTS, STEPS, BATCH = {"smoke": (24, 8, 4), "full": (96, 60, 16)}[SIZE]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # two processes on two cores: a thread for each


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


def losses(run: Path) -> list[float]:
    """The loss of every step so far."""
    file = run / "metrics.jsonl"
    return [json.loads(line)["total"] for line in file.read_text().splitlines()] if file.exists() else []


OUT.mkdir(parents=True, exist_ok=True)
if WORK is None:
    WORK = ROOT / "work"
    if not (WORK / "cache" / "manifest.parquet").exists():  # what tutorials 2 and 3 do
        write_archive(WORK / "archive", subjects=SUBJECTS)
        command("index", WORK / "archive", "--out", WORK / "index", "modality=mri", "min_slices=8")
        command(
            "prepare", WORK / "index", "--out", WORK / "cache", "modalities=[mri]", "preprocess.spacing_mm=[4, 4, 4]"
        )

# %% [markdown]
# ## One process

# %%
settings = OUT / "pretrain.yaml"
settings.write_text(f"""\
data: {{cache: '{(WORK / "cache").as_posix()}', holdout: {{test_fraction: 0.4, seed: 0}}}}
model: {{name: resnet10_3d, width: 0.125}}
projector: {{hidden: 64, dim: 16}}
objective: {{num_slices: 64, kernel: eager}}
views:
  {{num_local: 2, global_size: [24, 24, 24], local_size: [12, 12, 12], base_crop_mm: 192,
   global_pitch_mm: [4, 8], local_pitch_mm: [4, 8]}}
train: {{steps: {STEPS}, batch_size: {BATCH}, checkpoint_every: 2, device: cpu, precision: float32}}
""")
if not (OUT / "one" / "DONE").exists():
    command("pretrain", settings, "--out", OUT / "one")

# %% [markdown]
# ## Two processes
# `torchrun` starts one process per GPU. Every rank reads its own part of the batch; the loss, and every BatchNorm, see
# all of it. So the first losses are those of one process but for the order of sums, 1e-7 in float32 (1e-3 in bf16);
# AdamW then lets rounding grow, as it does on one GPU of another kind. That is the check to make on your cluster too,
# once, before the run that takes a week.

# %%
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
pretrain = ["-m", "lejepa_med", "pretrain", str(settings), "--out"]
if not (OUT / "two" / "DONE").exists():
    print("\n$ torchrun --standalone --nproc-per-node 2", *pretrain, OUT / "two", flush=True)
    subprocess.run([*torchrun, *pretrain, str(OUT / "two")], env=ENVIRONMENT, check=True)
one, two = losses(OUT / "one"), losses(OUT / "two")
apart = [abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)]
print(f"{len(one)} steps, relative difference of the losses {apart[0]:.0e} at first, {apart[-1]:.0e} at last")

# %% [markdown]
# ## Killed, and resumed
# A node dies, without a word: `kill -9`. `--resume` goes on from the last checkpoint (`train.checkpoint_every`) and
# takes back the lines behind it. A batch depends on the seed and the step alone, so the record is the same as if
# nothing had happened. Ctrl-C and SIGTERM are gentler: they finish the step and save.

# %%
killed = OUT / "killed"
if not (killed / "DONE").exists():
    process = subprocess.Popen([sys.executable, *pretrain, str(killed)], env=ENVIRONMENT)
    while process.poll() is None and not (killed / "checkpoints" / "latest").exists():
        time.sleep(0.01)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    print(f"\nkilled after {len(losses(killed))} of {STEPS} steps")
    if not (killed / "DONE").exists():  # it might have been faster
        command("pretrain", settings, "--out", killed, "--resume")
same = (killed / "metrics.jsonl").read_bytes() == (OUT / "one" / "metrics.jsonl").read_bytes()
print(f"{len(losses(killed))} steps; the record is that of the undisturbed run, to the bit: {same}")

# %% [markdown]
# ## SLURM
# `sbatch configs/slurm/one_node.sh CONFIG RUN [key.path=value ...]`, or `several_nodes.sh`. What to change at their
# top:
#
# | line | is |
# |---|---|
# | `--ntasks-per-node`, `--gpus-per-node` | GPUs of a node, the same number twice: a task is a rank is a GPU |
# | `--nodes` | of `several_nodes.sh`; CONFIG, RUN and the cache lie where all nodes see them |
# | `--cpus-per-task` | cores that read ahead for one GPU; `data.workers` of the config should be about as many |
# | `--time` | of one slice of the run, not of the run: it is queued again until it is done |
# | `--signal=TERM@180`, `--requeue` | leave these: the run saves three minutes before the end, and is queued again |
#
# After an error it is not queued again. Larger than a GPU's memory? First `train.micro_batch`, then
# `train.activation_checkpointing`, then `train.parallel=fsdp`. `lejepa-med plan CONFIG` says before what would fit.

# %%
result = {"one": one, "two": two, "apart": apart, "same_after_kill": same, "steps": len(losses(killed))}
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - What is exact, and what differs by rounding: `docs/several_gpus.md`.
# - How fast is your data path: `lejepa-med doctor CACHE`.
# - Containers for clusters without internet: `docker/`.
