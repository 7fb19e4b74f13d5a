# %% [markdown]
# # 2. From a PACS export to an audited index
#
# An export holds localizers, screenshots, reports, copies, and series that are two things at once. `index` looks at
# every file once and decides for each volume: accepted, flagged or rejected, with the reason. Before anything is
# trained you read that decision. This takes ten minutes and saves the month in which a network learns from scouts.

# %%
import json
import os
from pathlib import Path

import nibabel
import pandas as pd

from lejepa_med.cli.main import main
from lejepa_med.data import converting
from lejepa_med.data.reading import Archive
from lejepa_med.data.synthetic import write_archive
from lejepa_med.data.vocabulary import FLAGS, REASONS

SCANS = None  # <- yours: Path("/path/to/export"). Nothing is changed there. None: a synthetic archive is written
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")
ROOT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out"))
WORK, OUT = ROOT / "work", ROOT / "02_archive_to_index"  # tutorials 3, 4, 5, 7 and 8 go on in WORK
SUBJECTS = {"smoke": 24, "full": 96}[SIZE]


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


# %%
OUT.mkdir(parents=True, exist_ok=True)
if SCANS is None:
    SCANS = WORK / "archive"
    if not (SCANS / "README.txt").exists():
        write_archive(SCANS, subjects=SUBJECTS)
    print((SCANS / "README.txt").read_text())

# %% [markdown]
# ## A first look
# Without settings. Folders, zip and tar archives are read in place.

# %%
command("index", SCANS, "--out", WORK / "index")

# %% [markdown]
# Read these lines from the top. **Every file is accounted for**: seen = used + explained. Then the verdicts: what was
# rejected, and does that surprise you? A reason that you do not expect a hundred times is the first thing to look into.
# Last the modalities: `unknown` are NIfTI files. DICOM says what it is, NIfTI does not.

# %%
table = pd.read_parquet(WORK / "index" / "series.parquet")
before = table["modality"].value_counts().to_dict()
for reason, count in table["reason"].value_counts().items():
    if reason:
        print(f"rejected {count:4d}  {reason}: {REASONS[reason]}")
for flag, count in table["flags"].str.split(";").explode().value_counts().items():
    if flag:
        print(f"flagged  {count:4d}  {flag}: {FLAGS[flag]}")

# %% [markdown]
# ## Settings
# A rule about folders says which NIfTI files are MRI, and volumes of under 8 slices are left out. Changed settings
# judge what was found before: no file is read again. **For your archive** start from `configs/index/brain_mri.yaml`,
# `chest_ct.yaml` or `abdomen_ct.yaml`, and from `patients:` there if NIfTI names do not say whose they are.

# %%
settings = OUT / "index.yaml"
settings.write_text("""\
rules:
  - {glob: "*/anat/*", modality: mri}     # first match wins
min_slices: 8
""")
command("index", SCANS, "--out", WORK / "index", "--config", settings)

# %% [markdown]
# ## The audit
# `index.html` is the page to show around. `series.parquet` is the same as a table; keys are salted hashes, and no name,
# date or path is in it. `files.parquet` says which file went where; it holds paths, and only you can read it.
#
# Draw ten volumes at random and look at them in your viewer. If one surprises you, draw thirty.

# %%
table = pd.read_parquet(WORK / "index" / "series.parquet")
files = pd.read_parquet(WORK / "index" / "files.parquet")
columns = ["series_key", "verdict", "reason", "flags", "modality", "sequence", "shape", "spacing_mm"]
print(table.sample(min(10, len(table)), random_state=0)[columns].to_string(index=False))
print(f"\n{len(files)} files, {files['path'].nunique()} different; without a verdict: {files['verdict'].isna().sum()}")
print("the page:", WORK / "index" / "index.html")

# %% [markdown]
# ## One volume
# Read by its key, with the affine that its slice positions give, and written as NIfTI for your viewer. `lejepa-med
# convert INDEX --out FOLDER` does it with all of them.

# %%
archive = Archive.open(WORK / "index")
chosen = archive.rows().query("modality == 'mri'").sort_values("source").iloc[0]
target = OUT / f"{chosen['series_key']}.nii.gz"
converting.write_nifti(archive.read(str(chosen["series_key"])), target)
image = nibabel.load(target)
print(f"{target}: {image.shape} voxels of {image.header.get_zooms()} mm, {''.join(nibabel.aff2axcodes(image.affine))}")

result = {
    "files": len(files),
    "on_disk": sum(file.is_file() for file in SCANS.rglob("*")),
    "unexplained": int(files["verdict"].isna().sum()),
    "modalities_before": {str(name): int(count) for name, count in before.items()},
    "modalities": {str(name): int(count) for name, count in archive.rows()["modality"].value_counts().items()},
    "reasons": {str(name): int(count) for name, count in table["reason"].value_counts().items() if name},
    "shape": list(image.shape),
    "file": target.name,
}
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - Tutorial 3 prepares what was accepted and trains on it.
# - Each reason and flag, with what to do: `docs/dicom_rules.md`, `docs/index_rules.md`. Awkward series one by one:
#   `docs/dicom_cases.md`.
