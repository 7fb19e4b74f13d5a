"""A cheap look at the pixels of a DICOM volume: three slices, and all of them only if these are constant."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lejepa_med.data.dicom_pixels import rescaled, stored_values
from lejepa_med.data.dicom_stack import Stack
from lejepa_med.data.dicom_volume import read_volume
from lejepa_med.data.entry import Entry


@dataclass(frozen=True)
class Probe:
    """A reason to reject the volume, or none, and the range of the values seen."""

    reason: str
    low: float
    high: float


def probe(stack: Stack) -> Probe:
    """Decodes three slices of a volume. Never raises."""
    count = len(stack.frames)
    values = []
    for place in sorted({count // 4, count // 2, 3 * count // 4}):
        frame = stack.frames[place]
        try:
            values.append(rescaled(frame, stored_values([frame])[0]))
        except Exception:
            continue
    if not values:
        return Probe("undecodable", 0, 0)
    if not all(np.isfinite(array).all() for array in values):
        return Probe("not_finite", 0, 0)
    low, high = min(float(array.min()) for array in values), max(float(array.max()) for array in values)
    if low == high:
        try:
            array = read_volume(stack).array
            low, high = float(array.min()), float(array.max())
        except Exception:
            return Probe("undecodable", 0, 0)
    return Probe("constant" if low == high else "", low, high)


def probe_many(stacks: Sequence[Stack]) -> list[Probe]:
    """The probes of a batch of volumes."""
    return [probe(stack) for stack in stacks]


def signature(entry: Entry) -> str:
    """A hash that changes whenever a file of a volume does."""
    files = [(use.file.path, use.file.size, use.file.mtime, use.frames, use.slots) for use in entry.files]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:24]


class ProbeCache:
    """Probes of earlier runs, in the private file INDEX/probes.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "probes.jsonl"
        self._known: dict[str, Probe] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    key, reason, low, high = json.loads(line)
                except ValueError:
                    continue
                self._known[key] = Probe(reason, low, high)

    def get(self, key: str) -> Probe | None:
        """The probe of a volume that has not changed."""
        return self._known.get(key)

    def add(self, probes: Sequence[tuple[str, Probe]]) -> None:
        """Append a batch."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for key, found in probes:
                file.write(json.dumps([key, found.reason, found.low, found.high]) + "\n")
                self._known[key] = found
