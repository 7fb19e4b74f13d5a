"""What an encoder of the config is: its methods, its weights, and the network that fine-tuning starts from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lejepa_med.backbones import Backbone, build
from lejepa_med.config.evaluation import (
    BenchmarkConfig,
    EncoderConfig,
    RandomEncoder,
    RunEncoder,
    ScratchEncoder,
    Timm2dEncoder,
)
from lejepa_med.config.pretraining import ModelConfig
from lejepa_med.data.cache import Cache, file_digest
from lejepa_med.data.inference import windows
from lejepa_med.errors import UserError, WeightsError
from lejepa_med.evaluation.classifier import Colouring
from lejepa_med.evaluation.slices import colour_input, load_timm2d, plane_slices
from lejepa_med.evaluation.window_store import Cutter
from lejepa_med.spec import Frozen, InferenceSpec, Spec
from lejepa_med.weights import find_weights, load_backbone, read_description

FROZEN = ("run", "random", "pixels", "shape", "timm2d")
WITH_TOKENS = ("run", "random", "timm2d")
FINETUNED = ("run", "timm2d", "scratch")
ADAPTED = ("run", "timm2d")
SEGMENTED = ("run", "random", "timm2d")
FINETUNING = ("finetune", "lora")
"""Methods that train the network, or adapters in it."""
SEGMENTING = ("segment_linear", "segment_decoder", "segment_finetune")
"""Methods of segmentation tasks, and of no others."""
TRAINING = (*FINETUNING, *SEGMENTING)
"""Methods that need no frozen features, and take minutes a cell."""


class NoWeightsError(UserError):
    """An encoder whose weights the user has not given; its rows say so."""


def methods_of(encoder: EncoderConfig) -> tuple[str, ...]:
    """The methods that an encoder takes part in."""
    kinds = {"linear": FROZEN, "knn": FROZEN, "attention": WITH_TOKENS, "finetune": FINETUNED, "lora": ADAPTED}
    kinds |= {"segment_linear": SEGMENTED, "segment_decoder": SEGMENTED, "segment_finetune": FINETUNED}
    return tuple(method for method, those in kinds.items() if encoder.kind in those)


def recipe_of(config: BenchmarkConfig, method: str) -> dict[str, Any]:
    """The settings that a method's results depend on, for the identity of its cells."""
    recipes: dict[str, tuple[Frozen, ...]] = {
        "attention": (config.attention,),
        "finetune": (config.finetune,),
        "lora": (config.finetune, config.lora),
    }
    recipes |= dict.fromkeys(SEGMENTING, (config.segmentation,))
    used: tuple[Frozen, ...] = recipes.get(method, (config.probe,))
    return {type(recipe).__name__: recipe.model_dump(mode="json") for recipe in used}


def lacks_weights(encoder: EncoderConfig) -> bool:
    """Whether the user has to give weights first."""
    return isinstance(encoder, Timm2dEncoder) and encoder.weights is None


def require_weights(encoder: EncoderConfig, position: int) -> None:
    """Raises NoWeightsError, which says how to give them."""
    if lacks_weights(encoder):
        raise NoWeightsError(
            f"encoder {encoder.name}: no weights given; give a local file, e.g. "
            f"encoders.{position}.weights=/path/to/dinov2_vits14_pretrain.pth"
        )


def weights_digest(encoder: EncoderConfig) -> str:
    """SHA-256 of the weight file an encoder depends on; empty where it has none or none is there."""
    try:
        match encoder:
            case RunEncoder():
                return file_digest(find_weights(encoder.path))
            case RandomEncoder() | ScratchEncoder():
                return hashlib.sha256(json.dumps(read_description(find_weights(encoder.like))).encode()).hexdigest()
            case Timm2dEncoder() if encoder.weights is not None:
                return file_digest(encoder.weights)
    except (WeightsError, OSError):
        return ""
    return ""


def table_digest(table: pd.DataFrame) -> str:
    """Hash of which prepared volumes a table holds."""
    text = "\n".join(f"{key} {entry}" for key, entry in zip(table["series_key"], table["entry"], strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def fresh_backbone(like: Path, seed: int) -> Backbone:
    """The architecture and spec of a run with new weights; the global random state is left as it was."""
    file = find_weights(like)
    description = read_description(file)
    if description["model"] is None:
        raise WeightsError(f"weights {file}: made with a network of your own, whose fresh weights we cannot draw")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build(ModelConfig.model_validate(description["model"]))
    backbone.spec = Spec.model_validate(description["spec"])
    return backbone.eval()


@dataclass(frozen=True)
class TuningStart:
    """A network to fine-tune, the windows of volumes that it sees, and what turns them into its input."""

    backbone: Backbone
    geometry: str
    cut: Cutter
    are_slices: bool
    colour: Colouring | None


def tuning_start(encoder: EncoderConfig, cache: Cache, seed: int) -> TuningStart:
    """What fine-tuning starts from: the encoder's weights, or fresh ones that differ between label seeds."""
    has_volumes = any(len(shape) == 3 for shape in cache.table["shape"])
    if isinstance(encoder, Timm2dEncoder):
        network = load_timm2d(encoder)
        fields = {"image_size", "protocol", "planes", "slices", "ct_window_hu"}
        return TuningStart(
            network,
            encoder.model_dump_json(include=fields),
            lambda volume: torch.cat(plane_slices(volume, encoder)),
            has_volumes,
            partial(colour_input, network),
        )
    match encoder:
        case RunEncoder():
            backbone = load_backbone(encoder.path)
        case ScratchEncoder():
            backbone = fresh_backbone(encoder.like, 1000 * encoder.seed + seed)
        case _:
            raise UserError(f"encoder {encoder.name}: a {encoder.kind} encoder is not fine-tuned")
    inference = inference_of(backbone)
    are_slices = has_volumes and len(inference.window) == 2
    return TuningStart(
        backbone, inference.model_dump_json(), lambda volume: windows(volume, inference).images, are_slices, None
    )


def num_parameters(encoder: EncoderConfig) -> int | None:
    """Of its network; None where it has none."""
    match encoder:
        case Timm2dEncoder():
            network: Backbone = load_timm2d(encoder)
        case RunEncoder():
            network = load_backbone(encoder.path)
        case RandomEncoder() | ScratchEncoder():
            network = fresh_backbone(encoder.like, encoder.seed)
        case _:
            return None
    return sum(parameter.numel() for parameter in network.parameters())


def inference_of(backbone: Backbone) -> InferenceSpec:
    """How volumes become windows for this backbone."""
    assert backbone.spec is not None, "saved weights carry their spec"
    return backbone.spec.inference
