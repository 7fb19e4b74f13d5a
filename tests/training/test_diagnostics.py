"""Each number against a slow literal computation; measuring leaves no trace in a run."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from small_runs import Network, Patterns, settings, small_run

from lejepa_med.config import ProjectorConfig
from lejepa_med.data.dataset import DatasetSource, StepDataset
from lejepa_med.data.sampler import StepSampler
from lejepa_med.objective import LeJEPALoss, SIGReg, random_directions
from lejepa_med.training.fixed_scans import FixedScans, first_patients, repeated_scans
from lejepa_med.training.log import read_log
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.monitor import (
    Monitor,
    diagnose,
    fixed_loss,
    gradient_norms,
    mode_gap,
    same_patient,
    same_patient_rate,
    slice_statistics,
    undisturbed,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pretrainer(kind: str = "healthy") -> Pretrainer:
    torch.manual_seed(0)
    return Pretrainer(Network(kind), ProjectorConfig(hidden=16, dim=4, layers=2)).train()


def scans(count: int = 9, group: int = 100, each: int = 1) -> FixedScans:
    names = [f"patient {number}" for number in range(count) for _ in range(each)]
    dataset = StepDataset(DatasetSource(Patterns(names), names), StepSampler(names, 4, 0), (10, 10, 10), 0)
    return FixedScans(dataset, list(range(len(names))), settings().views, group)


def test_spread_of_known_features() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.001], [5.0, 8.0, 0.0]])
    numbers = diagnose(x, x[:, :1], [0, 0, 1])
    assert numbers["feature_std"] == pytest.approx((2 + math.sqrt(12) + 0.001 / math.sqrt(3)) / 3, rel=1e-5)
    assert numbers["feature_std_min"] == pytest.approx(0.001 / math.sqrt(3), rel=1e-4)
    assert numbers["feature_dead"] == pytest.approx(1 / 3)
    assert (numbers["feature_rank_bound"], numbers["projection_rank_bound"]) == (2, 1)
    assert numbers["projection_spread"] == pytest.approx(2 / math.sqrt(35 / 3), rel=1e-5)
    assert numbers["n_eff"] == pytest.approx(9 / 5)


def test_slices_are_those_of_the_loss_and_of_the_definition() -> None:
    sigreg, z = SIGReg(num_slices=7, seed=3), 1.3 * normal(2, 12, 5)
    numbers = slice_statistics(z, sigreg, step=11)
    assert numbers["sigreg_relative"] == pytest.approx(float(sigreg(z, 11)) / sigreg.reference(), rel=1e-5)
    statistics = []
    for direction in random_directions(5, 7, 3, 11).T:
        per_view = []
        for view in z:
            x, values = view @ direction, []
            for knot in range(17):
                t = knot * 3 / 16
                phi = complex(float(torch.cos(t * x).mean()), float(torch.sin(t * x).mean()))
                values.append(abs(phi - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2))
            per_view.append(12 * 2 * 3 / 16 * (sum(values) - values[0] / 2 - values[-1] / 2))
        statistics.append(sum(per_view) / 2)
    assert numbers["worst_slice_relative"] == pytest.approx(max(statistics) / sigreg.reference(), rel=1e-4)


def test_gradient_norms_are_those_before_clipping() -> None:
    model = pretrainer()
    model([normal(2, 4, 1, 8, 8, 8)])[1].square().sum().backward()
    parts = [
        math.sqrt(sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None))
        for part in (model.backbone, model.projector)
    ]
    total = float(torch.nn.utils.clip_grad_norm_(model.parameters(), math.hypot(*parts) / 3))
    numbers = gradient_norms(model, total)
    assert numbers["grad_norm"] == pytest.approx(math.hypot(*parts), rel=1e-5)
    assert numbers["grad_norm_backbone"] == pytest.approx(parts[0], rel=1e-4)
    assert numbers["grad_norm_projector"] == pytest.approx(parts[1], rel=1e-4)


def test_mode_gap() -> None:
    views = normal(2, 6, 1, 8, 8, 8)
    assert mode_gap(Network("no norm").train(), views) == pytest.approx(0.0, abs=1e-5)
    backbone = pretrainer().backbone
    backbone.norm.running_mean.uniform_(-1, 1)
    train, evaluated = copy.deepcopy(backbone).train(), copy.deepcopy(backbone).eval()
    with torch.no_grad():
        pairs = train(views.flatten(0, 1)), evaluated(views.flatten(0, 1))
    a, b = (features - features.mean(0) for features in pairs)
    cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]
    assert mode_gap(backbone, views) == pytest.approx(1 - sum(cosines) / 12, abs=1e-5)


def test_fixed_loss_is_the_loss_of_these_scans_in_training_mode() -> None:
    model, fixed, loss_function = pretrainer(), scans(), LeJEPALoss(lam=0.25, num_slices=8)
    views = next(iter(fixed.views(torch.device("cpu"))))
    with torch.no_grad():
        loss = loss_function(copy.deepcopy(model)(views)[1], 2, 0)
    numbers = fixed_loss(model, fixed, loss_function, 2, num_samples=7)
    assert numbers["prediction"] == pytest.approx(float(loss.prediction), rel=1e-6)
    assert numbers["sigreg"] == pytest.approx(float(loss.sigreg), rel=1e-6)
    assert numbers["total"] == pytest.approx(0.75 * float(loss.prediction) + 0.25 * float(loss.sigreg), rel=1e-6)
    assert fixed_loss(model, fixed, loss_function, 2, num_samples=7) == numbers


def test_groups_do_not_change_views_nor_the_loss_without_batchnorm() -> None:
    whole, parts = scans(), scans(group=2)
    grouped = list(parts.views(torch.device("cpu")))
    assert [views[0].shape[1] for views in grouped] == [3, 2, 2, 2]
    assert scans(group=1).groups == parts.groups, "a single scan has no moments"
    (once,) = whole.views(torch.device("cpu"))
    for size, views in enumerate(once):
        assert torch.equal(torch.cat([group[size] for group in grouped], 1), views)
    model, loss_function = pretrainer("no norm"), LeJEPALoss(lam=0.5, num_slices=8)
    a, b = (fixed_loss(model, fixed, loss_function, 2, num_samples=7) for fixed in (whole, parts))
    assert a == pytest.approx(b, rel=1e-4)


def test_same_patient_rate() -> None:
    features, patients = normal(9, 3), list("aabbbcdde")
    centred = features - features.mean(0)
    hits = []
    for i in range(9):
        cosines = {j: float(torch.cosine_similarity(centred[i], centred[j], dim=0)) for j in range(9) if j != i}
        hits.append(patients[max(cosines, key=lambda j: cosines[j])] == patients[i])
    rate, chance = same_patient_rate(features, patients)
    assert rate == pytest.approx(sum(hits) / 9)
    assert chance == pytest.approx((2 * 1 + 3 * 2 + 0 + 2 * 1 + 0) / 9 / 8)
    twins = normal(8, 4).repeat_interleave(2, 0) + 1e-3 * normal(16, 4, seed=1)
    assert same_patient_rate(twins, [str(number // 2) for number in range(16)]) == pytest.approx((1.0, 1 / 15))
    # Volumes that the patient alone decides, through network and crops:
    numbers = same_patient(pretrainer("no norm").backbone, scans(count=10, each=2))
    assert numbers["same_patient_chance"] == pytest.approx(1 / 19)
    assert numbers["same_patient_nn"] > 0.3


def own(patients: list[str]) -> list[str]:
    """Each scan an acquisition of its own."""
    return [str(number) for number in range(len(patients))]


def test_scans_that_are_looked_at_again() -> None:
    patients = [f"{number:03d}" for number in range(100) for _ in range(1 + number % 3)]
    chosen = first_patients(patients)
    assert len(chosen) == len({patients[index] for index in chosen}) == 64
    repeated = [patients[index] for index in repeated_scans(patients, own(patients))]
    assert len(repeated) == 64
    assert {repeated.count(patient) for patient in repeated} == {2}
    few = [str(number // 6) for number in range(60)]
    assert len(repeated_scans(few, own(few))) == 60
    seven = [str(number // 2) for number in range(14)]
    assert repeated_scans(seven, own(seven)) == []
    assert repeated_scans(few, few) == []  # all scans of a patient show one acquisition
    assert repeated_scans(few[::6], own(few[::6])) == []


@pytest.mark.parametrize(("trained", "aside"), [(5, 12), (12, 5), (100, 80)])
def test_losses_that_are_compared_are_of_equally_many_patients(trained: int, aside: int) -> None:
    datasets = [scans(number).dataset for number in (trained, aside)]
    monitor = Monitor(pretrainer(), LeJEPALoss(num_slices=8), settings(), *datasets)
    found = {name: len(set(fixed.patients)) for name, fixed in monitor._losses.items()}
    assert found == dict.fromkeys(("held_out", "seen"), min(trained, aside, 64))


def test_nothing_is_disturbed() -> None:
    model = pretrainer("dropout")
    model.projector[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(model):
        model.eval()
        model.train()([normal(2, 4, 1, 8, 8, 8)])
        assert not torch.equal(before["backbone.norm.running_mean"], model.state_dict()["backbone.norm.running_mean"])
        raise ZeroDivisionError
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


FILES = ("metrics.jsonl", "backbone.safetensors")


def test_a_run_is_the_same_to_the_bit_however_often_it_is_diagnosed(tmp_path: Path) -> None:
    common = {"patients": 24, "scans": 2, "kind": "dropout", "data": {"monitor_fraction": 0.5}}
    for every in (1, 3, 1000):
        small_run(tmp_path / str(every), **common, train={"steps": 6, "diagnostics_every": every})
    often, seldom = (read_log(tmp_path / name, "diagnostics") for name in ("1", "1000"))
    assert [line["step"] for line in often] == list(range(6))
    assert [line["step"] for line in seldom] == [0, 5]
    assert {"held_out_total", "seen_total", "same_patient_nn", "mode_gap", "advice"} <= set(often[0])
    assert {**seldom[1], "advice": 0} == {**often[5], "advice": 0}
    for name in FILES:
        assert len({(tmp_path / every / name).read_bytes() for every in ("1", "3", "1000")}) == 1


def test_numbers_of_a_run_are_those_of_its_config(tmp_path: Path) -> None:
    small_run(tmp_path / "run", patients=3, scans=2, train={"batch_size": 6, "steps": 2})
    (line, _) = read_log(tmp_path / "run", "diagnostics")
    (metrics, _) = read_log(tmp_path / "run", "metrics")
    assert line["n_eff"] == pytest.approx(3)
    assert line["sigreg_reference"] == pytest.approx(2 * SIGReg().reference())
    assert line["sigreg_relative"] * SIGReg().reference() == pytest.approx(metrics["sigreg"], rel=1e-5)
    assert line["grad_norm"] == metrics["grad_norm"]
    assert math.hypot(line["grad_norm_backbone"], line["grad_norm_projector"]) == pytest.approx(line["grad_norm"])
    assert line["batchnorm_batch"] == 12
    assert not {"held_out_total", "same_patient_nn"} & set(line)
