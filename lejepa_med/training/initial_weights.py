"""`init_from`: where a run's backbone starts. Own weights as they are; files of others into timm's networks, strictly.

A network of ours sees one channel in [0, 1], those of others colours of a certain mean and standard deviation. Both are
folded into the patch embedding, exactly: a grey image x stands for the colour (x, x, x), normalised, so that

    sum_c w_c (x - mean_c) / std_c + b  =  (sum_c w_c / std_c) x + (b - sum_c w_c mean_c / std_c)

and likewise, without the sum over c, if `model.in_channels` is 3. First convolutions with padding (timm's CNNs) get
the weights, not the bias: the BatchNorm behind them takes the shift away, but for the border.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lejepa_med.backbones import Backbone
from lejepa_med.backbones.timm2d import Timm2d
from lejepa_med.errors import WeightsError
from lejepa_med.weights import find_weights, load_strictly, read_tensors, timm_names

_OURS = "net."
_CLASSIFIERS = ("head.", "fc.", "classifier.")


def load_initial_weights(backbone: Backbone, path: Path) -> None:
    """Loads all of the weights of a run, an export or a file, or nothing.

    timm networks also take files of timm and of DINOv2, as their authors wrote them; of these only the classifier is
    left out (and DINOv2's mask token, which timm's definition does not have).

    Raises:
        WeightsError: nothing there, damaged, or weights that do not fit the network.
    """
    file = find_weights(path)
    state = read_tensors(file)
    if isinstance(backbone, Timm2d) and not all(key.startswith(_OURS) for key in state):
        state = _as_ours(backbone, state, file)
    load_strictly(backbone, state, str(path))


def _as_ours(backbone: Timm2d, state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    own = backbone.net.state_dict()
    plain = timm_names({key.removeprefix("backbone."): value for key, value in state.items()}, own)
    plain = {key: value for key, value in plain.items() if key in own or not key.startswith(_CLASSIFIERS)}
    return {_OURS + key: value for key, value in _with_our_channels(backbone, plain, file).items()}


def _with_our_channels(backbone: Timm2d, state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    described = backbone.net.pretrained_cfg
    name = str(described["first_conv"])
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        return state  # what does not fit is told by the strict load
    if backbone.in_channels not in (1, 3):
        raise WeightsError(
            f"weights {file}: of colour images, but model.in_channels is {backbone.in_channels}; it can be 1 or 3"
        )
    mean, std = (weight.new_tensor(described[key])[:, None, None] for key in ("mean", "std"))
    scaled = weight / std
    changed = {f"{name}.weight": scaled.sum(1, keepdim=True) if backbone.in_channels == 1 else scaled}
    convolution = dict(backbone.net.named_modules()).get(name)
    if bias is not None and isinstance(convolution, nn.Conv2d) and not any(convolution.padding):
        changed[f"{name}.bias"] = bias - (scaled * mean).sum((1, 2, 3))
    return state | changed
