"""`plan` on the command line: for a cache, for one still to be made, for another machine; by exit code and as JSON."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from lejepa_med.cli import planning
from lejepa_med.cli.main import main
from lejepa_med.cli.training import last_numbers, resume_command

SMALL = [
    "model.name=timm/resnet18", "data.kind=images", "views.base_crop_mm=null", "views.global_size=[32,32]",
    "views.local_size=[16,16]", "views.global_pitch_mm=null", "views.local_pitch_mm=null", "train.device=cpu",
    "train.batch_size=4", "train.steps=100", "data.holdout.test_fraction=0",
]  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "pretrain.yaml"
    file.write_text("seed: 1\n")
    return file


def test_a_cache_that_is_there(config: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(config), *SMALL, f"data.cache={cache}", "plan.probe_seconds=1", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["archive"]["volumes"], result["archive"]["patients"]) == (6, 6)
    assert result["archive"]["crop_voxels"] == 40 * 44
    assert result["epochs"] == pytest.approx(400 / 6)
    assert result["time"]["loading_seconds_per_volume"] > 0 and result["time"]["hours"] > 0
    assert result["flops"]["per_step"] == pytest.approx(4 * result["flops"]["per_volume"])
    assert result["memory"]["total"] == sum(size for name, size in result["memory"].items() if name != "total")
    assert "unknown" not in result["verdict"] or "busy" in result["verdict"]["unknown"]
    assert str(cache) not in json.dumps(result)


@pytest.mark.parametrize(
    ("number", "words"), [(256_000.0, "256,000"), (1764.2, "1,764"), (66.67, "66.7"), (0.0363, "0.0363")]
)
def test_numbers_are_never_powers_of_ten(number: float, words: str) -> None:
    assert planning._few_digits(number) == words


def test_without_a_cache_it_says_what_it_could_not_know(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), *SMALL, "data.cache=later", "plan.probe_seconds=0"]) == 0
    text = capsys.readouterr().out
    assert "archive  not there yet" in text and "It fits: a step needs about" in text
    assert "Not known: how many volumes there are (plan.volumes), how fast they are read" in text
    assert max(len(line) for line in text.splitlines()[:-3]) <= 120


def test_another_machine_where_it_does_not_fit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan.device_memory_gb=0.5", "plan.volumes=1000", "train.batch_size=256"]
    assert main(["plan", str(config), *SMALL, *given]) == 1
    text = capsys.readouterr().out
    assert "the GPU of the section `plan`, bf16" in text
    assert "It does not fit: a step needs about" in text and "set train.micro_batch=" in text
    assert "hours (plan.device_tflops)" in text and "time     not known: give plan.device_tflops" in text
    micro_batch = text.partition("set train.micro_batch=")[2].partition(":")[0]
    assert main(["plan", str(config), *SMALL, *given, f"train.micro_batch={micro_batch}"]) == 0


def test_mistakes_are_one_sentence(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "plan.device_memory=80"]) == 2
    assert "device_memory_gb" in capsys.readouterr().err
    assert main(["plan", str(config), *SMALL, "model.name=timm/resnet1"]) == 2
    assert "timm has no model of this name" in capsys.readouterr().err


def test_a_stopped_run_names_the_whole_command_that_goes_on() -> None:
    options = Namespace(
        config=Path("my config.yaml"), overrides=["train.batch_size=8", "views.global_size=[48, 48, 48]"]
    )
    words = shlex.split(resume_command(options, Path("runs/brain")))
    assert words == ["lejepa-med", "pretrain", "my config.yaml", "--out", "runs/brain", "--resume", *options.overrides]


def test_the_line_of_progress_ends_in_the_newest_numbers(tmp_path: Path) -> None:
    assert last_numbers(tmp_path) == ""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "total": 2.5, "prediction": 0.25, "sigreg": 40.0}\n')
    timing = {"step": 1, "samples_per_s": 12.34, "data_wait": 0.051, "memory": 2_500_000_000}
    (tmp_path / "timing.jsonl").write_text(json.dumps(timing) + "\n")
    assert last_numbers(tmp_path) == (
        " | loss 2.5 | prediction 0.25 | sigreg 40 | 12.3 samples/s | data wait 5% | 2.5 GB"
    )
    (tmp_path / "probes.jsonl").write_text('{"step": 0, "task": "grade", "linear": 0.3333333, "knn": null}\n')
    assert last_numbers(tmp_path).endswith("5% | 2.5 GB | probe grade 0.333 at step 0")
