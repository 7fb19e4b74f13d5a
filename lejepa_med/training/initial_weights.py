"""`init_from`: where a run's backbone starts. Own weights as they are; files of others into timm's networks, strictly.

A network of ours sees one channel in [0, 1], those of others colours of a certain mean and standard deviation. Both are
folded into the first convolution: a grey image x stands for the colour (x, x, x), normalised, so that

    sum_c w_c (x - mean_c) / std_c + b  =  (sum_c w_c / std_c) x + (b - sum_c w_c mean_c / std_c)

and likewise, without the sum over c, if `model.in_channels` is 3. A patch embedding gets weights and bias, exactly.
Padded convolutions without bias (CNNs) get the weights, and the BatchNorm behind them the shift, in its running mean:
exact but for the border, where a CNN of others sees the mean colour and ours sees black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.config.pretraining import PretrainConfig
from lejepa_med.errors import WeightsError
from lejepa_med.weights import adapted, find_weights, load_strictly, read_tensors, timm_names
from lejepa_med.weights.downloading import fetch_timm_weights
from lejepa_med.weights.inflating import inflated, plain_names, twin_of
from lejepa_med.weights.names import is_efficientnet_lite

_OURS = "net."
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


def start_from(backbone: Backbone, config: PretrainConfig) -> list[str]:
    """Loads what `init_from` or `init_download` name, if anything; returns what `init_adapt` made it change."""
    if config.init_from is not None:
        return load_initial_weights(backbone, config.init_from, config.init_adapt)
    if config.init_download:
        name = config.model.name.removeprefix("timm/")
        return _load(backbone, fetch_timm_weights(name), config.model.name, config.init_adapt)
    return []


def load_initial_weights(backbone: Backbone, path: Path, adapt: Sequence[str] = ()) -> list[str]:
    """Loads all of the weights of a run, an export or a file, or nothing; returns one sentence per change.

    timm networks also take files of timm, of Meta (DINOv2, DINOv3), of transformers (the same) and of
    efficientnet_lite_pytorch, as their authors wrote them; of these only the classifier and what timm's definition
    does not have (mask tokens) is left out. With `adapt` inflate a 3D ResNet, ConvNeXt or ViT takes a 2D one.

    Raises:
        WeightsError: nothing there, damaged, or weights that do not fit the network.
    """
    return _load(backbone, read_tensors(find_weights(path)), str(path), adapt)


def _load(backbone: Backbone, state: Mapping[str, Tensor], name: str, adapt: Sequence[str]) -> list[str]:
    foreign = not all(key.startswith(_OURS) for key in state)
    done: list[str] = []
    if isinstance(backbone, Timm2d) and foreign:
        state, done = _as_ours(backbone, state, name, adapt)
    elif "inflate" in adapt:
        if foreign:
            statistics = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
            state = _folded(plain_names(state), twin_of(backbone).stem, statistics, backbone.in_channels)
        state, done = inflated(state, backbone)
    fitting, changes = adapted(state, backbone, adapt)
    load_strictly(backbone, fitting, name)
    return [*done, *changes]


def _as_ours(
    backbone: Timm2d, state: Mapping[str, Tensor], name: str, adapt: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    described = backbone.net.pretrained_cfg
    statistics = described["mean"], described["std"]
    if is_efficientnet_lite(state):
        statistics = _LITE_MEAN, _LITE_STD
    plain = timm_names(state, backbone.net.state_dict())
    stem = str(described["first_conv"])
    plain, changes = _fitting(backbone, plain, adapt)
    weight = plain.get(f"{stem}.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[1] == 3:
        if backbone.in_channels not in (1, 3) and "in_channels" not in adapt:
            raise WeightsError(
                f"weights {name}: of colour images, but model.in_channels is {backbone.in_channels}; it can be 1 or 3, "
                "or any number with init_adapt: [in_channels]"
            )
        plain = _folded(plain, (stem, _norm_behind(backbone.net, stem)), statistics, backbone.in_channels)
    return {_OURS + key: value for key, value in plain.items()}, changes


def _fitting(
    backbone: Timm2d, plain: Mapping[str, Tensor], adapt: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Patch size and positions first: the fold into a patch embedding needs its final kernel."""
    named = {_OURS + key: value for key, value in plain.items()}
    fitting, changes = adapted(named, backbone, [name for name in adapt if name != "in_channels"])
    return {key.removeprefix(_OURS): value for key, value in fitting.items()}, changes


def _folded(
    state: Mapping[str, Tensor],
    stem: tuple[str, str | None],
    statistics: tuple[Sequence[float], Sequence[float]],
    in_channels: int,
) -> dict[str, Tensor]:
    """Colour statistics inside the first convolution (`stem`: its name and that of the BatchNorm behind it)."""
    convolution, norm = stem
    weight, bias = state.get(f"{convolution}.weight"), state.get(f"{convolution}.bias")
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return dict(state)  # what does not fit is told by the strict load
    mean, std = (torch.tensor(values).to(weight)[:, None, None] for values in statistics)
    scaled = weight / std
    shift = (scaled * mean).sum((1, 2, 3))
    changed = {f"{convolution}.weight": scaled.sum(1, keepdim=True) if in_channels == 1 else scaled}
    if bias is not None:
        changed[f"{convolution}.bias"] = bias - shift
    elif norm is not None and f"{norm}.running_mean" in state:
        changed[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] + shift
    return dict(state) | changed


def _norm_behind(net: nn.Module, convolution: str) -> str | None:
    """The BatchNorm that is registered right after the first convolution, as all of timm's CNNs do it."""
    modules = net.named_modules()
    names = [name for name, module in modules if isinstance(module, _BatchNorm) or not list(module.children())]
    position = names.index(convolution) + 1 if convolution in names else len(names)
    behind = names[position] if position < len(names) else ""
    return behind if behind and isinstance(net.get_submodule(behind), _BatchNorm) else None
