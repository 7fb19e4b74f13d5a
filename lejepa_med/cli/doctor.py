"""`doctor`: what works on this machine, in words; with a cache, how fast its data path is."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from lejepa_med.config import ViewsConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.dataset import CacheSource, StepDataset
from lejepa_med.data.sampler import StepSampler
from lejepa_med.training.loop import cpu_has_fast_bf16
from lejepa_med.views import BatchedMultiCrop

_UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
_COMPRESSED = (JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000, RLELossless)


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """Checks, and exit code 1 if the main job cannot run here."""
    decoders = {str(syntax.name): _can_decode(syntax) for syntax in _COMPRESSED}
    decoders |= {str(syntax.name): True for syntax in _UNCOMPRESSED}
    result: dict[str, Any] = {
        "devices": _devices(),
        "precision": "bf16" if torch.cuda.is_available() or cpu_has_fast_bf16() else "float32",
        "cpu_cores": os.cpu_count() or 1,
        "training_step": _one_step(),
        "decoders": {name: "yes" if works else "no" for name, works in decoders.items()},
        "shared_memory_gb": _free_gb(Path("/dev/shm")),
        "free_disk_gb": _free_gb(Path.cwd()),
    }
    problems = []
    if result["training_step"] != "works":
        problems.append("a training step fails")
    if not all(decoders.values()):
        problems.append("some compressed DICOM cannot be decoded; reinstall lejepa-med with its dependencies")
    if options.cache is not None:
        result["data_path"] = measure_data_path(Cache.open(options.cache))
    result["problems"] = problems or "none"
    result["exit_code"] = int(result["training_step"] != "works")
    return result


def _devices() -> str:
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *names])


def _can_decode(syntax: Any) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _free_gb(path: Path) -> float | str:
    return round(shutil.disk_usage(path).free / 1e9, 1) if path.exists() else "none"


def _one_step() -> str:
    """A real forward and backward pass through the smallest network."""
    from lejepa_med.backbones import build
    from lejepa_med.config import ModelConfig, ProjectorConfig
    from lejepa_med.objective import LeJEPALoss
    from lejepa_med.training.model import Pretrainer

    model = Pretrainer(build(ModelConfig(name="resnet10_3d", width=0.125)), ProjectorConfig(hidden=32, dim=8))
    _, projections = model([torch.rand(2, 4, 1, 16, 16, 16)])
    loss = LeJEPALoss(num_slices=16)(projections, num_global=2)
    loss.total.backward()
    return "works" if bool(torch.isfinite(loss.total)) else "gives a loss that is not finite"


def measure_data_path(cache: Cache, batches: int = 3, batch_size: int = 16) -> dict[str, Any]:
    """Seconds per volume of reading and of making 2 x 96^3 + 6 x 48^3 views, and which of the two is the bottleneck."""
    source = CacheSource(cache, cache.table)
    sampler = StepSampler(source.patients, batch_size, 0, source.groups)
    first = cache.read(source.keys[0])
    three_d = first.array.ndim == 3
    views = ViewsConfig() if three_d else ViewsConfig(global_size=(224, 224), local_size=(96, 96), base_crop_mm=None)
    spacing = first.spacing_mm or (1.0, 1.0)
    size = tuple(round(192.0 / mm) for mm in spacing) if three_d else tuple(first.array.shape)
    dataset, crop = StepDataset(source, sampler, size, seed=0), BatchedMultiCrop(views)
    reading = viewing = 0.0
    for step in range(batches):
        began = time.perf_counter()
        batch = dataset[step]
        read = time.perf_counter()
        crop(batch.images, batch.spacing_mm, batch.is_ct, ("doctor", step))
        reading, viewing = reading + read - began, viewing + time.perf_counter() - read
    volumes = batches * batch_size
    return {
        "read_ms_per_volume": round(1e3 * reading / volumes, 2),
        "views_ms_per_volume": round(1e3 * viewing / volumes, 2),
        "volumes_per_s": round(volumes / (reading + viewing), 1),
        "bottleneck": "reading" if reading > viewing else "views",
    }
