# %% [markdown]
# # 4. Read the loss: choose a run without labels
#
# You will train more than one run, and you have few labels, or none yet. LeJEPA's claim is that its loss tells which
# run is better. This tutorial trains three runs that differ in `lam`, the one weight of the method, reads what each
# left behind, and lets `select` rank them on patients that none of them has seen.

# %%
import json
import os
from pathlib import Path

from lejepa_med.cli.main import main
from lejepa_med.data.synthetic import write_archive

WORK = None  # <- yours: the folder in which tutorials 2 and 3 left `cache`. None: synthetic heads
SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "full")  # full: some two minutes on two cores; smoke: it only runs
ROOT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out"))
OUT = ROOT / "04_read_the_loss"
SUBJECTS, STEPS, BATCH, EVERY = {"smoke": (24, 6, 8, 3), "full": (96, 120, 48, 20)}[SIZE]


def command(*words: object) -> None:
    """`lejepa-med WORDS`, as you would type it."""
    print("\n$ lejepa-med", *words, flush=True)
    if main([str(word) for word in words]) != 0:
        raise SystemExit(2)


OUT.mkdir(parents=True, exist_ok=True)
if WORK is None:
    WORK = ROOT / "work"
    if not (WORK / "cache" / "manifest.parquet").exists():  # what tutorials 2 and 3 do
        write_archive(WORK / "archive", subjects=SUBJECTS)
        command("index", WORK / "archive", "--out", WORK / "index", "modality=mri", "min_slices=8")
        command(
            "prepare", WORK / "index", "--out", WORK / "cache", "modalities=[mri]", "preprocess.spacing_mm=[4, 4, 4]"
        )

# %% [markdown]
# ## Three runs
# The loss is `(1 - lam) * prediction + lam * sigreg`. With `lam` near 0 nothing keeps the vectors apart; with a large
# `lam` nothing makes the views of one head agree. The paper uses .05 at a batch of 256, and the default, `sqrt`,
# follows your batch. `monitor_fraction` keeps a tenth of the training patients aside: their loss is the one to trust.

# %%
settings = OUT / "pretrain.yaml"
settings.write_text(f"""\
data:
  holdout: {{test_fraction: 0.4, seed: 0}}
  modalities: [mri]
  monitor_fraction: 0.5      # so many because there are so few patients here; .1 is the default
model: {{name: resnet10_3d, width: 0.25}}
projector: {{hidden: 128, dim: 16}}
views:
  num_local: 2
  global_size: [24, 24, 24]
  local_size: [12, 12, 12]
  global_fraction: [0.5, 1.0]
  local_fraction: [0.2, 0.5]
  base_crop_mm: 192
  global_pitch_mm: [4, 8]
  local_pitch_mm: [4, 8]
optim: {{lr: 2e-3}}
train: {{steps: {STEPS}, batch_size: {BATCH}, diagnostics_every: {EVERY}}}
""")
runs = {"lam_0.001": 0.001, "lam_0.1": 0.1, "lam_0.8": 0.8}
for name, lam in runs.items():
    if not (OUT / name / "DONE").exists():
        command("pretrain", settings, "--out", OUT / name, f"data.cache={WORK / 'cache'}", f"objective.lam={lam}")

# %% [markdown]
# ## What each run left
# `metrics.jsonl`, every step: a falling `total` says little, since three values of `lam` weigh its parts differently.
#
# `diagnostics.jsonl`, every so many steps: **`feature_rank` is the one number to watch**: of how many directions the
# features make use, next to what the batch allows (`feature_rank_bound`). A rank near 1 is collapse, however low the
# loss is. `projection_std` should be near 1. `held_out_total` is the loss of the patients kept aside; rising while
# `seen_total` falls, the run memorises. What crosses a threshold is said in a sentence (`advice`), explained in
# `docs/diagnostics.md`.

# %%
columns = ("feature_rank", "feature_rank_bound", "projection_std", "held_out_total", "seen_total")
print(f"{'run':12s} {'prediction':>11s} {'sigreg':>8s}", *(f"{name:>19s}" for name in columns))
result: dict[str, object] = {}
for name in runs:
    metrics = [json.loads(line) for line in (OUT / name / "metrics.jsonl").read_text().splitlines()]
    diagnostics = [json.loads(line) for line in (OUT / name / "diagnostics.jsonl").read_text().splitlines()]
    last = metrics[-1] | diagnostics[-1]
    numbers = " ".join(f"{last.get(column, float('nan')):19.3f}" for column in columns)
    print(f"{name:12s} {last['prediction']:11.4f} {last['sigreg']:8.2f} {numbers}")
    kept = {key: last[key] for key in ("prediction", "sigreg", "feature_rank", "projection_std", "advice")}
    result[name] = kept | {"held_out": "held_out_total" in last}

# %% [markdown]
# See how they trade: small `lam` has the lowest prediction and vectors that hardly differ (`projection_std` far from
# 1); large `lam` has the most Gaussian vectors and views that agree least.
#
# ## The ranking
# `select` scores all runs again, on the same held-out patients with the same views, and orders them by `total /
# lam^0.4`, the paper's formula. Lower is better. `sd of draws` says how much of a difference is luck.

# %%
if not (OUT / "selection" / "selection.json").exists():
    command("select", *(OUT / name for name in runs), "--out", OUT / "selection")
selection = json.loads((OUT / "selection" / "selection.json").read_text())
for row in selection["runs"]:
    print(row["rank"], row["run"], "score", row["score"], row["not_scored"])
print("the picture:", OUT / "selection" / "selection.png")

# %% [markdown]
# With labels of some patients, `lejepa-med probe CONFIG --out RUN/probe` for each run adds how well this order agrees
# with them. Believe the ranking among runs of one network and one length; `docs/model_selection.md` lists what it
# cannot tell, and first of all: **whether the best of them is any good.**

# %%
result["ranking"] = [row["run"] for row in selection["runs"]]
result["scores"] = {row["run"]: row["score"] for row in selection["runs"]}
(OUT / "result.json").write_text(json.dumps(result))

# %% [markdown]
# ## Next
# - Tutorial 5: is the best run any good?
# - Labels of training patients while it trains: `online_probe` in `docs/diagnostics.md`.
