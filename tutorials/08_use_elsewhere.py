# %% [markdown]
# # 8. Use the backbone elsewhere
#
# A backbone is worth as much as the places where it loads: MONAI, timm, nnU-Net, plain PyTorch, ONNX. Everywhere one
# rule holds: weights load completely or not at all. Half-loaded weights train well and are worth nothing, and nobody
# notices.

# %%
import importlib.util
import json
import os
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from monai.networks.nets import FlexibleUNet

import lejepa_med
from lejepa_med.cli.main import main
from lejepa_med.data.synthetic import write_archive
from lejepa_med.errors import WeightsError
from lejepa_med.weights import load_into

WORK = None  # <- yours: the folder in which tutorials 2 and 3 left `cache`. None: synthetic heads
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")
ROOT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out"))
OUT = ROOT / "08_use_elsewhere"
SUBJECTS, STEPS, BATCH = {"smoke": (24, 2, 4), "full": (96, 20, 16)}[SIZE]


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


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
# ## Two backbones to give away
# Short runs: here it is about loading. MONAI's `FlexibleUNet` takes our ResNet-10 and 50 of full width with
# `stem_stride: 2`; timm takes any 2D run. With runs of your own put their folders into `volumes` and `slices`.

# %%
volumes, slices = OUT / "run_3d", OUT / "run_2d"
shared = f"""\
projector: {{hidden: 64, dim: 16}}
objective: {{num_slices: 64}}
train: {{steps: {STEPS}, batch_size: {BATCH}}}
"""
(OUT / "run_3d.yaml").write_text(f"""\
data: {{cache: '{(WORK / "cache").as_posix()}'}}
model: {{name: resnet10_3d, width: 1, stem_stride: 2}}
views:
  {{num_local: 1, global_size: [32, 32, 32], local_size: [16, 16, 16], base_crop_mm: 192, global_pitch_mm: [4, 8],
   local_pitch_mm: [4, 8]}}
{shared}""")
(OUT / "run_2d.yaml").write_text(f"""\
data: {{cache: '{(WORK / "cache").as_posix()}', kind: slices}}
model: {{name: timm/resnet10t}}
views:
  {{num_local: 1, global_size: [48, 48], local_size: [32, 32], base_crop_mm: 192, global_pitch_mm: [2, 6],
   local_pitch_mm: [2, 6]}}
inference: {{window: [48, 48], pitch_mm: 4.0, planes: [axial]}}
{shared}""")
for run in (volumes, slices):
    if not (run / "DONE").exists():
        command("pretrain", run.with_suffix(".yaml"), "--out", run)

# %% [markdown]
# ## With lejepa-med
# `load_backbone` brings the preprocessing along: give it files, and it does with them what was done in training.

# %%
backbone = lejepa_med.load_backbone(volumes)
sample = torch.rand(2, 1, 32, 32, 32)
with torch.no_grad():
    reference = backbone(sample)
table = lejepa_med.embed(backbone, [next((WORK / "archive" / "nifti").rglob("*.nii.gz"))], modality="mri")
print(f"{sum(p.numel() for p in backbone.parameters()):,} weights; one NIfTI file gives {table.num_rows} row")

# %% [markdown]
# ## MONAI
# `load_into` finds the one submodule that takes every tensor, fills it, and lists what stayed fresh: here the decoder.
# Three convolutions have no bias in this U-Net: theirs are moved into the BatchNorm behind, so the features stay equal.
# In nnU-Net the same call, `prefix="encoder"`, goes between building the network and the first step
# (`docs/weights.md`).

# %%
unet = FlexibleUNet(in_channels=1, out_channels=3, backbone="resnet10", spatial_dims=3, pretrained=False)
done = load_into(unet, volumes)
print(done)
with torch.no_grad():
    deepest = unet.eval().encoder(sample)[-1]
    print("the deepest map, averaged, is our embedding:", torch.allclose(deepest.mean((2, 3, 4)), reference, atol=1e-4))

# %% [markdown]
# A network that does not fit is refused with a table, and nothing in it is changed.

# %%
try:
    load_into(FlexibleUNet(1, 3, "resnet18", spatial_dims=3, pretrained=False), volumes)
    refused = ""
except WeightsError as error:
    refused = str(error)
print("\n".join(refused.splitlines()[:5]))

# %% [markdown]
# ## timm
# The network of a 2D run is timm's own, under the prefix `net.`.

# %%
flat = lejepa_med.load_backbone(slices)
network = timm.create_model("resnet10t", in_chans=1, num_classes=0)
tensors = safetensors.torch.load_file(slices / "backbone.safetensors")
network.load_state_dict({key.removeprefix("net."): value for key, value in tensors.items()}, strict=True)
pictures = torch.rand(2, 1, 48, 48)
with torch.no_grad():
    in_timm = torch.allclose(network.eval()(pictures), flat(pictures), atol=1e-5)
print("timm gives the same features:", in_timm)

# %% [markdown]
# ## Plain PyTorch
# `export --format torch` adds the network as a program: whoever gets the folder needs torch and safetensors, not us.
# The folder has no path, key or id; its README is a model card whose licence you fill in. **Whether weights may leave
# the house is a question for your institution**: they were made from patients.

# %%
if not (OUT / "exported").exists():
    command("export", volumes, "--out", OUT / "exported", "--format", "torch")
description = json.loads((OUT / "exported" / "config.json").read_text())
window = description["spec"]["inference"]["window"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    program = torch.export.load(OUT / "exported" / "model.pt2").module()
program.load_state_dict(safetensors.torch.load_file(OUT / "exported" / "model.safetensors"), strict=True)
windows = torch.rand(3, 1, *window)
with torch.no_grad():
    in_torch = torch.allclose(program(windows), backbone(windows), atol=1e-4)
print(f"windows {tuple(windows.shape)}, the program gives the same features: {in_torch}")

# %% [markdown]
# ## ONNX
# For C++, Java or a browser. Needs `pip install "lejepa-med[onnx]"`; the program is compared with the network before it
# is kept.

# %%
in_onnx = None
if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
    import onnxruntime

    if not (OUT / "onnx").exists():
        command("export", volumes, "--out", OUT / "onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession(OUT / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: windows.numpy()})
    in_onnx = bool(np.allclose(features, backbone(windows).detach().numpy(), atol=1e-3))
    print("ONNX gives the same features:", in_onnx)
else:
    print('ONNX is left out: pip install "lejepa-med[onnx]"')

# %%
result = {
    "filled": len(done.filled),
    "fresh": len(done.fresh),
    "tensors": len(backbone.state_dict()),
    "monai": bool(torch.allclose(deepest.mean((2, 3, 4)), reference, atol=1e-4)),
    "refused": refused,
    "timm": in_timm,
    "torch": in_torch,
    "onnx": in_onnx,
}
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - Other directions (DINOv2's weights into a run, 2D weights into 3D, other channels): `docs/weights.md`.
