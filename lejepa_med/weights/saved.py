"""A backbone with its architecture and spec in one safetensors file.

The file's metadata holds one JSON text under `lejepa_med`: format, model (a `ModelConfig`), spec, provenance.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from lejepa_med._version import __version__
from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import Spec
from lejepa_med.weights.adapting import adapted
from lejepa_med.weights.files import FORMAT_VERSION, find_weights, read_description, read_tensors
from lejepa_med.weights.strict import load_strictly
from lejepa_med.whole_files import write_atomically


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


def load_backbone(path: str | Path, model: Backbone | None = None, *, adapt: Sequence[str] = ()) -> Backbone:
    """A trained backbone in evaluation mode, from a run directory, an exported directory or a weight file.

    `model` gives the network when it was one of the user's own, or one that differs from the file's in what `adapt`
    names (see `adapted`); each tensor that was changed is told in a warning. `backbone.spec` holds preprocessing and
    inference.

    Raises:
        WeightsError: nothing there, damaged, newer, or weights that do not fit the architecture.
    """
    file = find_weights(Path(path))
    description = read_description(file)
    if model is None:
        if description["model"] is None:
            raise WeightsError(f"weights {file}: made with a network of your own; pass it as model=")
        model = build(ModelConfig.model_validate(description["model"]))
    state, changes = adapted(read_tensors(file), model, adapt)
    load_strictly(model, state, str(file))
    for change in changes:
        warnings.warn(f"weights {file}: {change}", stacklevel=2)
    model.spec = Spec.model_validate(description["spec"])
    return model.eval()
