# %% [markdown]
# # 3. Pretrain on your archive, in 3D and in 2D
#
# From an index to two backbones: a 3D network that sees volumes, and a 2D network that sees their slices. Same scans,
# same cache, same patients left out; which is better is a question for tutorial 5.

# %%
import json
import os
from pathlib import Path

import pandas as pd

from lejepa_med.cli.main import main
from lejepa_med.data.synthetic import write_archive

SCANS = None  # <- yours: Path("/path/to/archive"), MRI. None: the synthetic archive of tutorial 2
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")  # full: some two minutes on two cores; smoke: it only runs
ROOT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out"))
WORK, OUT = ROOT / "work", ROOT / "03_pretrain"
SUBJECTS, STEPS, BATCH, STEPS_2D = {"smoke": (24, 6, 8, 3), "full": (96, 250, 48, 80)}[SIZE]


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


# %% [markdown]
# ## Index and cache
# `index` is tutorial 2; where it has been done it is done in a second. `prepare` reorients, resamples and stores each
# accepted volume. 4 mm keeps a CPU busy for seconds; `configs/prepare/brain_mri_1mm.yaml` is for a GPU. Stopped? Type
# it again: finished volumes are reused. `left out` and `failed` say what is not in the cache, and why.

# %%
OUT.mkdir(parents=True, exist_ok=True)
if SCANS is None:
    SCANS = WORK / "archive"
    if not (SCANS / "README.txt").exists():
        write_archive(SCANS, subjects=SUBJECTS)
(OUT / "index.yaml").write_text('rules:\n  - {glob: "*/anat/*", modality: mri}\nmin_slices: 8\n')
command("index", SCANS, "--out", WORK / "index", "--config", OUT / "index.yaml")
(OUT / "prepare.yaml").write_text("modalities: [mri]\npreprocess: {spacing_mm: [4, 4, 4]}\n")
command("prepare", WORK / "index", "--out", WORK / "cache", "--config", OUT / "prepare.yaml")
command("cache", "stats", WORK / "cache")

# %% [markdown]
# ## 3D: the settings
# `holdout` keeps 40 % of the patients out of pretraining: they are for testing, and the benchmark refuses a run that
# saw them. `base_crop_mm` is the region of the body that all views of one step are cut from, `*_size` their voxels,
# `*_pitch_mm` how many millimetres a voxel may be. **With another voxel size in the cache, scale pitch and sizes with
# it.**

# %%
settings = OUT / "pretrain_3d.yaml"
settings.write_text("""\
data:
  holdout: {test_fraction: 0.4, seed: 0}
  modalities: [mri]
model: {name: resnet10_3d, width: 0.25}   # on a GPU: resnet18_3d, width 1
projector: {hidden: 256, dim: 32}
objective: {num_slices: 256}
views:
  num_local: 4
  global_size: [24, 24, 24]
  local_size: [12, 12, 12]
  global_fraction: [0.5, 1.0]
  local_fraction: [0.2, 0.5]
  base_crop_mm: 192
  global_pitch_mm: [4, 8]
  local_pitch_mm: [4, 8]
optim: {lr: 2e-3}
inference: {window: [24, 24, 24], pitch_mm: 8.0}   # a whole head in one window
""")
here = [f"data.cache={WORK / 'cache'}", f"train.steps={STEPS}", f"train.batch_size={BATCH}"]

# %% [markdown]
# ## Look before you train
# `views` draws what the network will be shown, a row per scan. Is the finding that you care about still there in a
# global view? If not, no loss will find it: enlarge the crops. `plan` says what memory and time the run takes, before
# it starts.

# %%
command("views", settings, "--out", OUT / "views.png", *here)
command("plan", settings, *here)

# %% [markdown]
# ## Train
# Ctrl-C saves and stops; `--resume` goes on, to the bit. The run directory has the weights (`backbone.safetensors`),
# their preprocessing (`spec.yaml`), the settings, who was trained on (salted keys), and the record that tutorial 4
# reads.

# %%
if not (WORK / "run" / "DONE").exists():
    command("pretrain", settings, "--out", WORK / "run", *here)

# %% [markdown]
# ## 2D: slices of the same cache
# `kind: slices` takes one random axial slice per scan and step; any network of timm will do. At test time a scan is the
# mean over its slices (`inference.planes`). `configs/pretrain/slices_2d_resnet.yaml` is the one for 1 mm.

# %%
flat = OUT / "pretrain_2d.yaml"
flat.write_text("""\
data:
  kind: slices
  plane: axial
  holdout: {test_fraction: 0.4, seed: 0}
  modalities: [mri]
model: {name: timm/resnet10t}
projector: {hidden: 256, dim: 32}
objective: {num_slices: 256}
views:
  num_local: 4
  global_size: [48, 48]
  local_size: [32, 32]
  base_crop_mm: 192
  global_pitch_mm: [2, 6]
  local_pitch_mm: [2, 6]
inference: {window: [48, 48], pitch_mm: 4.0, planes: [axial]}
""")
if not (WORK / "run_2d" / "DONE").exists():
    command("pretrain", flat, "--out", WORK / "run_2d", here[0], f"train.steps={STEPS_2D}", here[2])

# %% [markdown]
# ## What came out
# One vector per scan from either. The losses of the two are not comparable: their views are different tasks.

# %%
result: dict[str, object] = {}
for name in ("run", "run_2d"):
    (OUT / f"{name}.parquet").unlink(missing_ok=True)
    command("embed", WORK / name, WORK / "cache", "--out", OUT / f"{name}.parquet")
    metrics = [json.loads(line) for line in (WORK / name / "metrics.jsonl").read_text().splitlines()]
    embeddings = pd.read_parquet(OUT / f"{name}.parquet")
    result[name] = {
        "first": metrics[0]["total"],
        "last": metrics[-1]["total"],
        "scans": len(embeddings),
        "dimensions": len(embeddings["embedding"][0]),
        "trained_on": len(pd.read_csv(WORK / name / "pretraining_series.csv")),
    }
    print(name, result[name])
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - Tutorial 4: is the loss good? Tutorial 5: is the backbone good?
# - Real sizes: `configs/pretrain/*.yaml`, each with the memory it needs; `configs/README.md` is their list.
# - No better with more steps? `docs/views.md`, then `docs/diagnostics.md`.
