"""Attention pooling of frozen tokens: one learned query per head, a linear layer on what it gathers.

With tokens x_t, keys k_t = K x_t and values v_t = V x_t cut into heads of width w, and a query q per head:

    pooled = concatenation over heads of sum_t softmax_t(q . k_t / sqrt(w)) v_t

The query is zero at the start, so that training starts from the mean. Tokens have no positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from lejepa_med.config.evaluation import AttentionRecipe
from lejepa_med.errors import UserError
from lejepa_med.evaluation.batches import epochs_of_batches
from lejepa_med.evaluation.criteria import Choice, Criterion, Members, TrainedTask, validation_share
from lejepa_med.evaluation.metrics import Array

_LIMIT_BYTES = 4 * 2**30
_WARM_UP = 10


class AttentionPool(nn.Module):
    """`[volume, token, dim]` to `[volume, width]`; tokens that `present` leaves out have no weight."""

    def __init__(self, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(heads, width // heads))
        self.keys, self.values = nn.Linear(dim, width), nn.Linear(dim, width)

    def forward(
        self, tokens: Float[Tensor, "volume token dim"], present: Bool[Tensor, "volume token"]
    ) -> Float[Tensor, "volume width"]:
        keys, values = (layer(tokens).unflatten(-1, (self.heads, -1)) for layer in (self.keys, self.values))
        logits = torch.einsum("vthw,hw->vht", keys, self.query) / math.sqrt(self.query.shape[1])
        weights = logits.masked_fill(~present[:, None], -torch.inf).softmax(-1)
        return torch.einsum("vht,vthw->vhw", weights, values).flatten(1)


class TokenStore:
    """Tokens by series, standardised; kept in memory in half precision up to a limit, read again beyond it."""

    def __init__(self, read: Callable[[str], NDArray[np.float16]], limit_bytes: int = _LIMIT_BYTES) -> None:
        self._read, self._free = read, limit_bytes
        self._kept: dict[str, Tensor] = {}
        self._mean, self._scale = torch.zeros(1), torch.ones(1)

    def standardise(self, series: Sequence[str]) -> None:
        """From now on every feature has mean 0 and variance 1 over all tokens of these series."""
        count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        shift: Tensor | None = None  # variance by the shifted sum of squares
        for key in series:
            tokens = self._raw(key).double()
            shift = tokens[0] if shift is None else shift
            count, total = count + len(tokens), total + (tokens - shift).sum(0)
            squares = squares + (tokens - shift).square().sum(0)
        assert shift is not None, "no series to standardise by"
        mean = total / count
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        self._mean = (shift + mean).float()
        self._scale = torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 0.0).float()

    def batch(
        self, samples: Sequence[Members], device: torch.device
    ) -> tuple[Float[Tensor, "volume token dim"], Bool[Tensor, "volume token"]]:
        """Tokens of samples (those of all series of one in a row), padded, and which of them are there."""
        parts = [torch.cat([self._raw(key) for key in members]).float() for members in samples]
        padded = nn.utils.rnn.pad_sequence([(part - self._mean) * self._scale for part in parts], batch_first=True)
        counts = torch.tensor([len(part) for part in parts])
        present = torch.arange(padded.shape[1]) < counts[:, None]
        return padded.to(device), present.to(device)

    def _raw(self, key: str) -> Tensor:
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        tokens = torch.from_numpy(self._read(key))
        size = tokens.numel() * tokens.element_size()
        if size <= self._free:
            self._free -= size
            self._kept[key] = tokens
        return tokens


class AttentionProbe(nn.Module):
    """Pooling and a linear layer, which is zero at the start."""

    def __init__(self, dim: int, outputs: int, recipe: AttentionRecipe) -> None:
        super().__init__()
        self.drop = nn.Dropout1d(recipe.dropout)
        self.pool = AttentionPool(dim, recipe.width, recipe.heads)
        self.head = nn.Linear(recipe.width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Float[Tensor, "volume token dim"], present: Bool[Tensor, "volume token"]
    ) -> Float[Tensor, "volume output"]:
        outputs: Tensor = self.head(self.pool(self.drop(tokens), present))
        return outputs


def attention_probe(
    store: TokenStore, task: TrainedTask, test: Sequence[Members], recipe: AttentionRecipe, device: torch.device
) -> tuple[Array, Choice]:
    """Scores of the test samples. Learning rate and number of steps are chosen on a validation share by patient."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        lr, steps, tuned = recipe.lrs[0], recipe.steps, 1
        share = validation_share(task)
        if share is not None:
            fit, held = (task.part(rows) for rows in share)
            curves = [_train(store, fit, recipe, rate, recipe.steps, device, held)[1] for rate in recipe.lrs]
            best = min((loss, number, at) for number, curve in enumerate(curves) for at, loss in curve)
            lr, steps = recipe.lrs[best[1]], best[2]
            tuned = sum(len(curve) for curve in curves)
        model, _ = _train(store, task, recipe, lr, steps, device)
        criterion = Criterion(task.kind, task.target, task.classes)
        outputs = _outputs(model, store, test, recipe.batch_size, device)
    if not outputs.isfinite().all():
        raise UserError("attention pooling diverged: predictions are no numbers; try lower attention.lrs")
    return criterion.scores(outputs), Choice(tuned, {"lr": lr, "steps": float(steps)})


def _train(
    store: TokenStore,
    task: TrainedTask,
    recipe: AttentionRecipe,
    lr: float,
    steps: int,
    device: torch.device,
    held: TrainedTask | None = None,
) -> tuple[AttentionProbe, list[tuple[int, float]]]:
    """A probe after `steps`, and the loss of `held` on the way: `(step, loss)`."""
    torch.manual_seed(task.seed)
    generator = np.random.default_rng([task.seed, 2])
    criterion = Criterion(task.kind, task.target, task.classes)
    wanted = criterion.encode(task.target, device)
    dim = store.batch(task.members[:1], device)[0].shape[-1]
    model = AttentionProbe(dim, criterion.outputs, recipe).to(device)
    decayed = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("weight")]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP))
    curve = []
    for step, rows in enumerate(epochs_of_batches(generator, len(wanted), recipe.batch_size, steps)):
        tokens, present = store.batch([task.members[row] for row in rows], device)
        model.train()
        loss = criterion.loss(model(tokens, present), wanted[torch.from_numpy(rows).to(device)])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        warm_up.step()
        if held is not None and ((step + 1) % recipe.evaluate_every == 0 or step + 1 == steps):
            outputs = _outputs(model, store, held.members, recipe.batch_size, device)
            target = criterion.encode(held.target, outputs.device)
            curve.append((step + 1, float(criterion.loss(outputs, target))))
    return model, curve


@torch.no_grad()
def _outputs(
    model: AttentionProbe, store: TokenStore, samples: Sequence[Members], at_once: int, device: torch.device
) -> Float[Tensor, "volume output"]:
    model.eval()
    starts = range(0, len(samples), at_once)
    return torch.cat([model(*store.batch(samples[start : start + at_once], device)).cpu() for start in starts])
