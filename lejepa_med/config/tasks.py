"""A labelled task: what probes, fine-tuning and the online probe are told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lejepa_med.spec import Frozen


class TaskConfig(Frozen):
    """One label column. The file names samples by series_key, study_key, patient_key, patient_id or path."""

    name: str = Field(description="used in tables and file names")
    labels: Path = Field(description="CSV file")
    column: str = Field(description="label column")
    kind: Literal["auto", "classification", "regression"] = Field(
        "auto", description="auto: text or few integers = classes"
    )
    id_column: str | None = Field(None, description="column that names samples; null = found by its standard name")
    id_kind: Literal["series_key", "study_key", "patient_key", "patient_id", "path"] | None = Field(
        None, description="what id_column holds; null = by its name"
    )
    group_column: str | None = Field(None, description="column that names patients where the index does not know them")


class OnlineProbeConfig(Frozen):
    """Linear and k-NN probes of labelled training scans while a run goes on; see docs/diagnostics.md."""

    tasks: tuple[TaskConfig, ...] = Field((), description="label columns, as in `benchmark`; none = no online probe")
    index: Path | None = Field(None, description="index folder; needed when labels name samples by patient_id or path")
    every: int = Field(500, gt=0, description="steps; the fresh weights and the last ones are probed too")
    max_series: int = Field(512, ge=10, description="labelled series of a task that are used, at most")

    @model_validator(mode="after")
    def _names_differ(self) -> OnlineProbeConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have the same name")
        return self
