"""A run is a function of its config: resumed, moved to workers or stopped by a signal, it ends in the same bits."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import lejepa_med
from lejepa_med.api import Run
from lejepa_med.backbones import Backbone
from lejepa_med.config import ModelConfig, OptimConfig
from lejepa_med.data.pretraining_record import is_complete, read_record
from lejepa_med.data.sampler import StepSampler
from lejepa_med.errors import ConfigError, DataError, OutputExistsError, UserError, WeightsError
from lejepa_med.training.checkpoint_file import load_checkpoint
from lejepa_med.training.log import RunLog, read_log
from lejepa_med.training.monitor import diagnose, effective_rank
from lejepa_med.training.optimizer import build_optimizer, learning_rate
from lejepa_med.weights import export

MODEL = ModelConfig(name="resnet10_3d", width=0.125, stem_pool=False)
TINY: dict[str, Any] = {
    "projector": {"hidden": 16, "dim": 8},
    "objective": {"num_slices": 16},
    "views": {
        "num_local": 2,
        "global_size": [16, 16, 16],
        "local_size": [8, 8, 8],
        "global_pitch_mm": None,
        "local_pitch_mm": None,
    },
    "train": {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "keep_checkpoints": 9, "precision": "float32"},
}


class Balls(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Balls of two sizes in noise, a function of their number."""

    def __init__(self, count: int = 12, side: int = 24) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.rand(1, *(self.side,) * 3, generator=torch.Generator().manual_seed(index))
        axis = torch.arange(self.side) - (self.side - 1) / 2
        distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        ball = (distance < self.side * (0.25 + 0.2 * (index % 2))).float()
        return {"image": 0.2 * noise + 0.7 * ball}


def run(out: Path, data: Any = None, resume: bool = False, **changes: Any) -> Run:
    settings = {key: {**value, **changes.pop(key, {})} for key, value in TINY.items()}
    return lejepa_med.pretrain(data or Balls(), MODEL, out, resume=resume, **settings, **changes)


def bits(folder: Path) -> dict[str, str]:
    names = ("metrics.jsonl", "diagnostics.jsonl", "backbone.safetensors")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder).finished
    return folder


def rewind(folder: Path, step: int) -> None:
    """As a machine that died after `step` was saved: later checkpoints are gone, the log has run ahead."""
    for file in (folder / "checkpoints").glob("step_*"):
        if int(file.name.split(".")[0].removeprefix("step_")) > step:
            file.unlink()
    (folder / "checkpoints" / "latest").write_text(f"step_{step}.pt")
    for name in ("DONE", "backbone.safetensors"):
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "tot')


def test_run_directory_holds_what_it_promises(undisturbed: Path) -> None:
    names = {"config.yaml", "spec.yaml", "pretraining_series.csv", "views.png", "metrics.jsonl", "timing.jsonl", "DONE"}
    assert names | {".lock", "diagnostics.jsonl", "checkpoints", "backbone.safetensors", "tensorboard"} == {
        p.name for p in undisturbed.iterdir()
    }
    lines = read_log(undisturbed, "metrics")
    assert [line["step"] for line in lines] == list(range(6))
    assert all(list(line) == ["step", "total", "prediction", "sigreg", "lr", "grad_norm"] for line in lines)
    balance = 0.05 / 0.95 * (256 / 4) ** 0.5
    lam = balance / (1 + balance)
    for line in lines:
        assert line["total"] == pytest.approx((1 - lam) * line["prediction"] + lam * line["sigreg"], rel=1e-5)
    for line in read_log(undisturbed, "timing"):
        assert line["samples_per_s"] > 0
        assert 0 <= line["data_wait"] <= 1
    assert len((undisturbed / "pretraining_series.csv").read_text().splitlines()) == 13


def test_the_same_run_twice_is_the_same(undisturbed: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # the state of the process does not matter
    run(tmp_path / "run")
    assert bits(tmp_path / "run") == bits(undisturbed)


def test_another_seed_is_another_run(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", seed=1)
    assert bits(tmp_path / "run")["metrics.jsonl"] != bits(undisturbed)["metrics.jsonl"]


@pytest.mark.parametrize(("first", "then"), [(0, 0), (2, 0), (0, 2)])
def test_resumed_equals_uninterrupted_to_the_bit(undisturbed: Path, tmp_path: Path, first: int, then: int) -> None:
    folder = tmp_path / "run"
    run(folder, **{"data.workers": first})
    assert bits(folder) == bits(undisturbed)
    rewind(folder, 4 if then else 2)
    assert run(folder, resume=True, **{"data.workers": then}).finished
    assert bits(folder) == bits(undisturbed)


def test_resume_on_other_series_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    """Batches would be others, and the record of who was trained on would be overwritten."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    rewind(folder, 2)
    record = (folder / "pretraining_series.csv").read_bytes()
    with pytest.raises(DataError, match="started on 12 series that are not the 13 there are now"):
        run(folder, Balls(13), resume=True)
    assert (folder / "pretraining_series.csv").read_bytes() == record


STOPPED_RUN = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_loop
print("ready", flush=True)
run = test_loop.run(test_loop.Path(sys.argv[2]), train={"steps": 40, "checkpoint_every": 1000},
                    progress=lambda stage, done, total: print(done, flush=True), **{"data.workers": 1})
sys.exit(0 if not run.finished else 3)
"""


def test_sigterm_stops_cleanly_and_the_rest_is_exact(tmp_path: Path) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-c", STOPPED_RUN, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                os.kill(process.pid, signal.SIGTERM)
                break
        process.communicate(timeout=100)
    assert process.returncode == 0
    assert (folder / "STOPPED").exists()
    assert not (folder / "DONE").exists()
    steps = len(read_log(folder, "metrics"))
    assert 3 <= steps < 40
    assert load_checkpoint(folder / "checkpoints")["step"] == steps
    assert run(folder, resume=True, train={"steps": 40, "checkpoint_every": 1000}).finished
    assert not (folder / "STOPPED").exists()
    run(whole, train={"steps": 40, "checkpoint_every": 1000})
    assert bits(folder) == bits(whole)


POISON = StepSampler([f"item {number}" for number in range(12)], batch_size=4, seed=0).batch(2)[3]
"""Met first in step 2, since every patient is seen once in the three steps of an epoch."""


class Poisoned(Balls):
    """One item is not a number."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = super().__getitem__(index)
        return {"image": item["image"] * float("nan")} if index == POISON else item


def test_nan_stops_with_step_series_and_last_good_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", Poisoned())
    message = str(caught.value)
    assert message == (
        f"training stopped at step 2: series item {POISON}: NaN or infinite values; exclude it or prepare it again; "
        "the last good checkpoint is step_2.pt"
    )
    lines = (undisturbed / "metrics.jsonl").read_text().splitlines()[:2]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == lines
    assert not (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "no digest"])
def test_a_damaged_checkpoint_is_refused(undisturbed: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    run(folder, train={"steps": 2})
    file = folder / "checkpoints" / "step_2.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "flip":
            file.write_bytes(content)
        case "cut":
            file.write_bytes(content[:-100])
        case "no digest":
            file.with_suffix(".pt.sha256").unlink()
    before = bits(folder)
    problem = "cannot be verified, for step_2.pt.sha256 is missing" if damage == "no digest" else "damaged, its bytes"
    with pytest.raises(WeightsError, match=rf"step_2.pt: {problem}.*; no other one is whole: start a new run"):
        run(folder, resume=True, train={"steps": 2})
    assert bits(folder) == before


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path / "run", train={"checkpoint_every": 1, "keep_checkpoints": 2})
    names = {file.name for file in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"latest", "step_5.pt", "step_5.pt.sha256", "step_6.pt", "step_6.pt.sha256"}


def test_a_run_in_use_is_refused_and_untouched(undisturbed: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in undisturbed.rglob("*") if file.is_file()}
    with pytest.raises(OutputExistsError, match="the folder is not empty; choose another --out, or --resume it"):
        run(undisturbed)
    with pytest.raises(
        ConfigError, match=r"cannot resume with another train.batch_size, seed|another seed, train.batch_size"
    ):
        run(undisturbed, resume=True, seed=5, train={"batch_size": 6})
    with pytest.raises(DataError, match="nothing to resume there"):
        run(tmp_path / "new", resume=True)
    assert before == {file: file.read_bytes() for file in undisturbed.rglob("*") if file.is_file()}


def test_a_mistake_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet10_3d"):
        lejepa_med.pretrain(Balls(), "resnet11_3d", tmp_path / "run", **TINY)
    with pytest.raises(WeightsError, match=r"no backbone\.safetensors there"):
        run(tmp_path / "run", init_from=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_loss_goes_down_and_the_embedding_tells_balls_apart(tmp_path: Path) -> None:
    finished = run(
        tmp_path / "run",
        train={"steps": 60, "batch_size": 12, "checkpoint_every": 1000},
        views={"num_local": 0, "min_body": 0.0},
        optim={"lr": 2e-3},
    )
    total = [line["total"] for line in read_log(tmp_path / "run", "metrics")]
    assert np.mean(total[-10:]) < 0.7 * np.mean(total[:5])
    with torch.no_grad():
        images = torch.stack([Balls()[number]["image"] for number in range(12)])
        features = finished.backbone()(images)
    distance = torch.cdist(features, features).fill_diagonal_(math.inf)
    same = (distance.argmin(1) - torch.arange(12)) % 2 == 0
    assert same.float().mean() > 0.9


def test_init_from_starts_with_those_weights(undisturbed: Path, tmp_path: Path) -> None:
    started = run(tmp_path / "run", init_from=str(undisturbed), optim={"lr": 1e-12}, train={"steps": 1})
    old = lejepa_med.load_backbone(undisturbed).state_dict()
    for key, value in started.backbone().named_parameters():
        torch.testing.assert_close(value, old[key], rtol=0, atol=1e-9)


def test_whom_the_first_weights_saw_stays_in_the_record(undisturbed: Path, tmp_path: Path) -> None:
    """Also through a second start; weights without a record leave a row that says so; a resumed run keeps its own."""
    second = run(tmp_path / "second", Balls(3), init_from=str(undisturbed), train={"steps": 1}).path
    third = tmp_path / "third"
    run(third, Balls(2), init_from=str(second / "backbone.safetensors"), train={"steps": 4})
    table = pd.read_csv(third / "pretraining_series.csv", keep_default_na=False)
    assert table["series_key"].tolist() == [f"item {number}" for number in range(12)]
    assert table["origin"].tolist() == ["run"] * 2 + ["ancestor"] * 10
    record = (third / "pretraining_series.csv").read_bytes()
    rewind(third, 2)
    assert run(third, Balls(2), True, init_from=str(second / "backbone.safetensors"), train={"steps": 4}).finished
    assert (third / "pretraining_series.csv").read_bytes() == record

    shutil.copy(undisturbed / "backbone.safetensors", tmp_path / "bare.safetensors")
    for start in (tmp_path / "bare.safetensors", export(undisturbed, tmp_path / "export")):
        bare = run(tmp_path / f"from {start.name}", Balls(3), init_from=str(start), train={"steps": 1}).path
        table = pd.read_csv(bare / "pretraining_series.csv", keep_default_na=False)
        assert table.to_numpy().tolist()[3:] == [["", "", "unknown"]]
        again = run(tmp_path / f"then {start.name}", Balls(3), init_from=str(bare), train={"steps": 1}).path
        assert not is_complete(read_record(again)), "it is not forgotten by a run in between"


def phantom(folder: Path, number: int, ct: bool = False) -> Path:
    array = Balls(side=20)[number]["image"][0].numpy()
    file = folder / f"scan{number}.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image((array * 1000 - 500 * ct).astype(np.float32), np.diag([-2.0, 2.0, 2.0, 1.0])), file
    )
    return file


@pytest.mark.parametrize("ct", [False, True])
def test_monai_datalist_of_nifti_files(tmp_path: Path, ct: bool) -> None:
    items = [{"image": str(phantom(tmp_path, number, ct))} for number in range(4)]
    data = {"data.modalities": ["ct"]} if ct else {}
    finished = run(tmp_path / "run", items, train={"steps": 2}, views={"min_body": 0.0}, **data)
    assert finished.finished
    spec = finished.backbone().spec
    assert spec is not None
    assert spec.preprocess.spacing_mm == (1.0, 1.0, 1.0)
    table = lejepa_med.embed(
        finished.backbone(), [Path(item["image"]) for item in items], modality="ct" if ct else "mri"
    )
    assert table.column_names == ["series_key", "patient_key", "embedding"]
    assert [len(row) for row in table["embedding"].to_pylist()] == [finished.backbone().dim] * 4


def test_patients_of_a_list_or_dataset(tmp_path: Path) -> None:
    """They are split by patient, and their ids are in no file."""
    ids = [f"Jane Doe {number // 2}" for number in range(40)]
    half = {"data.monitor_fraction": 0.5}
    known = run(tmp_path / "known", Balls(40), patients=ids, train={"steps": 1}, **half).path
    table = pd.read_csv(known / "pretraining_series.csv")
    assert set(table["patient_key"].value_counts()) == {2} and 0 < len(table) < 40
    assert table["patient_key"].tolist() == [f"patient {int(key.split()[1]) // 2}" for key in table["series_key"]]
    assert "held_out_total" in read_log(known, "diagnostics")[0]
    assert not [file for file in known.rglob("*") if file.is_file() and b"Jane" in file.read_bytes()]
    unknown = run(tmp_path / "unknown", Balls(40), train={"steps": 1}, **half).path
    assert len(pd.read_csv(unknown / "pretraining_series.csv")) == 40
    assert "held_out_total" not in read_log(unknown, "diagnostics")[0]

    files = [phantom(tmp_path, number) for number in range(4)]
    listed = run(tmp_path / "list", files, patients=[7, 7, 8, 9], train={"steps": 1}, views={"min_body": 0.0}).path
    table = pd.read_csv(listed / "pretraining_series.csv")
    assert table["patient_key"].tolist() == ["patient 0", "patient 0", "patient 1", "patient 2"]
    with pytest.raises(DataError, match="patients: a cache knows whose its series are"):
        run(tmp_path / "cache", tmp_path, patients=ids)


def test_ct_of_a_list_keeps_hounsfield_units(tmp_path: Path) -> None:
    from lejepa_med.api import open_source
    from lejepa_med.config import PretrainConfig
    from lejepa_med.randomness import generator

    config = PretrainConfig.model_validate({"data": {"modalities": ["ct"]}})
    source, _ = open_source([phantom(tmp_path, 1, ct=True)], config)
    item = source.read(0, generator("x"))
    assert item.is_ct
    assert item.array.dtype == np.int16
    assert item.array.min() < -400


def test_unreadable_item_of_a_list_is_named_by_its_number(tmp_path: Path) -> None:
    good = phantom(tmp_path, 0)
    (tmp_path / "bad.nii").write_bytes(b"no")
    with pytest.raises(DataError, match="item 1 of the list"):
        run(tmp_path / "run", [good, tmp_path / "bad.nii"])
    assert not (tmp_path / "run").exists()


def test_2d_images(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        array = (Balls(side=24)[number]["image"][0, 12].numpy() * 255).astype(np.uint8)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(array).save(files[-1])
    finished = lejepa_med.pretrain(
        files,
        "timm/resnet18",
        tmp_path / "run",
        projector=TINY["projector"],
        objective=TINY["objective"],
        views=TINY["views"] | {"global_size": [32, 32], "local_size": [32, 32]},
        train=TINY["train"] | {"steps": 2},
        **{"data.kind": "images"},
    )
    assert finished.backbone()(torch.rand(2, 1, 32, 32)).shape == (2, 512)
    assert lejepa_med.embed(finished.backbone(), files).num_rows == 4


class Own(Backbone):
    """A user's network with dropout, which draws from torch's global state."""

    dim = token_dim = 8
    spatial_dims, in_channels = 3, 1

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = torch.nn.Conv3d(1, 8, 4, stride=4)
        self.conv.weight.data = torch.randn(8, 1, 4, 4, 4, generator=generator) / 8
        self.conv.bias.data.zero_()  # type: ignore[union-attr]
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.conv(images).relu()).flatten(2).mean(-1)

    def tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        maps = self.conv(images).relu()
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:])

    def intermediate(self, images: torch.Tensor, last: int = 2) -> list[torch.Tensor]:
        return [self(images)]


def test_own_network_with_dropout_resumes_exactly(tmp_path: Path) -> None:
    finished = lejepa_med.pretrain(Balls(), Own(), tmp_path / "run", **TINY)
    before = bits(tmp_path / "run")
    rewind(tmp_path / "run", 4)
    lejepa_med.pretrain(Balls(), Own(), tmp_path / "run", resume=True, **TINY)
    assert bits(tmp_path / "run") == before
    assert lejepa_med.load_backbone(finished.path, model=Own()).dim == 8


def test_learning_rate_warms_up_and_ends_where_it_should() -> None:
    config = OptimConfig(lr=1e-3, warmup_fraction=0.1, final_fraction=1e-3)
    rates = [learning_rate(step, 200, config) for step in range(200)]
    assert rates[0] == pytest.approx(1e-3 / 20)
    assert rates[19] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert rates[20 + 89] == pytest.approx((1e-3 + 1e-6) / 2, rel=0.02)
    steps = np.diff(rates)
    assert (steps[:19] > 0).all()
    assert (steps[20:] < 0).all()
    assert learning_rate(0, 1, config) == pytest.approx(1e-3)


def test_norms_biases_and_tokens_are_not_decayed() -> None:
    for norm, decay in ((torch.nn.LayerNorm(4), 5e-2), (torch.nn.BatchNorm1d(4), 5e-4)):
        module = torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 4), "norm": norm})
        module.token = torch.nn.Parameter(torch.zeros(1, 1, 5))  # type: ignore[assignment]
        decayed, plain = build_optimizer(module, OptimConfig()).param_groups
        assert decayed["weight_decay"] == decay
        assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
        assert plain["weight_decay"] == 0
        assert len(plain["params"]) == 4


def test_effective_rank_of_known_matrices() -> None:
    signs = torch.tensor([[1.0], [-1.0]])
    assert effective_rank(torch.cat([signs, torch.zeros(2, 4)], 1)) == pytest.approx(1.0, abs=1e-4)
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    assert effective_rank(axes) == pytest.approx(6.0, rel=1e-4)
    assert effective_rank(axes + 100) == pytest.approx(6.0, rel=1e-3)  # the mean does not count
    two = torch.cat([torch.eye(2), -torch.eye(2)]) * torch.tensor([3.0, 1.0])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(two) == pytest.approx(expected, rel=1e-4)


def test_repeated_patients_count_for_less() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert diagnose(x, x, [0, 1, 2, 3, 4, 5])["n_eff"] == pytest.approx(6)
    assert diagnose(x, x, [0, 0, 0, 1, 1, 2])["n_eff"] == pytest.approx(36 / 14)
    assert diagnose(x, 2 * x, [0] * 6)["projection_std"] == pytest.approx(2 * float(x.std(0).mean()), rel=1e-5)


def test_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    with RunLog(tmp_path, start=2) as log:
        log.write("metrics", step=2, total=1.5)
    assert read_log(tmp_path, "metrics") == [{"step": 0}, {"step": 1}, {"step": 2, "total": 1.5}]
    assert read_log(tmp_path, "nothing") == []
