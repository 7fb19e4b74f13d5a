# %% [markdown]
# # From an archive to an index
#
# Writes a small synthetic hospital archive with the usual clutter, indexes it, reads the table, and converts one
# volume to NIfTI. The same as `lejepa-med index` and `lejepa-med convert`.

# %%
import json
import os
from pathlib import Path

import nibabel
import pandas as pd

from lejepa_med.config import IndexSettings
from lejepa_med.data import converting
from lejepa_med.data.index import archive
from lejepa_med.data.reading import Archive
from lejepa_med.data.synthetic import write_archive
from lejepa_med.data.vocabulary import FLAGS, REASONS

SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "smoke")
OUT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out")) / "02_archive_to_index"
SUBJECTS = {"smoke": 4, "full": 240}[SIZE]

# %%
written = write_archive(OUT / "archive", subjects=SUBJECTS)
print((OUT / "archive" / "README.txt").read_text())

# %% [markdown]
# ## Index
# DICOM says what it is. NIfTI files do not, so a rule about folders does. Nothing is dropped without a word: the files
# that were seen are those used and those explained.

# %%
rules = ({"glob": "*/anat/*", "modality": "mri"},)
settings = IndexSettings.model_validate({"rules": rules, "min_slices": 8, "compute": {"workers": 1}})
summary = archive.index([OUT / "archive"], OUT / "index", settings)
print(f"{summary.files_seen} files seen = {summary.files_used} used + {summary.files_explained} explained")
print("a page to look at:", OUT / "index" / "index.html")

# %% [markdown]
# ## The table
# One row per volume, and one per group of files that are no volume. Keys are salted hashes; no name, date or path.

# %%
table = pd.read_parquet(OUT / "index" / "series.parquet")
print(table[["series_key", "verdict", "reason", "modality", "sequence", "shape", "spacing_mm"]].to_string(index=False))
for reason, count in summary.reasons.items():
    print(f"rejected {count:3d}  {reason}: {REASONS[reason]}")
for flag, count in summary.flags.items():
    print(f"flagged  {count:3d}  {flag}: {FLAGS[flag]}")

# %% [markdown]
# ## One volume
# Read by its key, with the affine that its slice positions give, and written as NIfTI.

# %%
opened = Archive.open(OUT / "index")
chosen = opened.rows().query("source == 'dicom' and modality == 'mri'").iloc[0]
volume = opened.read(str(chosen["series_key"]))
target = OUT / f"{chosen['series_key']}.nii.gz"
converting.write_nifti(volume, target)
image = nibabel.load(target)
print(f"{target}: {image.shape} voxels of {image.header.get_zooms()} mm, {''.join(nibabel.aff2axcodes(image.affine))}")

result = {
    "files_seen": summary.files_seen,
    "files_used": summary.files_used,
    "files_explained": summary.files_explained,
    "mri_volumes": int((opened.rows()["modality"] == "mri").sum()),
    "mri_series_written": written.dicom_series + written.nifti_files,
    "shape": list(image.shape),
    "file": target.name,
}
(OUT / "result.json").write_text(json.dumps(result))
