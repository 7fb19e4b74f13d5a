"""What docker/ promises: not root, no network, a base by digest, a healthcheck, and nothing copied but the sources."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Name and words of each, without comments, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name.upper(), words.strip()) for name, _, words in (line.partition(" ") for line in lines if line.strip())]


def words_of(file: Path, name: str) -> list[str]:
    return [words for found, words in instructions(file) if found == name]


def settings(file: Path, name: str) -> dict[str, str]:
    """Of ENV or ARG."""
    pairs = (pair.partition("=") for words in words_of(file, name) for pair in words.split())
    return {key: value for key, _, value in pairs}


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [file.name for file in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix[1:])
class TestDockerfile:
    def test_runs_as_a_user(self, file: Path) -> None:
        users = words_of(file, "USER")
        assert users == ["1000"], "a number, so that a cluster can see that it is not root"
        names = [name for name, _ in instructions(file)]
        assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")

    def test_its_base_is_named_by_arguments(self, file: Path) -> None:
        assert words_of(file, "FROM") == ["${BASE_IMAGE}${BASE_DIGEST}"]
        given = settings(file, "ARG")
        assert given["BASE_DIGEST"] == "" and ":" in given["BASE_IMAGE"]
        assert not given["BASE_IMAGE"].endswith(":latest")

    def test_is_offline_at_run_time(self, file: Path) -> None:
        assert settings(file, "ENV")["HF_HUB_OFFLINE"] == "1"
        entry = words_of(file, "ENTRYPOINT") + words_of(file, "CMD")
        assert entry == ['["lejepa-med"]', '["--help"]']

    def test_doctor_says_whether_it_is_healthy(self, file: Path) -> None:
        (check,) = words_of(file, "HEALTHCHECK")
        assert check.endswith('CMD ["lejepa-med", "doctor"]')

    def test_copies_the_sources_and_adds_nothing_from_elsewhere(self, file: Path) -> None:
        assert words_of(file, "ADD") == []
        copied = {source for words in words_of(file, "COPY") for source in words.split()[:-1]}
        assert copied == {"pyproject.toml", "README.md", "LICENSE", "configs", "lejepa_med", "lejepa_med/_version.py"}
        assert all((ROOT / source).exists() for source in copied)
        kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        assert kept == copied - {"lejepa_med/_version.py"}
        assert not re.search(r"\b(curl|wget|git clone)\b", file.read_text())

    def test_a_change_of_the_sources_makes_small_layers_only(self, file: Path) -> None:
        steps = instructions(file)
        sources = steps.index(("COPY", "lejepa_med lejepa_med"))
        after = [words for name, words in steps[sources:] if name == "RUN" and "pip install" in words]
        assert len(after) == 1 and "--no-deps" in after[0]
        before = [words for name, words in steps[:sources] if name == "RUN"]
        assert len(before) == 1 and before[0].endswith("python -m pip install .")
        assert settings(file, "ENV")["PIP_NO_CACHE_DIR"] == "1"


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_compose_gives_a_service_no_network_and_the_archive_for_reading(name: str) -> None:
    service = services()[name]
    assert service["network_mode"] == "none"
    assert service["user"].startswith("${USER_ID:-1000}")
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    archive = [volume for volume in service["volumes"] if "ARCHIVE" in volume]
    assert len(archive) == 1 and archive[0].endswith(":/archive:ro")
    build = service["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).resolve() in DOCKERFILES
    assert build["args"] == {"BASE_DIGEST": "${BASE_DIGEST:-}"}


def test_only_the_cuda_service_asks_for_a_gpu() -> None:
    (device,) = services()["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and "deploy" not in services()["cpu"]


def test_the_apptainer_recipe_is_the_same_image() -> None:
    text = (FOLDER / "lejepa-med.def").read_text(encoding="utf-8")
    sections: dict[str, list[str]] = {"": []}
    for line in text.splitlines():
        name = line[1:].strip() if line.startswith("%") else None
        if name is not None:
            sections[name] = []
        elif line.strip() and not line.lstrip().startswith("#"):
            sections[list(sections)[-1]].append(line.strip())
    assert sections[""] == ["Bootstrap: docker", "From: {{ BASE_IMAGE }}{{ BASE_DIGEST }}"]
    base = settings(FOLDER / "Dockerfile.cuda", "ARG")
    assert sections["arguments"] == [f"{name}={base[name]}" for name in ("BASE_IMAGE", "BASE_DIGEST")]
    assert sections["test"] == ["lejepa-med doctor"] and sections["runscript"] == ['exec lejepa-med "$@"']
    assert "export HF_HUB_OFFLINE=1 MPLBACKEND=Agg" in sections["environment"]
    for line in sections["files"]:
        source, target = line.split()
        assert (ROOT / source).exists() and target == f"/opt/lejepa-med/{source}"
