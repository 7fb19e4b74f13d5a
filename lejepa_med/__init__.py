"""Pretrain your own medical imaging backbone with LeJEPA, and find out whether it beats DINOv2 on your scans.

    run      = lejepa_med.pretrain(data, model, out)
    backbone = lejepa_med.load_backbone("runs/a")
    table    = lejepa_med.embed(backbone, items)

Importing this does not import torch; the first call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lejepa_med._version import __version__

if TYPE_CHECKING:
    from lejepa_med.api import pretrain
    from lejepa_med.evaluation.embedding import embed
    from lejepa_med.weights import load_backbone

__all__ = ["__version__", "embed", "load_backbone", "pretrain"]


def __getattr__(name: str) -> Any:
    if name == "pretrain":
        from lejepa_med.api import pretrain

        return pretrain
    if name == "embed":
        from lejepa_med.evaluation.embedding import embed

        return embed
    if name == "load_backbone":
        from lejepa_med.weights import load_backbone

        return load_backbone
    raise AttributeError(f"module 'lejepa_med' has no attribute '{name}'")
