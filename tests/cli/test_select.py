"""`lejepa-med select`: settings, `--json`, `--out`, and one sentence for what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lejepa_med.cli import main as cli
from lejepa_med.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on a cache of synthetic balls."""
    import nibabel
    import numpy as np
    import yaml

    root = tmp_path_factory.mktemp("select")
    for number in range(24):
        ball = np.random.default_rng(number).normal(10, 3, (20, 20, 20))
        ball[5:15, 5:15, 5:15] += 100 + 5 * number
        folder = root / "archive" / f"sub-{number:02d}"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), np.diag([-2, 2, 2, 1.0])), folder / "t1.nii.gz")
    config = {
        "data": {"cache": str(root / "cache"), "holdout": {"test_fraction": 0.0}, "monitor_fraction": 0.6},
        "model": {"name": "resnet10_3d", "width": 0.125, "stem_pool": False},
        "projector": {"hidden": 8, "dim": 4},
        "objective": {"num_slices": 8},
        "views": {
            "num_local": 1, "global_size": [16, 16, 16], "local_size": [8, 8, 8], "base_crop_mm": 40,
            "global_pitch_mm": None, "local_pitch_mm": None,
        },
        "train": {"steps": 2, "batch_size": 4},
    }  # fmt: skip
    (root / "pretrain.yaml").write_text(yaml.safe_dump(config))
    index = ["index", str(root / "archive"), "--out", str(root / "index"), "modality=mri", "compute.workers=1"]
    prepare = ["prepare", str(root / "index"), "--out", str(root / "cache"), "compute.workers=1"]
    assert main(index) == 0
    assert main([*prepare, "preprocess.spacing_mm=[2,2,2]"]) == 0
    assert main(["pretrain", str(root / "pretrain.yaml"), "--out", str(root / "run")]) == 0
    return root / "run"


FAST = ["draws=2", "num_slices=16"]


def test_prints_the_ranking_and_writes_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["select", str(run), *FAST]) == 0
    printed = capsys.readouterr().out
    assert "held-out patients per draw, 2 draws" in printed and "(the paper's exponent)" in printed
    assert not list(tmp_path.iterdir())
    out = tmp_path / "out"
    assert main(["select", str(run), "--out", str(out), "--json", *FAST, "alpha=0.5"]) == 0
    row = json.loads(capsys.readouterr().out)["runs"][0]
    assert row["score"] == pytest.approx(row["total"] / row["lam"] ** 0.5)
    assert json.loads((out / "selection.json").read_text())["runs"][0] == row
    assert main(["select", str(run), "--out", str(out), *FAST]) == 2
    assert "already holds a selection.json; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["drows=2"], "unknown key `drows`; did you mean `draws`?"),
        (["alpha=-1"], "`alpha`"),
        (["--results", "nothing.csv"], "results nothing.csv: expected a folder of `probe` or `benchmark`"),
        (["device=gpu"], "device gpu: not known"),
    ],
)
def test_wrong_words_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    capsys.readouterr()
    assert main(["select", str(run), *words]) == 2
    out, error = capsys.readouterr()
    assert out == "" and sentence in error and error.count("\n") == 1


def test_views_shows_what_the_run_trained_on(run: Path, tmp_path: Path) -> None:
    """Patients kept aside for the held-out loss are in neither picture."""
    assert main(["views", str(run.parent / "pretrain.yaml"), "--out", str(tmp_path / "views.png")]) == 0
    assert (tmp_path / "views.png").read_bytes() == (run / "views.png").read_bytes()


def test_no_run_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", str(tmp_path)]) == 2
    assert "there is no config.yaml; give folders that `lejepa-med pretrain` wrote" in capsys.readouterr().err


def test_config_prints_the_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "select"]) == 0
    assert "alpha: auto" in capsys.readouterr().out
    assert "select" in cli._CONFIGURED
