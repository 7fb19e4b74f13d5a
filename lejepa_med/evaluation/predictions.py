"""Predictions of one encoder for the cells of a grid: probes on frozen features and tokens, fine-tuning, LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from lejepa_med.backbones import Backbone
from lejepa_med.config.evaluation import EncoderConfig, RandomEncoder, Timm2dEncoder
from lejepa_med.evaluation.attention import TokenStore, attention_probe
from lejepa_med.evaluation.choosing import choose_aggregation
from lejepa_med.evaluation.criteria import Choice, TrainedTask
from lejepa_med.evaluation.device import pick_device
from lejepa_med.evaluation.encoders import (
    FINETUNING,
    SEGMENTING,
    methods_of,
    require_weights,
    tuning_start,
)
from lejepa_med.evaluation.finetune import Tuner, finetune
from lejepa_med.evaluation.frozen import (
    Features,
    FeatureSource,
    frozen_features,
    frozen_tokens,
    normalised_fresh_backbone,
)
from lejepa_med.evaluation.grey_slices import GreySlices, load_grey_slices
from lejepa_med.evaluation.grid import Cell, Grid, PreparedTask
from lejepa_med.evaluation.metrics import Array
from lejepa_med.evaluation.probes import ProbeTask, knn_probe, linear_probe, standardise
from lejepa_med.evaluation.segmentation import SegmentationMethod, segment
from lejepa_med.evaluation.splits import strata_of
from lejepa_med.evaluation.window_store import WindowStore


@dataclass
class WindowStores:
    """The windows of one geometry at a time, which encoders of the same geometry share."""

    geometry: str = ""
    store: WindowStore | None = None


@dataclass
class EncoderPredictions:
    """One encoder of a grid; its features are computed once, and a failure to do so is remembered."""

    grid: Grid
    encoder: EncoderConfig
    out: Path
    shared: WindowStores = field(default_factory=WindowStores)
    progress: Callable[[int], None] | None = None

    def predict(self, cell: Cell, task: PreparedTask) -> tuple[Array, Choice]:
        """Scores of the task's test rows, and what was chosen on the way."""
        self.require_weights()
        if cell.method in FINETUNING:
            return self._finetuned(cell, task)
        if cell.method in SEGMENTING:
            return self._segmented(cell, task)
        if cell.method == "attention":
            return self._attended(cell, task)
        return self._probed(cell, task)

    def require_weights(self) -> None:
        """Raises NoWeightsError where the user has to give weights first."""
        require_weights(self.encoder, [encoder.name for encoder in self.grid.config.encoders].index(self.encoder.name))

    @cached_property
    def device(self) -> torch.device:
        """Where networks run."""
        return pick_device(self.grid.config.device)

    @property
    def source(self) -> FeatureSource:
        """What the features are computed of."""
        config, grid = self.grid.config, self.grid
        wants_tokens = "attention" in config.methods and "attention" in methods_of(self.encoder)
        most = config.attention.max_tokens if wants_tokens else None
        store = config.store or self.out / "features" / "store"
        return FeatureSource(grid.cache, grid.table, grid.fit, self.out / "features", store, self.device, most)

    def features(self) -> Features:
        """Of all rows of the grid's table."""
        if isinstance(self._features, Exception):
            raise self._features
        return self._features

    @cached_property
    def _features(self) -> Features | Exception:
        try:
            return frozen_features(self.encoder, self.source, self.progress)
        except Exception as error:
            return error

    def _probed(self, cell: Cell, task: PreparedTask) -> tuple[Array, Choice]:
        labelled, recipe = task.labelled, self.grid.config.probe
        rows = task.subset(cell.budget, cell.seed)
        probe = ProbeTask.of(labelled, rows)
        features = self._standardised(task)
        with threadpool_limits(limits=1, user_api="blas"):  # fits this small only wait for each other
            name = choose_aggregation(
                {name: found[rows] for name, found in features.items()}, labelled.kind, probe, cell.method, recipe
            )
            found, compared = features[name], len(features) if probe.is_tuned else 1
            chosen: dict[str, float | str] = {"aggregation": name} if len(features) > 1 else {}
            if cell.method == "knn":
                return knn_probe(found[rows], found[task.split.test], probe, recipe), Choice(compared, chosen)
            score, penalty = linear_probe(found[rows], found[task.split.test], probe, recipe)
        compared *= len(recipe.penalties) if probe.has_tuned_penalty else 1
        return score, Choice(compared, {"penalty": penalty, **chosen})

    def _standardised(self, task: PreparedTask) -> dict[str, Array]:
        if self._standard is None or self._standard[0] != task.config.name:
            found = {name: standardise(task.features(rows), task.split.train) for name, rows in self.features().items()}
            self._standard = (task.config.name, found)
        return self._standard[1]

    _standard: tuple[str, dict[str, Array]] | None = None

    def _trained_task(self, cell: Cell, task: PreparedTask) -> TrainedTask:
        labelled, rows = task.labelled, task.subset(cell.budget, cell.seed)
        members, groups = labelled.members, tuple(labelled.groups[row] for row in rows)
        return TrainedTask(
            labelled.kind,
            tuple(members[row] for row in rows),
            labelled.target[rows],
            len(labelled.classes),
            strata_of(labelled, rows),
            groups,
            cell.seed,
        )

    def _attended(self, cell: Cell, task: PreparedTask) -> tuple[Array, Choice]:
        self.features()  # puts the tokens into the store
        members, recipe = task.labelled.members, self.grid.config.attention
        if self._tokens is None or self._tokens[0] != task.config.name:
            tokens = TokenStore(frozen_tokens(self.encoder, self.source))
            tokens.standardise([key for row in task.split.train for key in members[row]])
            self._tokens = (task.config.name, tokens)
        test = [members[row] for row in task.split.test]
        return attention_probe(self._tokens[1], self._trained_task(cell, task), test, recipe, self.device)

    _tokens: tuple[str, TokenStore] | None = None

    def _finetuned(self, cell: Cell, task: PreparedTask) -> tuple[Array, Choice]:
        config, grid = self.grid.config, self.grid
        start = tuning_start(self.encoder, grid.cache, cell.seed)
        if self.shared.store is None or self.shared.geometry != start.geometry:
            self.shared.geometry = start.geometry
            self.shared.store = WindowStore(grid.cache, start.cut, are_slices=start.are_slices)
        lora = config.lora if cell.method == "lora" else None
        tuner = Tuner(start.backbone, self.shared.store, config.finetune, self.device, lora, start.colour)
        members = task.labelled.members
        return finetune(tuner, self._trained_task(cell, task), [members[row] for row in task.split.test])

    def _fresh(self, encoder: RandomEncoder) -> Backbone:
        if self._normalised is None:
            self._normalised = normalised_fresh_backbone(encoder, self.source)
        return self._normalised

    _normalised: Backbone | None = None

    def _segmented(self, cell: Cell, task: PreparedTask) -> tuple[Array, Choice]:
        trained = {"finetune_backbone": cell.method == "segment_finetune"}
        recipe = self.grid.config.segmentation.model_copy(update=trained)
        backbone: Backbone
        match self.encoder:
            case Timm2dEncoder():
                backbone = load_grey_slices(self.encoder)
            case RandomEncoder():
                backbone = self._fresh(self.encoder)
            case _:
                backbone = tuning_start(self.encoder, self.grid.cache, cell.seed).backbone
        head: SegmentationMethod = "linear" if cell.method == "segment_linear" else "decoder"
        keys = [members[0] for members in task.labelled.members]
        train = [keys[row] for row in task.subset(cell.budget, cell.seed)]
        test = [keys[row] for row in task.split.test]
        fitted = isinstance(backbone, GreySlices)
        scores = segment(backbone, self.grid.cache, train, test, recipe, self.device, cell.seed, head, fitted)
        return scores, Choice(1, {})
