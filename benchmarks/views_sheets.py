"""The contact sheet of every config in `configs/pretrain/`, on synthetic scans, as they are shown in docs/views.md.

    python benchmarks/views_sheets.py --out docs/images/views      # some five minutes on two cores

Heads at 1 mm, trunks at 1.5 mm, crops of 36 x 50 x 36 mm and axial pictures are drawn by the package, then go through
`index`, `prepare` and `views` as files of a hospital would. No patient is behind any of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.data.synthetic import body_phantom, draw_body, draw_scan, draw_subject, head_phantom
from lejepa_med.data.volume import Volume

CONFIGS = Path(__file__).parent.parent / "configs"
SCANS = 6
SHEETS: dict[str, tuple[str, str, tuple[str, ...]]] = {  # config -> scans, config of prepare, settings of prepare
    "abdomen_ct_swin": ("trunks", "body_ct", ()),
    "brain_mri_resnet3d": ("heads", "brain_mri_1mm", ()),
    "brain_mri_vit3d": ("heads", "brain_mri_1mm", ()),
    "chest_ct_resnet3d": ("trunks", "body_ct", ()),
    "hippocampus_resnet3d": ("crops", "brain_mri_1mm", ("preprocess.foreground=false",)),
    "images_2d_resnet": ("pictures", "images_2d", ()),
    "slices_2d_resnet": ("heads", "brain_mri_1mm", ()),
    "slices_2d_vit": ("heads", "brain_mri_1mm", ()),
    "slices_2d_dinov2_continued": ("heads", "brain_mri_1mm", ()),
}
INDEX = {"heads": ("modality=mri",), "trunks": ("modality=ct",), "crops": ("modality=mri",), "pictures": ()}


def lejepa_med(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "lejepa_med", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def head(number: int) -> Volume:
    """Every third one a FLAIR."""
    return head_phantom(
        draw_subject(number), draw_scan(number, "FLAIR" if number % 3 == 2 else "T1w"), (1.0, 1.0, 1.0), (176, 224, 208)
    )


def scans(kind: str) -> Iterator[Volume]:
    for number in range(SCANS):
        if kind == "trunks":
            yield body_phantom(draw_body(number), (1.5, 1.5, 1.5))
            continue
        volume = head(number)
        if kind == "crops":  # beside the lateral ventricles, the finest structures of these phantoms
            low = [side // 2 + first for side, first in zip(volume.array.shape, (-24, -25, -4), strict=True)]
            box = tuple(slice(a, a + n) for a, n in zip(low, (36, 50, 36), strict=True))
            yield Volume(volume.array[box], volume.affine, "mri")
        else:
            yield volume


def write(kind: str, folder: Path) -> None:
    """Files of patients `sub-NN`; pictures are axial slices as they are displayed, from four heights."""
    folder.mkdir(parents=True)
    for number, volume in enumerate(scans("heads" if kind == "pictures" else kind)):
        stem = f"sub-{number:02d}"
        if kind == "pictures":
            shade = np.clip(volume.array / np.percentile(volume.array, 99.5), 0, 1) * 255
            height = int((0.45 + 0.05 * (number % 4)) * shade.shape[2])
            picture: NDArray[np.generic] = shade[::-1, ::-1, height].T.astype(np.uint8)
            Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{stem}.png")
        else:
            nibabel.save(nibabel.Nifti1Image(volume.array.astype(np.int16), volume.affine), folder / f"{stem}.nii.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures, CONFIG.png each")
    parser.add_argument("--work", type=Path, help="keeps scans and caches there, and uses those that are there")
    parser.add_argument("--samples", type=int, default=2, help="rows of a sheet")
    parser.add_argument("--only", nargs="+", choices=sorted(SHEETS), help="these configs (default: all)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for config in options.only or SHEETS:
            kind, prepare, settings = SHEETS[config]
            cache = work / kind / "cache"
            if not cache.exists():
                write(kind, work / kind / "scans")
                lejepa_med("index", work / kind / "scans", *INDEX[kind], "--out", work / kind / "index")
                prepared = ("--config", CONFIGS / "prepare" / f"{prepare}.yaml")
                lejepa_med("prepare", work / kind / "index", *settings, *prepared, "--out", cache)
            few = ("data.holdout.test_fraction=0", "data.monitor_fraction=0")  # all are shown
            file = options.out / f"{config}.png"
            pretrain = CONFIGS / "pretrain" / f"{config}.yaml"
            lejepa_med("views", pretrain, f"data.cache={cache}", *few, "--samples", str(options.samples), "--out", file)
            Image.open(file).quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)  # smaller, looks the same
            print(f"{file}: {file.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
