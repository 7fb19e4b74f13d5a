# %% [markdown]
# # 5. Is it better than DINOv2? The full comparison
#
# A number alone says nothing. `benchmark` gives your backbone and its rivals the same test patients, the same labels
# and the same search: DINOv2 on slices, the same network untrained, the same network trained on the labels alone, plain
# pixels, and what a shortcut would use (the size of the box, the intensities).

# %%
import json
import os
from pathlib import Path

import pandas as pd

from lejepa_med.cli.main import main
from lejepa_med.data.synthetic import write_archive

WORK = None  # <- yours: the folder in which tutorials 2 and 3 left `index`, `cache` and `run`. None: synthetic heads
LABELS = None  # <- yours: a CSV file with patient_id (or series_key, path, ...) and label columns
COLUMN = "ventricle_grade"  # <- yours: the column of LABELS that is to be told
MODALITY = "mri"  # <- yours: mri, ct, pet or image
HOLDOUT = 0.4  # <- yours: as in pretraining (data.holdout.test_fraction)
DINOV2 = None  # <- yours: Path("dinov2_vits14_pretrain.pth"), from the repository of its authors
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")  # full: some two minutes on two cores; smoke: it only runs
ROOT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out"))
OUT = ROOT / "05_compare_with_dinov2"
SUBJECTS, STEPS, BATCH, SEEDS, EPOCHS = {"smoke": (24, 6, 8, 1, 1), "full": (96, 250, 48, 3, 10)}[SIZE]


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


# %%
OUT.mkdir(parents=True, exist_ok=True)
if WORK is None:
    WORK = ROOT / "work"
    if not (WORK / "run" / "DONE").exists():  # what tutorials 2 and 3 do
        write_archive(WORK / "archive", subjects=SUBJECTS)
        command("index", WORK / "archive", "--out", WORK / "index", "modality=mri", "min_slices=8")
        command(
            "prepare", WORK / "index", "--out", WORK / "cache", "modalities=[mri]", "preprocess.spacing_mm=[4, 4, 4]"
        )
        (OUT / "pretrain.yaml").write_text(f"""\
data: {{cache: '{(WORK / "cache").as_posix()}', holdout: {{test_fraction: {HOLDOUT}, seed: 0}}}}
model: {{name: resnet10_3d, width: 0.25}}
projector: {{hidden: 256, dim: 32}}
views:
  {{num_local: 4, global_size: [24, 24, 24], local_size: [12, 12, 12], global_fraction: [0.5, 1.0],
   local_fraction: [0.2, 0.5], base_crop_mm: 192, global_pitch_mm: [4, 8], local_pitch_mm: [4, 8]}}
optim: {{lr: 2e-3}}
train: {{steps: {STEPS}, batch_size: {BATCH}}}
inference: {{window: [24, 24, 24], pitch_mm: 8.0}}
""")
        command("pretrain", OUT / "pretrain.yaml", "--out", WORK / "run")

# %% [markdown]
# ## What is compared
# `labels` is a table with one row per patient; text or few whole numbers are classes, other numbers a regression.
# `holdout` must be the two numbers of pretraining: the benchmark checks that the run saw none of the test patients.
# `budgets` are labels per class; most hospitals are at 10, not at 1,000. `configs/benchmark/example.yaml` has every
# field with a comment.

# %%
labels = LABELS or WORK / "archive" / "labels.csv"
settings = OUT / "benchmark.yaml"
settings.write_text(f"""\
data: {{cache: '{(WORK / "cache").as_posix()}', index: '{(WORK / "index").as_posix()}', modalities: [{MODALITY}]}}
tasks:
  - {{name: {json.dumps(COLUMN)}, labels: '{labels.as_posix()}', column: {json.dumps(COLUMN)}}}
encoders:
  - {{kind: run, name: LeJEPA, path: '{(WORK / "run").as_posix()}'}}
  - {{kind: random, name: random init, like: '{(WORK / "run").as_posix()}'}}
  - {{kind: scratch, name: from scratch, like: '{(WORK / "run").as_posix()}'}}
  - {{kind: pixels, name: pixels + PCA}}
  - {{kind: shape, name: shape + intensity}}
  - kind: timm2d
    name: DINOv2 ViT-S
    model: vit_small_patch14_dinov2
    positions: dinov2   # the rule of Meta's file
    weights: {json.dumps(DINOV2 and str(DINOV2))}
holdout: {{test_fraction: {HOLDOUT}, seed: 0}}
budgets: [1, 2, 5, 10]
seeds: {SEEDS}
methods: [linear, knn, finetune]
finetune_budgets: [{1 if SIZE == "smoke" else 5}]
finetune_seeds: 1
finetune: {{epochs: {EPOCHS}, min_steps: {EPOCHS}, grid: [1.0]}}
""")

# %% [markdown]
# ## Without work first
# `--dry-run` prints the grid: tasks x encoders x methods x budgets x seeds. Budgets that some class cannot fill are
# left out.

# %%
command("benchmark", settings, "--out", OUT / "benchmark", "--dry-run")

# %% [markdown]
# ## The comparison
# Stopped or extended by a row? Type it again: only what is new is computed. Nothing is downloaded: without its file the
# rows of DINOv2 say "no weights given", and nothing takes their place. DINOv2 trained further on your scans is the
# strongest rival: `configs/pretrain/slices_2d_dinov2_continued.yaml`.

# %%
command("benchmark", settings, "--out", OUT / "benchmark")
command("report", OUT / "benchmark")

# %% [markdown]
# ## Reading it
# Of the synthetic heads: balanced accuracy, chance .25, with the 95 % interval over test patients and draws of the
# labels. Ask in this order:
#
# 1. Is it above **random init**? If not, pretraining taught nothing that this task needs.
# 2. Above **pixels + PCA** and **shape + intensity**? If not, the task is solved by less than a network.
# 3. Above **DINOv2**, at the budgets you have? And fine-tuned, above **from scratch**?
#
# Two intervals that overlap may still differ: `differences` in `summary.json`, and the report, are paired on the same
# patients. With this few test patients expect wide intervals: that is the honest answer. At smoke size numbers mean
# nothing.

# %%
summary = json.loads((OUT / "benchmark" / "summary.json").read_text())
rows = pd.DataFrame(summary["rows"])
for row in rows[rows["method"].isin(["linear", "finetune"])].to_dict("records"):
    value = "" if pd.isna(row["value"]) else f"{row['value']:.2f}"
    interval = "" if pd.isna(row["low"]) else f"[{row['low']:.2f}, {row['high']:.2f}]"  # none below ten patients
    print(f"{row['encoder']:18s} {row['method']:9s} {row['budget']!s:>4s}  {value} {interval}")
for message in summary["messages"]:
    print("-", message)
print("the page:", OUT / "benchmark" / "report" / "report.html")

# %%
result = {
    "counts": summary["counts"],
    "leaks": summary["leaks"],
    "encoders": sorted(set(rows["encoder"])),
    "dinov2_values": int(rows[rows["encoder"] == "DINOv2 ViT-S"]["value"].notna().sum()),
    "values": {f"{row['encoder']}, {row['method']}, {row['budget']}": row["value"] for row in summary["rows"]},
}
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - Masks instead of labels: tutorial 6.
# - How each number is made: `docs/evaluation_protocol.md`.
# - Before you write it into a paper: three pretraining seeds as one arm (`group` of an encoder), so that the interval
#   knows about the luck of training too, and `finetune_seeds: 5`, or fine-tuning stands on one draw of the labels.
