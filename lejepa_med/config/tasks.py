"""A labelled task: what probes, fine-tuning and the online probe are told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from lejepa_med.spec import Frozen

TaskKind = Literal["auto", "classification", "regression", "multilabel", "ordinal", "segmentation"]
IdKind = Literal["series_key", "study_key", "patient_key", "patient_id", "path", "series_uid", "study_uid"]
ID_KINDS: tuple[str, ...] = get_args(IdKind)


class TaskConfig(Frozen):
    """Labels of scans. The file names samples by one of the id kinds: a key of the index, an id, a UID or a path.

    BIDS: `participants.tsv` names them by participant_id. `segmentation` has no file: the masks lie in the cache.
    """

    name: str = Field(description="used in tables and file names")
    labels: Path | None = Field(None, description="CSV file, or TSV such as BIDS participants.tsv")
    column: str | None = Field(None, description="label column")
    columns: tuple[str, ...] = Field((), description="multilabel: its columns, 0 or 1 each; empty cells are left out")
    kind: TaskKind = Field("auto", description="auto: text or few integers = classes; ordinal: few ordered integers")
    unit: Literal["series", "study", "patient"] = Field(
        "series", description="what is one sample: a series, or all labelled series of a study or patient"
    )
    id_column: str | None = Field(None, description="column that names samples; null = found by its standard name")
    id_kind: IdKind | None = Field(
        None,
        description=f"what id_column holds: {', '.join(ID_KINDS)} (UIDs as in the DICOM headers); null = by its name",
    )
    group_column: str | None = Field(None, description="column that names patients where the index does not know them")
    split_column: str | None = Field(
        None, description="column with train, val or test of an official split, instead of `holdout`"
    )
    site_column: str | None = Field(None, description="column with the site; a site is tested on or trained on")

    @model_validator(mode="after")
    def _fits_the_kind(self) -> TaskConfig:
        if self.kind == "segmentation":
            given = [name for name in type(self).model_fields if name != "kind" and getattr(self, name)]
            wrong = set(given) - {"name", "unit"} | ({"unit"} if self.unit != "series" else set())
            if wrong:
                raise ValueError(f"segmentation takes its masks from the cache; leave out {', '.join(sorted(wrong))}")
            return self
        if self.labels is None:
            raise ValueError("labels: a label file is needed (segmentation alone has none)")
        if self.kind == "multilabel":
            if self.column is not None or len(set(self.columns)) < max(2, len(self.columns)):
                raise ValueError("multilabel needs `columns: [a, b, ...]`, two or more that differ, and no `column`")
        elif self.column is None or self.columns:
            raise ValueError("`column: NAME` is needed; `columns` are for kind multilabel")
        if self.split_column is not None and self.site_column is not None:
            raise ValueError("split_column and site_column both say who tests; give one")
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold labels."""
        return self.columns or ((self.column,) if self.column is not None else ())


class OnlineProbeConfig(Frozen):
    """Linear and k-NN probes of labelled training scans while a run goes on; see docs/diagnostics.md."""

    tasks: tuple[TaskConfig, ...] = Field((), description="label columns, as in `benchmark`; none = no online probe")
    index: Path | None = Field(
        None, description="index folder; needed when labels name samples by patient_id, path or a UID"
    )
    every: int = Field(500, gt=0, description="steps; the fresh weights and the last ones are probed too")
    max_series: int = Field(512, ge=10, description="labelled samples of a task that are used, at most")

    @model_validator(mode="after")
    def _can_be_probed(self) -> OnlineProbeConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have the same name")
        if any(task.kind == "segmentation" for task in self.tasks):
            raise ValueError("tasks of kind segmentation are evaluated by `benchmark` only")
        return self
