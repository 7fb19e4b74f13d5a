"""The engine of the grid: every method, several processes, kills, costs, and what a failure may tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from lejepa_med.config.evaluation import (
    AttentionRecipe,
    BenchmarkConfig,
    FinetuneRecipe,
    PixelsEncoder,
    RandomEncoder,
    RunEncoder,
    ScratchEncoder,
    ShapeEncoder,
    Timm2dEncoder,
    role_of,
)
from lejepa_med.config.loading import dump_yaml
from lejepa_med.evaluation.benchmark import plan, run_benchmark
from lejepa_med.evaluation.cells import cell_file, without_paths
from lejepa_med.evaluation.costs import Meter, energy_joules
from lejepa_med.evaluation.estimate import estimate
from lejepa_med.evaluation.grid import Grid

from .conftest import HOLDOUT, Archive

TWO = ("mean_max", "random")
SCRIPT = """
import sys
from pathlib import Path
from lejepa_med.config.evaluation import BenchmarkConfig
from lejepa_med.config.loading import load_config
from lejepa_med.evaluation.benchmark import run_benchmark
run_benchmark(load_config(BenchmarkConfig, Path(sys.argv[1])), Path(sys.argv[2]))
"""


def config_of(archive: Archive, *encoders: object, **settings: object) -> BenchmarkConfig:
    defaults = {"tasks": (archive.task("bright"),), "holdout": HOLDOUT, "budgets": (1, 5), "seeds": 2, "device": "cpu"}
    defaults |= {"finetune": FinetuneRecipe(epochs=1, min_steps=2, batch_size=8, slices_per_step=2)}
    defaults |= {"attention": AttentionRecipe(width=8, heads=2, steps=4, evaluate_every=2, max_tokens=6)}
    defaults |= {"finetune_budgets": (5,), "finetune_seeds": 1, "methods": ("linear", "knn")}
    return BenchmarkConfig(data=archive.data, encoders=encoders, **{**defaults, **settings})


def cells_in(out: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in (out / "cells").glob("*.json")}


@pytest.fixture(scope="module")
def network_2d(tmp_path_factory: pytest.TempPathFactory) -> Timm2dEncoder:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    return Timm2dEncoder(
        name="2D", model="test_vit", weights=file, image_size=32, slices=3, random_dim=4, aggregations=TWO
    )


@pytest.mark.long
def test_every_method_of_every_encoder(
    archive: Archive, make_run: Callable[..., RunEncoder], network_2d: Timm2dEncoder, tmp_path: Path
) -> None:
    run = make_run()
    encoders = (run, RandomEncoder(like=run.path), ScratchEncoder(like=run.path), network_2d)
    every = ("linear", "knn", "attention", "finetune", "lora")
    config = config_of(archive, *encoders, methods=every)
    run_benchmark(config, tmp_path)
    cells = cells_in(tmp_path)
    told = {cell["message"] + cell.get("traceback", "") for cell in cells.values() if cell["status"] != "ok"}
    assert not told
    methods: dict[str, set[str]] = {}
    for cell in cells.values():
        methods.setdefault(cell["encoder"], set()).add(cell["method"])
        assert cell["seconds"] > 0 and cell["cpu_seconds"] > 0 and cell["peak_bytes"] > 2**20
    frozen = {"linear", "knn", "attention"}
    assert methods == {
        "LeJEPA": {*every},
        "random init": frozen,
        "from scratch": {"finetune"},
        "2D": {*every},
    }
    tuned = {(c["encoder"], c["method"], c["budget"]): c["tuned"] for c in cells.values()}
    assert tuned["LeJEPA", "linear", 5] == 6 and tuned["2D", "linear", 5] == 2 * 6 and tuned["2D", "knn", 5] == 2
    assert tuned["LeJEPA", "attention", 5] == tuned["2D", "attention", 5] == 2 * 2
    assert tuned["LeJEPA", "attention", 1] == 1
    assert tuned["LeJEPA", "finetune", 5] == tuned["2D", "lora", 5] == 2
    chosen = [c["chosen"]["aggregation"] for c in cells.values() if c["encoder"] == "2D" and c["method"] == "linear"]
    assert set(chosen) <= set(network_2d.aggregations)
    few = [c["chosen"]["aggregation"] for c in cells.values() if "aggregation" in c["chosen"] and c["budget"] == 1]
    assert set(few) == {"mean_max"}
    costs = json.loads((tmp_path / "features" / "2d.json").read_text())
    assert costs["volumes"] == len(archive.truth) and costs["volumes_per_s"] > 0
    assert costs["parameters"] == sum(p.numel() for p in timm.create_model("test_vit", num_classes=0).parameters())


@pytest.mark.long
def test_several_processes_give_what_one_gives(archive: Archive, tmp_path: Path) -> None:
    broken = PixelsEncoder(name="broken", size=(4, 4))  # two sides for three axes
    encoders = (PixelsEncoder(size=(4, 4, 4), components=4), ShapeEncoder(), broken)
    said: list[tuple[str, int, int]] = []
    run_benchmark(config_of(archive, *encoders), tmp_path / "one")
    run_benchmark(config_of(archive, *encoders, workers=2), tmp_path / "two", lambda *given: said.append(given))
    one, two = cells_in(tmp_path / "one"), cells_in(tmp_path / "two")
    assert set(one) == set(two)
    for key, cell in one.items():
        for name in ("status", "message", "value", "predictions", "tuned", "chosen"):
            assert cell[name] == two[key][name], name
    assert {cell["status"] for cell in two.values()} == {"ok", "failed"}
    assert max(done for what, done, _ in said if "features" not in what and "duplicates" not in what) == len(two)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_200_cells_killed_and_resumed_do_no_cell_twice(archive: Archive, tmp_path: Path, workers: int) -> None:
    encoders = (PixelsEncoder(size=(4, 4, 4), components=4), ShapeEncoder())
    config = config_of(archive, *encoders, budgets=(1, 2, 5), seeds=17, workers=workers)
    assert len(plan(config)) == 2 * 2 * (3 * 17 + 1) == 208
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.yaml"), str(out)]
    for least in (20, 90):
        process = subprocess.Popen(command, start_new_session=True)
        while len(list((out / "cells").glob("*.json"))) < least:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {file.name: file.stat().st_mtime_ns for file in (out / "cells").glob("*.json")}
    assert 90 <= len(before) < 208
    subprocess.run(command, check=True)
    after = {file.name: file.stat().st_mtime_ns for file in (out / "cells").glob("*.json")}
    assert len(after) == 208 and all(after[name] == written for name, written in before.items())
    assert {cell["status"] for cell in cells_in(out).values()} == {"ok"}
    assert json.loads((out / "summary.json").read_text())["counts"] == {"ok": 208}


def test_names_groups_and_roles_do_not_compute_anything_anew(archive: Archive) -> None:
    plain, grouped = ShapeEncoder(), ShapeEncoder(group="arm", role="rival")
    keys = [[cell.key for cell in Grid.open(config_of(archive, one)).cells()] for one in (plain, grouped)]
    assert keys[0] == keys[1]
    roles = [role_of(one) for one in (plain, grouped, RunEncoder(path=Path("x")), Timm2dEncoder())]
    assert roles == ["control", "rival", "ours", "rival"]


def test_what_is_left_takes_what_finished_cells_took(archive: Archive, tmp_path: Path) -> None:
    config = config_of(archive, ShapeEncoder(), PixelsEncoder(size=(4, 4, 4), components=4))
    cells = plan(config)
    assert "no finished cell" in estimate(tmp_path, cells).sentence(1)
    (tmp_path / "cells").mkdir()
    seconds = {"linear": {1: 60.0, 5: 180.0}}
    for cell in cells:
        if cell.encoder_kind == "shape" and cell.method == "linear" and cell.budget != "all":
            done = {**vars(cell), "status": "ok", "seconds": seconds["linear"][cell.budget]}
            cell_file(tmp_path, cell).write_text(json.dumps(done))
    left = estimate(tmp_path, cells)
    assert (left.todo, left.measured, left.unknown) == (len(cells) - 4, 4, ("knn",))
    assert left.seconds == 6 * 120.0  # "all" of shape and five of pixels: the median of what is there
    assert "about 6.0 min with 2 workers, by the median seconds of 4 finished ones" in left.sentence(2)
    waiting = estimate(tmp_path, cells, {"pixels + PCA"})
    idle = sum(cell.encoder_kind == "pixels" for cell in cells)
    assert (waiting.todo, waiting.idle, waiting.seconds) == (left.todo - idle, idle, 120.0)
    assert waiting.sentence(1).endswith(f"; {idle} cells have no weights and will say so")


def test_what_a_failed_cell_tells_holds_no_path() -> None:
    told = without_paths(
        "cache /data/Jane Doe/x: series 4f2a is damaged; see '/home/a.b/c.csv' or C:\\scans\\doe, 3/4 mm"
    )
    assert "Jane" not in told and "home" not in told and "scans" not in told
    assert "series 4f2a is damaged" in told and "3/4 mm" in told


def test_a_meter_measures(tmp_path: Path) -> None:
    with Meter(torch.device("cpu")) as meter:
        kept = bytearray(50_000_000)
        time.sleep(0.05)
    assert meter.numbers["seconds"] >= 0.05 and meter.numbers["peak_bytes"] > len(kept)
    assert energy_joules(torch.device("cpu"), tmp_path) is None
    for name, value in (("intel-rapl:0", 2_000_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    assert energy_joules(torch.device("cpu"), tmp_path) == 2.5
