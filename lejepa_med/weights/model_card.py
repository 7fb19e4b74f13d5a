"""The README of an export: header of Hugging Face's model cards, how to use it, what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_USE = {
    "safetensors": "",
    "onnx": """
`model.onnx` is the embedding alone, for any number of windows at once:

```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
embedding = session.run(None, {"images": windows})[0]   # float32, values in [0, 1]
```
""",
    "torch": """
`model.pt2` is the embedding alone, for any number of windows at once; it needs torch and nothing else:

```python
import torch
embedding = torch.export.load("model.pt2").module()(windows)   # float32, values in [0, 1]
```
""",
}


def model_card(description: Mapping[str, Any], form: str) -> str:
    """The card of an export's description (`config.json`) in Markdown."""
    model, spec = description["model"] or {}, description["spec"]
    preprocess, inference = spec["preprocess"], spec["inference"]
    prepared = f"voxels of {preprocess['spacing_mm']} mm" if preprocess else "made outside lejepa-med, not known here"
    dimensions = f"{len(inference['window'])}d"
    return f"""---
library_name: lejepa-med
pipeline_tag: image-feature-extraction
tags: [medical-imaging, self-supervised, lejepa, {dimensions}]
# license: choose one before you share these weights
---
# {model.get("name", "own network")}, pretrained with LeJEPA

```python
import lejepa_med
backbone = lejepa_med.load_backbone("this folder")
table = lejepa_med.embed(backbone, ["scan.nii.gz"], modality="mri")
```
{_USE[form]}
## Input
{model.get("in_channels", "its own number of")} channel(s), values in [0, 1].
Preprocessing: {prepared}; inference: windows of {inference["window"]}
at {inference["pitch_mm"]} mm, pooling {inference["pooling"]}. Both are in `config.json` and inside the weight file.

## Training
{_facts(description)}

## Limits
Not a medical device. Weights can hold traces of the scans they were trained on: share them by your own rules.
"""


def _facts(description: Mapping[str, Any]) -> str:
    lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in description["provenance"].items()]
    seen = description.get("seen", {})
    for origin, whose in (("run", "this run"), ("ancestor", "the weights it started from")):
        if origin in seen:
            lines.append(f"- seen by {whose}: {seen[origin]['patients']} patients, {seen[origin]['series']} series")
    if seen:
        lines.append(f"- is that everyone: {'yes' if seen['complete'] else 'not known'}")
    lines += [f"- last {key.replace('_', ' ')}: {value:.6g}" for key, value in description.get("metrics", {}).items()]
    return "\n".join(lines)
