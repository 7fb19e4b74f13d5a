"""What is looked at on a machine, and what is said where something is missing. A check that fails never raises.

ok: it works; warn: training works, something else does not; fails: the main job cannot run; note: for information.
Nothing that is found names the machine, its user or a folder of theirs.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from lejepa_med.data.dicom.decoders import SYNTAXES, try_decoders
from lejepa_med.machine import Machine, examine, free_bytes
from lejepa_med.training.bottleneck import in_words
from lejepa_med.training.devices import cpu_has_fast_bf16

State = Literal["ok", "warn", "fails", "note"]

_FEW_FILES = 1024  # descriptors; each loader worker takes some per batch under way
_SMALL_SHARED = 10**9
_SMALL_DISK = 5 * 10**9
_EXTRAS = {
    "distributed": 'index and prepare on a Dask cluster: pip install "lejepa-med[dask]"',
    "triton": "the fast SIGReg kernel on a GPU; comes with torch for CUDA",
    "tensorboard": "optional: pip install tensorboard",
    "onnx": "optional, for the ONNX format: pip install onnx",
}


@dataclass(frozen=True)
class Check:
    """One line of the report; `advice` says what to do where it is not ok."""

    group: str
    name: str
    state: State
    value: str
    advice: str = ""
    numbers: dict[str, float | int | None] = field(default_factory=dict)


def check_all() -> list[Check]:
    """Every check, in the order in which people read them."""
    machine = examine()
    return [
        *_software(),
        *_compute(),
        *_machine(machine),
        *_folders(),
        *check_decoders(try_decoders),
        *_extras(),
    ]


def _software() -> Iterator[Check]:
    yield Check("software", "python", "note", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPU only"
    yield Check("software", "torch", "note", f"{torch.__version__.partition('+')[0]}, built {built}")
    driver = driver_version(Path("/proc/driver/nvidia/version"))
    if driver:
        yield Check("software", "NVIDIA driver", "note", driver)


def driver_version(file: Path) -> str:
    """Of NVIDIA's kernel module; empty where there is none."""
    try:
        words = file.read_text(errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if word.replace(".", "").isdigit() and "." in word), "")


def _compute() -> Iterator[Check]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    for number in range(torch.cuda.device_count() if available else 0):
        yield _gpu(number)
    if not available:
        has_gpu = bool(driver_version(Path("/proc/driver/nvidia/version"))) or Path("/dev/nvidia0").exists()
        yield no_gpu(has_gpu, torch.version.cuda, bool(said))
    bf16 = torch.cuda.is_bf16_supported() if available else cpu_has_fast_bf16()
    yield Check("compute", "precision", "note", "bf16" if bf16 else "float32 (bf16 would be slower here)")
    yield training_step(_one_step)


def _gpu(number: int) -> Check:
    properties = torch.cuda.get_device_properties(number)
    own, built = f"sm_{properties.major}{properties.minor}", torch.cuda.get_arch_list()
    value = f"{properties.name}, {in_words(properties.total_memory)}"
    same_major = any(arch.startswith(f"sm_{properties.major}") or arch.startswith("compute_") for arch in built)
    if built and not same_major:
        advice = f"this torch is built for {', '.join(built)}, the GPU is {own}: install a build of torch that has it"
        return Check("compute", f"GPU {number}", "warn", value, advice)
    return Check("compute", f"GPU {number}", "ok", value, numbers={"bytes": properties.total_memory})


def no_gpu(has_gpu: bool, built_for: str | None, refused: bool) -> Check:
    """What to do where no GPU can be used, by what is known of it."""
    if has_gpu and not built_for:
        advice = "there is an NVIDIA GPU, but this torch is built for the CPU: install torch for CUDA (pytorch.org)"
        return Check("compute", "GPU", "warn", "not used", advice)
    if has_gpu:
        reason = "its driver is older than that" if refused else "it is not visible (CUDA_VISIBLE_DEVICES, --gpus all)"
        advice = f"there is an NVIDIA GPU and torch is built for CUDA {built_for}, but {reason}"
        return Check("compute", "GPU", "warn", "not used", advice)
    return Check("compute", "GPU", "note", "none; training runs on the CPU")


def training_step(step: Callable[[], bool]) -> Check:
    """Whether `step` runs and its loss is finite: what everything else is for."""
    began = time.perf_counter()
    try:
        finite = step()
    except Exception as error:  # whatever it is, it is the finding
        advice = f"a training step ends in {type(error).__name__}: reinstall torch and lejepa-med"
        return Check("compute", "training step", "fails", "fails", advice)
    if not finite:
        return Check("compute", "training step", "fails", "fails", "its loss is not finite: reinstall torch")
    return Check("compute", "training step", "ok", f"works ({time.perf_counter() - began:.1f} s)")


def _one_step() -> bool:
    """A real forward and backward pass through the smallest network."""
    from lejepa_med.backbones import build
    from lejepa_med.config import ModelConfig, ProjectorConfig
    from lejepa_med.objective import LeJEPALoss
    from lejepa_med.training.model import Pretrainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Pretrainer(build(ModelConfig(name="resnet10_3d", width=0.125)), ProjectorConfig(hidden=32, dim=8))
    _, projections = model.to(device)([torch.rand(2, 4, 1, 16, 16, 16, device=device)])
    loss = LeJEPALoss(num_slices=16)(projections, num_global=2)
    loss.total.backward()
    return bool(torch.isfinite(loss.total))


def _machine(machine: Machine) -> Iterator[Check]:
    yield cores(machine)
    free = in_words(machine.memory_free) if machine.memory_free is not None else "unknown"
    of = f" of {in_words(machine.memory_total)}" if machine.memory_total else ""
    limit = f"; limited to {in_words(machine.memory_limit)} by the container or job" if machine.memory_limit else ""
    yield Check("machine", "memory", "note", f"{free} free{of}{limit}", numbers={"free_bytes": machine.memory_free})
    yield shared_memory(machine.shared_memory_free)
    if machine.open_files is not None or machine.open_files_hard is not None:
        yield open_files(machine.open_files, machine.open_files_hard)


def cores(machine: Machine) -> Check:
    """Those that may be used, of those there are, and what keeps the others back."""
    why = []
    if machine.cores_affinity < machine.cores_present:
        why.append(f"affinity allows {machine.cores_affinity}")
    if machine.cores_limit is not None:
        why.append(f"the container or job allows {machine.cores_limit:g}")
    threads = torch.get_num_threads()
    value = f"{machine.cores} of {machine.cores_present} usable"
    value += f" ({', '.join(why)})" if why else ""
    numbers: dict[str, float | int | None] = {"usable": machine.cores, "present": machine.cores_present}
    if threads > machine.cores:
        advice = f"torch uses {threads} threads on them, which slows them down: set OMP_NUM_THREADS={machine.cores}"
        return Check("machine", "cores", "warn", value, advice, numbers)
    return Check("machine", "cores", "ok", f"{value}, {threads} torch thread{'s' * (threads > 1)}", "", numbers)


def shared_memory(free: int | None) -> Check:
    """Loader workers hand batches over there; without it they cannot run."""
    if free is None and sys.platform == "linux":
        advice = "/dev/shm is missing, so loader workers cannot hand over batches: set data.workers=0, or mount it"
        return Check("machine", "shared memory", "warn", "none", advice)
    if free is None:
        return Check("machine", "shared memory", "note", "not needed on this system")
    if free < _SMALL_SHARED:
        advice = "little for loader workers (data.workers): start the container with --shm-size=16g or --ipc=host"
        return Check("machine", "shared memory", "warn", f"{in_words(free)} free", advice, {"free_bytes": free})
    return Check("machine", "shared memory", "ok", f"{in_words(free)} free", "", {"free_bytes": free})


def open_files(soft: int | None, hard: int | None) -> Check:
    """How many files one process may have open (`ulimit -n`)."""
    of = "" if hard is None or hard == soft else f", at most {hard:,}"
    value = "unlimited" if soft is None else f"{soft:,} (ulimit -n{of})"
    if soft is not None and soft < _FEW_FILES:
        advice = f"few for loader workers and large archives: run `ulimit -n {min(hard or 65536, 65536)}` first"
        return Check("machine", "open files", "warn", value, advice, {"limit": soft})
    return Check("machine", "open files", "ok", value, "", {"limit": soft})


def _folders() -> Iterator[Check]:
    yield _folder("temporary folder", None, "set TMPDIR to a folder with more space")
    yield _folder("this folder", Path.cwd(), "a cache of 1,000 heads at 1 mm takes 7 GB: choose --out on another disk")


def _folder(name: str, folder: Path | None, advice: str) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
        free = free_bytes(Path(tempfile.gettempdir()) if folder is None else folder) or 0
    except OSError:
        return Check("machine", name, "warn", "nothing can be written there", advice)
    small = free < _SMALL_DISK
    numbers: dict[str, float | int | None] = {"free_bytes": free}
    return Check("machine", name, "warn" if small else "ok", f"{in_words(free)} free", advice if small else "", numbers)


def check_decoders(attempt: Callable[[], Mapping[str, str]]) -> list[Check]:
    """One check per transfer syntax of DICOM, from a frame that was decoded."""
    try:
        outcomes = dict(attempt())
    except OSError:
        outcomes = dict.fromkeys((syntax.name for syntax in SYNTAXES), "not tried")
    advice = {
        "fails": "files of this kind will be rejected: reinstall lejepa-med with its dependencies",
        "wrong values": "the decoder gives other pixels than were stored: reinstall lejepa-med with its dependencies",
        "not tried": "needs a temporary folder that can be written to",
    }
    return [
        Check("DICOM", name, "ok" if outcome == "works" else "warn", outcome, advice.get(outcome, ""))
        for name, outcome in outcomes.items()
    ]


def _extras() -> Iterator[Check]:
    for package, purpose in _EXTRAS.items():
        try:
            yield Check("extras", package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check("extras", package, "note", f"not installed ({purpose})")
