# %% [markdown]
# # 1. Your first backbone in 10 minutes
#
# A backbone turns a scan into a vector, so that scans which look alike get vectors which are close. LeJEPA learns it
# without labels: two views of one scan must get similar vectors (*prediction*), and the vectors of all scans together
# must fill their space like a Gaussian (*SIGReg*), else one vector for everything would do.
#
# This tutorial trains a small 3D network in memory, in Python. The others type commands, as you will for an archive.

# %%
import json
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lejepa_med
from lejepa_med.cli.progress import ProgressLine
from lejepa_med.config import ModelConfig
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.reading import read_any
from lejepa_med.data.synthetic import draw_scan, draw_subject, head_phantom
from lejepa_med.spec import PreprocessSpec

SCANS = None  # <- yours: Path("/path/to/scans") with *.nii.gz of MRI, 50 or more. None: synthetic heads
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")  # full: two minutes on two idle cores; smoke: it only runs
OUT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out")) / "01_first_backbone"
HEADS, STEPS, BATCH = {"smoke": (24, 8, 8), "full": (160, 300, 32)}[SIZE]

# %% [markdown]
# ## Scans
# A synthetic head is drawn from two numbers: one gives the patient (anatomy and labels), one the scan (pose, scanner).
# `prepare_volume` does what `lejepa-med prepare` does to every scan: orientation, voxel size, foreground, intensities.
# Voxels of 4 mm are coarse enough for a CPU; take 1 mm on a GPU.

# %%
spec = PreprocessSpec(spacing_mm=(4.0, 4.0, 4.0))  # scans of a small organ: 1 mm, or nothing is left to crop
if SCANS is None:
    subjects = [draw_subject(number) for number in range(HEADS)]
    volumes = [head_phantom(subject, draw_scan(subject.seed), (4.0, 4.0, 4.0)) for subject in subjects]
    grades = np.array([subject.ventricle_grade for subject in subjects])
else:
    volumes = [read_any(file, "mri")[0] for file in sorted(SCANS.rglob("*.nii.gz"))]
    grades = None
heads = [torch.from_numpy(prepare_volume(volume, spec).array)[None] / 255.0 for volume in volumes]
print(f"{len(heads)} heads `[channel, R, A, S]` in [0, 1], the first {tuple(heads[0].shape)}")

# %% [markdown]
# ## Pretraining
# Each step cuts two large (global) and two small (local) views out of every head of a batch, resampled to 32 voxels a
# side. `pretrain` takes a cache folder, a list of files, or any torch dataset, as here. Settings are the fields of the
# config file, section by section; `lejepa-med config pretrain` prints them all. **To change first:** `steps` (small
# sets need some 3,000), then the sizes of the views.


# %%
class Heads(torch.utils.data.Dataset[torch.Tensor]):
    """Any dataset with `__len__` and `__getitem__` will do."""

    def __len__(self) -> int:
        return len(heads)

    def __getitem__(self, number: int) -> torch.Tensor:
        return heads[number]


run = lejepa_med.pretrain(
    Heads(),
    ModelConfig(name="resnet10_3d", width=0.25),
    OUT / "run",
    projector={"hidden": 512, "dim": 32},
    objective={"num_slices": 256},
    views={
        "num_local": 2,
        "global_size": [32, 32, 32],
        "local_size": [32, 32, 32],
        "global_fraction": [0.5, 1.0],  # share of the head that a global view shows
        "local_fraction": [0.15, 0.4],
        "base_crop_mm": None,  # views are cut from the whole array
        "global_pitch_mm": None,  # a dataset of tensors has no millimetres
        "local_pitch_mm": None,
    },
    optim={"lr": 1e-3},
    train={"steps": STEPS, "batch_size": BATCH},
    progress=ProgressLine(),
)
print(f"run directory: {run.path}\nthe views it saw: {run.path / 'views.png'}")

# %% [markdown]
# ## The loss
# `metrics.jsonl` has a line per step. `prediction` is how far the views of one head lie from their mean: it falls.
# `sigreg` measures how far the vectors are from a Gaussian; about 1 is perfect, and it takes longest to get there. Look
# at `views.png` too: if *you* cannot tell that two views show one head, the network cannot either.

# %%
metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
for line in (metrics[0], metrics[len(metrics) // 2], metrics[-1]):
    print({key: round(line[key], 3) for key in ("step", "total", "prediction", "sigreg")})
for advice in run.advice():
    print(f"advice: {advice.sentence} [{advice.code}]")

# %% [markdown]
# ## Neighbours
# Each head is shown whole, in the 32 voxels that a global view had: **a network is at home at the scale that it was
# trained at** (shown at 1.5 times as many voxels a side, the probe below fell from .53 to .41). Two heads with close
# embeddings look alike. No label was used before this cell.

# %%
backbone = lejepa_med.load_backbone(run.path)
images = torch.cat([torch.nn.functional.interpolate(head[None], size=(32, 32, 32), mode="area") for head in heads])
with torch.no_grad():
    embeddings = torch.cat([backbone(part) for part in images.split(8)]).numpy()
directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
likeness = directions @ directions.T - 2 * np.eye(len(heads))
print(f"embeddings {embeddings.shape}; most like head 0 is head {likeness[0].argmax()}")

# %% [markdown]
# ## A linear probe
# Can a linear classifier read the size of the ventricles (four grades, chance .25) off the frozen embeddings, better
# than off the voxels themselves? At smoke size the numbers mean nothing.

# %%
result = {"first_loss": metrics[0]["total"], "last_loss": metrics[-1]["total"], "dimensions": embeddings.shape[1]}
if grades is not None:
    voxels = torch.nn.functional.adaptive_avg_pool3d(images, 12).flatten(1).numpy()
    for name, features, strength in (("accuracy", embeddings, 0.01), ("pixels", voxels, 0.001)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        result[name] = float(cross_val_score(probe, features, grades, cv=StratifiedKFold(4)).mean())
    print(f"ventricle grade: {result['accuracy']:.2f} right from embeddings, {result['pixels']:.2f} from voxels")
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - These heads were both trained on and tested, which is no evidence. Tutorial 5 keeps patients apart and compares.
# - Your scans are a PACS export and not a tidy folder? Tutorial 2.
