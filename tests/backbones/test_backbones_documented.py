"""docs/backbones.md: the table is that of the networks, and the code in it works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import resnet10
from monai.networks.nets.segresnet_ds import SegResEncoder
from smallest_networks import rand
from torch import nn

from lejepa_med.backbones import NAMES, build
from lejepa_med.backbones.primus3d import REFERENCE_GRID, Primus3d, _Eva
from lejepa_med.backbones.resenc3d import ResEnc3d
from lejepa_med.backbones.staged import StagedBackbone
from lejepa_med.backbones.vit3d import ViT3d
from lejepa_med.config import ModelConfig
from lejepa_med.errors import WeightsError
from lejepa_med.spec import InferenceSpec, Spec
from lejepa_med.weights import load_backbone, save_backbone

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
ROWS = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in re.findall(r"^\| `\w+_3d` .*$", PAGE, re.M)]


def documented_code() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(code, found)
    return found


def test_every_network_has_its_row() -> None:
    assert sorted(row[0] for row in ROWS) == sorted(NAMES)
    description = ModelConfig.model_fields["name"].description
    assert description is not None
    member = r"(?<=_)(b\d|tiny|small|base|large|huge|giant|gigantic)|(?<=primus_)[sbml]|\d+(?=_)"
    families = {re.sub(member, "", name) for name in NAMES}
    listed = {re.sub(r"\{.*?\}", "", word) for word in re.findall(r"[\w{},-]+_3d", description)}
    assert families == listed


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_rows_are_true(row: list[str]) -> None:
    name, parameters, dim, stride, smallest, norm = row
    with torch.device("cpu" if name.startswith("swin") else "meta"):
        backbone = build(ModelConfig(name=name))
    millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    assert (parameters, dim) == (f"{millions:.1f}", str(backbone.dim))
    if isinstance(backbone, StagedBackbone):
        assert (stride, smallest) == (str(backbone.stride), str(backbone.smallest))
    kinds = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d, "layer": nn.LayerNorm}
    present = {kind for kind, norm in kinds.items() if any(isinstance(m, norm) for m in backbone.modules())}
    assert present == {norm}


def test_the_arithmetic_of_the_largest_is_right() -> None:
    with torch.device("meta"):
        backbone = build(ModelConfig(name="vit_gigantic_3d"))
    assert isinstance(backbone, ViT3d)
    block = sum(parameter.numel() for parameter in backbone.blocks[0].parameters())
    assert f"48 x {block:,} + 3328 = {sum(p.numel() for p in backbone.parameters()):,}" in PAGE


def test_an_adapter_is_a_backbone(tmp_path: Path) -> None:
    own = documented_code()["Own"]
    trained, fresh = (own(nn.Conv3d(1, 6, 4, 4), 6).eval() for _ in range(2))
    images = rand(2, 1, 8, 8, 12)
    tokens, grid = trained.tokens(images)
    assert (tokens.shape, grid) == ((2, 12, 6), (2, 2, 3))
    save_backbone(tmp_path / "own.safetensors", trained, None, Spec(inference=InferenceSpec()))
    with torch.no_grad():
        assert not torch.equal(fresh(images), trained(images))
        assert torch.equal(load_backbone(tmp_path / "own.safetensors", fresh)(images), trained(images))


def test_files_with_a_prefix_load_strictly(tmp_path: Path) -> None:
    load = documented_code()["load_renamed"]
    made, net = (resnet10(n_input_channels=1, feed_forward=False, widen_factor=0.125) for _ in range(2))
    state = {f"module.{key}": value for key, value in made.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    load(net, tmp_path / "a.pth")
    assert all(torch.equal(net.state_dict()[key], value) for key, value in made.state_dict().items())
    state.popitem()
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="1 missing"):
        load(net, tmp_path / "b.pth")


def test_segresnet_is_monai_s_by_name() -> None:
    with torch.device("meta"):
        theirs = SegResEncoder(init_filters=32, blocks_down=(1, 2, 2, 4, 4)).state_dict()
        ours = build(ModelConfig(name="segresnet_3d")).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {f"net.{k}": v.shape for k, v in theirs.items()}


def test_primus_has_nnunet_s_names() -> None:
    """The names in dynamic_network_architectures 0.4.4, which wants an older timm than this project."""
    with torch.device("meta"):
        backbone = build(ModelConfig(name="primus_m_3d", patch_size=8))
    assert isinstance(backbone, Primus3d)
    shapes = {key: tuple(value.shape) for key, value in backbone.nnunet_state_dict().items()}
    block = {f"norm{number}.{part}": (864,) for number in (1, 2) for part in ("weight", "bias")}
    block |= {f"attn.{name}_proj.weight": (864, 864) for name in "qkv"} | {"attn.proj.weight": (864, 864)}
    block |= {
        f"attn.{name}": (864,) for name in ("q_proj.bias", "v_proj.bias", "proj.bias", "norm.weight", "norm.bias")
    }
    block |= {f"mlp.fc1_{part}.weight": (2304, 864) for part in "gx"} | {"mlp.fc2.weight": (864, 2304)}
    block |= {f"mlp.{name}": (2304,) for name in ("fc1_g.bias", "fc1_x.bias", "norm.weight", "norm.bias")}
    block |= dict.fromkeys(("mlp.fc2.bias", "gamma_1", "gamma_2"), (864,))
    assert shapes == {f"eva.blocks.{number}.{key}": shape for number in range(16) for key, shape in block.items()} | {
        "down_projection.proj.weight": (864, 1, 8, 8, 8), "down_projection.proj.bias": (864,),
        "eva.pos_embed": (1, 20**3, 864), "eva.norm.weight": (864,), "eva.norm.bias": (864,), "mask_token": (1, 1, 864),
    }  # fmt: skip


def test_primus_s_positions_are_nnunet_s_at_its_grid_and_fit_every_other() -> None:
    eva = _Eva(48, 1, 2)
    with torch.no_grad():
        x, y, z = torch.meshgrid(*(torch.arange(side) for side in REFERENCE_GRID), indexing="ij")
        eva.pos_embed[0] = (x + 100 * y + 10000 * z).reshape(-1, 1).expand(-1, 48)
    assert eva.positions(REFERENCE_GRID) is eva.pos_embed
    halved = eva.positions((10, 20, 20)).reshape(10, 20, 20, 48)
    torch.testing.assert_close(halved[3, 7, 5], torch.full((48,), 6.5 + 700 + 50000))
    angles = eva.rope.get_embed(shape=[2, 3, 4]).reshape(2, 3, 4, -1)
    torch.testing.assert_close(angles, eva.rope.get_embed(shape=[5, 6, 7]).reshape(5, 6, 7, -1)[:2, :3, :4])


def test_resenc_has_nnunet_s_names() -> None:
    with torch.device("meta"):
        backbone = build(ModelConfig(name="resenc_l_3d"))
    assert isinstance(backbone, ResEnc3d)
    state = backbone.nnunet_state_dict()
    assert len(state) == 2 * len(backbone.state_dict())
    assert state["encoder.stem.convs.0.all_modules.0.weight"] is state["encoder.stem.convs.0.conv.weight"]
    assert state["encoder.stages.1.blocks.0.skip.1.all_modules.1.bias"].shape == (64,)
    assert state["encoder.stages.5.blocks.5.conv2.norm.weight"].shape == (320,)
    assert "encoder.stages.5.blocks.0.skip.1.conv.weight" not in state  # 320 to 320 channels: only an average
    architectures = pytest.importorskip("dynamic_network_architectures.building_blocks.residual_encoders")
    with torch.device("meta"):
        theirs = architectures.ResidualEncoder(
            1, 6, (32, 64, 128, 256, 320, 320), nn.Conv3d, 3, (1, 2, 2, 2, 2, 2), (1, 3, 4, 6, 6, 6), True,
            nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True},
        )  # fmt: skip
    assert {k.removeprefix("encoder."): v.shape for k, v in state.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
