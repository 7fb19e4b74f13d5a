"""The embedding of a backbone as a program for other software: ONNX, or torch.export's own format.

The size of a window is fixed, the number of windows is free. Each program is compared with the network before it is
kept.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lejepa_med.backbones import Backbone
from lejepa_med.errors import UserError, WeightsError

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
TOLERANCE = 1e-5
"""Largest difference from the network, as a share of its largest feature."""
_LARGEST_ONNX = 1_500_000_000
"""Bytes of weights in one ONNX file, whose format ends at 2 GB; larger ones go to `model.onnx.data`."""


def write_program(backbone: Backbone, out: Path, form: Literal["onnx", "torch"]) -> Path:
    """Writes `out/model.onnx` or `out/model.pt2`: `[batch, channel, *window]` to `[batch, dim]`; returns the file.

    Raises:
        UserError: ONNX needs packages that are not installed.
        WeightsError: the network cannot be turned into a program, or the program gives other features.
    """
    assert backbone.spec is not None, "saved weights carry their spec"
    if form == "onnx":
        _require("onnx", "onnxscript")
    shape = (backbone.in_channels, *backbone.spec.inference.window)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    program = _traced(backbone.eval(), images)
    _require_equal(backbone, lambda some: program.module()(some), shape)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        file = Path(folder) / FILES[form]
        if form == "torch":
            torch.export.save(program, file)
        else:
            _write_onnx(program, file, backbone, shape)
        for written in sorted(Path(folder).iterdir(), reverse=True):  # model.onnx comes after its data
            written.replace(out / written.name)
    return out / FILES[form]


def _traced(backbone: Backbone, images: Float[Tensor, "2 channel *window"]) -> ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of torch, about its own insides
            return torch.export.export(backbone, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception as error:  # each layer that cannot be traced raises its own
        raise WeightsError(
            f"export: this network cannot be turned into a program ({type(error).__name__}); take safetensors"
        ) from None


def _write_onnx(program: ExportedProgram, file: Path, backbone: Backbone, shape: tuple[int, ...]) -> None:
    size = sum(value.numel() * value.element_size() for value in backbone.state_dict().values())
    with warnings.catch_warnings(action="ignore"):  # of the converter
        torch.onnx.export(
            program,
            (),
            file,
            dynamo=True,
            input_names=["images"],
            output_names=["embedding"],
            external_data=size > _LARGEST_ONNX,
            verbose=False,
        )
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    _require_equal(backbone, lambda some: torch.from_numpy(session.run(None, {"images": some.numpy()})[0]), shape)


@torch.no_grad()
def _require_equal(backbone: Backbone, program: Any, shape: tuple[int, ...]) -> None:
    """The same features for one window and for three, which the trace has not seen.

    A network may turn the last bit of float32 into more than the tolerance: then a few times its own error is allowed.
    """
    for batch in (1, 3):
        images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(batch))
        expected = backbone(images)
        largest = expected.abs().max().clamp_min(1e-12)
        difference = float((program(images) - expected).abs().max() / largest)
        if difference <= TOLERANCE:
            continue
        exact = copy.deepcopy(backbone).double()(images.double())
        own_error = float((expected - exact).abs().max() / largest)
        if not difference <= 4 * own_error:
            raise WeightsError(f"export: the program's features differ by {difference:.1g} from the network's")


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f'export: ONNX needs {" and ".join(missing)}; pip install "lejepa-med[onnx]"')
