"""Attention pooling against a loop, standardised tokens, and a probe that finds what a mean hides."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lejepa_med.config.evaluation import AttentionRecipe, RunEncoder
from lejepa_med.data.inference import windows
from lejepa_med.evaluation.attention import AttentionPool, TokenStore, attention_probe
from lejepa_med.evaluation.criteria import Criterion, TrainedTask, error, validation_share
from lejepa_med.evaluation.features import coarser, window_tokens
from lejepa_med.evaluation.metrics import scores

from .conftest import SPEC, Archive, tiny_backbone

CPU = torch.device("cpu")


def test_pooling_is_the_formula_and_padding_has_no_weight() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(dim=6, width=8, heads=2)
    tokens, present = torch.randn(3, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5]).bool()
    means = torch.stack([pool.values(row[there]).mean(0) for row, there in zip(tokens, present, strict=True)])
    torch.testing.assert_close(pool(tokens, present), means)  # the query is zero
    torch.nn.init.normal_(pool.query)
    pool.requires_grad_(False)
    found = pool(tokens, present)
    for row, there, pooled in zip(tokens, present, found, strict=True):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weights = [float(pool.keys(x)[part] @ pool.query[head]) / math.sqrt(4) for x in row[there]]
            shares = np.exp(weights) / np.exp(weights).sum()
            expected = sum(s * pool.values(x)[part] for s, x in zip(shares, row[there], strict=True))
            torch.testing.assert_close(pooled[part], expected, rtol=1e-4, atol=1e-5)
    filled = tokens.masked_fill(~present[..., None], 100.0)
    torch.testing.assert_close(pool(filled, present), found)


def planted(volumes: int = 80, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One token in 6 to 12 carries a mark; what stands beside the mark is the class, and hides in the noise of all."""
    generator = np.random.default_rng(seed)
    tokens, target = {}, np.arange(volumes) % 2
    for number in range(volumes):
        found = generator.normal(0, 1, (generator.integers(6, 13), 8))
        found[:, 0] = 0
        place = generator.integers(len(found))
        found[place, 0], found[place, 1] = 8, 3 * (2 * target[number] - 1)
        tokens[f"v{number}"] = found.astype(np.float16)
    return tokens, target


def task_of(target: np.ndarray, rows: int) -> TrainedTask:
    members = tuple((f"v{row}",) for row in range(rows))
    groups = tuple(f"p{row}" for row in range(rows))
    return TrainedTask("classification", members, target[:rows], 2, target[:rows].astype(np.int64), groups, 0)


def test_the_probe_finds_the_token_that_matters() -> None:
    tokens, target = planted()
    store = TokenStore(tokens.__getitem__)
    store.standardise([f"v{row}" for row in range(50)])
    recipe = AttentionRecipe(width=16, heads=2, steps=100, evaluate_every=25)
    test = [(f"v{row}",) for row in range(50, 80)]
    found, choice = attention_probe(store, task_of(target, 50), test, recipe, CPU)
    assert scores("classification", target[50:], found)["balanced_accuracy"] > 0.9
    assert choice.tuned == 2 * 4 and choice.chosen["lr"] in recipe.lrs and choice.chosen["steps"] in (25, 50, 75, 100)
    again, _ = attention_probe(store, task_of(target, 50), test, recipe, CPU)
    assert np.array_equal(found, again)
    permuted = np.random.default_rng(1).permutation(target[:50])
    chance, _ = attention_probe(store, task_of(permuted, 50), test, recipe, CPU)
    assert scores("classification", target[50:], chance)["auroc"] < 0.8


def test_few_labels_choose_nothing() -> None:
    tokens, target = planted(12)
    store = TokenStore(tokens.__getitem__)
    store.standardise(list(tokens))
    recipe = AttentionRecipe(width=8, heads=2, steps=3)
    _, choice = attention_probe(store, task_of(target, 8), [("v9",)], recipe, CPU)
    assert (choice.tuned, choice.chosen) == (1, {"lr": recipe.lrs[0], "steps": 3.0})


def test_tokens_are_standardised_over_the_series_named() -> None:
    generator = np.random.default_rng(0)
    tokens = {key: generator.normal(500, 3, (5 + n, 4)).astype(np.float16) for n, key in enumerate("abc")}
    tokens["a"][:, 2] = tokens["b"][:, 2] = 7.0
    reads: list[str] = []
    store = TokenStore(lambda key: reads.append(key) or tokens[key], limit_bytes=tokens["a"].nbytes)
    store.standardise(["a", "b"])
    padded, present = store.batch([("a", "b"), ("c",)], CPU)
    assert present.sum(1).tolist() == [11, 7]
    seen = padded[0][present[0]]
    expected = np.concatenate([tokens["a"], tokens["b"]]).astype(np.float64)
    assert seen.mean(0).tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert seen.std(0, unbiased=False).tolist() == pytest.approx([1, 1, 0, 1], abs=1e-3)
    scaled = (tokens["c"][:, 0].astype(np.float64) - expected[:, 0].mean()) / expected[:, 0].std()
    np.testing.assert_allclose(padded[1][present[1]][:, 0], scaled, atol=1e-3)
    assert reads == ["a", "b", "b", "c"]  # only the first fits into memory


def test_a_validation_share_has_patients_of_its_own() -> None:
    strata = np.arange(30) % 2
    groups = tuple(f"p{row // 3}" for row in range(30))
    members = tuple((str(row),) for row in range(30))
    share = validation_share(TrainedTask("classification", members, strata, 2, strata, groups, 0))
    assert share is not None
    fit, held = ({groups[row] for row in rows} for rows in share)
    assert not fit & held and len(held) == 2


@pytest.mark.parametrize("kind", ["classification", "regression", "multilabel", "ordinal"])
def test_criterion_against_its_formula(kind: str) -> None:
    generator = np.random.default_rng(0)
    target = {
        "classification": np.array([0, 2, 2, 1, 2]),
        "ordinal": np.array([0, 2, 2, 1, 2]),
        "regression": np.array([3.0, 5.0, 9.0, 1.0, 2.0]),
        "multilabel": np.array([[0, 1, np.nan], [1, 1, 0], [np.nan] * 3, [0, 0, 1], [1, np.nan, 1]]),
    }[kind]
    classes = 0 if kind == "regression" else 3
    criterion = Criterion(kind, target, classes)
    outputs = torch.from_numpy(generator.normal(size=(5, criterion.outputs))).float()
    found = float(criterion.loss(outputs, criterion.encode(target, CPU)))
    score = criterion.scores(outputs)
    if kind == "regression":
        assert found == pytest.approx(np.mean((score - target) ** 2) / target.std() ** 2, rel=1e-5)
    elif kind == "ordinal":
        above = 1 / (1 + np.exp(-outputs.numpy()))
        truth = target[:, None] > np.arange(2)
        assert found == pytest.approx(-np.log(np.where(truth, above, 1 - above)).sum(1).mean() / 2, rel=1e-5)
        assert score.sum(1) == pytest.approx(1) and (score >= 0).all()
    elif kind == "multilabel":
        known = ~np.isnan(target)
        assert found == pytest.approx(-np.log(np.where(target == 1, score, 1 - score))[known].mean(), rel=1e-5)
    else:
        assert found == pytest.approx(np.mean([-np.log(score[target == c, c]).mean() for c in range(3)]), rel=1e-5)
    if kind != "ordinal" and kind != "regression":
        assert error(kind, target, score) == pytest.approx(found, rel=1e-5)


def test_tokens_of_windows_are_averaged_over_neighbours(archive: Archive, make_run: Callable[..., RunEncoder]) -> None:
    backbone = tiny_backbone()
    item = windows(archive.cache.read("series0000"), SPEC.inference)
    with torch.no_grad():
        tokens, grid = backbone.tokens(item.images)
    found = window_tokens(backbone, item, 512, CPU, False)
    torch.testing.assert_close(found, tokens.flatten(0, 1))
    halved = coarser(torch.arange(24.0).reshape(1, 24, 1), (4, 3, 2), 12)
    expected = torch.arange(24.0).reshape(2, 2, 3, 2).mean(1).reshape(1, 12, 1)
    torch.testing.assert_close(halved, expected)
    assert window_tokens(backbone, item, 1, CPU, False).shape == (1, tokens.shape[2]) and len(grid) == 3
