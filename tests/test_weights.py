"""Weights load exactly, or not at all and with the reason; nothing inside a file is ever executed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from lejepa_med.backbones import Backbone, build
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import InferenceSpec, PreprocessSpec, Spec
from lejepa_med.weights import (
    export,
    load_backbone,
    load_dinov2,
    load_strictly,
    read_description,
    read_tensors,
    save_backbone,
)

MODEL = ModelConfig(name="resnet10_3d", width=0.125, stem_pool=False)
SPEC = Spec(
    preprocess=PreprocessSpec(spacing_mm=(2.0, 2.0, 3.0)), inference=InferenceSpec(window=(16, 16, 16), pooling="grid2")
)
DINO = "timm/vit_small_patch14_dinov2"
DINO_REGISTERS = "timm/vit_small_patch14_reg4_dinov2"


def make(model: ModelConfig = MODEL, seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(model).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "backbone.safetensors", make(), MODEL, SPEC, {"steps": 7})
    return tmp_path / "backbone.safetensors"


def rewrite(file: Path, **changes: object) -> None:
    """The same tensors under another description."""
    with safetensors.safe_open(file, framework="pt") as opened:
        description = json.loads(opened.metadata()["lejepa_med"]) | changes
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, {"lejepa_med": json.dumps(description)})


def test_run_file_and_export_give_the_same_backbone(file: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 1, 16, 16, 16)
    expected = make()(images)
    export(file.parent, tmp_path / "out")
    for place in (file, file.parent, str(file.parent), tmp_path / "out"):
        loaded = load_backbone(place)
        assert torch.equal(loaded(images), expected)
        assert loaded.spec == SPEC
        assert not loaded.training
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["provenance"]["steps"] == 7
    assert ModelConfig.model_validate(described["model"]) == MODEL
    assert "resnet10_3d" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(WeightsError, match="give a run, an export or a file"):
            load_backbone(place)


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors"])
def test_a_missing_file_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    for read in (read_tensors, read_description):
        with pytest.raises(WeightsError, match=rf"{name}: no such file; check the path"):
            read(tmp_path / name)


def test_a_mismatch_is_a_table_and_loads_nothing() -> None:
    module, before = make(seed=1), make(seed=1).state_dict()
    state = make().state_dict()
    state["net.layer9.weight"] = state.pop("net.conv1.weight")
    state["net.bn1.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        load_strictly(module, state, "mine.pth")
    lines = str(caught.value).splitlines()
    assert lines[0] == "weights mine.pth: do not fit the network (1 missing, 1 unexpected, 1 of another shape):"
    assert lines[1].split() == ["missing", "net.conv1.weight", "(8,", "1,", "7,", "7,", "7)"]
    assert lines[2].split()[:2] == ["unexpected", "net.layer9.weight"]
    assert lines[3].split() == ["shape", "net.bn1.weight:", "file", "(3,),", "network", "(8,)"]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_long_table_is_cut() -> None:
    with pytest.raises(WeightsError, match=r"\.\.\. and \d+ more"):
        load_strictly(make(), {}, "empty.pth")


def test_other_architecture_is_refused(file: Path) -> None:
    wider = MODEL.model_copy(update={"width": 0.25})
    rewrite(file, model=wider.model_dump())
    with pytest.raises(WeightsError, match="of another shape"):
        load_backbone(file)


def test_foreign_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="not written by lejepa-med"):
        load_backbone(tmp_path / "a.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_file(file: Path, keep: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(WeightsError, match="damaged"):
        load_backbone(file)


def test_newer_format(file: Path) -> None:
    rewrite(file, format=2)
    with pytest.raises(WeightsError, match="format 2 is newer than this lejepa-med; upgrade it"):
        load_backbone(file)


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.file, "w")


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickled_code_is_refused_and_not_executed(tmp_path: Path, writer: str) -> None:
    touched, file = tmp_path / "touched", tmp_path / "weights.pth"
    if writer == "pickle":
        file.write_bytes(pickle.dumps({"a": Trap(touched)}))
    else:
        torch.save({"model": {"a": torch.zeros(1)}, "extra": Trap(touched)}, file)
    with pytest.raises(WeightsError, match="damaged, or not plain tensors: Python objects inside are not executed"):
        read_tensors(file)
    with pytest.raises(WeightsError, match="damaged or not a safetensors file"):
        load_backbone(file)
    assert not touched.exists()


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher", None])
def test_tensors_are_found_where_others_put_them(tmp_path: Path, key: str | None) -> None:
    tensors = {"a": torch.arange(3.0)}
    torch.save({key: tensors} if key else tensors, tmp_path / "w.pth")
    assert torch.equal(read_tensors(tmp_path / "w.pth")["a"], tensors["a"])


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="expected a dictionary of tensors"):
        read_tensors(tmp_path / "w.pth")


def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/code/__torch__.py", "raise SystemExit")
        archive.writestr("w/data.pkl", pickle.dumps({}))
        archive.writestr("w/constants.pkl", pickle.dumps(()))
    with pytest.raises(WeightsError, match="damaged, or not plain tensors"):
        read_tensors(tmp_path / "w.pth")


def test_an_archive_that_would_unpack_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(10**7)}, plain)
    bomb = tmp_path / "w.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    assert bomb.stat().st_size < 10**5
    with pytest.raises(WeightsError, match="a compressed archive, which torch does not write; nothing was unpacked"):
        read_tensors(bomb)


def test_a_few_bytes_that_claim_to_be_terabytes_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="claims 4,000,000,000,000 bytes of weights in a file of"):
        read_tensors(tmp_path / "w.pth")


def test_tensors_without_content_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"a": torch.zeros(2, 2, device="meta")}, tmp_path / "meta.pth")
    for name in ("sparse.pth", "meta.pth"):
        with pytest.raises(WeightsError, match="sparse tensors, or tensors without content"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("changes", [{"format": "x"}, {"model": {"depth": 3}}, {"spec": None}, {"provenance": 1}])
def test_a_damaged_description_is_one_sentence(file: Path, changes: dict[str, object]) -> None:
    rewrite(file, **changes)
    with pytest.raises(WeightsError, match="the description inside is damaged"):
        load_backbone(file)


def test_a_description_that_is_no_json(tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", "3", "[" * 100_000)):
        file = tmp_path / f"{number}.safetensors"
        safetensors.torch.save_file({"a": torch.zeros(1)}, file, {"lejepa_med": text})
        with pytest.raises(WeightsError, match="the description inside is damaged"):
            load_backbone(file)


class Own(Backbone):
    """A user's network."""

    dim = token_dim = 4
    spatial_dims, in_channels = 3, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(2).mean(-1))

    def tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        return self(images)[:, None], (1, 1, 1)

    def intermediate(self, images: torch.Tensor, last: int = 2) -> list[torch.Tensor]:
        return [self(images)]


def test_own_network_is_loaded_into_own_network(tmp_path: Path) -> None:
    own = Own()
    save_backbone(tmp_path / "own.safetensors", own, None, SPEC)
    with pytest.raises(WeightsError, match="a network of your own; pass it as model="):
        load_backbone(tmp_path / "own.safetensors")
    loaded = load_backbone(tmp_path / "own.safetensors", model=Own())
    images = torch.rand(2, 1, 3, 3, 3)
    assert torch.equal(loaded(images), own(images))
    assert loaded.spec == SPEC


def official_dinov2(name: str) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """A timm model with random weights, and the same weights as Meta's files name them."""
    backbone = make(ModelConfig(name=name, in_channels=3))
    state = {key.removeprefix("net."): value.clone() for key, value in backbone.state_dict().items()}
    if "reg_token" in state:  # Meta keeps a class position, which timm has added to the class token
        position = torch.rand(1, 1, state["cls_token"].shape[-1])
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - position
        state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    return backbone, state


@pytest.mark.parametrize("name", [DINO, DINO_REGISTERS])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_official_dinov2_files_load_into_timms_definition(tmp_path: Path, name: str, prefix: str) -> None:
    expected, state = official_dinov2(name)
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "dinov2.pth")
    loaded = make(ModelConfig(name=name, in_channels=3), seed=5)
    load_dinov2(loaded, tmp_path / "dinov2.pth")
    images = torch.rand(1, 3, 56, 42)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), expected(images), rtol=1e-3, atol=1e-3)


def test_timms_own_dinov2_files_load(tmp_path: Path) -> None:
    source = timm.create_model(DINO.removeprefix("timm/"), pretrained=False, num_classes=0, dynamic_img_size=True)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "timm.safetensors")
    loaded = make(ModelConfig(name=DINO, in_channels=3), seed=5)
    load_dinov2(loaded, tmp_path / "timm.safetensors")
    images = torch.rand(1, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images), source.eval().forward_features(images)[:, 0])


def test_dinov2_of_another_size_is_refused(tmp_path: Path) -> None:
    _, state = official_dinov2(DINO)
    del state["blocks.11.norm1.weight"]
    torch.save(state, tmp_path / "dinov2.pth")
    with pytest.raises(WeightsError, match="1 missing, 0 unexpected"):
        load_dinov2(make(ModelConfig(name=DINO, in_channels=3)), tmp_path / "dinov2.pth")
