"""What a plan means: one sentence for each thing that is not as it should be, with what to do; no clock in here."""

from __future__ import annotations

import math

from lejepa_med.training.bottleneck import in_words
from lejepa_med.training.planning import Plan, is_recomputed, share_of_batch

_DAY = 24.0
_FEWEST_STEPS = 1000  # that anything is learned in
_WHATEVER_THE_BATCH = ("weight", "grad", "gather", "optim", "copy", "volumes", "process")
_NOTICED = 0.05  # waiting less than this share of the time needs no advice


def verdict(plan: Plan) -> dict[str, str]:
    """Sentences by their code, what stops a run first. `fits` or `does_not_fit` is there if the memory is known."""
    return _memory(plan) | _disk(plan) | _time(plan) | _archive(plan) | _unknown(plan)


def _memory(plan: Plan) -> dict[str, str]:
    if plan.available is None or plan.device.memory is None:
        return {}
    have = f"{in_words(plan.memory.total)} of {in_words(plan.device.memory)}"
    if plan.fits:
        return {"fits": f"It fits: a step needs about {have}.{_room(plan)}"}
    return {"does_not_fit": f"It does not fit: a step needs about {have} on each device; {_smaller(plan)}."}


def _room(plan: Plan) -> str:
    """Whether a second forward pass could be saved."""
    largest = plan.largest_micro_batch
    if not is_recomputed(plan.config) or largest is None or largest <= plan.memory.samples:
        return ""
    if largest >= share_of_batch(plan.config):
        return " Without train.micro_batch it fits, too, and saves a forward pass."
    return f" Passes of up to train.micro_batch={largest} would fit."


def _smaller(plan: Plan) -> str:
    largest, train = plan.largest_micro_batch, plan.config.train
    if largest:
        return (
            f"set train.micro_batch={largest}: the same loss and gradient, with a second forward pass"
            f" ({plan.cost.step_flops(True) / plan.cost.step_flops():.0%} of the FLOPs)"
        )
    assert plan.cost.parted is not None
    one = round(plan.cost.parted.per_volume)
    fixed = sum(size for name, size in plan.memory.parts.items() if name.startswith(_WHATEVER_THE_BATCH))
    assert plan.available is not None
    if fixed + one > plan.available:
        return (
            f"weights and optimizer take {in_words(fixed)}, one volume {in_words(one)} more: "
            "take a smaller model.name or smaller views"
        )
    per_volume = (plan.memory.total - fixed - plan.memory.parts["activations"]) / share_of_batch(plan.config)
    fitting = math.floor((plan.available - fixed - one) / per_volume) * plan.config.plan.devices
    if fitting >= 2:
        return (
            f"base crops and views of {train.batch_size} volumes are too much: set train.batch_size={fitting} and "
            "train.micro_batch=1"
        )
    return "base crops and views are too much: lower views.base_crop_mm or the sizes of the views"


def _disk(plan: Plan) -> dict[str, str]:
    if plan.disk_free is None or plan.disk.total <= plan.disk_free:
        return {}
    return {
        "disk": f"The run leaves {in_words(plan.disk.total)}, the disk of this folder has {in_words(plan.disk_free)} "
        "free: choose --out elsewhere, or lower train.keep_checkpoints."
    }


def _time(plan: Plan) -> dict[str, str]:
    found: dict[str, str] = {}
    config, speed = plan.config, plan.speed
    if plan.hours is not None and plan.hours > _DAY:
        steps = int(config.train.steps * _DAY / plan.hours)
        fewer = f", or train.steps={steps} for one day" if steps >= _FEWEST_STEPS else ""
        found["long"] = f"It takes {plan.hours / _DAY:,.1f} days: {_where_to_save(plan)}{fewer}."
    if speed.loading_s is not None and speed.step_s is not None and plan.device.on_gpu:
        step = speed.step_s / config.plan.devices
        needed = math.ceil(speed.loading_s / step - 1e-9)
        if speed.loading_s / max(1, config.data.workers) > (1 + _NOTICED) * step:
            found["workers"] = f"Reading is slower than the step: set data.workers={needed}, or data.residency=host."
    return found


def _where_to_save(plan: Plan) -> str:
    if plan.device.on_gpu:
        return "more devices, smaller or fewer views, or a smaller model"
    return "a GPU, smaller or fewer views, or a smaller model"


def _archive(plan: Plan) -> dict[str, str]:
    patients, batch = plan.archive.patients, plan.config.train.batch_size
    if patients is None or plan.epochs is None:
        return {}
    if patients < batch:
        return {
            "few_patients": f"{patients} patients are fewer than train.batch_size={batch}: a batch then holds patients "
            "twice; lower it."
        }
    if plan.epochs < 1:
        steps = math.ceil(patients / batch)
        return {"epochs": f"{1 - plan.epochs:.0%} of the patients are never seen: train.steps={steps} is one epoch."}
    return {}


def _unknown(plan: Plan) -> dict[str, str]:
    """What could not be known, so that nobody takes silence for a number."""
    unknown = []
    if not plan.archive.is_there:
        size = "" if plan.archive.volumes else "how many volumes there are (plan.volumes), "
        unknown.append(f"{size}how fast they are read and how large their base crops are: there is no cache yet")
    if plan.device.memory is None:
        unknown.append("the memory of the device (plan.device_memory_gb)")
    if plan.hours is None:
        unknown.append("hours (plan.device_tflops)")
    if plan.busy and "measured" in plan.speed.how and "not" not in plan.speed.how:
        unknown.append("how fast this machine is when nobody else uses it: it is busy now")
    return {"unknown": f"Not known: {'; '.join(unknown)}."} if unknown else {}
