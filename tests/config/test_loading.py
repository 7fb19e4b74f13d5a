"""Settings: every mistake at once, in the user's own words; what is written reads back; defaults are documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from lejepa_med.cli.settings import KINDS
from lejepa_med.config import (
    BenchmarkConfig,
    ConfigError,
    IndexSettings,
    PrepareConfig,
    PretrainConfig,
    ProbeConfig,
    describe,
    dump_yaml,
    load_config,
    validate,
)

TASK = {"name": "side", "labels": "l.csv", "column": "side"}
BENCHMARK: dict[str, Any] = {
    "data": {"cache": "cache"},
    "tasks": [TASK],
    "encoders": [{"kind": "run", "path": "runs/a"}, {"kind": "timm2d"}],
}


def message(kind: Any, values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(kind, values, "x.yaml")
    text = str(caught.value)
    assert "\n" not in text
    return text


def load(tmp_path: Path, text: str, *overrides: str, kind: Any = PretrainConfig) -> Any:
    (tmp_path / "c.yaml").write_text(text)
    return load_config(kind, tmp_path / "c.yaml", overrides)


def test_unknown_key_suggests_the_nearest() -> None:
    text = message(PretrainConfig, {"train": {"batchsize": 3}})
    assert text == "config x.yaml: unknown key `train.batchsize`; did you mean `batch_size`?"
    assert message(PretrainConfig, {"veiws": {}}).endswith("unknown key `veiws`; did you mean `views`?")


def test_unknown_key_far_from_all_lists_the_legal_ones() -> None:
    text = message(PretrainConfig, {"data": {"holdout": {"zzz": 1}}})
    assert text == "config x.yaml: unknown key `data.holdout.zzz`; known here: seed, test_fraction"
    text = message(PretrainConfig, {"data": {"holdout": {"zzz": 1, "qqq": 2}}})
    assert text.endswith("unknown keys `data.holdout.zzz`, `data.holdout.qqq`; known here: seed, test_fraction")


def test_several_mistakes_are_named_at_once() -> None:
    text = message(PretrainConfig, {"seed": "x", "train": {"steps": 0, "lr": 1}, "views": {"flip_left_right": 2}})
    assert "`seed`: input should be a valid integer, unable to parse string as an integer, got 'x'" in text
    assert "`train.steps`: input should be greater than 0, got 0" in text
    assert "unknown key `train.lr`" in text
    assert "`views.flip_left_right`: input should be less than or equal to 1, got 2" in text
    assert text.count(";") == 4


def test_alternatives_of_one_value_are_one_mistake() -> None:
    text = message(PretrainConfig, {"objective": {"lam": "much"}})
    assert text.startswith("config x.yaml: `objective.lam`: input should be a valid number")
    assert text.endswith(" or input should be 'auto' or 'sqrt', got 'much'")


def test_a_rule_over_several_keys_says_it_without_dumping_the_file() -> None:
    text = message(PretrainConfig, {"model": {"name": "timm/resnet18"}, "train": {"steps": 7}})
    assert text == "config x.yaml: model timm/resnet18 is 2D, but views.global_size has 3 numbers"
    text = message(PretrainConfig, {"views": {"global_size": [96, 96]}})
    assert text.startswith("config x.yaml: `views`: global_size and local_size need two numbers each (2D)")
    assert "got" not in text


def test_paths_inside_tagged_lists_are_those_of_the_file() -> None:
    broken = BENCHMARK | {"encoders": [{"kind": "run"}, {"kind": "pixels", "sise": [1]}, {"kind": "magic"}]}
    text = message(BenchmarkConfig, broken)
    assert "`encoders.0.path` is required" in text
    assert "unknown key `encoders.1.sise`; did you mean `size`?" in text
    assert "`encoders.2`: input tag 'magic'" in text
    assert message(BenchmarkConfig, BENCHMARK | {"tasks": [TASK, TASK]}).endswith(
        "`tasks`: names must differ, also as file names"
    )


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (IndexSettings, {"min_extent_mm": [1, 2]}, "`min_extent_mm` has too few values, got [1, 2]"),
        (IndexSettings, {"min_extent_mm": []}, "`min_extent_mm` has too few values, got []"),
        (PrepareConfig, {"preprocess": {"spacing_mm": [1, 2]}}, "`preprocess.spacing_mm` has too few values, got [1, "),
        (IndexSettings, {"min_extent_mm": [1, 2, 3, 4]}, "at most 3 items after validation, not 4"),
    ],
)
def test_lists_of_another_length(kind: type[BaseModel], values: dict[str, Any], expected: str) -> None:
    assert message(kind, values).count(expected) == 1


def test_required_keys_are_named() -> None:
    text = message(ProbeConfig, {})
    assert text == "config x.yaml: `data` is required; `model` is required; `task` is required"


@pytest.mark.parametrize("version", [2, "2", 99])
def test_newer_version(version: object) -> None:
    text = message(PretrainConfig, {"version": version, "from_the_future": 1})
    assert text == f"config x.yaml: version {version} is newer than this lejepa-med reads (up to 1); upgrade lejepa-med"


def test_numbers_may_be_text(tmp_path: Path) -> None:
    config = load(tmp_path, "optim:\n  lr: 1e-3\n", "optim.weight_decay=5e-2", "train.steps='1000'")
    assert yaml.safe_load("1e-3") == "1e-3"  # what PyYAML makes of it
    assert (config.optim.lr, config.optim.weight_decay, config.train.steps) == (1e-3, 5e-2, 1000)


def test_overrides_come_last_and_reach_into_lists(tmp_path: Path) -> None:
    text = yaml.safe_dump(BENCHMARK)
    config = load(
        tmp_path, text, "encoders.0.path=runs/b", "encoders.1.slices=null", "tasks.0.name=a=b", "seeds=[3]",
        "seeds=3", kind=BenchmarkConfig,
    )  # fmt: skip
    assert config.encoders[0].path == Path("runs/b")
    assert config.encoders[1].slices is None
    assert config.tasks[0].name == "a=b"
    assert config.seeds == 3
    assert load(tmp_path, "", "views.global_size=[32, 32, 32]").views.global_size == (32, 32, 32)


def test_overrides_fill_an_empty_section(tmp_path: Path) -> None:
    config = load(tmp_path, "patients:\n", "patients.file=p.csv", kind=IndexSettings)
    assert config.patients.file == Path("p.csv")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("seed.x=3", "`seed` is a single value and holds no `x`"),
        ("encoders.7.path=x", "`7` is no item of a list of 2; the first is 0"),
        ("encoders.first.path=x", "`first` is no item of a list of 2; the first is 0"),
        ("encoders.2=x", "`2` is no item of a list of 2; the first is 0"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, expected: str) -> None:
    text = yaml.safe_dump(BENCHMARK | {"seed": 0})
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, override, kind=BenchmarkConfig)
    assert str(caught.value) == f"override `{override}`: {expected}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1,\nb: 2", "not valid YAML at line 2"),
        (b"- 1\n- 2\n", "expected `key: value` lines at the top level, got a list"),
        (b"\xff\xfe\x00", "cannot be read (UnicodeDecodeError)"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, file)
    assert str(caught.value) == f"config {file}: {expected}"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(PretrainConfig, tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(IsADirectoryError\)"):
        load_config(PretrainConfig, tmp_path)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing\n") == PretrainConfig()


@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**31),
            "init_from": st.none() | st.text("abc/ .é:#'\"", min_size=1),
            "optim": st.fixed_dictionaries(
                {"lr": st.floats(1e-12, 1e3), "clip_norm": st.none() | st.floats(1e-9, 1e9)}
            ),
            "objective": st.fixed_dictionaries({"lam": st.just("auto") | st.floats(0, 1)}),
        }
    )
)
def test_round_trip(values: dict[str, Any]) -> None:
    config = validate(PretrainConfig, values, "x")
    assert validate(PretrainConfig, yaml.safe_load(dump_yaml(config)), "x") == config


def defaults_only(kind: type[BaseModel]) -> dict[str, Any]:
    """What `describe` should say: defaults as plain values, null where something is required."""
    plain: dict[str, Any] = {}
    for key, field in kind.model_fields.items():
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            dumped = kind.model_construct(**{key: default}).model_dump(mode="json", warnings=False, include={key})[key]
            plain[key] = dumped
    return plain


@pytest.mark.parametrize("name", sorted(KINDS))
def test_description_of_every_kind_is_its_defaults(name: str) -> None:
    kind = KINDS[name]
    described = yaml.safe_load(describe(kind))
    assert list(described) == list(kind.model_fields)
    expected = defaults_only(kind)
    assert {key: described[key] for key in expected} == expected
    if all(not field.is_required() for field in kind.model_fields.values()):
        assert validate(kind, described, "described") == kind()


def test_description_shows_required_sections_and_one_item_of_every_kind() -> None:
    described = yaml.safe_load(describe(BenchmarkConfig))
    assert described["data"] == {
        "cache": None, "index": None, "modalities": None, "sequences": None, "one_per_patient": False,
    }  # fmt: skip
    assert [item["kind"] for item in described["encoders"]] == ["run", "random", "scratch", "pixels", "shape", "timm2d"]
    filled = described | {"data": {"cache": "c"}, "tasks": [TASK]}
    filled["encoders"] = [
        {key: value or "x" if key in ("path", "like") else value for key, value in item.items()}
        for item in described["encoders"]
    ]
    assert validate(BenchmarkConfig, filled, "x").encoders[3].name == "pixels + PCA"


def test_settings_are_immutable() -> None:
    config = PretrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
