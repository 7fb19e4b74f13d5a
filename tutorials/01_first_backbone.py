# %% [markdown]
# # A first backbone
#
# Pretrains a small 3D network on synthetic heads that are held in memory, looks at the loss, and asks the nearest
# neighbours of each head how large its ventricles are. No files are needed: `pretrain` takes any torch dataset.

# %%
import json
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import lejepa_med
from lejepa_med.config import ModelConfig
from lejepa_med.data.preprocess import prepare_volume
from lejepa_med.data.synthetic import draw_scan, draw_subject, head_phantom
from lejepa_med.spec import PreprocessSpec

SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "smoke")  # or full: some ten minutes on two cores, and it learns
OUT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out")) / "01_first_backbone"
HEADS, STEPS, BATCH = {"smoke": (24, 20, 12), "full": (200, 1500, 64)}[SIZE]

# %% [markdown]
# ## Data
# Each head is one patient: a number gives its anatomy and labels, another its pose and scanner. `prepare_volume` does
# what `lejepa-med prepare` does: orientation, voxel size, foreground, intensities. Voxels of 4 mm are coarse enough
# for a CPU.

# %%
spec = PreprocessSpec(spacing_mm=(4.0, 4.0, 4.0))
subjects = [draw_subject(number) for number in range(HEADS)]
heads = [
    prepare_volume(head_phantom(subject, draw_scan(subject.seed), (4.0, 4.0, 4.0)), spec).array for subject in subjects
]
grades = np.array([subject.ventricle_grade for subject in subjects])
dataset = [torch.from_numpy(head)[None] / 255.0 for head in heads]  # `[channel, R, A, S]` in [0, 1]
print(f"{len(dataset)} heads, the first of {tuple(dataset[0].shape)} voxels, grades {np.bincount(grades)}")

# %% [markdown]
# ## Pretraining
# Two global and six local views of each head. Settings are the fields of the config file, section by section;
# `lejepa-med config pretrain` lists them all.


# %%
class Heads(torch.utils.data.Dataset[torch.Tensor]):
    """Any dataset with `__len__` and `__getitem__` will do."""

    def __len__(self) -> int:
        return len(dataset)

    def __getitem__(self, number: int) -> torch.Tensor:
        return dataset[number]


run = lejepa_med.pretrain(
    Heads(),
    ModelConfig(name="resnet10_3d", width=0.25),
    OUT / "run",
    projector={"hidden": 256},
    objective={"num_slices": 256},
    views={
        "global_size": [24, 24, 24],
        "local_size": [12, 12, 12],
        "base_crop_mm": None,  # the whole array
        "global_pitch_mm": None,  # a dataset of tensors has no millimetres
        "local_pitch_mm": None,
    },
    optim={"lr": 1e-3},
    train={"steps": STEPS, "batch_size": BATCH},
)
print(f"run directory: {run.path}; the views it saw: {run.path / 'views.png'}")

# %% [markdown]
# ## The loss
# `metrics.jsonl` is the record: total, prediction and SIGReg, step by step.

# %%
metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
for line in (metrics[0], metrics[-1]):
    print({key: round(line[key], 3) for key in ("step", "total", "prediction", "sigreg")})

# %% [markdown]
# ## Embeddings and neighbours
# A head is padded to one size and embedded as a whole. Chance is about one in four.

# %%
backbone = lejepa_med.load_backbone(run.path)
size = np.max([head.shape for head in heads], axis=0)
images = torch.zeros(len(heads), 1, *size.tolist())
for image, head in zip(images, dataset, strict=True):
    start = [(whole - part) // 2 for whole, part in zip(image.shape[1:], head.shape[1:], strict=True)]
    image[(slice(None), *(slice(low, low + part) for low, part in zip(start, head.shape[1:], strict=True)))] = head
with torch.no_grad():
    embeddings = torch.cat([backbone(part) for part in images.split(8)]).numpy()
neighbours = KNeighborsClassifier(5, metric="cosine")
accuracy = float(cross_val_score(neighbours, embeddings, grades, cv=LeaveOneOut()).mean())
print(f"embeddings {embeddings.shape}; ventricle grade by 5 neighbours: {accuracy:.2f} right")

result = {"first_loss": metrics[0]["total"], "last_loss": metrics[-1]["total"], "accuracy": accuracy}
(OUT / "result.json").write_text(json.dumps({**result, "dimensions": embeddings.shape[1]}))
