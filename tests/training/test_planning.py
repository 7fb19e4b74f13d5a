"""Plans: FLOPs against closed forms, bytes against what a real step keeps, verdicts against what they speak of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lejepa_med.backbones import build
from lejepa_med.config import PlanConfig, PretrainConfig, validate
from lejepa_med.training import planning_probe
from lejepa_med.training.averaging import WeightAverage, exponential
from lejepa_med.training.checkpoint import Checkpoints
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.model_cost import model_cost
from lejepa_med.training.optimizer import build_optimizer
from lejepa_med.training.planning import Archive, Device, Plan, Speed, disk_needed, memory_needed
from lejepa_med.training.planning_probe import make_plan, matmul_flops
from lejepa_med.training.planning_verdict import verdict

SMALL: dict[str, Any] = {
    "model": {"name": "resnet10_3d", "width": 0.125},
    "projector": {"hidden": 32, "dim": 8},
    "objective": {"num_slices": 16},
    "views": {"global_size": [16, 16, 16], "local_size": [8, 8, 8], "num_local": 2, "base_crop_mm": 20.0},
    "train": {"device": "cpu", "precision": "float32", "batch_size": 8, "steps": 10},
    "plan": {"probe_seconds": 0.0, "volumes": 100},
}


def planned(**changes: Any) -> PlanConfig:
    return validate(PlanConfig, {key: {**SMALL.get(key, {}), **changes.get(key, {})} for key in {*SMALL, *changes}}, "")


def test_flops_of_a_transformer_are_those_of_its_matrix_products() -> None:
    """Multiply-adds per token: 12 dim^2 per block, 2 tokens dim for attention, patch voxels x dim for the embedding."""
    views = {"num_global": 2, "num_local": 0, "global_size": [32, 32, 32], "local_size": [16, 16, 16]}
    config = planned(model={"name": "vit_tiny_3d", "width": 1.0, "patch_size": 8}, views=views)
    patches, dim, depth = 4**3, 192, 12
    tokens = patches + 1
    backbone = 2 * (depth * (tokens * 12 * dim**2 + 2 * tokens**2 * dim) + patches * 8**3 * dim)
    projector = dim * 32 + 32 * 32 + 32 * 8
    cost = model_cost(config, bf16=False, on_gpu=False)
    assert cost.forward_flops == pytest.approx(2 * (backbone + 2 * projector), rel=1e-6)
    # Twice the forward pass, but no gradient at the voxels.
    assert cost.backward_flops == pytest.approx(2 * cost.forward_flops - 2 * 2 * patches * 8**3 * dim, rel=0.02)


@pytest.mark.parametrize("name", ["resnet10_3d", "vit_tiny_3d"])
@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_those_that_autograd_keeps(name: str, bf16: bool) -> None:
    config = planned(model={"name": name, "patch_size": 8})
    cost = model_cost(config, bf16=bf16, on_gpu=False)
    model = Pretrainer(build(config.model), config.projector).train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    views = [torch.rand(2, 5, 1, 16, 16, 16), torch.rand(2, 5, 1, 8, 8, 8)]
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        _, projections = model(views)
    for tensor in (*model.parameters(), *model.buffers(), *views):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    expected = 5 * (cost.backbone_bytes + cost.projector_bytes) + cost.cast_bytes
    assert sum(kept.values()) == pytest.approx(expected, rel=0.03)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert projections.shape == (4, 5, 8)


def test_a_gpu_keeps_pooling_in_bf16() -> None:
    config = planned()
    on_cpu, on_gpu = (model_cost(config, bf16=True, on_gpu=where) for where in (False, True))
    assert on_gpu.backbone_bytes < on_cpu.backbone_bytes
    assert on_gpu.forward_flops == on_cpu.forward_flops


@pytest.mark.long
def test_a_model_larger_than_any_laptop_is_planned_without_its_memory() -> None:
    """1.8 billion parameters in 2D; none of its 7.4 GB are allocated."""
    views = {"global_size": [28, 28], "local_size": [14, 14]}
    config = planned(
        model={"name": "timm/vit_gigantic_patch14_224", "width": 1.0}, views=views, data={"kind": "images"},
        plan={"device_memory_gb": 80.0, "device_tflops": 990.0},
    )  # fmt: skip
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = make_plan(config)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert made.cost.parameters == pytest.approx(1.85e9, rel=0.01)
    assert made.memory.parts["optimizer"] == 8 * made.cost.parameters
    assert grown < made.cost.parameters  # a byte each would be too much
    assert made.hours == pytest.approx(80 * made.flops_per_volume / (0.25 * 990e12) / 3600)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_checkpoints_are_as_large_as_planned(tmp_path: Any, decay: float | None) -> None:
    config = planned(train={"ema_decay": decay})
    cost = model_cost(config, bf16=False, on_gpu=False)
    model = Pretrainer(build(config.model), config.projector).train()
    optimizer = build_optimizer(model, config.optim, is_vit=False)
    model([torch.rand(2, 2, 1, 16, 16, 16)])[1].sum().backward()
    optimizer.step()
    average = None if decay is None else WeightAverage(model.backbone, exponential(decay)).state_dict()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state)
    file = tmp_path / "checkpoints" / "step_1.pt"
    assert file.stat().st_size == pytest.approx(disk_needed(config, cost, False).checkpoint, rel=0.1)


def test_averaged_weights_take_memory_and_disk() -> None:
    without, averaged = a_plan(planned()), a_plan(planned(train={"ema_decay": 0.9}))
    more = 4 * averaged.cost.backbone_parameters
    assert more > 0
    assert averaged.memory.total - without.memory.total == more
    assert averaged.disk.checkpoint - without.disk.checkpoint == more


def a_plan(config: PlanConfig, memory: int | None = None, **speed: Any) -> Plan:
    device = Device("GPU", memory, bf16=False, on_gpu=True, is_here=False)
    archive = Archive(8000, 16_000, 100, 100, 1_600_000, is_there=True)
    cost = model_cost(config, bf16=False, on_gpu=False)
    of_speed = Speed(**({"step_s": 0.1, "how": "measured", "loading_s": None, "peak_flops": None} | speed))
    disk = disk_needed(config, cost, tensorboard=False)
    return Plan(
        config, cost, archive, device, memory_needed(config, cost, archive, device), disk, None, of_speed, False
    )


def test_the_advised_micro_batch_fits_and_one_more_does_not() -> None:
    whole = a_plan(planned())
    memory = math.ceil((whole.memory.total - 2.5 * whole.memory.per_sample) / 0.9)
    plan = a_plan(planned(), memory)
    assert not plan.fits and plan.largest_micro_batch == 5
    assert "set train.micro_batch=5: the same loss" in verdict(plan)["does_not_fit"]
    assert a_plan(planned(train={"micro_batch": 5}), memory).fits
    assert not a_plan(planned(train={"micro_batch": 6}), memory).fits
    said = verdict(a_plan(planned(train={"micro_batch": 2}), memory))["fits"]
    assert said.endswith("Passes of up to train.micro_batch=5 would fit.")


def test_without_room_for_the_weights_no_micro_batch_is_advised() -> None:
    plan = a_plan(planned(), 1000)
    assert plan.largest_micro_batch == 0
    assert verdict(plan)["does_not_fit"].endswith("take a smaller model.name or smaller views.")


def test_memory_grows_linearly_and_only_with_what_it_depends_on() -> None:
    of = {batch: a_plan(planned(train={"batch_size": batch})).memory for batch in (8, 16, 32)}
    assert of[32].total - of[16].total == pytest.approx(2 * (of[16].total - of[8].total), rel=1e-5)
    passes = {batch: a_plan(planned(train={"batch_size": batch, "micro_batch": 4})).memory for batch in (8, 16)}
    assert passes[8].parts["activations"] == passes[16].parts["activations"]
    alone, shared = a_plan(planned()).memory, a_plan(planned(plan={"devices": 4})).memory
    assert shared.parts["activations"] == pytest.approx(alone.parts["activations"] / 4)
    assert shared.parts["optimizer"] == alone.parts["optimizer"]


def test_hours_and_what_holds_them_up() -> None:
    config = planned(train={"steps": 36_000, "batch_size": 10})
    assert a_plan(config).hours == pytest.approx(10.0)
    assert "long" not in verdict(a_plan(config))
    slow = a_plan(config, step_s=0.5)
    assert verdict(slow)["long"].startswith("It takes 2.1 days") and "train.steps=17280 " in verdict(slow)["long"]
    waiting = a_plan(config, loading_s=0.35)
    assert waiting.hours == pytest.approx(35.0) and "set data.workers=4," in verdict(waiting)["workers"]
    enough = a_plan(planned(train={"steps": 36_000, "batch_size": 10}, data={"workers": 4}), loading_s=0.35)
    assert enough.hours == pytest.approx(10.0) and "workers" not in verdict(enough)
    assert a_plan(config).epochs == pytest.approx(3600.0)


def test_disk_epochs_and_patients() -> None:
    plan = a_plan(planned())
    full = dataclasses.replace(plan, disk_free=plan.disk.total - 1)
    assert "disk" in verdict(full) and "disk" not in verdict(dataclasses.replace(plan, disk_free=plan.disk.total))
    assert "20% of the patients are never seen: train.steps=13 is" in verdict(plan)["epochs"]
    few = dataclasses.replace(plan, archive=dataclasses.replace(plan.archive, patients=5))
    assert verdict(few)["few_patients"].startswith("5 patients are fewer than train.batch_size=8")


def test_steps_are_measured_here_or_scaled_or_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {}
    for name, peak in (("whole", 1e12), ("one view", None), ("none", 1.0)):
        config = planned(plan={"probe_seconds": 0.4, "volumes": 100})
        one = planning_probe._with_one_view(config)
        full, small = (2 * 3 * model_cost(each, False, False).step_flops() for each in (config, one))
        assert full > 2 * small
        given = peak if peak is not None else math.sqrt(full * small) / (0.2 * 0.4)
        monkeypatch.setattr(planning_probe, "matmul_flops", lambda *_, given=given: given)
        ways[name] = make_plan(config).speed
    assert ways["whole"].how == "measured, 2 volumes to a step"
    assert ways["one view"].how == "measured with one view, scaled to all of them"
    assert ways["none"].how == "not measured: 25% of the peak assumed"
    seconds = {name: speed.step_s for name, speed in ways.items()}
    assert all(value is not None and value > 0 for value in seconds.values())


def test_the_peak_is_that_of_a_product_whose_flops_are_known() -> None:
    assert 1e8 < matmul_flops(torch.device("cpu"), torch.float32, 0.0) < 1e14


def test_a_plan_is_a_pretraining_config_with_one_section_more() -> None:
    values = planned().model_dump()
    values.pop("plan")
    assert validate(PretrainConfig, values, "").train == planned().train
    assert set(PlanConfig.model_fields) - set(PretrainConfig.model_fields) == {"plan"}
