"""All weights of a file fit their network, or none is loaded and a table says which do not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lejepa_med.errors import WeightsError

_ROWS = 12


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads every tensor, or none.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; the text is a table of them.
    """
    require_fit({key: tuple(value.shape) for key, value in module.state_dict().items()}, state, name)
    module.load_state_dict(dict(state))


def require_fit(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], name: str) -> None:
    """Raises WeightsError unless `state` has exactly the keys and shapes of `expected`."""
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    shapes = [key for key in sorted(set(state) & set(expected)) if tuple(state[key].shape) != expected[key]]
    if not (missing or unexpected or shapes):
        return
    rows = [f"  missing     {key} {expected[key]}" for key in missing]
    rows += [f"  unexpected  {key} {tuple(state[key].shape)}" for key in unexpected]
    rows += [f"  shape       {key}: file {tuple(state[key].shape)}, network {expected[key]}" for key in shapes]
    more = f"\n  ... and {len(rows) - _ROWS} more" if len(rows) > _ROWS else ""
    counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(shapes)} of another shape"
    raise WeightsError(f"weights {name}: do not fit the network ({counts}):\n" + "\n".join(rows[:_ROWS]) + more)
