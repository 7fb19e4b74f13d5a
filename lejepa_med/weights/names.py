"""Names of 2D weights of other sources, turned into timm's: Meta's DINOv2 and DINOv3, transformers', EfficientNet-Lite.

Only what timm's definition leaves out is dropped: mask tokens, classifiers that the network does not have, rotary
tables and masks that are computed anew, key biases of DINOv3 that are zero. Everything else must fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lejepa_med.backbones import Backbone
from lejepa_med.weights.files import read_tensors
from lejepa_med.weights.strict import load_strictly

_PREFIXES = ("backbone.", "module.", "timm_model.", "dinov2_with_registers.", "dinov2.", "dinov3_vit.")
_CLASSIFIERS = ("head.", "fc.", "classifier.")
_UNUSED = re.compile(r"mask_token$|\.bias_mask$|rope_embed\.periods$|rope_embeddings\.inv_freq$|^local_cls_norm\.")
_HUGGINGFACE = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attn\.query\.", ".attn.q."),
    (r"\.attn\.key\.", ".attn.k."),
    (r"\.attn\.value\.", ".attn.v."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
_LITE = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}


def load_dinov2(backbone: Backbone, file: Path) -> None:
    """A weight file of Meta, transformers or timm into timm's definition of the network, as it is.

    Images must then be normalised as those weights expect (`load_initial_weights` folds that in).

    Raises:
        WeightsError: damaged, or weights that do not fit.
    """
    own = {key.removeprefix("net."): value for key, value in backbone.state_dict().items()}
    state = timm_names(read_tensors(file), own)
    load_strictly(backbone, {f"net.{key}": value for key, value in state.items()}, str(file))


def timm_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any of the sources by timm's names, for a network whose tensors are `own`."""
    named = {_without_prefix(key): value for key, value in state.items()}
    for key in [key for key in named if key.endswith(".bias_mask")]:  # DINOv3: the key's part counts as zero
        bias = key.removesuffix("_mask")
        if bias in named and named[bias].shape == named[key].shape:
            named[bias] = torch.where(named[key].nan_to_num(0.0) == 0, 0.0, named[bias])
    named = {key: value for key, value in named.items() if not _UNUSED.search(key)}
    if any(key.startswith("_blocks.") for key in named):
        named = _of_efficientnet_lite(named, own)
    if "embeddings.cls_token" in named:
        named = _of_huggingface(named)
    named = _of_meta(named, own)
    return {key: value for key, value in named.items() if key in own or not key.startswith(_CLASSIFIERS)}


def is_efficientnet_lite(state: Mapping[str, Tensor]) -> bool:
    """Whether the file is one of the package efficientnet_lite_pytorch."""
    return "_conv_stem.weight" in state


def _without_prefix(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _of_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's names, with queries, keys and values in one matrix again, and gates in front of what they gate."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in _HUGGINGFACE:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    for key in [key for key in renamed if key.endswith(".attn.q.weight")]:
        start = key.removesuffix("q.weight")
        _merge(renamed, [f"{start}{name}.weight" for name in "qkv"], f"{start}qkv.weight")
        if f"{start}q.bias" in renamed:  # DINOv3 has no bias of keys
            renamed.setdefault(f"{start}k.bias", torch.zeros_like(renamed[f"{start}q.bias"]))
        _merge(renamed, [f"{start}{name}.bias" for name in "qkv"], f"{start}qkv.bias")
    return renamed


def _merge(state: dict[str, Tensor], parts: list[str], whole: str) -> None:
    if all(part in state for part in parts):
        state[whole] = torch.cat([state.pop(part) for part in parts])


def _of_meta(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = dict(state)
    for theirs in ("register_tokens", "storage_tokens"):
        if theirs in named:
            named["reg_token"] = named.pop(theirs)
    if "reg_token" in own and {"pos_embed", "cls_token"} <= set(named) and "pos_embed" in own:
        position = named["pos_embed"]  # official files hold a class position that timm folds in
        if position.ndim == 3 and position.shape != own["pos_embed"].shape and _grid_with_class(position.shape[1]):
            named["cls_token"] = named["cls_token"] + position[:, :1]
            named["pos_embed"] = position[:, 1:]
    renamed: dict[str, Tensor] = {}
    for key, value in named.items():
        renamed |= _own_names(key, value, own)
    for key in [key for key in renamed if key.endswith(".mlp.gate_proj.weight")]:
        start = key.removesuffix("gate_proj.weight")
        for kind in ("weight", "bias"):
            _merge(renamed, [f"{start}gate_proj.{kind}", f"{start}up_proj.{kind}"], f"{start}fc1.{kind}")
    return {key.replace(".mlp.up_proj.", ".mlp.fc1."): value for key, value in renamed.items()}


def _grid_with_class(count: int) -> bool:
    """Whether so many positions are those of a square grid and a class token."""
    return int((count - 1) ** 0.5 + 0.5) ** 2 == count - 1


def _own_names(key: str, value: Tensor, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor of Meta by the names of timm's ViT, or of timm's Eva (DINOv3), whichever the network is."""
    if key in own:
        return {key: value}
    if key.endswith(".attn.qkv.bias") and f"{key.removesuffix('.bias')}.weight" in own:
        queries, keys, values = value.chunk(3)
        start = key.removesuffix("qkv.bias")
        if not bool(keys.any()) and f"{start}q_bias" in own:
            return {f"{start}q_bias": queries, f"{start}v_bias": values}
        if not bool(value.any()):
            return {}
        return {key: value}
    gated = key.replace(".mlp.gate_proj.", ".mlp.fc1_g.").replace(".mlp.w1.", ".mlp.fc1_g.")
    gated = gated.replace(".mlp.up_proj.", ".mlp.fc1_x.").replace(".mlp.w2.", ".mlp.fc1_x.")
    names = [gated, key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")]
    names += [re.sub(r"\.mlp\.(w3|down_proj)\.", ".mlp.fc2.", key), key.replace(".mlp.w12.", ".mlp.fc1.")]
    return {next((name for name in names if name in own), key): value}


def _of_efficientnet_lite(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blocks are numbered through there and by stage in timm; norms by whether the block expands first."""
    stages = {(int(found[1]), int(found[2])) for key in own if (found := re.match(r"blocks\.(\d+)\.(\d+)\.", key))}
    blocks = {number: f"blocks.{stage}.{block}" for number, (stage, block) in enumerate(sorted(stages))}
    renamed = {}
    for key, value in state.items():
        found = re.match(r"_blocks\.(\d+)\.(_\w+?)\.(.+)", key)
        if found and int(found[1]) in blocks:
            expands = f"_blocks.{found[1]}._expand_conv.weight" in state
            renamed[f"{blocks[int(found[1])]}.{_lite_layer(found[2], expands)}.{found[3]}"] = value
        else:
            outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
            module, _, kind = key.partition(".")
            renamed[f"{(outside | {'_fc': 'classifier'}).get(module, module)}.{kind}"] = value
    return renamed


def _lite_layer(layer: str, expands: bool) -> str:
    if layer.startswith("_bn"):
        return f"bn{int(layer[3:]) + (1 if expands else 0)}"
    return "conv_pw" if layer == "_project_conv" and not expands else _LITE.get(layer, layer)
