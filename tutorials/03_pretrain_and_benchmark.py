# %% [markdown]
# # Pretrain and benchmark
#
# The whole path through Python functions, on a synthetic archive: index, prepare, pretrain, benchmark, report. Each is
# what the verb of the same name calls, with the same settings. `make demo` does this with one command.

# %%
import json
import os
from pathlib import Path

import lejepa_med
from lejepa_med.config import BenchmarkConfig, IndexSettings, ModelConfig, PrepareConfig
from lejepa_med.data import preparing
from lejepa_med.data.index import archive
from lejepa_med.data.synthetic import write_archive
from lejepa_med.evaluation.benchmark import run_benchmark
from lejepa_med.evaluation.report import write_report

SIZE = os.environ.get("LEJEPA_MED_TUTORIAL_SIZE", "smoke")  # or full: some ten minutes on two cores
OUT = Path(os.environ.get("LEJEPA_MED_TUTORIAL_OUT", "tutorial_out")) / "03_pretrain_and_benchmark"
SUBJECTS, STEPS, BATCH, SEEDS, WORKERS = {"smoke": (24, 6, 8, 1, 1), "full": (240, 1500, 64, 5, 0)}[SIZE]

# %% [markdown]
# ## Archive, index, cache
# Only MRI is prepared, at 4 mm so that a CPU is enough.

# %%
write_archive(OUT / "archive", subjects=SUBJECTS)
rules = ({"glob": "*/anat/*", "modality": "mri"},)
settings = IndexSettings.model_validate({"rules": rules, "min_slices": 8, "compute": {"workers": WORKERS}})
archive.index([OUT / "archive"], OUT / "index", settings)
prepare = PrepareConfig.model_validate(
    {"modalities": ["mri"], "preprocess": {"spacing_mm": [4.0, 4.0, 4.0]}, "compute": {"workers": WORKERS}}
)
prepared = preparing.prepare(OUT / "index", OUT / "cache", prepare)
print(f"{prepared.prepared} of {prepared.series} series prepared; left out: {prepared.left_out}")

# %% [markdown]
# ## Pretraining
# `holdout` keeps test patients out; the benchmark is given the same two numbers, and checks.

# %%
holdout = {"test_fraction": 0.4, "seed": 0}
run = lejepa_med.pretrain(
    OUT / "cache",
    ModelConfig(name="resnet10_3d", width=0.25),
    OUT / "run",
    projector={"hidden": 256},
    objective={"num_slices": 256},
    views={
        "global_size": [24, 24, 24],
        "local_size": [12, 12, 12],
        "global_pitch_mm": [4, 8],
        "local_pitch_mm": [4, 8],
    },
    optim={"lr": 1e-3},
    train={"steps": STEPS, "batch_size": BATCH},
    inference={"window": [48, 48, 48], "pitch_mm": 4.0},
    **{"data.holdout": holdout},
)

# %% [markdown]
# ## Benchmark and report
# One task, the run, and three controls. DINOv2 takes part when its weights are a local file; see
# `configs/benchmark/example.yaml`.

# %%
labels = OUT / "archive" / "labels.csv"
benchmark = BenchmarkConfig.model_validate(
    {
        "data": {"cache": OUT / "cache", "index": OUT / "index"},
        "tasks": [{"name": "age", "labels": labels, "column": "age", "kind": "regression"}],
        "encoders": [
            {"kind": "run", "path": run.path},
            {"kind": "random", "like": run.path},
            {"kind": "pixels"},
            {"kind": "shape"},
        ],
        "methods": ["linear", "knn"],
        "holdout": holdout,
        "seeds": SEEDS,
    }
)
summary = run_benchmark(benchmark, OUT / "benchmark")
page = write_report(OUT / "benchmark", OUT / "report")
for row in summary.rows:
    if row["budget"] == "all" and row["method"] == "linear":
        print(f"{row['encoder']:20s} {row['metric']} {row['value']:.2f}  [{row['low']:.2f}, {row['high']:.2f}]")
print("report:", page)

result = {"counts": summary.counts, "leaks": summary.leaks, "report": str(page.relative_to(OUT))}
(OUT / "result.json").write_text(json.dumps(result))
