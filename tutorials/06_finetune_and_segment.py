# %% [markdown]
# # 6. Fine-tune and segment
#
# With labels at hand you train on: a class per scan (`finetune`), or a mask per scan (`segment_linear`,
# `segment_decoder`, `segment_finetune`). The question stays the same: does pretraining save labels, against the same
# network from scratch?
#
# Masks come as nnU-Net keeps them, so that a data set of yours that nnU-Net reads is read as it lies on the disk.

# %%
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from lejepa_med.cli.main import main
from lejepa_med.data.synthetic import draw_scan, draw_subject, head_phantom, tissue_fractions

DATASET = None  # <- yours: Path("nnUNet_raw/Dataset010_MINE"). None: heads with masks are written
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")  # full: some two minutes on two cores; smoke: it only runs
OUT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out")) / "06_finetune_and_segment"
CASES, STEPS, BATCH, EPOCHS, STEPS_OF_HEAD = {"smoke": (20, 3, 6, 1, 2), "full": (64, 150, 32, 10, 60)}[SIZE]


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


# %% [markdown]
# ## Images and masks
# `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`, and a `dataset.json` that says what the values of a mask mean.
# The synthetic masks are exact: a voxel is ventricle where the phantom has more than half of it there.


# %%
def write_dataset(folder: Path, cases: int) -> None:
    """Heads at 4 mm in nnU-Net's layout, and `labels.csv` with a ventricle grade for each."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    grades = ["patient_id,ventricle_grade"]
    for number in range(cases):
        subject, spacing = draw_subject(number), (4.0, 4.0, 4.0)
        scan = draw_scan(subject.seed)
        head, tissue = head_phantom(subject, scan, spacing), tissue_fractions(subject, scan, spacing)
        mask = (tissue["white"] + tissue["grey"] > 0.5).astype(np.uint8)
        mask[tissue["ventricle"] > 0.5] = 2
        case = f"HEAD_{number:03d}"
        nibabel.save(nibabel.Nifti1Image(head.array, head.affine), folder / "imagesTr" / f"{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, head.affine), folder / "labelsTr" / f"{case}.nii.gz")
        grades.append(f"{case},{subject.ventricle_grade}")
    content = {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0, "brain": 1, "ventricle": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "labels.csv").write_text("\n".join(grades) + "\n")


OUT.mkdir(parents=True, exist_ok=True)
if DATASET is None:
    DATASET = OUT / "Dataset010_HEADS"
    if not DATASET.exists():
        write_dataset(DATASET, CASES)

# %% [markdown]
# ## Cache and backbone
# `prepare` takes the folder itself; masks follow their images onto the grid of the cache. Cases without a mask, or with
# one of another shape, are told and not guessed. Pretraining looks at the images alone, and at no test patient. **With
# a backbone of your archive** (tutorial 3) skip it and name that run below; its cache then needs this one's salt
# (`source.salt`), so that the leak check can compare patients.

# %%
command("prepare", DATASET, "--out", OUT / "cache", "preprocess.spacing_mm=[4, 4, 4]")
(OUT / "pretrain.yaml").write_text(f"""\
data: {{cache: '{(OUT / "cache").as_posix()}', holdout: {{test_fraction: 0.4, seed: 0}}}}
model: {{name: resnet10_3d, width: 0.25, stem_pool: false}}   # without the pooling masks get finer maps
projector: {{hidden: 128, dim: 16}}
views:
  {{num_local: 2, global_size: [32, 32, 32], local_size: [16, 16, 16], global_fraction: [0.3, 1.0],
   local_fraction: [0.1, 0.4], base_crop_mm: 192, global_pitch_mm: [4, 8], local_pitch_mm: [4, 8]}}
optim: {{lr: 2e-3}}
train: {{steps: {STEPS}, batch_size: {BATCH}}}
inference: {{window: [32, 32, 32], pitch_mm: 4.0}}
""")
if not (OUT / "run" / "DONE").exists():
    command("pretrain", OUT / "pretrain.yaml", "--out", OUT / "run")

# %% [markdown]
# ## Fine-tune on a label per scan
# All weights train, the backbone at a third of the head's rate. `budgets` are labels per class; an empty list takes
# all.

# %%
shared = f"""\
data: {{cache: '{(OUT / "cache").as_posix()}', index: '{(OUT / "cache" / "private").as_posix()}'}}
holdout: {{test_fraction: 0.4, seed: 0}}
"""
(OUT / "finetune.yaml").write_text(
    shared
    + f"""\
model: '{(OUT / "run").as_posix()}'
task: {{name: grade, labels: '{(DATASET / "labels.csv").as_posix()}', column: ventricle_grade, kind: classification}}
budgets: []
seeds: 1
finetune: {{epochs: {EPOCHS}, min_steps: {EPOCHS}, grid: [1.0], batch_size: 8}}
"""
)
if not (OUT / "finetuned" / "result.json").exists():
    command("finetune", OUT / "finetune.yaml", "--out", OUT / "finetuned")

# %% [markdown]
# ## Segment
# Three methods, one recipe for all encoders. `segment_linear`: a linear map of frozen features, which shows what is in
# them. `segment_decoder`: a small decoder on the frozen backbone. `segment_finetune`: the backbone trains too; only
# there "from scratch" is a fair rival.

# %%
run = (OUT / "run").as_posix()
(OUT / "segment.yaml").write_text(
    shared
    + f"""\
tasks:
  - {{name: ventricles, kind: segmentation}}
encoders:
  - {{kind: run, name: LeJEPA, path: '{run}'}}
  - {{kind: random, name: random init, like: '{run}'}}
  - {{kind: scratch, name: from scratch, like: '{run}'}}
methods: [segment_linear, segment_decoder, segment_finetune]
budgets: [5]
finetune_budgets: [5]
seeds: 1
finetune_seeds: 1
segmentation: {{steps: {STEPS_OF_HEAD}, batch_size: 2, decoder_channels: 8, overlap: 0.0}}
"""
)
command("benchmark", OUT / "segment.yaml", "--out", OUT / "segmented")
command("report", OUT / "segmented")

# %% [markdown]
# ## Reading it
# Dice is the mean over cases of the mean over classes. Read it per class: the brain is easy, the ventricles are not,
# and a mean of both hides it. Then HD95, in mm, which sees one wrong blob far away that Dice forgives. Dice is empty
# where the truth of a case has no voxel of a class.

# %%
summary = json.loads((OUT / "segmented" / "summary.json").read_text())
rows = pd.DataFrame(summary["rows"])
for row in rows.to_dict("records"):
    print(f"{row['encoder']:13s} {row['method']:17s} {row['budget']!s:>4s}  {row['metric']} {row['value']:.3f}")
tuned = json.loads((OUT / "finetuned" / "result.json").read_text())
print("the page:", OUT / "segmented" / "report" / "report.html")

result = {
    "grade": {row["method"]: row["value"] for row in tuned["results"]},
    "grade_status": tuned["status"],
    "counts": summary["counts"],
    "leaks": summary["leaks"],
    "dice": {f"{row['encoder']}, {row['method']}": row["value"] for row in summary["rows"]},
}
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - Other layouts (Decathlon, MONAI's lists, folders of images and masks): `docs/collections.md`.
# - Fewer weights to train: `methods: [lora]`.
# - nnU-Net itself, started from your backbone: tutorial 8.
