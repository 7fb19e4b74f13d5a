"""Weights with their architecture and spec in one safetensors file; loaded strictly, or refused with a table.

The file's metadata holds one JSON text under `lejepa_med`: format, model (a `ModelConfig`), spec, provenance.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lejepa_med._version import __version__
from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import Spec
from lejepa_med.whole_files import whole_file, write_atomically

FORMAT_VERSION = 1


def save_backbone(
    file: Path, backbone: Backbone, model: ModelConfig | None, spec: Spec, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes weights, architecture and spec atomically. `model` is None for a network of the user's own."""
    description = {
        "format": FORMAT_VERSION,
        "model": model.model_dump() if model is not None else None,
        "spec": spec.model_dump(mode="json"),
        "provenance": {"code_version": __version__, **(provenance or {})},
    }
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    write_atomically(
        file, safetensors.torch.save(state, metadata={"lejepa_med": json.dumps(description)}), durable=True
    )


def load_backbone(path: str | Path, model: Backbone | None = None) -> Backbone:
    """A trained backbone in evaluation mode, from a run directory, an exported directory or a weight file.

    `model` gives the network when it was one of the user's own. `backbone.spec` holds preprocessing and inference.

    Raises:
        WeightsError: nothing there, damaged, newer, or weights that do not fit the architecture.
    """
    file = find_weights(Path(path))
    description = read_description(file)
    if model is None:
        if description["model"] is None:
            raise WeightsError(f"weights {file}: made with a network of your own; pass it as model=")
        model = build(ModelConfig.model_validate(description["model"]))
    load_strictly(model, read_tensors(file), str(file))
    model.spec = Spec.model_validate(description["spec"])
    return model.eval()


def find_weights(path: Path) -> Path:
    """The weight file of a run directory or export, or the file itself."""
    for candidate in (path / "backbone.safetensors", path / "model.safetensors", path):
        if candidate.is_file():
            return candidate
    raise WeightsError(f"weights {path}: no backbone.safetensors there; give a run, an export or a file")


def read_description(file: Path) -> dict[str, Any]:
    """Architecture, spec and provenance that were stored with the weights."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights {file}: damaged or not a safetensors file ({type(error).__name__})") from None
    if "lejepa_med" not in metadata:
        raise WeightsError(f"weights {file}: not written by lejepa-med (no architecture inside)")
    description: dict[str, Any] = json.loads(metadata["lejepa_med"])
    if description["format"] > FORMAT_VERSION:
        raise WeightsError(f"weights {file}: format {description['format']} is newer than this lejepa-med; upgrade it")
    return description


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a `.pth` read without executing anything in it."""
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"weights {file}: damaged, or not plain tensors ({type(error).__name__})") from None
    for key in ("model", "state_dict", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"weights {file}: expected a dictionary of tensors")
    return loaded


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads every tensor, or none and says which do not fit."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    shapes = [key for key in sorted(set(state) & set(expected)) if tuple(state[key].shape) != expected[key]]
    if missing or unexpected or shapes:
        rows = [f"  missing     {key} {expected[key]}" for key in missing]
        rows += [f"  unexpected  {key} {tuple(state[key].shape)}" for key in unexpected]
        rows += [f"  shape       {key}: file {tuple(state[key].shape)}, network {expected[key]}" for key in shapes]
        more = f"\n  ... and {len(rows) - 12} more" if len(rows) > 12 else ""
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(shapes)} of another shape"
        raise WeightsError(f"weights {name}: do not fit the network ({counts}):\n" + "\n".join(rows[:12]) + more)
    module.load_state_dict(dict(state))


def export(run: Path, out: Path) -> Path:
    """A folder that `load_backbone` opens anywhere: `model.safetensors`, `config.json`, and a model card.

    Raises:
        WeightsError: `run` holds no finished weights.
    """
    file = find_weights(run)
    description = read_description(file)
    out.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source, whole_file(out / "model.safetensors") as target:
        shutil.copyfileobj(source, target)
    (out / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    (out / "README.md").write_text(_model_card(description))
    return out


def _model_card(description: Mapping[str, Any]) -> str:
    model, spec, made = description["model"] or {}, description["spec"], description["provenance"]
    facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in made.items())
    preprocess = spec["preprocess"]
    prepared = f"voxels of {preprocess['spacing_mm']} mm" if preprocess else "made outside lejepa-med, not known here"
    return f"""---
library_name: lejepa-med
tags: [medical-imaging, self-supervised, lejepa]
---
# {model.get("name", "own network")}, pretrained with LeJEPA

```python
import lejepa_med
backbone = lejepa_med.load_backbone("this folder")
table = lejepa_med.embed(backbone, ["scan.nii.gz"], modality="mri")
```

Provenance:
{facts}

Preprocessing: {prepared}; inference: windows of {spec["inference"]["window"]}
at {spec["inference"]["pitch_mm"]} mm. Both are in `config.json` and inside the weight file.

Not a medical device. Weights can hold traces of the scans they were trained on: share them by your own rules.
"""


def load_dinov2(backbone: Backbone, file: Path) -> None:
    """Official `.pth` or timm weights of a DINOv2 ViT into timm's definition, without the unused mask token."""
    own = {key.removeprefix("net."): value for key, value in backbone.state_dict().items()}
    state = {key.removeprefix("backbone."): value for key, value in read_tensors(file).items()}
    load_strictly(backbone, {f"net.{key}": value for key, value in timm_names(state, own).items()}, str(file))


def timm_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors of a ViT by timm's names; what timm calls the same stays as it is."""
    named = {_timm_key(key): value for key, value in state.items() if key != "mask_token"}
    if "register_tokens" in named:
        named["reg_token"] = named.pop("register_tokens")
    if "reg_token" in own and "pos_embed" in named:  # official files hold a class position that timm folds in
        position = named["pos_embed"]
        if position.shape[1] == own["pos_embed"].shape[1] + 1:
            named["cls_token"] = named["cls_token"] + position[:, :1]
            named["pos_embed"] = position[:, 1:]
    return named


def _timm_key(key: str) -> str:
    return key.replace(".w12.", ".fc1.").replace(".w3.", ".fc2.")
