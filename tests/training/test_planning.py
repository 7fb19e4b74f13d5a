"""Plans: FLOPs against closed forms, bytes against what a real step keeps, verdicts against what they speak of."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch

from lejepa_med.backbones import build
from lejepa_med.config import PlanConfig, PretrainConfig, validate
from lejepa_med.training import planning_probe
from lejepa_med.training.averaging import WeightAverage, exponential
from lejepa_med.training.checkpoint import Checkpoints
from lejepa_med.training.live_memory import LiveMemory
from lejepa_med.training.model import Pretrainer
from lejepa_med.training.model_cost import ModelCost, model_cost
from lejepa_med.training.optimizer import build_optimizer
from lejepa_med.training.planning import Archive, Device, Plan, Speed, disk_needed, memory_needed
from lejepa_med.training.planning_probe import make_plan, matmul_flops
from lejepa_med.training.planning_verdict import verdict
from lejepa_med.training.speed import tune

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
    cost = model_cost(config, bf16=False, on_gpu=False, with_parts=False)
    assert cost.forward_flops == pytest.approx(2 * (backbone + 2 * projector), rel=1e-6)
    # Twice the forward pass, but no gradient at the voxels.
    assert cost.backward_flops == pytest.approx(2 * cost.forward_flops - 2 * 2 * patches * 8**3 * dim, rel=0.02)


@pytest.mark.parametrize(
    ("name", "bf16", "again"),
    [
        ("resnet10_3d", False, {}),
        ("resnet10_3d", True, {"micro_batch": 2}),
        pytest.param("resnet10_3d", True, {}, marks=pytest.mark.long),
        pytest.param("vit_tiny_3d", True, {"micro_batch": 2}, marks=pytest.mark.long),
        pytest.param("vit_tiny_3d", False, {}, marks=pytest.mark.long),
        pytest.param("vit_tiny_3d", True, {"activation_checkpointing": True}, marks=pytest.mark.long),
    ],
)
def test_the_peak_is_that_of_a_real_step(name: str, bf16: bool, again: dict[str, Any]) -> None:
    """Storages that are alive in a step of tensors with content: the same operations on other numbers of volumes."""
    config = planned(model={"name": name} | ({"patch_size": 8, "width": 1.0} if "vit" in name else {}), train=again)
    cost = model_cost(config, bf16, on_gpu=False, with_parts="micro_batch" in again)
    model = Pretrainer(build(config.model), config.projector, config.train.micro_batch).train()
    tune(model.backbone, config.train)
    views = [torch.rand(2, 6, 1, 16, 16, 16), torch.rand(2, 6, 1, 8, 8, 8)]
    before = 4 * cost.parameters
    with LiveMemory([*model.parameters(), *model.buffers(), *views], taken=before) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            projections = model(views)[1]
        live.forget(before)
        projections.float().sum().backward()
    step, samples = (cost.parted, 2) if "micro_batch" in again else (cost.whole, 6)
    assert step is not None
    assert live.peak == pytest.approx(step.fixed + samples * step.per_volume, rel=0.05)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_live_memory_counts_each_storage_until_it_is_forgotten() -> None:
    present = torch.ones(1000)
    with LiveMemory([present]) as live:
        first = present + 1
        assert (live.live, live.peak) == (4000, 4000)
        view = first[:10]
        second = first * 2
        assert (live.live, live.peak) == (8000, 8000)
        del first
        assert live.live == 8000  # the view holds it
        del view, second
        assert (live.live, live.peak) == (0, 8000)
        present.mul_(2)
        assert live.peak == 8000


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("resnet10_3d", {}),
        pytest.param("vit_tiny_3d", {"activation_checkpointing": True}, marks=pytest.mark.long),
    ],
)
def test_blocks_run_again_under_the_casts_of_a_gpu(name: str, again: dict[str, Any]) -> None:
    """Recomputed activations of another type than the first ones are an error of torch's checkpoint."""
    config = planned(model={"name": name} | ({"patch_size": 8, "width": 1.0} if "vit" in name else {}), train=again)
    on_gpu, on_cpu = (model_cost(config, bf16=True, on_gpu=where) for where in (True, False))
    assert on_gpu.parted is not None
    assert name.startswith("vit") or on_gpu.parted != on_cpu.parted  # a ViT keeps as many bytes either way


@pytest.mark.long
def test_what_is_run_again_is_not_kept() -> None:
    model = {"name": "vit_tiny_3d", "patch_size": 8, "width": 1.0}
    views = {"global_size": [32, 32, 32], "local_size": [16, 16, 16]}
    kept, again = (
        model_cost(planned(model=model, views=views, train={"activation_checkpointing": on}), False, False, False)
        for on in (False, True)
    )
    assert again.whole.per_volume < 0.3 * kept.whole.per_volume  # of twelve blocks' activations one's, and their ends
    assert again.whole.fixed == pytest.approx(kept.whole.fixed, rel=0.2)
    more = again.backward_flops - kept.backward_flops
    projector = 4 * 2 * (192 * 32 + 32 * 32 + 32 * 8)
    patches = 2 * 192 * 2 * (32**3 + 16**3)
    # The last product of a block is not run again: nothing of it is needed.
    last = 12 * 2 * 2 * (65 + 9) * 4 * 192**2
    assert more == pytest.approx(kept.forward_flops - projector - patches - last, rel=0.01)


def test_a_gpu_keeps_pooling_in_bf16() -> None:
    config = planned()
    on_cpu, on_gpu = (model_cost(config, bf16=True, on_gpu=where, with_parts=False) for where in (False, True))
    assert on_gpu.whole.per_volume < on_cpu.whole.per_volume
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
    cost = model_cost(config, bf16=False, on_gpu=False, with_parts=False)
    model = Pretrainer(build(config.model), config.projector).train()
    optimizer = build_optimizer(model, config.optim)
    model([torch.rand(2, 2, 1, 16, 16, 16)])[1].sum().backward()
    optimizer.step()
    average = None if decay is None else WeightAverage(model.backbone, exponential(decay)).state_dict()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state)
    file = tmp_path / "checkpoints" / "step_1.pt"
    assert file.stat().st_size == pytest.approx(disk_needed(config, cost, False).checkpoint, rel=0.1)


@pytest.mark.parametrize("average", [{"ema_decay": 0.9}, {"swa_fraction": 0.5}], ids=["exponential", "mean"])
def test_averaged_weights_take_memory_and_disk(average: dict[str, float]) -> None:
    without, averaged = a_plan(planned()), a_plan(planned(train=average))
    more = 4 * averaged.cost.backbone_parameters
    assert more > 0
    assert averaged.memory.total - without.memory.total == more
    assert averaged.disk.checkpoint - without.disk.checkpoint == more


def test_a_probe_takes_a_copy_of_the_backbone() -> None:
    task = {"name": "grade", "labels": "labels.csv", "column": "grade"}
    without, probed = a_plan(planned()), a_plan(planned(online_probe={"tasks": [task]}))
    assert probed.memory.total - without.memory.total == 4 * without.cost.backbone_parameters


@functools.cache
def cost_of(config: str) -> ModelCost:
    return model_cost(PlanConfig.model_validate_json(config), bf16=False, on_gpu=False)


def a_plan(config: PlanConfig, memory: int | None = None, **speed: Any) -> Plan:
    device = Device("GPU", memory, bf16=False, on_gpu=True, is_here=False)
    archive = Archive(8000, 16_000, 100, 100, 1_600_000, is_there=True)
    # What a pass costs depends on none of these.
    same = config.train.model_copy(
        update={"batch_size": 8, "micro_batch": None, "steps": 10, "parallel": "ddp", "ema_decay": None}
    )
    cost = cost_of(config.model_copy(update={"train": same, "plan": planned().plan}).model_dump_json())
    of_speed = Speed(**({"step_s": 0.1, "how": "measured", "loading_s": None, "peak_flops": None} | speed))
    disk = disk_needed(config, cost, tensorboard=False)
    return Plan(
        config, cost, archive, device, memory_needed(config, cost, archive, device), disk, None, of_speed, False
    )


def test_the_advised_micro_batch_fits_and_one_more_does_not() -> None:
    one, two, five, six = (a_plan(planned(train={"micro_batch": n})).memory.total for n in (1, 2, 5, 6))
    assert six - five == pytest.approx(two - one, abs=2)
    memory = math.ceil((five + six) / 2 / 0.9)
    plan = a_plan(planned(), memory)
    assert not plan.fits and plan.largest_micro_batch == 5
    assert "set train.micro_batch=5: the same loss" in verdict(plan)["does_not_fit"]
    assert a_plan(planned(train={"micro_batch": 5}), memory).fits
    assert not a_plan(planned(train={"micro_batch": 6}), memory).fits
    said = verdict(a_plan(planned(train={"micro_batch": 2}), memory))["fits"]
    assert said.endswith("Passes of up to train.micro_batch=5 would fit.")


@pytest.mark.long
def test_shards_are_held_by_all_ranks_together() -> None:
    """Weights, gradients and moments once over all ranks; what is in no block, and a few blocks, whole on each."""
    model = {"name": "vit_tiny_3d", "patch_size": 8, "width": 1.0}
    four = {
        parallel: a_plan(planned(model=model, train={"parallel": parallel}, plan={"devices": 4}))
        for parallel in ("ddp", "fsdp")
    }
    parameters, whole, shards = four["ddp"].cost.parameters, four["ddp"].memory, four["fsdp"].memory
    assert whole.parts["optimizer"] == 8 * parameters == 4 * shards.parts["optimizer"]
    gradients = [memory.parts["gradients, bf16 weights"] for memory in (whole, shards)]
    assert gradients[0] - gradients[1] == pytest.approx(0.75 * 4 * parameters, abs=1)
    assert whole.parts["gradient buckets"] == 4 * parameters
    block = 12 * 192**2 + 13 * 192  # attention 4 dim^2, perceptron 8 dim^2, biases and norms
    rest = parameters - 12 * block
    assert shards.parts["gathered shards"] == 4 * (2 * rest + 4 * block)
    assert shards.total < whole.total
    alone = a_plan(planned(model=model, train={"parallel": "fsdp"})).memory
    assert alone.parts["gathered shards"] == 0 and alone.parts["optimizer"] == 8 * parameters


def test_batches_that_wait_and_volumes_that_stay_take_memory() -> None:
    """On a CPU `data.prefetch` batches wait beside the one at work; on a GPU one does, whatever waits on the host."""
    cost, device = a_plan(planned()).cost, Device("CPU", None, bf16=False, on_gpu=False, is_here=True)
    archive = Archive(8000, 16_000, 100, 100, 1_600_000, is_there=True)
    for prefetch in (2, 5):
        config = planned(data={"prefetch": prefetch})
        assert memory_needed(config, cost, archive, device).parts["base crops"] == (prefetch + 1) * 8 * 16_000
        assert a_plan(config).memory.parts["base crops"] == 2 * 8 * 16_000
    without = memory_needed(planned(), cost, archive, device).total
    kept = dataclasses.replace(archive, resident_bytes=12_345)
    assert memory_needed(planned(), cost, kept, device).total - without == 12_345


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
        full, small = (2 * 3 * model_cost(each, False, False, with_parts=False).step_flops() for each in (config, one))
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
