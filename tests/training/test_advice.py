"""Each failure is forced, measured by the code that runs use, and answered by its sentence; a healthy run by none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import SETTINGS, Network, Patterns, settings, small_run

from lejepa_med import api
from lejepa_med.cli.main import main
from lejepa_med.data.dataset import DatasetSource
from lejepa_med.objective import SIGReg
from lejepa_med.training.advice import Advice, Adviser, advise
from lejepa_med.training.advice_probe import is_flat
from lejepa_med.training.advice_rules import RULES
from lejepa_med.training.log import read_log
from lejepa_med.training.monitor import diagnose, mode_gap, slice_statistics

CONFIG = settings(train={"steps": 1000, "batch_size": 64}, objective={"lam": 0.05})


def sentence(found: list[Advice], code: str) -> str:
    """The sentence of one code, which must be there."""
    (text,) = [advice.sentence for advice in found if advice.code == code]
    assert text.count("\n") == 0
    assert not text.endswith(".")
    return text


def line(step: int = 999, **numbers: Any) -> dict[str, Any]:
    """What a healthy run would have written, with some numbers changed."""
    healthy = {
        "feature_rank": 30.0, "feature_rank_bound": 63, "feature_dead": 0.0, "feature_spread": 0.8,
        "projection_rank": 20.0, "projection_rank_bound": 32, "projection_dead": 0.0, "projection_spread": 0.9,
        "projection_std": 0.9, "samples": 64, "n_eff": 64.0, "sigreg_reference": 1.05, "sigreg_relative": 1.1,
        "grad_norm": 1.0, "mode_gap": 0.3, "batchnorm_batch": 128, "held_out_total": 0.3, "seen_total": 0.3,
        "same_patient_nn": 0.1, "same_patient_chance": 0.016,
    }  # fmt: skip
    return {"step": step, **healthy, **numbers}


def codes(lines: list[dict[str, Any]]) -> list[str]:
    return [advice.code for advice in advise(lines, CONFIG)]


def test_a_healthy_run_hears_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    run = small_run(
        tmp_path / "run",
        patients=160,
        scans=2,
        warn=said.append,
        data={"monitor_fraction": 0.1},
        views={"num_local": 0},
        objective={"lam": 0.98, "num_slices": 64},
        optim={"lr": 1e-2},
        train={"steps": 80, "batch_size": 64, "diagnostics_every": 8},
    )
    assert run.advice() == []
    assert said == []
    lines = read_log(run.path, "diagnostics")
    assert len(lines) == 11
    assert {name for line in lines for name in line} >= {"held_out_total", "same_patient_nn", "mode_gap"}
    assert all(line["advice"] == [] for line in lines)


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (
            "rank one",
            "collapse_features",
            r"backbone features use 1\.0 of 7 possible dimensions \(at most samples - 1\)",
        ),
        ("constant", "collapse_features", r"backbone features differ by \S+e-0\d of their magnitude: the backbone has"),
        ("half dead", "dead_dimensions", r"5\d% of the feature dimensions have no spread"),
    ],
)
def test_a_broken_backbone(tmp_path: Path, kind: str, code: str, words: str) -> None:
    said: list[str] = []
    run = small_run(tmp_path / "run", kind=kind, warn=said.append, train={"batch_size": 8})
    text = sentence(run.advice(), code)
    assert re.match(words, text)
    assert "optim.lr (now 0.003)" in text
    assert sum(f"[{code}]" in words for words in said) == 1
    assert all(code in line["advice"] for line in read_log(run.path, "diagnostics"))


def test_without_sigreg_projections_collapse(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective": {"lam": 0.0}, "optim": {"lr": 1e-2}}
    train = {"steps": 60, "batch_size": 8, "diagnostics_every": 20}
    text = sentence(small_run(tmp_path / "run", train=train, **changes).advice(), "collapse_projections")
    assert text.startswith("projections have a standard deviation of 0.0")
    assert "raise objective.lam (now 0)" in text


def test_short_training_leaves_sigreg_high(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", patients=32, objective={"lam": 0.05}, train={"batch_size": 32})
    text = sentence(run.advice(), "sigreg_high")
    assert "in the last quarter: the projections are not Gaussian yet; raise train.steps (4)" in text
    early = [line(step=500, sigreg_relative=5.0)]
    assert codes(early) == []
    assert codes([*early, line(sigreg_relative=5.0)]) == ["sigreg_high"]
    assert codes([line(sigreg_relative=5.0, n_eff=16.0, sigreg_reference=4.2)]) == ["small_batch"]


def test_points_that_were_optimised_one_by_one_are_overfitted() -> None:
    sigreg = SIGReg(num_slices=64)
    points = torch.randn(1, 64, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = line(**diagnose(points[0].detach(), points[0].detach(), list(range(64))))
    before |= slice_statistics(points.detach(), sigreg, 0)
    optimizer = torch.optim.Adam([points], lr=0.03)
    for step in range(150):
        optimizer.zero_grad()
        sigreg(points, step).backward()
        optimizer.step()
    x = points.detach()
    after = line(**diagnose(x[0], x[0], list(range(64)))) | slice_statistics(x, sigreg, 1000)
    assert codes([before]) == []
    text = sentence(advise([after], CONFIG), "sigreg_low")
    assert f"SIGReg is {after['sigreg_relative']:.2f} times its reference 1.05, less than new samples reach" in text
    # The same points from 32 patients with 2 samples each are less surprising still: the reference is twice as high.
    dependent = after | diagnose(x[0], x[0], [number // 2 for number in range(64)]) | {"sigreg_relative": 0.9}
    assert "sigreg_low" in codes([dependent])
    assert "sigreg_low" not in codes([dependent | {"n_eff": 64.0}])


def test_few_independent_samples(tmp_path: Path) -> None:
    text = sentence(small_run(tmp_path / "run", train={"batch_size": 8}).advice(), "small_batch")
    assert text.startswith("8 independent samples per batch")
    assert "raise train.batch_size, with train.micro_batch" in text
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    repeated = line(**diagnose(x, x, [number % 4 for number in range(64)]))
    assert sentence(advise([repeated], CONFIG), "small_batch").startswith("a batch of 64 has 4 independent samples")
    all_of_them = line(**diagnose(x[:8], x[:8], [0, 1, 2, 3, 4, 5, 6, 0]))
    text = sentence(advise([all_of_them], CONFIG), "small_batch")
    assert "bring more patients" in text and "batch_size" not in text, "the seven patients there are fill no larger one"


def test_few_images_in_a_batchnorm(tmp_path: Path) -> None:
    text = sentence(small_run(tmp_path / "run").advice(), "small_batchnorm")
    assert text.startswith("BatchNorm of the backbone takes its moments over 8 images: under 16 they are noise")
    assert "model.norm=group" in text
    without = small_run(tmp_path / "without", kind="no norm").advice()
    assert "small_batchnorm" not in {advice.code for advice in without}


@pytest.mark.parametrize(
    ("kind", "micro_batch", "said"),
    [("healthy", 2, True), ("healthy", 3, True), ("healthy", 4, False), ("healthy", 5, False), ("no norm", 2, False)],
)
def test_batchnorm_in_micro_batches(tmp_path: Path, kind: str, micro_batch: int, said: bool) -> None:
    """On the console where advice goes, and not where the micro-batch is the batch."""
    heard: list[str] = []
    train = {"micro_batch": micro_batch, "steps": 2}
    run = small_run(tmp_path / "run", kind=kind, warn=heard.append, train=train)
    assert sum("[micro_batch_batchnorm]" in text for text in heard) == said
    if said:
        assert f"(train.micro_batch {micro_batch})" in sentence(run.advice(), "micro_batch_batchnorm")


def test_scans_that_the_patient_alone_decides(tmp_path: Path) -> None:
    run = small_run(
        tmp_path / "run", patients=20, scans=2, kind="no norm",
        views={"global_fraction": [0.99, 1.0], "mri": {"gamma_probability": 0, "bias_probability": 0,
               "contrast_probability": 0, "noise_probability": 0}, "blur_probability": 0, "thick_slice_probability": 0},
    )  # fmt: skip
    text = sentence(run.advice(), "same_patient")
    assert "are nearest to another of the same (by chance 3%): is it anatomy, or scanner and positioning?" in text
    lines = [line(step, same_patient_nn=0.95) for step in range(200, 1000, 100)]
    flat = probed([0.7 + 0.01 * (-1) ** place for place in range(8)])
    rising = probed([0.6 + 0.03 * place for place in range(8)])
    text = sentence(advise(lines, CONFIG, flat), "same_patient")
    assert text.startswith("of scans of one patient, 95% are nearest to another of the same (by chance 2%) while the")
    assert "while the probe stays at 0.690: an identity shortcut" in text
    assert [advice.code for advice in advise(lines, CONFIG, rising)] == []


def probed(scores: list[float], first: int = 200) -> list[dict[str, Any]]:
    """Lines of two tasks, of which the first counts."""
    steps = range(first, first + 100 * len(scores), 100)
    return [
        {"step": step, "task": task, "linear": score if task == "grade" else 0.0}
        for step, score in zip(steps, scores, strict=True)
        for task in ("grade", "other")
    ]


def test_a_probe_that_is_no_better_than_fresh_weights() -> None:
    lines = [line(step) for step in range(200, 1000, 100)]
    text = sentence(advise(lines, CONFIG, probed([0.4, 0.5, 0.4, 0.41, 0.38, 0.4, 0.39], 0)), "probe_not_above_start")
    assert text.startswith(
        "the online probe of grade is at 0.390 (mean of the last 3) and was 0.400 with fresh weights"
    )
    for better in (probed([0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.5], 0), probed([0.4] * 7), probed([0.4] * 5, 0)):
        assert [advice.code for advice in advise(lines, CONFIG, better)] == []


def test_flat_means_no_gain_beyond_its_scatter() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = (0.02 * torch.randn(200, 10, generator=draw)).tolist()
    slopes = [[0.7 + 0.02 * place + error for place, error in enumerate(row)] for row in noise]
    assert sum(is_flat([0.7 + error for error in row]) for row in noise) > 0.9 * 200
    assert sum(is_flat(row) for row in slopes) < 0.1 * 200


def test_held_out_loss_rises_while_training_loss_falls() -> None:
    steps = range(100, 1000, 100)
    seen = [0.50, 0.45, 0.40, 0.36, 0.33, 0.30, 0.28, 0.26, 0.25]
    held = [0.55, 0.50, 0.46, 0.44, 0.43, 0.45, 0.48, 0.52, 0.56]

    def record(held: list[float], seen: list[float]) -> list[dict[str, Any]]:
        rows = zip(steps, held, seen, strict=True)
        return [line(step, held_out_total=a, seen_total=b) for step, a, b in rows]

    text = sentence(advise(record(held, seen), CONFIG), "held_out_rising")
    assert "rose from 0.44 (step 600) to 0.52 while that of training patients fell from 0.33 to 0.263" in text
    assert "train.steps=600" in text
    assert codes(record(seen, seen)) == []
    assert codes(record(held, held)) == [], "both rise: not memorising"
    assert codes(record(held, seen)[:5]) == [], "too short to tell"


def test_a_run_that_memorises_its_patients(tmp_path: Path) -> None:
    """24 patients to train on and twice the rate of the healthy run above: with other seeds it memorises them too."""
    run = small_run(
        tmp_path / "run",
        patients=48,
        scans=2,
        data={"monitor_fraction": 0.5},
        views={"num_local": 0},
        objective={"lam": 0.98, "num_slices": 64},
        optim={"lr": 2e-2},
        train={"steps": 200, "batch_size": 24, "diagnostics_every": 10},
    )
    assert any("held_out_rising" in line["advice"] for line in read_log(run.path, "diagnostics"))


def test_running_statistics_of_something_else() -> None:
    torch.manual_seed(0)
    backbone, views = Network().train(), torch.rand(2, 8, 1, 8, 8, 8)
    backbone.norm.running_mean.fill_(100.0)  # type: ignore[union-attr]
    text = sentence(advise([line(mode_gap=mode_gap(backbone, views))], CONFIG), "mode_gap")
    assert "have a cosine of 0.00" in text
    assert "re-estimate them before use (`pretrain` does at its end)" in text


@pytest.mark.parametrize(
    ("norm", "code", "words"),
    [
        (12.0, "gradient_explodes", "is 12, 12 times its median 1: training is about to diverge; lower optim.lr"),
        (0.009, "gradient_vanishes", "is 0.009, 9.0e-03 times its median 1: nothing is learned any more"),
    ],
)
def test_gradients_far_from_their_median(norm: float, code: str, words: str) -> None:
    usual = [line(step) for step in range(100, 700, 100)]
    assert words in sentence(advise([*usual, line(grad_norm=norm)], CONFIG), code)
    assert codes([*usual[:3], line(grad_norm=norm)]) == []
    assert codes([*usual, line(grad_norm=norm), line()]) == []


def test_random_weights_are_not_judged() -> None:
    assert codes([line(5, feature_rank=1.0, mode_gap=2.0, projection_std=0.0)]) == []
    assert advise([], CONFIG) == []


def test_each_is_said_once_also_after_a_resume(tmp_path: Path) -> None:
    said: list[str] = []
    adviser = Adviser(CONFIG, [], said.append)
    ill, well = line(mode_gap=1.0), line()
    assert [adviser(numbers) for numbers in (ill, ill, well, well, well, ill, ill)] == [
        ["mode_gap"], ["mode_gap"], ["mode_gap"], [], [], [], ["mode_gap"]
    ], "the mean of three lines counts"  # fmt: skip
    assert len(said) == 1
    assert said[0].startswith("step 999: features of one image")
    assert said[0].endswith(" [mode_gap]")
    again = Adviser(CONFIG, [ill | {"advice": ["mode_gap"]}], said.append)
    assert again(ill) == ["mode_gap"]
    assert len(said) == 1
    assert Adviser(CONFIG, [], None)(ill) == ["mode_gap"]


@pytest.mark.parametrize("as_json", [False, True])
def test_pretrain_says_it_at_once_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    names = [f"patient {number}" for number in range(8)]
    monkeypatch.setattr(api, "open_source", lambda data, config: (DatasetSource(Patterns(names)), None))
    values = SETTINGS | {"model": {"name": "resnet10_3d", "width": 0.125, "stem_stride": 1, "stem_pool": False}}
    values = values | {"views": values["views"] | {"global_size": [12, 12, 12], "local_size": [12, 12, 12]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    words = [
        "pretrain",
        str(tmp_path / "config.yaml"),
        "--out",
        str(tmp_path / "run"),
        *(["--json"] if as_json else []),
    ]
    assert main([*words, "train.steps=2"]) == 0
    out, err = capsys.readouterr()
    expected = {advice.code: advice.sentence for advice in api.Run(tmp_path / "run", True).advice()}
    assert {"small_batch", "small_batchnorm"} <= set(expected)
    assert err.count("[small_batch]") == 1
    if as_json:
        assert json.loads(out)["advice"] == expected
    else:
        assert all(f"advice: {text} [{code}]\n" in out for code, text in expected.items())


def test_every_rule_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diagnostics.md").read_text()
    for code in RULES:
        assert f"**`{code}`**" in page
    for name in line():
        assert f"`{name}`" in page or name == "step"
