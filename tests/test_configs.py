"""Every file in `configs/` is read by the kind of its folder, and survives a round trip."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from lejepa_med.backbones import build
from lejepa_med.cli.main import main
from lejepa_med.config import (
    BenchmarkConfig,
    Frozen,
    IndexSettings,
    PrepareConfig,
    PretrainConfig,
    dump_yaml,
    load_config,
)

CONFIGS = Path(__file__).parent.parent / "configs"
KINDS: dict[str, type[Frozen]] = {
    "index": IndexSettings,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "benchmark": BenchmarkConfig,
}
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_every_folder_has_its_kind() -> None:
    assert {file.parent.name for file in FILES} == set(KINDS)
    assert {file.parent.parent for file in FILES} == {CONFIGS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_loads_and_survives_a_round_trip(file: Path, tmp_path: Path) -> None:
    kind = KINDS[file.parent.name]
    config = load_config(kind, file)
    copy = tmp_path / file.name
    copy.write_text(dump_yaml(config))
    assert load_config(kind, copy) == config


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_command_line_gives_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", file.parent.name, file.stem]) == 0
    assert capsys.readouterr().out.strip() == file.read_text(encoding="utf-8").strip()


def test_an_unknown_starting_point_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "index", "brain"]) == 2
    assert "no starting point `brain`; there are: abdomen_ct, brain_mri, chest_ct" in capsys.readouterr().err
    assert main(["config", "probe", "brain"]) == 2
    assert "there are: none" in capsys.readouterr().err


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_paths_are_placeholders(file: Path) -> None:
    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    assert not [text for text in texts(yaml.safe_load(file.read_text())) if Path(text).is_absolute()]


def test_the_benchmark_holds_out_whom_pretraining_holds_out() -> None:
    benchmark = load_config(BenchmarkConfig, CONFIGS / "benchmark" / "example.yaml")
    for file in (CONFIGS / "pretrain").glob("*.yaml"):
        assert load_config(PretrainConfig, file).data.holdout == benchmark.holdout


@pytest.mark.parametrize("file", sorted((CONFIGS / "pretrain").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_network_is_known_and_takes_the_views(file: Path) -> None:
    config = load_config(PretrainConfig, file)
    three_d = config.spatial_dims == 3
    name = config.model.name.replace("small", "tiny").replace("base", "tiny") if three_d else config.model.name
    backbone = build(
        config.model.model_copy(update={"name": name, "width": 0.125 if "resnet" in name and three_d else 1.0})
    )
    assert backbone.spatial_dims == config.spatial_dims
    if "swin" in config.model.name:
        assert all(side % 32 == 0 for side in (*config.views.global_size, *config.views.local_size))
    if "vit" in config.model.name:
        window = config.views.global_size if config.inference is None else config.inference.window
        patch = 14 if "patch14" in config.model.name else config.model.patch_size
        sides = (*config.views.global_size, *config.views.local_size, *window)
        assert patch in (14, 16) and all(side % patch == 0 for side in sides)


@pytest.mark.long
@pytest.mark.parametrize("file", sorted((CONFIGS / "pretrain").glob("*.yaml")), ids=lambda file: file.stem)
def test_says_what_memory_it_needs(file: Path) -> None:
    """By `plan`, now; versions of torch differ a little in what a step keeps."""
    place = CONFIGS.parent / "benchmarks" / "memory_of_cards.py"
    spec = importlib.util.spec_from_file_location("memory_of_cards", place)
    assert spec is not None and spec.loader is not None
    cards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cards)
    written = re.search(r"^# Memory, computed.*\n# .*\n", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert written is not None, "python benchmarks/memory_of_cards.py FILE"
    said, now = ([int(number) for number in re.findall(r"\d+", text)] for text in (written[0], cards.comment(file)))
    assert now == pytest.approx(said, rel=0.05, abs=1)
