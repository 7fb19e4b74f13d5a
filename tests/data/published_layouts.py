"""Small folders laid out exactly as published collections are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

AFFINE = np.diag([-1.2, 1.0, 1.5, 1.0])


def volume(seed: int, shape: tuple[int, ...] = (14, 16, 12)) -> tuple[np.ndarray, np.ndarray]:
    """An image, and the mask of a bright box (1) with a brighter core (2)."""
    mask = np.zeros(shape[:3], np.uint8)
    mask[3:11, 4:12, 3:9] = 1
    mask[5:8, 6:9, 5:7] = 2
    noise = np.random.default_rng(seed).normal(10, 2, shape).astype(np.float32)
    return noise + 80 * (mask if len(shape) == 3 else mask[..., None]), mask


def save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), file)


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def nnunet(folder: Path, cases: int = 3, channels: tuple[str, ...] = ("T1w", "FLAIR")) -> Path:
    """Version 2, with one test case."""
    for number in range(cases + 1):
        part = "Tr" if number < cases else "Ts"
        for channel in range(len(channels)):
            image, mask = volume(10 * number + channel)
            save(folder / f"images{part}" / f"BRATS_{number:03d}_{channel:04d}.nii.gz", image)
        if part == "Tr":
            save(folder / "labelsTr" / f"BRATS_{number:03d}.nii.gz", mask)
    names = {str(number): name for number, name in enumerate(channels)}
    labels = {"background": 0, "edema": 1, "core": 2}
    content = {"channel_names": names, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", content)
    return folder


def decathlon(folder: Path, cases: int = 3, modalities: tuple[str, ...] = ("MRI",)) -> Path:
    """4D images where there are several modalities."""
    for number in range(cases + 1):
        part = "Tr" if number < cases else "Ts"
        shape = (14, 16, 12) if len(modalities) == 1 else (14, 16, 12, len(modalities))
        image, mask = volume(number, shape)
        save(folder / f"images{part}" / f"hippocampus_{number:03d}.nii.gz", image)
        if part == "Tr":
            save(folder / "labelsTr" / f"hippocampus_{number:03d}.nii.gz", mask)
    names = [f"hippocampus_{number:03d}.nii.gz" for number in range(cases + 1)]
    content = {
        "name": "Hippocampus",
        "tensorImageSize": "3D",
        "modality": {str(number): name for number, name in enumerate(modalities)},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": cases,
        "numTest": 1,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:cases]],
        "test": [f"./imagesTs/{name}" for name in names[cases:]],
    }
    write_json(folder / "dataset.json", content)
    return folder


def bids(folder: Path, subjects: int = 3, root: str = "") -> Path:
    for number in range(1, subjects + 1):
        for session in ("ses-1", "ses-2"):
            place = folder / root / f"sub-{number:02d}" / session
            for end in ("T1w", "FLAIR"):
                save(place / "anat" / f"sub-{number:02d}_{session}_{end}.nii.gz", volume(number)[0])
            save(place / "anat" / f"sub-{number:02d}_{session}_desc-brain_mask.nii.gz", volume(number)[1])
            save(place / "func" / f"sub-{number:02d}_{session}_task-rest_bold.nii.gz", volume(number)[0])
    save(folder / root / "derivatives" / "x" / "sub-01" / "anat" / "sub-01_T1w.nii.gz", volume(1)[0])
    rows = ["participant_id\tage\tsex\tsite\tnotes", *(f"sub-{n:02d}\t{30 + n}\tF\tParis\tDr Secret" for n in (1, 2))]
    (folder / root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


def medmnist(file: Path, shape: tuple[int, ...] = (28, 28), labels: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """As np.savez_compressed writes it: uint8 images, labels `[image, label]`."""
    random, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 7), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, *shape)).astype(np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 2 if labels > 1 else 9, (count, labels)).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)
    return arrays


def mednist(folder: Path, each: int = 3) -> Path:
    for number, name in enumerate(("AbdomenCT", "Hand", "HeadCT")):
        (folder / name).mkdir(parents=True)
        for picture in range(each):
            array = np.random.default_rng(10 * number + picture).integers(0, 255, (64, 64)).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{picture:06d}.jpeg")
    return folder
