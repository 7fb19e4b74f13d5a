"""`doctor`: what it finds is said in words that help, and its exit code says whether training can run."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import socket
from argparse import Namespace
from pathlib import Path

import pytest

from lejepa_med.cli import checkup, doctor_text
from lejepa_med.cli import doctor as doctor_module
from lejepa_med.cli.checkup import Check, check_decoders, cores, driver_version, no_gpu, open_files, shared_memory
from lejepa_med.cli.doctor import doctor
from lejepa_med.cli.main import main
from lejepa_med.config import PretrainConfig
from lejepa_med.data.cache import Cache, entry_path
from lejepa_med.errors import ConfigError
from lejepa_med.machine import Machine, examine
from lejepa_med.training import data_path

MACHINE = Machine(8, 8, 8, None, 64 * 10**9, 32 * 10**9, None, 32 * 10**9, 65_536, 65_536)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    real = data_path.measure
    monkeypatch.setattr(doctor_module.data_path, "measure", lambda folder, config: real(folder, config, 0.5))


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "training step", "cores", "memory", "open files", "temporary folder", "JPEG 2000", "triton"):
        assert word in text
    assert "  ok    training step" in text
    assert "decodes: implicit little endian; " in text
    assert max(len(line) for line in text.splitlines()) <= 120
    private = {socket.gethostname(), getpass.getuser(), str(Path.cwd()), str(Path.home()), Path.cwd().name} - {
        "lejepa-med"
    }
    assert not [word for word in private if len(word) > 2 and re.search(rf"\b{re.escape(word)}\b", text)]


def test_the_same_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["checks"]) == {"software", "compute", "machine", "DICOM", "extras"}
    assert result["checks"]["compute"]["training step"]["state"] == "ok"
    assert result["checks"]["machine"]["cores"]["usable"] == examine().cores
    assert {check["value"] for check in result["checks"]["DICOM"].values()} == {"works"}
    assert isinstance(result["problems"], list)
    assert "text" not in result


def test_exit_code_is_1_only_if_training_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Namespace(cache=None, json=False, overrides=[], config=None)
    monkeypatch.setattr(checkup, "try_decoders", lambda: {"JPEG-LS": "fails", "RLE": "works"})
    found = doctor(options)
    assert found["exit_code"] == 0
    assert "  !     fails: JPEG-LS" in found["text"]
    assert "  - JPEG-LS: files of this kind will be rejected" in found["text"]

    def broken() -> bool:
        raise RuntimeError("secret path")

    monkeypatch.setattr(checkup, "_one_step", broken)
    found = doctor(options)
    assert found["exit_code"] == 1
    assert found["text"].endswith("Training cannot run here.")
    assert "ends in RuntimeError: reinstall torch" in found["text"] and "secret" not in found["text"]
    monkeypatch.setattr(checkup, "_one_step", lambda: False)
    assert doctor(options)["exit_code"] == 1


def test_without_problems_there_is_nothing_to_do() -> None:
    text = doctor_text.of_checks([Check("compute", "precision", "note", "bf16")])
    assert text.endswith("Nothing to do: everything works.")


@pytest.mark.parametrize(
    ("has_gpu", "built_for", "refused", "state", "said"),
    [
        (False, None, False, "note", ""),
        (False, "12.8", True, "note", ""),
        (True, None, False, "warn", "built for the CPU: install torch for CUDA"),
        (True, "13.2", True, "warn", "CUDA 13.2, but its driver is older"),
        (True, "13.2", False, "warn", "not visible (CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_is_not_used(has_gpu: bool, built_for: str | None, refused: bool, state: str, said: str) -> None:
    found = no_gpu(has_gpu, built_for, refused)
    assert found.state == state
    assert said in found.advice and bool(said) == bool(found.advice)


def test_the_driver_is_read_from_its_own_file(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "none") == ""
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (root@builder)\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    assert driver_version(tmp_path / "version") == "570.86.15"


def test_cores() -> None:
    fewer = dataclasses.replace(MACHINE, cores=3, cores_affinity=4, cores_limit=3.5)
    assert cores(fewer).value.startswith("3 of 8 usable (affinity allows 4, the container or job allows 3.5)")
    assert cores(MACHINE).value == "8 of 8 usable, 1 torch thread"
    none = dataclasses.replace(MACHINE, cores=0)
    assert cores(none).state == "warn" and "set OMP_NUM_THREADS=0" in cores(none).advice


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.sys, "platform", "linux")
    assert (shared_memory(None).state, shared_memory(64 * 10**6).state, shared_memory(8 * 10**9).state) == (
        "warn", "warn", "ok"
    )  # fmt: skip
    assert "--shm-size" in shared_memory(64 * 10**6).advice
    assert "data.workers=0" in shared_memory(None).advice
    monkeypatch.setattr(checkup.sys, "platform", "darwin")
    assert shared_memory(None).state == "note"


def test_open_files() -> None:
    assert open_files(256, 4096).advice.endswith("run `ulimit -n 4096` first")
    assert open_files(256, None).advice.endswith("run `ulimit -n 65536` first")
    assert open_files(1024, 4096).value == "1,024 (ulimit -n, at most 4,096)"
    assert open_files(None, None).value == "unlimited"


def test_decoders_without_a_temporary_folder() -> None:
    def no_folder() -> dict[str, str]:
        raise FileNotFoundError

    found = check_decoders(no_folder)
    assert {check.value for check in found} == {"not tried"}
    assert len(found) == 13


@pytest.mark.usefixtures("quick")
def test_a_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(cache)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("6 volumes (0.0 MB), 6 of them looked at; timm/resnet18 on")
    table = [line for line in text.splitlines() if line.startswith("  ") and not line.startswith(("  - ", "    "))]
    assert table[0].split() == ["stage", "ms/volume", "half", "of", "them", "within", "volumes/s", "MB/s"]
    assert [line.strip().split("  ")[0] for line in table[-4:]] == [
        "base crop: cutting", "stacking a batch", "views", "training step"
    ]  # fmt: skip
    assert "The bottleneck is " in text and "volumes/s; " in text and "would hide the reading" in text
    assert str(cache) not in text


@pytest.mark.usefixtures("quick")
def test_a_cache_for_programs(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(cache), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bottleneck"] in ("disk", "cutting", "copy", "views", "model")
    assert result["stages"]["views"]["ms_per_volume"] > 0
    assert result["stages"]["views"]["volumes_per_s"] == pytest.approx(
        1e3 / result["stages"]["views"]["ms_per_volume"], rel=0.01
    )
    assert (result["damaged"], result["looked_at"], result["workers"]) == ([], 6, 0)
    assert result["workers_to_hide"] >= 1


@pytest.mark.usefixtures("quick")
def test_a_damaged_entry_is_named(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = entry_path(cache, Cache.open(cache).table["entry"].iloc[2])
    file.write_bytes(file.read_bytes()[:-3])
    assert main(["doctor", str(cache)]) == 2
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert re.search(r"1 of \d entries looked at are missing or damaged: series s2; run `prepare` again", text)


def test_settings_of_a_config_reach_the_measurement(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PretrainConfig | None] = []
    real = data_path.measure

    def spy(folder: Path, config: PretrainConfig | None) -> data_path.DataPath:
        seen.append(config)
        return real(folder, None, 0.1)

    monkeypatch.setattr(doctor_module.data_path, "measure", spy)
    (tmp_path / "run.yaml").write_text("train: {batch_size: 6}\n")
    doctor(Namespace(cache=cache, json=True, config=tmp_path / "run.yaml", overrides=["data.workers=3"]))
    doctor(Namespace(cache=cache, json=True, config=None, overrides=[]))
    assert seen[1] is None
    assert seen[0] is not None and (seen[0].train.batch_size, seen[0].data.workers) == (6, 3)
    with pytest.raises(ConfigError, match="lejepa-med doctor CACHE --config FILE"):
        doctor(Namespace(cache=None, json=True, config=None, overrides=["data.workers=3"]))
