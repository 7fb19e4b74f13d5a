"""An export says enough and not too much, and each of its formats gives the features of the network."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from lejepa_med.backbones import Backbone, build
from lejepa_med.cli.main import main
from lejepa_med.config import ModelConfig, PretrainConfig, dump_yaml
from lejepa_med.data.dataset import Item, ListSource
from lejepa_med.data.pretraining_record import FILE, is_complete, record_of, write_record
from lejepa_med.errors import UserError, WeightsError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.weights import export, load_backbone, programs, save_backbone

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"
SECRET = "PLANTED-NAME"
NETWORKS = {
    "resnet10_3d": (32, 32, 32),
    "vit_tiny_3d": (16, 32, 16),
    "timm/resnet18": (64, 48),
    "timm/vit_tiny_patch16_224": (48, 64),
}


def make(name: str) -> tuple[Backbone, ModelConfig]:
    config = ModelConfig(name=name, width=0.125 if name.startswith("resnet") else 1.0, in_channels=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config).eval(), config


def run_of(folder: Path, name: str = "resnet10_3d") -> Path:
    """A finished run's folder, with a secret wherever a path or a key can be."""
    folder.mkdir()
    backbone, model = make(name)
    spec = Spec(inference=InferenceSpec(window=NETWORKS[name]))
    save_backbone(folder / "backbone.safetensors", backbone, model, spec, {"patients": 3, "series": 4, "steps": 7})
    config = PretrainConfig.model_validate(
        {
            "init_from": f"/archive/{SECRET}/w.pth",
            "data": {"cache": f"/archive/{SECRET}"},
            "online_probe": {"tasks": []},
        }
    )
    (folder / "config.yaml").write_text(dump_yaml(config))
    lines = [{"step": 6, "total": 2.0}, {"step": 7, "total": 1.5, "note": SECRET}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [["a", "p1", "run"], ["b", "p1", "run"], ["c", SECRET, "ancestor"], ["", "", "unknown"]]
    write_record(folder, pd.DataFrame(rows, columns=["series_key", "patient_key", "origin"]))
    return folder


def test_what_an_export_tells(tmp_path: Path) -> None:
    out = export(run_of(tmp_path / "run"), tmp_path / "out")
    told = json.loads((out / "config.json").read_text())
    assert told["seen"] == {
        "run": {"patients": 1, "series": 2},
        "ancestor": {"patients": 1, "series": 1},
        "complete": False,
    }
    assert told["metrics"] == {"step": 7, "total": 1.5}
    assert told["settings"]["started_from_weights"] is True
    assert told["settings"]["optim"]["lr"] == PretrainConfig().optim.lr
    assert not (out / FILE).exists()
    assert {file.name for file in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    for file in out.iterdir():
        assert SECRET.encode() not in file.read_bytes()
    again = export(out, tmp_path / "again")
    assert json.loads((again / "config.json").read_text()) == told


def test_the_model_card_has_the_header_of_hugging_face(tmp_path: Path) -> None:
    out = export(run_of(tmp_path / "run"), tmp_path / "out")
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "lejepa-med"
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert "3d" in header["tags"] and "license" not in header
    for text in (
        "seen by this run: 1 patients, 2 series",
        "is that everyone: not known",
        "last total: 1.5",
        "steps: 7",
    ):
        assert f"- {text}" in card


def test_the_record_leaves_only_on_request(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    out = export(run, tmp_path / "out", with_record=True)
    assert (out / FILE).read_bytes() == (run / FILE).read_bytes()
    (run / FILE).unlink()
    with pytest.raises(WeightsError, match=f"no {FILE} there; export without the record"):
        export(run, tmp_path / "other", with_record=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_a_run_from_an_export_knows_what_the_export_knows(tmp_path: Path, place: str) -> None:
    source = ListSource([Item(np.zeros((1, 4, 4, 4), np.float32), (1.0, 1.0, 1.0), False, "d")])
    run = run_of(tmp_path / "run")
    bare, full = export(run, tmp_path / "bare"), export(run, tmp_path / "full", with_record=True)
    assert record_of(source, bare / place)["origin"].tolist() == ["run", "unknown"]
    known = record_of(source, full / place)
    assert known["origin"].tolist() == ["run", "ancestor", "ancestor", "ancestor", "unknown"]
    assert not is_complete(known)


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name.startswith("timm/") else ()) for name in NETWORKS]
)
def test_programs_give_the_features_of_the_network(name: str, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    run = run_of(tmp_path / "run", name)
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--format", form]) == 0
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["README.md", "config.json", programs.FILES[form], "model.safetensors"]
    )
    for batch in (1, 5):
        images = torch.rand(batch, 2, *NETWORKS[name])
        with torch.no_grad():
            expected = make(name)[0](images)
            assert torch.equal(load_backbone(out)(images), expected)
        if form == "torch":
            found = torch.export.load(out / "model.pt2").module()(images)
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    with pytest.raises(UserError, match=r'ONNX needs onnx and onnxscript; pip install "lejepa-med\[onnx\]"'):
        export(run_of(tmp_path / "run"), tmp_path / "out", "onnx")


class Wrong(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(images.shape[0], 64)


def test_a_program_with_other_features_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 2, 32, 32, 32)
    wrong = torch.export.export(Wrong(), (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    monkeypatch.setattr(programs, "_traced", lambda backbone, images: wrong)
    with pytest.raises(WeightsError, match="the program's features differ by"):
        export(run_of(tmp_path / "run"), tmp_path / "out", "torch")
    assert list((tmp_path / "out").iterdir()) == []


ISOLATED = """
import importlib.machinery as machinery
import sys
class Installed(machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent} else super().find_spec(name, path, target)
sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, Installed]
{code}
torch.save(embed(torch.load("windows.pt")), "embedding.pt")
assert not {absent} & set(sys.modules)
"""
ABSENT = ("lejepa_med", "monai", "timm", "pydantic", "pandas", "sklearn", "scipy", "nibabel", "einops", "torchvision")


def test_the_example_of_the_docs_needs_torch_and_safetensors_only(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.+?)```", DOCS.read_text(), re.DOTALL)[1]  # type: ignore[index]
    assert code.count("\n") <= 22
    export(run_of(tmp_path / "run"), tmp_path / "brain_backbone", "torch")
    windows = torch.rand(3, 2, *NETWORKS["resnet10_3d"])
    torch.save(windows, tmp_path / "windows.pt")
    script = tmp_path / "example.py"
    script.write_text(ISOLATED.format(absent=set(ABSENT), code=code))
    done = subprocess.run([sys.executable, "-I", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = make("resnet10_3d")[0](windows)
    torch.testing.assert_close(torch.load(tmp_path / "embedding.pt"), expected, rtol=1e-5, atol=1e-5)
