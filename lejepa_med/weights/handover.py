"""Trained encoders inside larger networks, MONAI's or your own: encoders are filled strictly, the rest stays fresh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lejepa_med.errors import WeightsError
from lejepa_med.weights.files import find_weights, read_tensors
from lejepa_med.weights.strict import require_fit

_OURS = "net."


@dataclass(frozen=True)
class Handover:
    """What `load_into` did: names of the network's tensors that were filled and left fresh, and what was converted."""

    prefix: str
    filled: tuple[str, ...]
    fresh: tuple[str, ...]
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A table with one line per module of the network's top level."""
        rows = [f"encoder at `{self.prefix or '(the network itself)'}`: {len(self.filled)} tensors filled"]
        for title, keys in (("filled", self.filled), ("fresh", self.fresh)):
            counts = Counter(key.split(".")[0] for key in keys)
            rows += [f"  {title}  {name:<24} {count:>5}" for name, count in counts.items()]
        return "\n".join([*rows, *self.changes])


def load_into(network: nn.Module, path: str | Path, prefix: str | None = None) -> Handover:
    """Fills the encoder of `network` with the backbone at `path`: a run, an export or a weight file.

    The encoder is the one submodule that has all tensors of the backbone, by name and shape; `prefix` names it where
    there are several (`encoder`; an empty text is the network itself). Every tensor of the backbone is used; what else
    the network has stays as it is and is listed. A bias before a BatchNorm, where the network has none, goes into that
    norm's running mean, which in evaluation mode is the same function.

    Example:
        >>> unet = FlexibleUNet(1, 2, "resnet10", spatial_dims=3, pretrained=False)  # doctest: +SKIP
        >>> print(load_into(unet, "runs/a"))  # doctest: +SKIP

    Raises:
        WeightsError: no submodule, or more than one, takes all of the backbone; nothing was changed.
    """
    file = find_weights(Path(path))
    state = {key.removeprefix(_OURS): value for key, value in read_tensors(file).items()}
    own = network.state_dict()
    named = [name for name, _ in network.named_modules(remove_duplicate=False)]
    places = [f"{name}." if name else "" for name in (named if prefix is None else [prefix.removesuffix(".")])]
    found = {place: _placed(state, own, place) for place in places}
    fitting = [place for place, (placed, _) in found.items() if _fits(placed, own)]
    if len(fitting) > 1:
        raise WeightsError(
            f"weights {file}: fit at {', '.join(place.removesuffix('.') or '(all)' for place in fitting)}; name one as "
            "prefix="
        )
    if not fitting:
        _refuse(found, own, str(file))
    placed, changes = found[fitting[0]]
    network.load_state_dict({**own, **placed})
    return Handover(
        fitting[0].removesuffix("."), tuple(placed), tuple(key for key in own if key not in placed), changes
    )


def _placed(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], place: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors by the network's names, biases that it does not have inside the norm behind them."""
    placed, folded = dict(state), []
    for key in state:
        start, _, last = key.rpartition(".0.")
        mean = f"{start}.1.running_mean"
        if last == "bias" and place + key not in own and mean in state and place + mean in own:
            placed[mean] = state[mean] - placed.pop(key)
            folded.append(place + key)
    note = (f"{len(folded)} biases of convolutions, which the network has not, are in the running means behind",)
    return {place + key: value for key, value in placed.items()}, note if folded else ()


def _fits(placed: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return all(key in own and own[key].shape == value.shape for key, value in placed.items())


def _refuse(
    found: Mapping[str, tuple[dict[str, Tensor], tuple[str, ...]]], own: Mapping[str, Tensor], name: str
) -> None:
    """The table of the place where most tensors fit."""

    def fitting(place: str) -> int:
        return sum(key in own and own[key].shape == value.shape for key, value in found[place][0].items())

    best = max(found, key=fitting)
    expected = {key: tuple(own[key].shape) for key in found[best][0] if key in own}
    require_fit(expected, found[best][0], f"{name} at `{best.removesuffix('.') or '(the network itself)'}`")
